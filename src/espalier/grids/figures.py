"""What a grid looks like: scores against density, the ECE along training, risk against coverage. Pictures as data."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from espalier import calibration, store
from espalier.grids.compare import Outcome
from espalier.grids.grid import Cell, Grid
from espalier.pictures import plots
from espalier.pictures.data import Curve, Picture

Floats = NDArray[np.float64]
SCORES = {
    "accuracy": "accuracy", "rmse": "RMSE", "nll": "NLL, nats", "crps": "CRPS", "ece_15": "ECE, 15 bins",
    "coverage_95": "share within the central 95 %",
}  # fmt: skip
"""Of classes or of a regression: a picture is where cells have it."""
COVERAGE: Floats = np.linspace(0.02, 1, 50)


def write(grid: Grid, outcome: Outcome, out: Path) -> list[Path]:
    """Draw every figure of a grid into OUT/figures; returns the files."""
    files = []
    for name, picture in figures(grid, outcome, out):
        files.append(out / "figures" / f"{name}.png")
        plots.check_free(files[-1])
        plots.save(plots.curves(picture), files[-1])
    return files


def figures(grid: Grid, outcome: Outcome, out: Path) -> Iterator[tuple[str, Picture]]:
    """The pictures, by file name: scores against density for every variant; for every density the ECE along training and
    the risk-coverage curve. With sparsities from 0 to 99.9 % the first is the double descent of the ECE."""
    done = [cell for cell in grid.cells if cell.name in outcome.cells]
    for variant in dict.fromkeys(cell.variant for cell in done):
        here = [cell for cell in done if cell.variant == variant]
        title = " ".join(variant)
        held = outcome.cells[here[0].name]["scores"]
        for score in filter(held.__contains__, SCORES):
            yield _name("density", *variant, score), against_density(grid, outcome, here, score, SCORES[score], title)
        for sparsity in dict.fromkeys(cell.sparsity for cell in here):
            cells, where = (
                [cell for cell in here if cell.sparsity == sparsity],
                f"{title} {sparsity:.4g} sparse".strip(),
            )
            if "accuracy" in held:
                yield _name("coverage", *variant, sparsity), risk_coverage(grid, cells, out, where)
            followed = "ece" if "accuracy" in held else "nll"
            if (picture_or_none := along_training(grid, cells, out, where, followed)) is not None:
                yield _name("training", *variant, sparsity), picture_or_none


def _name(*parts: object) -> str:
    return "-".join(str(part).replace(" ", "_").replace("/", "_") for part in parts)


def against_density(grid: Grid, outcome: Outcome, cells: Sequence[Cell], score: str, label: str, title: str) -> Picture:
    """Means over seeds with 95 % t intervals, over the percentage of active weights."""
    curves = []
    for method in grid.methods:
        own = [cell for cell in cells if cell.method == method]
        levels = sorted({cell.sparsity for cell in own}, reverse=True)
        values = [[outcome.cells[c.name]["scores"][score] for c in own if c.sparsity == level] for level in levels]
        if levels:
            curves.append(_banded(method, 100 * (1 - np.array(levels)), [np.array(each) for each in values]))
    return Picture(f"{title}: {grid.split} split".lstrip(": "), "active weights, %", label, tuple(curves), xscale="log")


def _banded(label: str, x: Floats, values: Sequence[Floats]) -> Curve:
    """`values`: one array of seeds per x. The band is the 95 % t interval of their mean, where there are two or more."""
    mean = np.array([each.mean() for each in values])
    if min(map(len, values)) < 2:
        return Curve(label, x, mean, style="points")
    half = np.array([stats.t.ppf(0.975, len(each) - 1) * stats.sem(each) for each in values])
    return Curve(label, x, mean, mean - half, mean + half, "points" if len(x) == 1 else "line")  # a line of one point is none


def risk(confidence: Floats, hit: Floats, coverage: Floats = COVERAGE) -> Floats:
    """Error rate among the most confident fraction `coverage` of the examples: `calibration.risk_coverage`, read there."""
    count = np.maximum(1, np.round(coverage * len(hit)).astype(int))
    result: Floats = calibration.risk_coverage(-confidence, 1 - hit).risk[count - 1]
    return result


def risk_coverage(grid: Grid, cells: Sequence[Cell], out: Path, title: str) -> Picture:
    """What is answered wrongly where only the most confident are answered, mean over seeds."""

    def one(cell: Cell) -> Floats:
        with np.load(io.BytesIO((out / "cells" / f"{cell.name}.npz").read_bytes()), allow_pickle=False) as file:
            return risk(file["confidence"], file["hit"])

    return Picture(
        f"{title}: risk and coverage",
        "coverage",
        "error rate among the answered",
        _mean_curves(grid, cells, one, COVERAGE),
    )


def along_training(grid: Grid, cells: Sequence[Cell], out: Path, title: str, score: str = "ece") -> Picture | None:
    """The validation `score`, ece or nll, of the posterior mean after every epoch, mean over seeds; one curve per kind of run. A
    finished cell needs its run no more, and stands in no curve without it."""
    seen: dict[tuple[str, ...], str] = {}
    for cell in sorted(cells, key=lambda cell: cell.calibrate is not None):  # methods that share their runs share a curve
        seen.setdefault(cell.runs, cell.method)
    single = [cell for cell in cells if seen[cell.runs] == cell.method and len(cell.runs) == 1]
    first = [cell for cell in single if _history_of(out, cell).is_file()]
    histories = {cell.name: _history(out, cell, score) for cell in first}
    curves = []
    for method in grid.methods:
        own = [histories[cell.name] for cell in first if cell.method == method]
        length = min(map(len, own), default=0)
        if length > 1:
            mean = np.mean([history[:length] for history in own], axis=0)
            curves.append(Curve(method, np.arange(1, length + 1, dtype=np.float64), mean))
    if not curves:
        return None
    return Picture(f"{title}: along training", "epoch", f"validation {score.upper()} of the posterior mean", tuple(curves))


def _history_of(out: Path, cell: Cell) -> Path:
    return out / "runs" / cell.runs[0] / "history.json"


def _history(out: Path, cell: Cell, score: str) -> Floats:
    rows: list[dict[str, Any]] = store.read_json(_history_of(out, cell))
    return np.array([row[f"validation_{score}"] for row in rows if f"validation_{score}" in row], dtype=np.float64)


def _mean_curves(grid: Grid, cells: Sequence[Cell], one: Callable[[Cell], Floats], x: Floats) -> tuple[Curve, ...]:
    groups = {method: [one(cell) for cell in cells if cell.method == method] for method in grid.methods}
    return tuple(Curve(method, x, np.mean(group, axis=0)) for method, group in groups.items() if group)
