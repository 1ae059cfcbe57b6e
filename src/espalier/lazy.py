"""Names that are loaded when first asked for: torch takes longer to import than `espalier --help` may."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562). places: module of the package -> the names that it hands on,
    between spaces; `load:load_data` hands on `load` as `load_data`.
    """
    public = {}
    for module, names in places.items():
        for name in names.split():
            attribute, _, public_name = name.partition(":")
            public[public_name or attribute] = module, attribute

    def getattr_(name: str) -> Any:
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(public))}")
        module, attribute = public[name]
        return getattr(importlib.import_module(f"{package}.{module}"), attribute)

    return getattr_, lambda: sorted(public)
