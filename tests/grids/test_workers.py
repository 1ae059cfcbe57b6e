"""Where tasks run: processes here that may be killed, a Dask cluster that may lose a worker: one table."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from espalier import runs, store
from espalier.grids import compare, report
from espalier.grids.grid import expand, read
from espalier.grids.workers import workers
from lines import CIGL, LINES, RIGL, InThisProcess, write
from places import HELPERS


def timeless(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]


def fits(out: Path) -> dict[str, str]:
    return {path.parent.name: store.sha256(path.read_bytes()) for path in sorted(out.glob("runs/*/fit.safetensors"))}


FRAGILE = '''"""RigL that fails or dies at one seed, as long as a file is there."""

import os
import signal
from pathlib import Path

from espalier import shelf
from espalier.training import Training

HERE = Path({folder!r})


def infer(model, data, *, sparsity: float = 0.9, training: Training = Training(), seed: int = 0, watch=None):
    """sparsity: of the weights. seed: of everything."""
    if seed == 1 and (HERE / "fails").exists():
        raise RuntimeError("out of luck")
    if seed == 1 and (HERE / "dies").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    own = shelf.load("inference", "rigl")
    return own(model, data, sparsity=sparsity, training=training, seed=seed, watch=watch, delta_t=4)
'''


def test_a_run_that_fails_or_dies_is_reported_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE.format(folder=str(tmp_path)))
    base = {k: v for k, v in LINES["base"].items() if k != "delta_t"}
    methods = {"RigL": RIGL, "Fragile": {"run": {"inference": "fragile.py"}, "predict": "unmasked"}}
    lines = LINES | {"base": base, "methods": methods, "sparsities": [0.5], "seeds": [0, 1]}
    grid, out = expand(lines, tmp_path), tmp_path / "out"
    (bad,) = (cell for cell in grid.cells if (cell.method, cell.seed) == ("Fragile", 1))

    (tmp_path / "fails").touch()
    outcome = compare.compare(grid, out, InThisProcess())
    assert outcome.failures == {bad.name: "RuntimeError: out of luck"}
    assert "raise RuntimeError" in (out / "errors" / f"{bad.runs[0]}.txt").read_text()
    assert outcome.differences["Fragile", "RigL", (), 0.5][0] == (0,)
    page = report.summary(grid, outcome)
    assert f"| {bad.name} | RuntimeError: out of luck |" in page
    assert "| 1 of 2 |" in page

    (tmp_path / "fails").rename(tmp_path / "dies")
    told: list[tuple[str, str, str | None]] = []
    outcome = compare.compare(grid, out, workers(2, None), lambda *what: told.append(what))
    assert [(what, name) for what, name, _ in told] == [("run", bad.runs[0])]
    assert "killed from outside" in outcome.failures[bad.name]

    (tmp_path / "dies").unlink()
    outcome = compare.compare(grid, out, InThisProcess())
    assert outcome.failures == {}
    assert outcome.differences["Fragile", "RigL", (), 0.5][0] == (0, 1)
    assert not list((out / "errors").iterdir())


PATIENCE = 600.0
"""Seconds that a process may take on a busy machine: on an idle one it takes ten."""
LONG: dict[str, Any] = {
    "base": {"model": "mlp", "hidden": [64], "data": "digits", "batch_size": 10, "delta_t": 50, "epochs": 6},
    "sparsities": [0.8],
    "methods": {"RigL": RIGL, "CigL": {"run": CIGL, "predict": "ticket"}},
}


@contextmanager
def running(*words: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python with pipes, which does not outlive the test."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, *words], text=True, cwd=cwd, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def comparing(path: Path, out: Path, *words: str) -> list[str]:
    code = "from espalier.cli.main import main; raise SystemExit(main())"
    return ["-c", code, "compare", str(path), "--out", str(out), "--checkpoint-every", "0", *words]


def halfway(out: Path) -> list[str]:
    """Runs that are under way: a checkpoint and no record."""
    return [p.parent.name for p in out.glob("runs/*/checkpoint.safetensors") if not runs.finished(p.parent)]


def wait_for(holds: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "the machine is too busy, or it hangs"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A grid of four runs of some seconds each, and where it was done in one go."""
    folder = tmp_path_factory.mktemp("long")
    path = write(folder / "long.yaml", **LONG)
    grid = read(path)
    outcome = compare.compare(grid, folder / "whole", InThisProcess())
    report.write(grid, outcome, path, folder / "whole")
    return path, folder / "whole"


def assert_same_tables(one: Path, other: Path) -> None:
    assert timeless(one / "cells.csv") == timeless(other / "cells.csv")
    assert (one / "differences.csv").read_bytes() == (other / "differences.csv").read_bytes()
    assert (one / "table.md").read_bytes() == (other / "table.md").read_bytes()
    assert fits(one) == fits(other)


def test_a_grid_that_was_killed_goes_on_to_the_same_table(long: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = long
    with running(*comparing(path, tmp_path / "out", "--jobs", "1")) as process:
        wait_for(lambda: halfway(tmp_path / "out"), process)
    (cut,) = halfway(tmp_path / "out")
    checkpoint = tmp_path / "out" / "runs" / cut / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    time.sleep(1)
    assert checkpoint.read_bytes() == before, "its workers end with it: nobody goes on in secret"
    with running(*comparing(path, tmp_path / "out")) as process:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
    assert "## Won / tied / lost against RigL" in out
    assert "table.md" in out
    assert "run 4/4" in err
    assert_same_tables(tmp_path / "out", whole)
    assert (
        json.loads((tmp_path / "out" / "runs" / cut / "progress.json").read_text())["epoch"] == LONG["base"]["epochs"]
    )


def test_a_dask_cluster_that_loses_a_worker_comes_to_the_same_table(long: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = long
    with running(str(HELPERS / "cluster.py")) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert address.startswith("tcp://")
        with running(
            *comparing(path, Path("out"), "--scheduler", address), cwd=tmp_path
        ) as process:  # workers stand elsewhere
            wait_for(lambda: halfway(tmp_path / "out"), process)
            print("kill", file=cluster.stdin, flush=True)
            assert cluster.stdout.readline() == "killed at work\n"
            assert halfway(tmp_path / "out")
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
            assert "failed" not in err
        cluster.communicate(timeout=PATIENCE)  # at the end of its input it closes
    assert_same_tables(tmp_path / "out", whole)


def test_a_scheduler_that_is_not_there_is_a_sentence() -> None:
    words = [sys.executable, "-c", "from espalier.grids.workers import Cluster\nwith Cluster('tcp://127.0.0.1:9', 0.5): pass"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "ValueError: expected a Dask scheduler at tcp://127.0.0.1:9, got none" in done.stderr
