"""The tables of a grid: one tidy row per cell, one per paired difference, and the page that people read."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier import store
from espalier.calibration.comparison import GAP, SIGNS
from espalier.calibration.scores import Interval
from espalier.grids.cells import TRAIN_ROWS
from espalier.grids.compare import Outcome, Pair, Plan
from espalier.grids.grid import Grid

Row = dict[str, Any]
Point = tuple[tuple[str, ...], float]

SHOWN = {
    "train_accuracy": "training accuracy",
    "train_rmse": "training RMSE",
    "train_nll": "training NLL",
    "accuracy": "accuracy",
    "rmse": "RMSE",
    "nll": "NLL",
    "brier": "Brier",
    "crps": "CRPS",
    "coverage_95": "95 % coverage",
    "ece_15": "ECE (15 bins)",
    "ece_15_floor": "its floor",
    "ece_15_debiased": "debiased",
}
"""Of classes or of a regression: a column is where a cell has it."""
TITLES = {**SHOWN, GAP: "coverage's distance from 95 %"}
"""Of what is compared."""
APART = {
    "auroc_max_probability": "AUROC (max p)",
    "auroc_predictive_entropy": "AUROC (entropy)",
    "auroc_mutual_information": "AUROC (MI)",
    "auroc_max_open_probability": "AUROC (open max p)",
    "auroc_energy": "AUROC (energy)",
    "auroc_nuq_epistemic": "AUROC (NUQ)",
    "auroc_density": "AUROC (density)",
    "auroc_laplace_mutual_information": "AUROC (Laplace MI)",
}
"""Where the grid has an `outside`: how well its inputs are told from the split's, by what a method has of these."""
COSTS = {
    "train_flops": "training FLOPs",
    "inference_flops": "inference FLOPs",
    "state_bytes": "state",
    "disk_bytes": "disk",
    "seconds_per_step": "step time",
}
NOTES = f"""\
Mean over seeds (standard deviation). Training scores, over at most {TRAIN_ROWS:,} training examples and by the
same way to predict, tell the regime: where accuracy and NLL are near 1 and 0 the network interpolates. RMSE, NLL and CRPS are in
units of the target. `its floor` is the ECE that a
perfectly calibrated predictor of these confidences would score, `debiased` the ECE less its estimated bias. `passes`:
networks evaluated for one prediction. `÷ dense`: over the dense network of the grid, where it has one (`costs.py`; the time
of a step over its mean in the same run of the grid, on whatever else the machine did then). A difference of ECEs is one of these
estimates, floors included: of two arms without any error, the one with the higher floor may be lost.
"""


def write(grid: Grid, outcome: Outcome, source: bytes, out: Path) -> list[Path]:
    """Write `cells.csv`, `differences.csv`, `table.md` and the grid file, `source`; `cells.parquet` where pyarrow is."""
    cells, differences = cell_rows(grid, outcome), difference_rows(grid, outcome)
    page = f"{summary(grid, outcome)}\n\n{every_seed(grid, outcome)}\n"
    written = {
        "table.md": page.encode(),
        "cells.csv": csv_of(cells),
        "differences.csv": csv_of(differences),
        "grid.yaml": source,
    }
    if (parquet := _parquet(cells)) is not None:
        written["cells.parquet"] = parquet
    for name, content in written.items():
        store.write_bytes(out / name, content)
    return [out / name for name in written if name != "grid.yaml"]


def cell_rows(grid: Grid, outcome: Outcome) -> list[Row]:
    """One row per cell: what it is, its scores with intervals as `NAME_low` and `NAME_high`, its facts, or its error."""
    rows = []
    dense = {variant: dense_costs(grid, outcome, variant) for variant in dict.fromkeys(c.variant for c in grid.cells)}
    for cell in grid.cells:
        row: Row = {"method": cell.method, **dict(zip(grid.axes, cell.variant, strict=True))}
        row |= {"sparsity": cell.sparsity, "seed": cell.seed, "error": outcome.failures.get(cell.name, "")}
        if (found := outcome.cells.get(cell.name)) is not None:
            row |= {name: value for name, value in found.items() if name.startswith("train_")}
            for name, value in found["scores"].items():
                short = name.removesuffix("_interval")
                row |= {f"{short}_low": value[0], f"{short}_high": value[1]} if name != short else {name: value}
            row |= found["facts"] | relative(found["facts"], dense[cell.variant])
        rows.append(row | {"predict": cell.predict, "calibrate": cell.calibrate or "", "runs": " ".join(cell.runs)})
    return rows


def dense_costs(grid: Grid, outcome: Outcome, variant: tuple[str, ...]) -> dict[str, float]:
    """What each of `COSTS` was for the dense network of the grid at this variant; empty if it has none.

    The network that every method of the grid is sparser than: inference `dense` at sparsity 0, of several the largest. FLOPs and
    bytes are those of plain torch, as `costs.costs` has them.
    """
    cells = [
        cell for cell in grid.cells if (cell.variant, cell.sparsity, len(cell.runs)) == (variant, 0.0, 1)
        and grid.runs[cell.runs[0]].inference == "dense" and cell.name in outcome.cells
    ]  # fmt: skip
    facts = [outcome.cells[cell.name]["facts"] for cell in cells]
    most = max((own["num_weights"] for own in facts), default=0)
    facts = [own for own in facts if own["num_weights"] == most]
    return {
        name: statistics.fmean(own[name] / own.get(f"{name}_relative", 1.0) for own in facts)
        for name in COSTS
        if facts and all(name in own for own in facts)
    }


def relative(facts: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """A cell's costs over those of the grid's dense network; a smaller dense network is so told from a cheap method."""
    return {f"{name}_relative": facts[name] / value for name, value in dense.items() if name in facts}


def difference_rows(grid: Grid, outcome: Outcome) -> list[Row]:
    """One row per method, point of the grid and score: the mean difference from a baseline, both intervals, the verdict."""
    rows = []
    for pair, (seeds, scores) in outcome.differences.items():
        for name, found in scores.items():
            row: Row = {"method": pair.method, "baseline": pair.baseline}
            row |= dict(zip(grid.axes, pair.variant, strict=True))
            row |= {"sparsity": pair.sparsity, "seeds": len(seeds), "score": name, "difference": found.mean}
            row |= {"crossed_low": found.crossed[0], "crossed_high": found.crossed[1]}
            row |= dict(zip(("t_low", "t_high"), found.t or ("", ""), strict=True))
            rows.append(row | {"verdict": found.verdict})
    return rows


def summary(grid: Grid, outcome: Outcome) -> str:
    """Markdown: for every point of the grid the scores and the differences, then what was won and lost, and what failed."""
    counts = {cell["scores"]["num_examples"] for cell in outcome.cells.values()}
    parts = [f"Scored on the {grid.split} split, {_numbers(counts)} examples. {NOTES}"]
    if grid.outside:
        parts += [f"AUROC: {Path(grid.outside).name} told from the split, by each uncertainty that a method has.\n"]
    for point in _points(grid):
        parts += [f"## {_title(grid, *point)}\n", _scores(grid, outcome, point, _mean_and_sd), ""]
        for baseline in grid.baselines:
            if any((pair.baseline, pair.variant, pair.sparsity) == (baseline, *point) for pair in outcome.differences):
                parts += [f"Minus {baseline}:\n", _differences(grid, outcome, baseline, point), ""]
    for baseline in dict.fromkeys(pair.baseline for pair in outcome.differences):
        parts += [f"## Won / tied / lost against {baseline}\n", _tally(grid, outcome, baseline), ""]
    if outcome.differences:
        parts += [_which_interval(outcome)]
    if outcome.failures:
        rows = [[cell.name, outcome.failures[cell.name]] for cell in grid.cells if cell.name in outcome.failures]
        parts += ["\n## Failed\n", _table(["cell", "error"], rows)]
    return "\n".join(parts).rstrip()


def every_seed(grid: Grid, outcome: Outcome) -> str:
    """Markdown: the same scores, each seed for itself, in the order of the grid's seeds."""
    parts = ["## Every seed\n"]
    for point in _points(grid):
        parts += [f"### {_title(grid, *point)}\n", _scores(grid, outcome, point, _one_by_one), ""]
    return "\n".join(parts).rstrip()


def plan_lines(grid: Grid, left: Plan) -> str:
    """What a grid would do: its runs and cells, those that are left marked."""
    waiting = {cell.name for cell in left.cells}
    runs = [f"  {'train' if name in left.runs else '     '}  {name}" for name in grid.runs]
    cells = [
        f"  {'score' if cell.name in waiting else '     '}  {cell.method}, "
        f"{', '.join([*cell.variant, f'sparsity {cell.sparsity:g}', f'seed {cell.seed}'])}: {cell.predict} of "
        f"{' + '.join(cell.runs)}{f', {cell.calibrate}' if cell.calibrate else ''}"
        for cell in grid.cells
    ]
    return "\n".join(
        [f"{len(grid.runs)} runs, {len(left.runs)} to train", *runs]
        + [f"{len(grid.cells)} cells, {len(left.cells)} to score", *cells]
    )


def csv_of(rows: Sequence[Row]) -> bytes:
    """CSV (RFC 4180, \\n) with every column that any row has; numbers as Python writes them, so that they read back."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes | None:
    try:
        from pyarrow import Table, parquet
    except ImportError:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    written = io.BytesIO()
    parquet.write_table(Table.from_pylist([{name: row.get(name) for name in columns} for row in rows]), written)
    return written.getvalue()


def _points(grid: Grid) -> list[Point]:
    return list(dict.fromkeys((cell.variant, cell.sparsity) for cell in grid.cells))


def _title(grid: Grid, variant: tuple[str, ...], sparsity: float) -> str:
    named = [f"{axis} {name}" for axis, name in zip(grid.axes, variant, strict=True)]
    return ", ".join([*named, f"{100 * sparsity:g} % sparse"])


def _scores(grid: Grid, outcome: Outcome, point: Point, shown: Callable[[Sequence[float | None]], str]) -> str:
    rows = []
    dense = dense_costs(grid, outcome, point[0])
    known = {name for cell in outcome.cells.values() for name in (*cell, *cell["scores"])}
    names = {name: title for name, title in SHOWN.items() if name in known} | (APART if grid.outside else {})
    for method in grid.methods:
        cells = [c for c in grid.cells if c.method == method and (c.variant, c.sparsity) == point]
        every = [{**own, **own["scores"]} if (own := outcome.cells.get(c.name)) else {} for c in cells]
        if found := [each for each in every if each]:
            passes, active = (found[0]["facts"][name] for name in ("passes", "num_active"))
            there = [all(name in each for each in found) for name in names]
            each_of = [[own.get(name) for own in every] for name in names]
            values = [shown(own) if is_there else "" for own, is_there in zip(each_of, there, strict=True)]
            facts = [each["facts"] | relative(each["facts"], dense) for each in found]
            paid = [_mean([own.get(f"{name}_relative") for own in facts]) for name in COSTS]
            rows.append([method, *values, f"{len(found)} of {len(cells)}", f"{passes}", f"{active:,}", *paid])
        elif cells:
            rows.append([method, *["failed"] * len(names), f"0 of {len(cells)}", *[""] * (2 + len(COSTS))])
    costs = [f"{name} ÷ dense" for name in COSTS.values()]
    return _table(["method", *names.values(), "seeds", "passes", "active weights", *costs], rows)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.3g}" if known else ""


def _mean_and_sd(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    spread = f" ({_four(statistics.stdev(known))})" if len(known) > 1 else ""
    return f"{_four(statistics.fmean(known))}{spread}"


def _one_by_one(values: Sequence[float | None]) -> str:
    return ", ".join("–" if value is None else _four(value) for value in values)


def _four(value: float) -> str:
    """Four decimals, or two digits of what these would not show: targets may be of any unit."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 5e-5 else f"{value:.1e}"


def _differences(grid: Grid, outcome: Outcome, baseline: str, point: Point) -> str:
    names, rows = compared(outcome), []
    for method in grid.methods:
        if (pair := Pair(method, baseline, *point)) in outcome.differences:
            seeds, scores = outcome.differences[pair]
            cells = []
            for found in map(scores.get, names):
                if found is None:
                    cells.append("")
                    continue
                t = f"; t {_interval(found.t)}" if found.t else ""
                cells.append(f"{_signed(found.mean)} {_interval(found.crossed)} {found.verdict}{t}")
            rows.append([method, *cells, str(len(seeds))])
    return _table(["method", *(TITLES[name] for name in names), "seeds"], rows)


def compared(outcome: Outcome) -> list[str]:
    """The scores that any difference is of."""
    return [name for name in SIGNS if any(name in scores for _, scores in outcome.differences.values())]


def _tally(grid: Grid, outcome: Outcome, baseline: str) -> str:
    names = compared(outcome)
    counts = {method: {name: Counter[str]() for name in names} for method in grid.methods}
    for pair, (_, scores) in outcome.differences.items():
        for name in scores if pair.baseline == baseline else ():
            counts[pair.method][name][scores[name].verdict] += 1
    rows = [
        [method, *(" / ".join(str(own[name][verdict]) for verdict in ("won", "tied", "lost")) for name in names)]
        for method, own in counts.items()
        if any(own.values())
    ]
    return _table(["method", *(TITLES[name] for name in names)], rows)


def _which_interval(outcome: Outcome) -> str:
    """Which interval is which, and what decides."""
    numbers = sorted({len(seeds) for seeds, _ in outcome.differences.values()})
    said = (
        "Intervals are for 95 %, paired by seed and by test example. The first decides: it is for new seeds on new test "
        "examples (examples resampled, the same for all seeds and both arms; seeds by Student's t; comparison.py). `t` is "
        "for new seeds on these test examples: seeds - 1 degrees of freedom. Lost: the whole interval is on the losing "
        "side; won: on the other; tied: neither."
    )
    if 2 in numbers:
        said += " Two seeds know little of how seeds vary: in simulation the first covers .88 to .95 with them."
    if 1 in numbers:
        said += " With one seed only the examples are resampled: how much another seed would change is not in it."
    return said


def _numbers(found: Collection[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(found)) or "no"


def _interval(ends: Interval) -> str:
    return f"[{_signed(ends[0])}, {_signed(ends[1])}]"


def _signed(value: float) -> str:
    """Four digits, or one that is not 0 where all of these are: the side of an end is what decides."""
    return f"{value:+.4f}" if value == 0 or abs(value) >= 5e-5 else f"{value:+.0e}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
