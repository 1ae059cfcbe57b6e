"""The guide is built strictly: a broken link, anchor or name fails. The reference leaves no public name out."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install espalier[docs]")
pytest.importorskip("mkdocstrings_handlers", reason="mkdocstrings is not installed: pip install espalier[docs]")

WINGS = sorted(path.parent for path in (ROOT / "src" / "espalier").glob("*/__init__.py"))
SHELVES = ("models", "inference")


def build(checkout: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(checkout / "built")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=checkout, env=quiet, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is built from."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("docs", "src", "models", "inference", "examples"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    return folder


def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(checkout: Path) -> None:
    done = build(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((checkout / "built").rglob("*.html"))
    assert len(pages) >= 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img)[^>]+src="(?:https?:)?//', text) == []
        assert re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//', text) == []


BROKEN = {
    "links": {
        ("](predict.md)", "](predicts.md)"): "contains a link 'predicts.md'",
        ("](index.md#the-claim)", "](index.md#the-claims)"): "does not contain an anchor '#the-claims'",
        ("[espalier.calibration]", "[espalier.calibrations]"): "target 'espalier.calibrations'",
    },
    "names": {("::: espalier.store", "::: espalier.stores"): "espalier.stores could not be found"},
}
"""What is written, and what instead -> what the build says. A name that is not there ends it before it looks at links."""


@pytest.mark.parametrize("kind", BROKEN)
def test_what_leads_nowhere_fails_the_build(kind: str, checkout: Path) -> None:
    before = {page: page.read_text(encoding="utf-8") for page in (checkout / "docs").rglob("*.md")}
    for written, instead in BROKEN[kind]:
        page = next(page for page, text in before.items() if written in text)
        page.write_text(page.read_text(encoding="utf-8").replace(written, instead), encoding="utf-8")
    try:
        done = build(checkout)
    finally:
        for page, text in before.items():
            page.write_text(text, encoding="utf-8")
    assert done.returncode != 0
    for says in BROKEN[kind].values():
        assert says in " ".join((done.stdout + done.stderr).split())


def public_names(init: Path) -> set[str]:
    """What a wing hands on: `from espalier.wing.module import name as name`."""
    tree = ast.parse(init.read_text(encoding="utf-8"))
    found = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {alias.name for alias in found if alias.asname == alias.name}


@pytest.mark.parametrize(
    "wing", [wing for wing in WINGS if public_names(wing / "__init__.py")], ids=lambda wing: wing.name
)
def test_the_reference_leaves_no_public_name_out(wing: Path) -> None:
    page = (ROOT / "docs" / "api" / f"{wing.name}.md").read_text(encoding="utf-8")
    (members,) = re.findall(
        rf"^::: espalier\.{wing.name}\n    options:\n      members: \[([^\]]*)\]", page, re.MULTILINE
    )
    assert {name.strip() for name in members.split(",")} == public_names(wing / "__init__.py")


@pytest.mark.parametrize("shelf", SHELVES)
def test_the_reference_has_every_program(shelf: str) -> None:
    page = (ROOT / "docs" / "api" / f"{shelf}.md").read_text(encoding="utf-8")
    programs = {path.stem for path in (ROOT / shelf).glob("[!_]*.py")}
    assert set(re.findall(rf"^::: espalier\.{shelf}\.(\w+)$", page, re.MULTILINE)) == programs


def test_make_docs_is_the_strict_build() -> None:
    plan = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "mkdocs build --strict\n" in plan.stdout  # not --quiet, which drops the warnings that strict counts


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in menu


def test_the_walk_of_a_newcomer_ends_at_the_lines_that_draw_z() -> None:
    house = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    walk = house.split("## The walk of a newcomer")[1].split("\n## ")[0]
    stops = re.findall(r"^\| `([\w/.]+)` \|", walk, re.MULTILINE)
    assert stops[0] == "Makefile"
    assert len(stops) == 10
    for stop in stops:
        assert (ROOT / stop).is_file(), stop
    lines = walk.split("```text\n")[1].split("```")[0].splitlines()
    drawn = (ROOT / stops[-1]).read_text(encoding="utf-8")
    assert all(line.strip() in drawn for line in lines)


def test_the_picture_of_the_front_page_is_drawn_from_the_tables(tmp_path: Path) -> None:
    script = ROOT / "docs" / "pictures" / "claim.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "claim.png")], check=True, capture_output=True)
    assert (tmp_path / "claim.png").stat().st_size > 20_000
