"""Where tasks run: processes here that may be killed, a Dask cluster that may lose a worker: one table."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import espalier
from commands import spoken
from espalier import runs, store
from espalier.grids import compare, report
from espalier.grids.grid import expand, read
from espalier.grids.workers import Cluster, Processes, workers
from hashed import timeless
from lines import CIGL, LINES, RIGL, InThisProcess, write
from places import HELPERS
from written import write_mnist


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


def leaves(item: int) -> None:
    sys.exit(item)


def test_a_task_that_leaves_is_a_failure_and_one_that_is_killed_in_its_sleep_is_replaced() -> None:
    with Processes(1) as processes:
        ((_, failure),) = processes(leaves, deque([3]))
        assert failure is not None
        assert failure.sentence == "SystemExit: 3"
        (idle,) = processes.idle
        os.kill(idle.pid.result(), signal.SIGKILL)
        while not idle.pool._broken:
            time.sleep(0.01)
        assert [item for item, _ in processes(leaves, deque([4]))] == [4]


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
def running(*words: str, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python with pipes, which does not outlive the test."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, *words], text=True, **pipes, **how)
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
    report.write(grid, outcome, path.read_bytes(), folder / "whole")
    return path, folder / "whole"


def assert_same_tables(one: Path, other: Path) -> None:
    assert timeless(one / "cells.csv") == timeless(other / "cells.csv")
    assert (one / "differences.csv").read_bytes() == (other / "differences.csv").read_bytes()
    assert (one / "table.md").read_bytes() == (other / "table.md").read_bytes()
    assert fits(one) == fits(other)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_dask_cluster_that_loses_a_worker_comes_to_the_same_table(long: tuple[Path, Path], tmp_path: Path) -> None:
    path, whole = long
    with running(str(HELPERS / "cluster.py"), "2") as cluster:
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


# ------------------------------------------------------------------------------------------------- whom a cluster trusts


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a Dask scheduler without workers."""
    with running(str(HELPERS / "cluster.py"), "0") as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def worker(scheduler: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Dask worker of one thread."""
    words = ["-m", "dask", "worker", scheduler, "--no-nanny", "--no-dashboard", "--nthreads", "1"]
    with running(*words, env={**os.environ, **environment}) as process:
        yield process


STUBS = {
    "none": ("raise ImportError('no such package')", r"cannot import it \(ImportError: no such package\)"),
    "another version": ("__version__ = '0.0.1'", "has espalier 0.0.1"),
    "half of it": (f"__version__ = {espalier.__version__!r}", r"cannot use them \(ModuleNotFoundError: .*espalier"),
}


def enter(scheduler: str, wait: float, *check: Callable[[], None]) -> None:
    with Cluster(scheduler, wait, *check):
        raise AssertionError("it has let us in")


@pytest.mark.parametrize("what", STUBS)
def test_a_worker_without_this_package_is_refused_before_any_task(what: str, scheduler: str, tmp_path: Path) -> None:
    text, sentence = STUBS[what]
    (tmp_path / "espalier.py").write_text(text)
    with worker(scheduler, PYTHONPATH=str(tmp_path)), pytest.raises(ValueError, match=sentence) as refused:
        enter(scheduler, PATIENCE)
    assert re.match(r"expected workers with espalier .* at tcp://\S+ (cannot|has)", str(refused.value))
    assert "\n" not in str(refused.value)


def test_a_cluster_without_workers_is_refused_in_time(scheduler: str) -> None:
    with pytest.raises(ValueError, match=f"^expected a worker at the Dask scheduler {scheduler}, got none within 0.5 seconds"):
        enter(scheduler, 0.5)


def test_a_worker_that_does_not_answer_is_refused_in_time(scheduler: str) -> None:
    sentence = "to answer within 0.5 seconds, and one did not"
    with worker(scheduler), Cluster(scheduler, PATIENCE), pytest.raises(ValueError, match=sentence):  # it is there
        enter(scheduler, 0.5, functools.partial(time.sleep, 5))


def test_a_worker_that_cannot_read_the_data_is_refused_before_any_run(
    scheduler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "here" / "mnist")
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path / "here"))
    path = write(tmp_path / "grid.yaml", base={"model": "mlp", "data": "mnist"}, methods={"RigL": RIGL})
    words = ["compare", str(path), "--out", str(tmp_path / "out"), "--scheduler", scheduler, "--wait", str(PATIENCE)]
    with worker(scheduler, ESPALIER_DATA=str(tmp_path / "elsewhere")):
        said = spoken(capsys, words)
    assert "cannot use them (" in said
    assert str(tmp_path / "elsewhere") in said
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_worker_that_joins_later_is_asked_before_its_first_task(scheduler: str, tmp_path: Path) -> None:
    (tmp_path / "espalier.py").write_text("__version__ = '0.0.1'")
    with worker(scheduler), Cluster(scheduler, PATIENCE) as each:
        ended = each(time.sleep, deque([0.0] + 100 * [5.0]))
        assert next(ended) == (0.0, None)
        with worker(scheduler, PYTHONPATH=str(tmp_path)), pytest.raises(ValueError, match="has espalier 0.0.1"):
            assert [*ended] == []


def test_a_cluster_that_all_workers_leave_is_given_up_in_time(scheduler: str) -> None:
    with worker(scheduler) as only, Cluster(scheduler, PATIENCE) as each:
        ended = each(time.sleep, deque([0.0, 1000.0]))
        assert next(ended) == (0.0, None)
        only.kill()
        only.wait()
        each.wait = 1.0
        with pytest.raises(ValueError, match="expected a worker at the Dask scheduler .*, got none within 1 seconds"):
            next(ended)


def test_a_scheduler_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected a Dask scheduler at tcp://127.0.0.1:9, got none"):
        enter("tcp://127.0.0.1:9", 0.5)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ((0, None), "expected 1 to 1024 jobs, got 0"),
        ((10**6, None), "expected 1 to 1024 jobs, got 1000000"),
        ((2, ""), "expected the address of a Dask scheduler"),
        ((2, "tcp://127.0.0.1:9", 0.0), "expected seconds to wait, above 0"),
        ((2, "tcp://127.0.0.1:9", float("nan")), "expected seconds to wait, above 0"),
    ],
)
def test_what_no_workers_can_be_is_refused(asked: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        workers(*asked)
