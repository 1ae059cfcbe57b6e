"""The order of the house, read from its folders: files are short, maps are whole, every module has its tests, and the
layers of pyproject.toml are kept by a linter that sees a breach."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espalier import shelf
from places import HELPERS, ROOT

HOUSE = ROOT / "src" / "espalier"
TESTS = ROOT / "tests"
SHELVES = tuple(shelf.ENTRY)
WINGS = sorted(path.parent.name for path in HOUSE.glob("*/__init__.py") if path.parent.name not in SHELVES)
MODULES = sorted(
    path.relative_to(HOUSE).as_posix()
    for path in [*HOUSE.glob("*.py"), *(file for wing in WINGS for file in (HOUSE / wing).glob("*.py"))]
    if not path.name.startswith("__")
)
FILES = {
    "src": (HOUSE.rglob("*.py"), 400),
    "tests": (TESTS.rglob("*.py"), 400),
    "models": ((ROOT / "models").glob("[!_]*.py"), 60),
    "inference": ((ROOT / "inference").glob("[!_]*.py"), 80),
}


def lines_of(folder: Path) -> dict[str, str]:
    """File -> the line of the folder's own docstring that names it."""
    documentation = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    return {name: line for line in documentation.splitlines() for name in re.findall(r"\b\w+\.py\b", line.split("(tested in")[0])}


# ------------------------------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests_of_its_name_or_its_wing_says_where(module: str) -> None:
    path = Path(module)
    own = TESTS / path.with_name(f"test_{path.name}")
    if own.exists():
        assert re.search(r"^(def|class) test|^class Test", own.read_text(), re.M | re.I)
        return
    said = re.search(r"\(tested in ([\w/.]+)\)", lines_of((HOUSE / module).parent).get(path.name, ""))
    assert said, f"expected {own.relative_to(ROOT)}, or `{path.name} ... (tested in test_x.py)` in its wing's docstring"
    assert (own.parent / said[1]).resolve().is_file()


def test_every_folder_of_tests_is_a_wing_or_a_shelf() -> None:
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders - {"helpers", "docs", "vendor"} <= {*WINGS, *SHELVES}


def test_every_helper_says_in_one_line_what_it_is() -> None:
    for path in HELPERS.glob("*.py"):
        documentation = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert 15 < len(documentation.splitlines()[0]) <= 120, path.name


# ------------------------------------------------------------------------------------------------------------- the maps


@pytest.mark.parametrize("kind", FILES)
def test_files_are_short_enough_to_be_read(kind: str) -> None:
    paths, limit = FILES[kind]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert lengths
    assert {path: length for path, length in lengths.items() if length > limit} == {}


@pytest.mark.parametrize("wing", WINGS)
def test_every_wing_names_its_files_and_no_others(wing: str) -> None:
    files = {path.name for path in (HOUSE / wing).glob("*.py") if not path.name.startswith("__")}
    assert set(lines_of(HOUSE / wing)) == files


def test_the_top_of_the_house_names_every_wing_and_module() -> None:
    documentation = inspect.getdoc(importlib.import_module("espalier")) or ""
    for name in (*WINGS, *SHELVES):
        assert re.search(rf"\b{name}\b", documentation), name
    for path in HOUSE.glob("[!_]*.py"):
        assert path.name in documentation or path.name == "lazy.py"


@pytest.mark.parametrize("wing", WINGS)
def test_no_wing_hands_on_a_name_that_hides_one_of_its_files(wing: str) -> None:
    package = importlib.import_module(f"espalier.{wing}")
    for path in (HOUSE / wing).glob("[!_]*.py"):
        module = importlib.import_module(f"espalier.{wing}.{path.stem}")
        assert getattr(package, path.stem) is module


# ----------------------------------------------------------------------------------------------------------- the layers


def linted(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(words, cwd=folder, env={"PYTHONPATH": str(folder / "src")}, capture_output=True, text=True)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the house whose imports may be broken."""
    for name in ("src", "models", "inference"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_imports_keep_the_layers() -> None:
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout


BREACHES = {
    "upwards": ("topology/masks.py", "from espalier.training.loop import Loop", "each room only uses what stands below it"),
    "torch": ("calibration/scores.py", "import torch", "from arrays to numbers without torch"),
    "torch from below": ("calibration/scores.py", "import espalier.contracts", "from arrays to numbers without torch"),
    "pyro": ("topology/schedules.py", "import pyro", "topologies and words know no Pyro"),
    "a program": ("runs/folder.py", "import espalier.inference.cigl", "the machinery imports no program"),
    "between programs": ("inference/rigl.py", "import espalier.inference.cigl", "no program imports another"),
}


@pytest.mark.parametrize("what", BREACHES)
def test_an_import_that_breaks_the_layers_is_seen(what: str, house: Path) -> None:
    file, line, contract = BREACHES[what]
    path = house / "src" / "espalier" / file
    path.write_text(f"{path.read_text()}\n\n{line}\n")
    done = linted(house)
    assert done.returncode != 0
    assert re.search(rf"^{re.escape(contract)} BROKEN", done.stdout, re.M), done.stdout


NUMBERS = ("calibration", *(f"certificates.{name}" for name in ("pvalues", "risks", "selection", "certificate")))


@pytest.mark.parametrize("name", NUMBERS)
def test_functions_from_arrays_to_numbers_load_no_torch(name):
    # import-linter reads the imports; this runs them, with those of the folders above
    code = f"import sys, espalier.{name}; sys.exit('torch' in sys.modules)"
    path = {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=path, check=False, timeout=120).returncode == 0
