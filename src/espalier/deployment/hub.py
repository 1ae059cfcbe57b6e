"""Up to a hub and down from it, through huggingface_hub: files of these names alone, none of which is code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS, CARD, ONNX = "config.json", "model.safetensors", "README.md", "model.onnx"
FILES = (CONFIG, WEIGHTS, CARD, ONNX)
"""What an exported folder holds; the last one where it is asked for."""
_ID = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(
    source: str | Path, *, revision: str | None = None, token: str | None = None, endpoint: str | None = None
) -> Path:
    """An exported folder: the one at this path, or that of a hub's id, `owner/name`, as downloaded into the hub's cache.

    Raises ValueError for what is neither, and where the hub has no such files; RuntimeError without huggingface_hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or not _ID.fullmatch(str(source)):
        raise ValueError(f"expected an exported folder or a hub's id, owner/name, got {source}: `espalier export` makes one")
    hub = _hub(f"{source}, which is no folder here, from a hub")
    options = {"revision": revision, "token": token, "endpoint": endpoint}
    try:
        return Path(hub.snapshot_download(str(source), allow_patterns=[CONFIG, WEIGHTS], **options))
    except Exception as error:  # of the hub, of its client or of the wire
        raise ValueError(
            f"expected a folder here, or a model that the hub gives to you, got {source}: {_first_line(error)}"
        ) from error


def push_to_hub(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Espalier",
) -> str:
    """Upload an exported folder to a hub, `repo` being `owner/name`, which is made if need be; returns the address of the commit.

    token: None takes the one that `hf auth login` keeps. endpoint: of a hub of one's own. Of the folder, `FILES` alone are sent.
    Raises ValueError where the folder is no exported one, or the hub refuses.
    """
    folder = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS, CARD) if not (folder / name).is_file()]:
        raise ValueError(f"expected an exported folder, but {folder} has no {missing[0]}: `espalier export` makes one")
    hub = _hub(f"{folder} to a hub")
    api = hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        gone = [name for name in FILES if not (folder / name).is_file()]  # of an earlier network
        sent = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(FILES), delete_patterns=gone or None, commit_message=message
        )
    except Exception as error:
        raise ValueError(f"expected a hub that takes {repo} from you, but: {_first_line(error)}") from error
    return str(sent.commit_url)


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeError(f"expected huggingface_hub to bring {what}: pip install 'espalier[hub]'") from error
    return huggingface_hub


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
