"""What is looked at before a grid trains anything: what its folder holds, and its data (tested in test_compare.py)."""

from __future__ import annotations

from pathlib import Path

from espalier import data, store
from espalier.grids.grid import Cell, Grid
from espalier.grids.outside import world
from espalier.nested import plain
from espalier.prediction import recalibration
from espalier.prediction.evaluation import split_of
from espalier.runs import lines

PLACES = {"model", "inference", "data", "init", "data_dir", "label_noise"}
"""Options that say where something lies: what lies there a run's name says."""


def check_runs(grid: Grid, out: Path) -> None:
    """Raises ValueError where a run that is in OUT was begun with other options than the grid's, as a default has changed since
    (what is at its default is not in a run's name); or with other programs: those of the grid alone were looked at."""
    for name, recipe in grid.runs.items():
        config = out / "runs" / name / "config.yaml"
        if config.is_file():
            own, written = plain(recipe.config()), lines.options(lines.read(config, "a recipe file"), str(config))
            for part in ("model", "inference"):
                if not _is_same(own[part], str(written.get(part)), config.parent):
                    raise ValueError(
                        f"expected {part} {Path(own[part]).name} in run {name}, which is in {out} with another program "
                        f"{written.get(part)}: choose another --out, or read it and remove the run"
                    )
            for option in sorted(own.keys() & written.keys() - PLACES):
                if own[option] != written[option]:
                    raise ValueError(
                        f"expected {option} {own[option]} in run {name}, which is in {out} with {written[option]}, the default "
                        "before: choose another --out, or say the option in the grid"
                    )


def _is_same(own: str, written: str, folder: Path) -> bool:
    """Is the program of a run, of the shelf or a file in its folder, the grid's own?"""
    if not own.endswith(".py") or not written.endswith(".py"):
        return own == written
    copy = folder / Path(written).name
    return copy.is_file() and store.sha256(copy.read_bytes()) == store.sha256(Path(own).read_bytes())


def check_data(grid: Grid) -> None:
    """Are the data there, to be scored and calibrated as the grid says, and the same rows for all that are compared? Every set
    of the grid is loaded once. Raises ValueError or OSError."""
    asked = {name: store.canonical([recipe.data, recipe.of("data")]) for name, recipe in grid.runs.items()}
    examples: dict[str, str] = {}
    for key, recipe in {asked[name]: recipe for name, recipe in grid.runs.items()}.items():
        loaded = data.load(recipe.data, **recipe.of("data"))
        if loaded.num_classes is not None and split_of(loaded, grid.split).y.dim() > 1:
            raise ValueError(f"expected one label per example to compare, but {recipe.data} has several: use espalier evaluate")
        calibrators = [cell.calibrate for cell in grid.cells if cell.calibrate and key in {asked[run] for run in cell.runs}]
        recalibration.check(loaded, grid.split, calibrators)
        if grid.outside is not None:
            world(grid.outside, loaded, recipe.options["data_dir"])
        examples[key] = loaded.hashes[grid.split]
    first: dict[tuple[tuple[str, ...], float], Cell] = {}
    for cell in grid.cells:
        first.setdefault((cell.variant, cell.sparsity), cell)
    beside = [(cell, first[cell.variant, cell.sparsity]) for cell in grid.cells]
    beside += [(cell, first[cell.variant, 0.0]) for cell in grid.cells for own in grid.baselines if grid.is_dense(own)]
    for cell, other in beside:
        if len({examples[asked[run]] for run in (*cell.runs, *other.runs)}) > 1:
            raise ValueError(
                f"expected all methods scored on the same {grid.split} rows, but those of {cell.method} are not those of "
                f"{other.method}: say split_seed and the set in base, or in an axis"
            )
