"""Finds programs: models and inferences, by name on their shelf or by the path of a user's file."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

Kind = Literal["models", "inference"]
ENTRY: dict[Kind, str] = {"models": "model", "inference": "infer"}
"""The function that a program of each kind defines."""


def names(kind: Kind) -> list[str]:
    """The programs on a shelf."""
    package = importlib.import_module(f"espalier.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load(kind: Kind, name: str) -> Callable[..., Any]:
    """The entry function of a program: `model` or `infer`. A `name` that ends in `.py` is a user's own file.

    Raises ValueError for an unknown name (with the nearest), a file that is not there or one without its entry.
    """
    if kind not in ENTRY:
        raise ValueError(f"expected a kind of {', '.join(ENTRY)}, got {kind!r}")
    module = _from_file(kind, Path(name)) if name.endswith(".py") else _from_shelf(kind, name)
    entry: Callable[..., Any] | None = getattr(module, ENTRY[kind], None)
    if entry is None or not callable(entry):
        raise ValueError(f"expected {name} to define a function `{ENTRY[kind]}(...)`, and it does not")
    return entry


def summary(kind: Kind, name: str) -> str:
    """The first line of a program's docstring, read without importing it."""
    package = importlib.import_module(f"espalier.{kind}")
    spec = importlib.util.find_spec(f"{package.__name__}.{name}")
    assert spec is not None
    assert spec.origin is not None
    doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return (doc or "").split("\n", 1)[0]


def _from_shelf(kind: Kind, name: str) -> ModuleType:
    known = names(kind)
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        one = "a model" if kind == "models" else "an inference"
        raise ValueError(
            f"expected {one} of {', '.join(known)} or a file ending in .py, got {name!r}; {hint}".rstrip("; ")
        )
    return importlib.import_module(f"espalier.{kind}.{name}")


def _from_file(kind: Kind, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"expected a Python file with a function `{ENTRY[kind]}`, but {path} is not there")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"espalier_user_{kind}_{path.stem}_{digest[:16]}"  # the same content is run once
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look the module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(
            f"expected {path} to run as Python on its own, but: {type(error).__name__}: {error}"
        ) from error
    return module
