"""Names that are loaded when first asked for: from their module, no earlier, and the ones that type checkers see."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

from places import ROOT

LAZY = {name: f"src/{name.replace('.', '/')}/__init__.py" for name in ("espalier", "espalier.adapters", "espalier.certificates")}
"""Every package whose names are loaded lazily."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of two modules, `near` with `one` and `load`, `far` that fails when it is imported."""
    folder = tmp_path / "idle"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from espalier.lazy import lazily\n"
        "__getattr__, __dir__ = lazily(__name__, {'near': 'one load:load_near', 'far': 'two'})\n"
    )
    (folder / "near.py").write_text("one = object()\ndef load(): return one\n")
    (folder / "far.py").write_text("raise RuntimeError('too early')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "idle"
    for name in [name for name in sys.modules if name.split(".")[0] == "idle"]:
        del sys.modules[name]


def test_a_module_is_loaded_by_the_first_of_its_names_that_is_asked_for(package: str) -> None:
    idle = importlib.import_module(package)
    assert not {"idle.near", "idle.far"} & set(sys.modules)
    one = idle.one
    assert "idle.near" in sys.modules
    assert one is sys.modules["idle.near"].one
    assert "idle.far" not in sys.modules
    with pytest.raises(RuntimeError, match="too early"):
        _ = idle.two


def test_a_name_may_be_handed_on_as_another(package: str) -> None:
    idle = importlib.import_module(package)
    assert idle.load_near() is idle.one
    assert not hasattr(idle, "load")


def test_an_unknown_name_is_answered_with_those_there_are(package: str) -> None:
    idle = importlib.import_module(package)
    assert dir(idle) == ["load_near", "one", "two"]
    with pytest.raises(AttributeError, match="module 'idle' has no attribute 'three'; it has load_near, one, two$"):
        _ = idle.three


@pytest.mark.parametrize("name", LAZY)
def test_what_is_handed_on_is_what_type_checkers_see(name: str) -> None:
    tree = ast.parse((ROOT / LAZY[name]).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in block.body:  # a name that is handed on as another is assigned: type checkers take no other import for it
        if isinstance(node, ast.Assign):
            public, private = ast.unparse(node.targets[0]), ast.unparse(node.value)
            for new, old in zip(public.strip("()").split(", "), private.strip("()").split(", "), strict=True):
                seen[new] = seen.pop(old)
    package = importlib.import_module(name)
    assert sorted(package.__dir__()) == sorted(seen, key=str)
    for public, (module, attribute) in seen.items():
        assert module is not None
        assert getattr(package, str(public)) is getattr(importlib.import_module(module), attribute), public


def test_every_lazy_package_is_tested_here() -> None:
    lazy = {path for path in (ROOT / "src").rglob("__init__.py") if "lazily(" in path.read_text()}
    assert lazy == {ROOT / path for path in LAZY.values()}
