"""What is looked at before a grid trains anything: what its folder holds, and its data (tested in test_compare.py)."""

from __future__ import annotations

from pathlib import Path

from espalier import data, store
from espalier.grids.grid import Cell, Grid
from espalier.grids.outside import world
from espalier.nested import plain
from espalier.prediction.evaluation import split_of
from espalier.runs import lines

PLACES = {"model", "inference", "data", "init", "data_dir"}
"""Options that say where something lies."""


def check_runs(grid: Grid, out: Path) -> None:
    """Raises ValueError where a run that is in OUT was begun with other options than the grid's, as a default has changed since
    (what is at its default is not in a run's name)."""
    for name, recipe in grid.runs.items():
        config = out / "runs" / name / "config.yaml"
        if config.is_file():
            own, written = plain(recipe.config()), lines.options(lines.read(config, "a recipe file"), str(config))
            for option in sorted(own.keys() & written.keys() - PLACES):
                if own[option] != written[option]:
                    raise ValueError(
                        f"expected {option} {own[option]} in run {name}, which is in {out} with {written[option]}, the default "
                        "before: choose another --out, or say the option in the grid"
                    )


def check_data(grid: Grid) -> None:
    """Are the data there, labels to score, and the same rows for all that are compared? Every set of the grid is loaded once.
    Raises ValueError or OSError."""
    asked = {name: store.canonical([recipe.data, recipe.of("data")]) for name, recipe in grid.runs.items()}
    examples: dict[str, str] = {}
    for key, recipe in {asked[name]: recipe for name, recipe in grid.runs.items()}.items():
        loaded = data.load(recipe.data, **recipe.of("data"))
        if loaded.num_classes is None:
            raise ValueError(
                f"expected classes to score, but {recipe.data} has real-valued targets: use espalier evaluate"
            )
        if split_of(loaded, grid.split).y.dim() > 1:
            raise ValueError(f"expected one label per example to compare, but {recipe.data} has several: use espalier evaluate")
        if grid.outside is not None:
            world(grid.outside, loaded, recipe.options["data_dir"])
        examples[key] = loaded.hashes[grid.split]
    first: dict[tuple[tuple[str, ...], float], Cell] = {}
    for cell in grid.cells:
        other = first.setdefault((cell.variant, cell.sparsity), cell)
        if len({examples[asked[run]] for run in (*cell.runs, *other.runs)}) > 1:
            raise ValueError(
                f"expected all methods scored on the same {grid.split} rows, but those of {cell.method} are not those of "
                f"{other.method}: say split_seed and the set in base, or in an axis"
            )
