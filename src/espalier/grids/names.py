"""What runs and cells are called: by all that they depend on (tested in test_grid.py)."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from espalier import data, store
from espalier.data.images import names_below
from espalier.data.noise import file_of
from espalier.nested import plain
from espalier.runs.recipes import Recipe, options

LONGEST = 150
"""Letters of a name before its seed and digest: a file system allows 255, with what a temporary file adds."""


def run_name(recipe: Recipe, sparsity: float) -> str:
    """Readable, and told apart by all that the run depends on and that is not at its default, so that an option which a later
    version brings renames no run. Files count by content, a folder of images by names and sizes, where named sets lie not at
    all."""
    usual = _defaults(recipe.model, recipe.inference)
    config = {
        name: identity(name, value) for name, value in plain(recipe.config()).items()
        if name != "data_dir" and (name not in usual or value != usual[name])
    }  # fmt: skip
    parts = [*(Path(name).stem for name in (recipe.inference, recipe.model, recipe.data)), f"{sparsity:g}"]
    return f"{slug('-'.join(parts))}-s{recipe.options['seed']}-{digest_of(config)}"


@functools.cache
def _defaults(model: str, inference: str) -> dict[str, Any]:
    return {option.name: plain(option.default) for option in options(model, inference)}


def identity(name: str, value: Any) -> Any:
    if name == "label_noise" and (noise := file_of(value)) and noise[0].is_file():
        return [_file_digest(str(noise[0]), noise[0].stat().st_mtime_ns), noise[1]]
    if name not in ("model", "inference", "data", "init") or not isinstance(value, str):
        return value
    path = Path(value)
    if path.is_file():
        return _file_digest(value, path.stat().st_mtime_ns)
    if name == "data" and value not in data.names() and path.is_dir():  # as its splits' hashes have it
        return folder_digest(value)
    return value


@functools.cache
def folder_digest(path: str) -> str:
    """Of the names and sizes of what a folder of images is read as; once for a grid."""
    return digest_of([(name, (Path(path) / name).stat().st_size) for name in names_below(Path(path))])


@functools.cache
def _file_digest(path: str, _: int) -> str:
    return store.sha256(Path(path).read_bytes())


def digest_of(value: Any) -> str:
    return store.sha256(store.canonical(value).encode())[:10]


def slug(text: str) -> str:
    """Lower case, digits, dots and hyphens: good in a file's name, and no longer than leaves room for what is added to it."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:LONGEST].strip("-.")
