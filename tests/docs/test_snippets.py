"""Every shell line and every snippet of the README and the guide runs, in the order of its page.

A page is run from top to bottom in a folder of its own that holds `examples/`, `models/`, `inference/` and the finished run
`runs/a` of docs/runs.md: Python blocks in one namespace, shell blocks through bash. A comment above a block may say

    <!-- test: slow -->                what it needs, or that it is slow: see RULES
    <!-- test: exit 2 -->              the exit code that is right
    <!-- file: NAME -->                that it is the content of a file, which the lines below may use
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from places import ROOT, SHARED

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
READY = Path(__file__).with_name("ready.py")
DATA = os.environ.get("ESPALIER_DATA") or str(SHARED / "data")
FASHION = any((Path(DATA) / folder).is_dir() for folder in ("fashion-mnist", "FashionMNIST/raw"))
RULES = {
    "slow": None,
    "two processes": None,
    "needs fashion-mnist": None if FASHION else "Fashion-MNIST is not here: set ESPALIER_DATA to a folder that has it",
    "needs gpu": None if torch.cuda.is_available() else "no CUDA device is here",
    "needs the network": "it downloads from a public address",
    "needs a Dask scheduler": "it wants a cluster that is already there; tests/grids runs one",
    "dry run, as they build an environment and run these tests": "only looked at",
    "dry run, as it installs packages": "only looked at",
}
"""What a block may need -> why it is not run here, or None where it is."""
RUN, SEEN = {"python", "bash"}, {"text", "yaml"}
"""Languages of blocks that are run, and of those that are looked at."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    exit: int = 0
    file: str | None = None

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run here."""
        return next((RULES[need] for need in self.needs if RULES[need]), None)

    @property
    def slow(self) -> bool:
        return "slow" in self.needs


FENCE = re.compile(
    r"(?:^<!-- (?P<what>test|file): (?P<said>[^>]+) -->\n)?^(?P<ticks>`{3,}) *(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> list[Block]:
    found, text = [], page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("ticks")) + 1
        block = Block(page, line, match["language"].strip(), match["text"])
        said = [part.strip() for part in (match["said"] or "").split(";") if part.strip()]
        if match["what"] == "file":
            block = block._replace(file=said[0])
        else:
            codes = [int(part.removeprefix("exit ")) for part in said if part.startswith("exit ")]
            needs = tuple(part for part in said if not part.startswith("exit "))
            block = block._replace(needs=needs, exit=codes[0] if codes else 0)
        found.append(block)
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUNNING = [page for page in PAGES if any(block.page == page and block.language in RUN for block in BLOCKS)]
SLOW = [page for page in RUNNING if any(block.slow and not block.reason for block in BLOCKS if block.page == page)]


def name_of(page: Path) -> str:
    return page.name


# ------------------------------------------------------------------------------------------------------------- the laws


def test_no_block_is_without_a_runner() -> None:
    assert [block.where for block in BLOCKS if block.language not in RUN | SEEN] == []
    fences = sum(len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS)
    for block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text), block.where
            assert block.file, f"{block.where}: which file is it?"


def test_a_block_says_only_what_there_is_a_rule_for() -> None:
    assert {need for block in BLOCKS for need in block.needs} <= set(RULES)
    comments = sum(len(re.findall(r"<!-- (?:test|file):", page.read_text(encoding="utf-8"))) for page in PAGES)
    assert comments == sum(bool(block.needs or block.exit or block.file) for block in BLOCKS), (
        "a comment without its block"
    )


def test_few_blocks_are_never_run_and_most_are_fast() -> None:
    run = [block for block in BLOCKS if block.language in RUN and not block.file]
    never = [block.where for block in run if set(block.needs) & {"needs the network", "needs a Dask scheduler"}]
    looked_at = [block.where for block in run if any(need.startswith("dry run") for need in block.needs)]
    assert len(never) <= 2, never
    assert len(looked_at) <= 2, looked_at
    fast = [block for block in run if not block.needs]
    assert len(fast) >= 0.7 * len(run)
    assert len(run) >= 40


@pytest.mark.parametrize("page", [ROOT / "README.md"], ids=name_of)
def test_the_front_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 150


def test_links_of_the_front_page_lead_somewhere() -> None:
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []
    assert len(links) >= 12


OWN = {"config.yaml", "grid.yaml", "inference.py", "mine.py", "model.py", "narrow.py", "rates.yaml"}
"""Files of a run folder, or that a page makes."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    folders = [ROOT / name for name in ("src", "models", "inference", "examples", "docs", "tests")]
    files = {str(file.relative_to(ROOT)) for folder in folders for file in folder.rglob("*.*")}
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(?:python )?([\w/*-]+\.(?:py|yaml|toml))`", text)) - OWN
    for name in named:
        assert (ROOT / name).exists() or any(fnmatch(file, f"*/{name}") or fnmatch(file, name) for file in files), name


def test_what_is_only_looked_at_is_right_as_far_as_looking_goes() -> None:
    for block in BLOCKS:
        if any(need.startswith("dry run") for need in block.needs):
            subprocess.run(["bash", "-n", "-c", block.text], check=True)
            for target in re.findall(r"^make (\w+)", block.text, re.MULTILINE):
                plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
                assert ".venv/bin/" in plan.stdout


# ---------------------------------------------------------------------------------------------------------- running them


class Ready(NamedTuple):
    """The process of ready.py, a folder of commands that go to it, and the finished run that the pages speak of."""

    address: str
    commands: Path
    home: Path

    def environment(self) -> dict[str, str]:
        known = {"OMP_NUM_THREADS": "1", "ESPALIER_DATA": DATA, "MPLBACKEND": "agg"}
        path = f"{self.commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **known, "PATH": path}

    def page(self, run: list[Block], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run blocks in a folder like the one that the pages speak of."""
        shutil.copytree(self.home, folder, dirs_exist_ok=True, symlinks=True)
        steps = folder / ".page.json"
        steps.write_text(json.dumps([step_of(block) for block in run]), encoding="utf-8")
        words = [sys.executable, str(READY), "page", self.address, str(steps)]
        return subprocess.run(
            words, cwd=folder, env=self.environment(), capture_output=True, text=True, timeout=900, check=False
        )


def step_of(block: Block) -> dict[str, Any]:
    kind = "file" if block.file else block.language
    return {"kind": kind, "where": block.where, "text": block.text, "exit": block.exit, "name": block.file}


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    top = tmp_path_factory.mktemp("ready")
    address, commands, home = str(top / "socket"), top / "bin", top / "home"
    commands.mkdir()
    for name in ("espalier", "python"):
        command = commands / name
        command.write_text(f'#!/bin/bash\nexec {sys.executable} -S -E {READY} {name} {address} "$@"\n')
        command.chmod(0o755)
    for name in ("examples", "models", "inference"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    server = subprocess.Popen([sys.executable, str(READY), "serve", address], env=environment)
    try:
        for _ in range(3000):
            assert server.poll() is None, "the process that runs the pages has ended"
            if Path(address).exists():
                break
            time.sleep(0.1)
        found = Ready(address, commands, home)
        line = next(
            line for block in blocks(ROOT / "docs" / "runs.md") for line in block.text.splitlines() if "runs/a" in line
        )
        subprocess.run(["bash", "-c", line], cwd=home, env=found.environment(), check=True, capture_output=True)
        yield found
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_the_fast_blocks_of_the_page_run(page: Path, ready: Ready, tmp_path: Path) -> None:
    run = [block for block in blocks(page) if block.language in RUN or block.file]
    run = [block for block in run if not block.reason and not block.slow]
    forget_the_run(page, ready.page, tmp_path / "here", run)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_the_whole_page_runs(page: Path, ready: Ready, tmp_path: Path) -> None:
    run = [block for block in blocks(page) if block.language in RUN or block.file]
    forget_the_run(page, ready.page, tmp_path / "here", [block for block in run if not block.reason])


def forget_the_run(page: Path, runner: Any, folder: Path, run: list[Block]) -> None:
    """The page that makes `runs/a` finds none; any other page finds it finished."""
    done = runner([Block(page, 0, "bash", "rm -rf runs/a")] + run if page.name == "runs.md" else run, folder)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason], ids=lambda block: block.where)
def test_a_block_that_is_not_run_here_says_why(block: Block) -> None:
    if any(need.startswith("dry run") for need in block.needs):
        return
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    pytest.skip(str(block.reason))
