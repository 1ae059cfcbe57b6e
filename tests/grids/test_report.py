"""The tables and the page of a grid: what quality was bought with, which interval is which."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from espalier import runs
from espalier.grids import compare, report
from espalier.grids.grid import Grid, expand
from espalier.prediction import costs
from lines import LINES


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


def test_a_seed_that_failed_keeps_its_place(done: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, _, outcome = done
    (first,) = (cell for cell in grid.cells if (cell.method, cell.seed) == ("CigL", 0))
    left = outcome._replace(cells={name: own for name, own in outcome.cells.items() if name != first.name})
    assert re.search(r"\| CigL \| –, [0-9.]+ \| –, ", report.every_seed(grid, left))
    assert "| CigL |" in report.summary(grid, left)


def test_an_interval_on_one_side_of_0_is_not_shown_as_0() -> None:
    assert report._interval((-2e-5, -0.01)) == "[-2e-05, -0.0100]"
    assert report._interval((0.0, 5e-5)) == "[+0.0000, +0.0001]"


def test_one_seed_has_no_t_interval_and_the_page_says_what_is_missing(done: tuple[Grid, Path, compare.Outcome]) -> None:
    _, out, _ = done
    grid = expand(LINES | {"seeds": [0]})
    outcome = compare.gather(grid, out)
    assert all(found.t is None for _, scores in outcome.differences.values() for found in scores.values())
    page = report.summary(grid, outcome)
    assert "With one seed only the examples are resampled" in page
    assert "; t [" not in page
