"""Files that are whole or absent: tensors as safetensors with a JSON header, JSON, never pickle. Folders that one process has.

Every write goes to a temporary file beside its destination, is flushed to the disk and then renamed over it, so a kill at
any instant leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

LOCK = ".espalier.lock"
"""In every folder that a command writes into: held while one does, and the sign that the folder is Espalier's."""
PATIENCE = 1.0
"""Seconds to wait for a folder: the helpers of a process that was killed may hold it a moment longer."""


class Bundle(NamedTuple):
    """What one file holds: named tensors, and facts that JSON can say."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, indent 2, no NaN; equal values give equal text."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False, default=_own) + "\n"


def _own(value: Any) -> Any:
    """A number of NumPy's as Python has it."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_free(folder: Path, writes: Sequence[str] = ()) -> None:
    """Raises ValueError where `folder` is a file, or holds one of the files `writes` that Espalier did not write."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder, but {folder} is a file: choose another --out")
    if not (folder / LOCK).exists():
        for name in writes:
            if (folder / name).exists():
                raise ValueError(
                    f"expected a new folder, or one that this command wrote before, but {folder} holds {name}, which would be "
                    "overwritten: choose another --out, or move it away"
                )


@contextmanager
def owned(folder: Path, writes: Sequence[str] = ()) -> Iterator[None]:
    """A folder as this process's own for the while, made if need be. The lock ends with the process, however that ends. What
    a kill left half-written there is removed.

    Raises ValueError where another process has it, and as `check_free` does.
    """
    check_free(folder, writes)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=PATIENCE, is_singleton=True)  # the same thread may take it twice
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"expected {folder} to be free, but another process is at work in it: wait for its end, or choose another folder"
        ) from error
    try:
        remove_orphans(folder)
        yield
    finally:
        lock.release()


def remove_orphans(folder: Path) -> None:
    """Delete the temporary files that a kill in the middle of `write_bytes` left; those of the living are theirs."""
    for path in folder.glob(".*"):
        found = re.fullmatch(r"\..+\.tmp-(?:([0-9]+)-)?[0-9a-f]{8}", path.name)
        if found and not (found[1] and _lives(int(found[1]))):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Is there another process of this number, here?"""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def write_bundle(path: Path, bundle: Bundle) -> str:
    """Write tensors and facts into one safetensors file, atomically. Returns its SHA-256."""
    data = _bytes_of(bundle)
    write_bytes(path, data)
    return sha256(data)


def add_bundle(folder: Path, bundle: Bundle) -> str:
    """Write a bundle into a folder under the name of its content, unless it is there. Returns its SHA-256."""
    data = _bytes_of(bundle)
    digest = sha256(data)
    path = folder / name_of(digest)
    if not path.is_file() or sha256(path.read_bytes()) != digest:
        write_bytes(path, data)
    return digest


def added_bundle(folder: Path, digest: str) -> Bundle:
    """Read what `add_bundle` wrote. Raises ValueError where it is missing or altered."""
    path = folder / name_of(digest)
    if not path.is_file() or sha256(path.read_bytes()) != digest:
        raise ValueError(f"expected {path} as it was written, but it is missing or was altered")
    return read_bundle(path)


def name_of(digest: str) -> str:
    return f"{digest[:16]}.safetensors"


def _bytes_of(bundle: Bundle) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(bundle.tensors.items())}
    return save(_unshared(tensors), metadata={"facts": json.dumps(bundle.facts, sort_keys=True, allow_nan=False, default=_own)})


def read_bundle(path: Path) -> Bundle:
    """Read what `write_bundle` wrote. Raises ValueError, in one sentence, for a truncated or foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            # Copied into memory of torch's own alignment: a sum over tensors that stand where the file has them may round
            # otherwise than the same sum did before they were written.
            return Bundle({name: file.get_tensor(name).clone() for name in file.keys()}, facts)  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected {path} to be a whole file of Espalier's, but it is cut short or altered ({error})"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read any safetensors file, pretrained weights say. Raises ValueError, in one sentence, where it is not one."""
    if not path.is_file():
        raise ValueError(f"expected a safetensors file, but {path} is not there")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"expected {path} to be a safetensors file ({error}): convert it with safetensors.torch"
        ) from error


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's values."""
    return sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def read_json(path: Path) -> Any:
    """Read JSON. Raises ValueError, in one sentence, where it is not."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected {path} to be JSON, but it is cut short or altered ({error})") from error


class Ledger:
    """Results by name, a line of JSON each, on the disk as soon as each is there: what a long study goes on from.

    file: None keeps them for this process. A last line that a kill cut short counts as not written. Raises ValueError for a file
    with any other line that is not a name and a result, a whole one without an end too: it is not ours to be cut off.
    """

    def __init__(self, file: Path | None) -> None:
        self.file, self.known = file, dict[str, Any]()
        text = file.read_bytes() if file is not None and file.is_file() else b""
        *lines, self.torn = text.split(b"\n")
        if self.torn and not (self.torn.startswith(b'["'[: len(self.torn)]) and not _is_json(self.torn)):
            lines, self.torn = [*lines, self.torn], b""
        for line in lines:
            try:
                name, result = json.loads(line)
                if not isinstance(name, str):
                    raise ValueError("a name is a word")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"expected lines [name, result] in {file}, got {ascii(line[:60])}: mend it, or choose another file"
                ) from error
            self.known[name] = result

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        """What is known of `name`; else what `work` gives, as JSON has it, which is known from then on."""
        if name not in self.known:
            line = json.dumps([name, work()], default=_own)
            if self.file is not None:
                self._append(self.file, line)
            self.known[name] = json.loads(line)[1]
        return self.known[name]

    def _append(self, file: Path, line: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as out:
            end = out.seek(0, os.SEEK_END) - len(self.torn)
            out.seek(max(0, end))
            if self.torn and out.read() == self.torn:  # else another process has written since
                out.truncate(end)
            self.torn = b""
            end = out.seek(0, os.SEEK_END)
            out.seek(max(0, end - 1))
            ended = out.read() in (b"", b"\n")
            out.write(f"{line}\n".encode() if ended else f"\n{line}\n".encode())


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def signed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with a SHA-256 of their canonical text beside them, so that a changed one shows."""
    return {**facts, "sha256": sha256(canonical(dict(facts)).encode())}


def check_signed(path: Path) -> dict[str, Any]:
    """Read a `signed` JSON file. Raises ValueError where its text does not fit its digest."""
    facts = read_json(path)
    if not isinstance(facts, dict) or facts.pop("sha256", None) != sha256(canonical(facts).encode()):
        raise ValueError(
            f"expected {path} as it was written, but its content does not fit its own SHA-256: it was altered"
        )
    return facts


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory; small copies are the price of a plain dict."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen and tensor.numel() else tensor
        seen.add(pointer)
    return result
