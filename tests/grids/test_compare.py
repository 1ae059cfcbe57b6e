"""`espalier compare`: cells are what their runs predict, nothing is done twice, nothing sinks the rest, all ways agree."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import yaml

from espalier import calibration, runs, store
from espalier.calibration import calibrators, comparison
from espalier.cli.main import main
from espalier.grids import compare, report
from espalier.grids.grid import Grid, expand, read
from espalier.grids.workers import Failure, attempt, workers
from espalier.prediction import costs
from espalier.prediction.evaluation import predictions
from places import HELPERS

RIGL = {"run": {"inference": "rigl"}, "predict": "unmasked"}
CIGL = {"inference": "cigl", "drop_rate": 0.2}
LINES: dict[str, Any] = {
    "base": {
        "model": "mlp",
        "hidden": [16],
        "data": "digits",
        "train_size": 300,
        "batch_size": 50,
        "delta_t": 4,
        "epochs": 6,
    },
    "sparsities": [0.8],
    "seeds": [0, 1],
    "methods": {
        "RigL": RIGL,
        "RigL + TS": {**RIGL, "calibrate": "temperature"},
        "MC-DP": {"run": CIGL, "predict": "redraw"},
        "CigL": {"run": CIGL, "predict": "ticket"},
        "CigL w/o WMA": {"run": CIGL, "predict": "pairs"},
        "Ensemble of 2": {**RIGL, "members": 2},
    },
    "num_samples": 4,
}


class InThisProcess:
    """Workers that are this process, and remember what they did."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, task: Callable[[Any], None], items: Iterable[Any]) -> Iterator[tuple[Any, Failure | None]]:
        for item in items:
            self.did.append(item)
            yield item, attempt(task, item)


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(LINES | changes, sort_keys=False))
    return path


def tables(grid: Grid, outcome: compare.Outcome) -> tuple[bytes, bytes]:
    """Both tables as CSV, without what a clock said."""
    rows = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in report.cell_rows(grid, outcome)]
    return report.csv_of(rows), report.csv_of(report.difference_rows(grid, outcome))


def timeless(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(file)]


def fits(out: Path) -> dict[str, str]:
    return {path.parent.name: store.sha256(path.read_bytes()) for path in sorted(out.glob("runs/*/fit.safetensors"))}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path, compare.Outcome]:
    """The grid of LINES, done in this process."""
    out = tmp_path_factory.mktemp("grid")
    grid = read(write(out / "lines.yaml"))
    outcome = compare.compare(grid, out / "out", InThisProcess())
    assert outcome.failures == {}
    return grid, out / "out", outcome


# --- What a cell is -----------------------------------------------------------------------------------------------
def test_a_cell_is_what_its_runs_predict(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    for cell in grid.cells[::2]:
        assert cell.seed == 0
        data = runs.data_of(out / "runs" / cell.runs[0])
        y = data.test.y.numpy()
        each = [
            {
                part: predictions(runs.load(out / "runs" / name), data, part, ways=[cell.predict], num_samples=4)
                for part in ("train", "validation", "test")
            }
            for name in cell.runs
        ]
        p = {part: np.mean([one[part][cell.predict] for one in each], axis=0) for part in each[0]}
        found = outcome.cells[cell.name]
        if cell.calibrate:
            t = calibrators.fit_temperature(p["validation"], data.validation.y.numpy())
            assert found["facts"]["temperature"] == t
            p = {part: calibrators.apply_temperature(q, t) for part, q in p.items()}
        scores = found["scores"]
        expected = calibration.classification_summary(p["test"], y)
        assert {name: scores[name] for name in expected} == expected
        assert scores["ece_15_debiased"] == comparison.ece_debiased(p["test"], y)
        assert found["train_accuracy"] == calibration.accuracy(p["train"], data.train.y.numpy())
        assert found["train_nll"] == calibration.nll(p["train"], data.train.y.numpy())
        with np.load(out / "cells" / f"{cell.name}.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["nll"], calibration.nll_scores(p["test"], y))
            assert arrays["hit"].mean() == expected["accuracy"]


def test_a_row_says_what_its_quality_was_bought_with(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    rows = {(r["method"], r["sparsity"], r["seed"]): r for r in report.cell_rows(grid, outcome)}
    weights = 64 * 16 + 16 * 10
    assert [rows[m, 0.8, 0]["num_active"] for m in ("RigL", "Ensemble of 2")] == [
        round(0.2 * weights),
        2 * round(0.2 * weights),
    ]
    passes = {m: rows[m, 0.8, 1]["passes"] for m in grid.methods}
    assert passes == {"RigL": 1, "RigL + TS": 1, "MC-DP": 4, "CigL": 1, "CigL w/o WMA": 2, "Ensemble of 2": 2}
    for cell in grid.cells:
        row = rows[cell.method, cell.sparsity, cell.seed]
        members = [costs.costs(runs.load(out / "runs" / name), cell.predict, num_samples=4) for name in cell.runs]
        assert {name: row[name] for name in members[0]} == costs.ensemble(members)
        assert row["seconds"] > 0
        assert row["seconds_per_step"] == pytest.approx(row["seconds"] / (len(cell.runs) * 36))
        assert row["error"] == ""


def test_differences_are_paired_by_seed_and_example(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    assert len(outcome.differences) == 5
    named = {(c.method, c.sparsity, c.seed): c.name for c in grid.cells}

    def scores(method: str) -> comparison.Scores:
        files = [np.load(out / "cells" / f"{named[method, 0.8, seed]}.npz", allow_pickle=False) for seed in (0, 1)]
        return comparison.Scores(*(np.stack([file[field] for file in files]) for field in comparison.Scores._fields))

    seeds, found = outcome.differences["CigL", "RigL", (), 0.8]
    assert seeds == (0, 1)
    together = comparison.differences(scores("CigL"), scores("RigL"))  # the grid sums each seed for itself, in float32
    for name, own in together.items():
        assert found[name].mean == pytest.approx(own.mean, rel=1e-12)
        assert found[name].crossed == pytest.approx(own.crossed, abs=1e-6)
        assert found[name].verdict == own.verdict
    rows = [r for r in report.difference_rows(grid, outcome) if (r["method"], r["sparsity"]) == ("CigL", 0.8)]
    assert [r["score"] for r in rows] == ["accuracy", "nll", "brier", "ece_15"]
    nll = {(r["method"], r["seed"]): r["nll"] for r in report.cell_rows(grid, outcome)}
    expected = np.mean([nll["CigL", seed] - nll["RigL", seed] for seed in (0, 1)])
    assert rows[1]["difference"] == pytest.approx(expected, rel=1e-12)


def test_a_list_of_baselines_and_costs_beside_the_dense_net_of_the_grid(tmp_path: Path) -> None:
    methods = {
        "RigL": RIGL,
        "MC-DP": {"run": CIGL, "predict": "redraw"},
        "Small": {"run": {"inference": "dense", "hidden": {0.8: [3]}}, "predict": "unmasked"},
        "Dense": {"run": {"inference": "dense"}, "predict": "unmasked", "sparsities": [0]},
    }
    base = {name: value for name, value in LINES["base"].items() if name != "delta_t"}
    methods["RigL"] = {**RIGL, "run": {**RIGL["run"], "delta_t": 4}}
    grid = read(write(tmp_path / "lines.yaml", base=base, methods=methods, baseline=["RigL", "MC-DP"]))
    assert grid.baselines == ("RigL", "MC-DP")
    outcome = compare.compare(grid, tmp_path / "out", InThisProcess())
    assert outcome.failures == {}
    assert [(pair.method, pair.baseline) for pair in outcome.differences] == [
        ("RigL", "MC-DP"), ("MC-DP", "RigL"), ("Small", "RigL"), ("Small", "MC-DP"),
    ]  # fmt: skip
    ours, theirs = (outcome.differences[pair][1] for pair in list(outcome.differences)[:2])
    assert {name: found.mean for name, found in ours.items()} == {name: -found.mean for name, found in theirs.items()}
    assert ours["nll"].crossed == pytest.approx([-end for end in reversed(theirs["nll"].crossed)])
    page = report.summary(grid, outcome)
    assert "Minus RigL:" in page
    assert "## Won / tied / lost against MC-DP" in page
    rows = {(r["method"], r["seed"]): r for r in report.cell_rows(grid, outcome)}
    times = [rows["Dense", seed]["seconds_per_step"] for seed in (0, 1)]
    for (method, _), row in rows.items():
        assert row["seconds_per_step_relative"] == pytest.approx(row["seconds_per_step"] / np.mean(times)), method
    assert np.mean([rows["Dense", seed]["seconds_per_step_relative"] for seed in (0, 1)]) == pytest.approx(1)
    small, rigl = rows["Small", 0], rows["RigL", 0]
    assert small["inference_flops_relative"] == pytest.approx(74 * 3 / (74 * 16))  # over the big net, not over itself
    assert small["state_bytes_relative"] < 0.4
    assert rigl["train_flops_relative"] == pytest.approx(
        outcome.cells[grid.cells[2].name]["facts"]["train_flops_relative"]
    )
    assert "inference FLOPs ÷ dense" in page


def test_the_page_says_which_interval_is_which_and_shows_every_seed(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, _, outcome = done
    page = report.summary(grid, outcome)
    assert "Scored on the test split, 359 examples" in page
    assert "## 80 % sparse" in page
    assert "Minus RigL:" in page
    assert re.search(r"\| CigL \| [+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\] (won|tied|lost); t \[", page)
    assert re.search(r"## Won / tied / lost against RigL\n\n.*\n.*\n\| RigL \+ TS \| 0 / 1 / 0 \|", page)
    assert "the first decides" in page.lower()
    assert "seeds - 1 degrees of freedom" in page
    first = report.cell_rows(grid, outcome)[0]
    assert f"| RigL | {first['train_accuracy']:.4f}, " in report.every_seed(grid, outcome)
    assert {"accuracy_low", "ece_15_high", "temperature", "state_bytes", "runs"} <= set().union(
        *report.cell_rows(grid, outcome)
    )
    reread = list(csv.DictReader(io.StringIO(report.csv_of(report.cell_rows(grid, outcome)).decode())))
    assert [float(row["ece_15"]) for row in reread] == [r["ece_15"] for r in report.cell_rows(grid, outcome)]


def test_one_seed_has_no_t_interval_and_the_page_says_what_is_missing(done: tuple[Grid, Path, compare.Outcome]) -> None:
    _, out, _ = done
    grid = expand(LINES | {"seeds": [0]})
    outcome = compare.gather(grid, out)
    assert all(found.t is None for _, scores in outcome.differences.values() for found in scores.values())
    page = report.summary(grid, outcome)
    assert "With one seed only the examples are resampled" in page
    assert "; t [" not in page


def test_draws_that_are_one_network_are_refused_once_there_is_a_fit(tmp_path: Path) -> None:
    methods = {"RigL": RIGL, "RigL + MC": {**RIGL, "predict": "redraw"}}
    grid = expand(LINES | {"methods": methods, "sparsities": [0.5], "seeds": [0]})
    outcome = compare.compare(grid, tmp_path, InThisProcess())
    assert list(outcome.failures.values()) == [
        "expected draws that differ for predict redraw, but this fit is one network: `unmasked`"
    ]


def test_a_regression_is_refused_before_any_work(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "mine.npz", x=x, y=x[:, 0])
    lines = {"base": {"model": "deep_gp", "data": "mine.npz"}, "sparsities": [0.5], "methods": {"RigL": RIGL}}
    hands = InThisProcess()
    with pytest.raises(ValueError, match="expected classes to score, but .*mine.npz has real-valued targets"):
        compare.compare(expand(lines, tmp_path), tmp_path / "out", hands)
    assert hands.did == []
    assert not (tmp_path / "out").exists()


# --- Nothing is done twice, and nothing sinks the rest ------------------------------------------------------------
def test_what_is_finished_is_not_done_again(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = done
    hands = InThisProcess()
    again = compare.compare(grid, out, hands)
    assert hands.did == []
    assert tables(grid, again) == tables(grid, outcome)
    wider = expand(LINES | {"methods": {**LINES["methods"], "Mean": {"run": CIGL, "predict": "mean"}}})
    assert compare.plan(wider, out).runs == {}
    assert {cell.method for cell in compare.plan(wider, out).cells} == {"Mean"}


def test_the_meter_counts_through_kills_and_several_trainings(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    for _ in range(2):
        meter = compare.Meter(path)
        for row in ({"epoch": 1, "step": 3}, {"epoch": 2, "step": 6}):
            for _ in range(3):
                meter.step(None)
            time.sleep(0.01)
            meter.epoch(row, lambda: None)
        meter.step(None)  # of an epoch that is never over
    found = json.loads(path.read_text())
    assert (found["epoch"], found["step"]) == (4, 12)
    assert 0.04 <= found["seconds"] < 1


def test_an_altered_cell_is_refused(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, _ = done
    path = out / "cells" / f"{grid.cells[0].name}.json"
    whole = path.read_text()
    path.write_text(whole.replace('"accuracy": 0.', '"accuracy": 1.', 1))
    with pytest.raises(ValueError, match="altered"):
        compare.gather(grid, out)
    path.write_text(whole)
    arrays = path.with_name(f"{grid.cells[0].name}.npz")
    kept = arrays.read_bytes()
    arrays.write_bytes(kept[:-1] + b"x")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        compare.gather(grid, out)
    arrays.write_bytes(kept)


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


def test_a_missing_job_or_scheduler_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "lines.yaml")
    assert main(["compare", str(path), "--out", str(tmp_path / "out"), "--jobs", "0"]) == 2
    assert capsys.readouterr().err == "espalier: expected at least 1 job, got 0\n"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_left(
    done: tuple[Grid, Path, compare.Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out, _ = done
    words = ["compare", str(out.parent / "lines.yaml"), "--dry-run"]
    assert main([*words, "--out", str(out.parent / "none")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("6 runs, 6 to train\n")
    assert "12 cells, 12 to score\n" in text
    assert f"  score  RigL + TS, sparsity 0.8, seed 0: unmasked of {grid.cells[0].runs[0]}, temperature\n" in text
    assert not (out.parent / "none").exists()
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("6 runs, 0 to train\n")


PATIENCE = 600.0
"""Seconds that a process may take on a busy machine: on an idle one it takes ten."""


# --- A kill, processes, a cluster: one table ----------------------------------------------------------------------
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
    return ["-c", code, "compare", str(path), "--out", str(out), *words]


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
