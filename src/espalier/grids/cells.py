"""Scores one cell of a grid from its finished runs: classes or a regression, calibrated where that is asked (tested in
test_compare.py, regressions in test_cells.py)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier import runs, store
from espalier.calibration import comparison
from espalier.calibration.comparison import RegressionScores, Scores
from espalier.contracts import Data, Split
from espalier.data.streamed import selected
from espalier.grids.grid import Cell
from espalier.grids.outside import detections, world
from espalier.nested import plain
from espalier.prediction import costs, evaluation, recalibration
from espalier.prediction.ensemble import Ensemble
from espalier.prediction.evaluation import Predicted, predictions, split_of
from espalier.prediction.fit import Fit
from espalier.prediction.mixture import Mixture, by_row
from espalier.prediction.predictor import Predictor
from espalier.runs.trust import told
from espalier.training.streams import find_device

TRAIN_ROWS = 10_000
"""Training examples, at most, that a cell's training scores are taken over: they tell the regime."""
DRAWN = ("pairs", "redraw")
"""The ways to predict that average several networks."""


def score(out: Path, num_samples: int, split: str, outside: str | None, cell: Cell) -> None:
    """Score one cell, and write it down: the arrays first, hit, confidence, nll and brier of every example or its squared error,
    nll, crps and covered; the signed facts last."""
    folders = [out / "runs" / name for name in cell.runs]
    with told():
        fits = [runs.load(folder) for folder in folders]
        loaded = _data_of(folders[0], fits[0])
    fits = [fit.to(find_device(fit.record["recipe"]["device"])) for fit in fits]
    predictor = Ensemble(fits, cell.pool) if len(fits) > 1 else fits[0]
    for fit in fits:
        _check_draws(fit, cell)
    parts = [split, "train", *(["validation"] if cell.calibrate else [])]
    short = {part: _head(loaded, part, TRAIN_ROWS) if part == "train" else loaded for part in parts}
    said = {part: _predicted(predictor, short[part], part, cell, num_samples) for part in parts}
    facts = cell_facts(fits, folders, cell, num_samples)
    fitted: dict[str, Any] = {}
    calibrated: Callable[[Predicted], Predicted] | None = None
    if cell.calibrate:
        name, parameter, calibrated = _calibrator(cell.calibrate, said["validation"], loaded)
        said = {part: calibrated(own) for part, own in said.items()}
        # One number is a column of the table; matrices and maps are kept in the record alone.
        (facts if isinstance(parameter, float) else fitted)[name] = parameter
    apart: dict[str, Any] = {}
    if outside is not None:
        elsewhere = world(outside, loaded, fits[0].record["recipe"]["data_dir"])
        inside = split_of(loaded, split).x
        moved = calibrated if loaded.num_classes is not None else None  # one factor of all variances changes no order
        apart = detections(predictor, loaded, inside, elsewhere, cell.predict, num_samples, moved)
    arrays = {field: rows[0] for field, rows in by_example(said[split], loaded, split)._asdict().items()}
    written = io.BytesIO()
    np.savez(written, **arrays)
    path = out / "cells" / cell.name
    store.write_bytes(path.with_name(f"{cell.name}.npz"), written.getvalue())
    seen = comparison.values(by_example(said["train"], short["train"], "train"))
    record = {
        "runs": list(cell.runs),
        "predict": cell.predict,
        "calibrate": cell.calibrate,
        "num_samples": num_samples,
        "split": split,
        "examples": loaded.hashes[split],
        **{f"train_{name}": float(seen[name][0]) for name in ("accuracy", "rmse", "nll") if name in seen},
        "scores": evaluation.score({cell.predict: said[split]}, loaded, split)[cell.predict]
        | _debiased(said[split], loaded, split)
        | apart,
        "facts": facts,
        **({"fitted": fitted} if fitted else {}),
        "arrays": store.sha256(written.getvalue()),
    }
    store.write_bytes(path.with_name(f"{cell.name}.json"), store.canonical(store.signed(record)).encode())


def by_example(said: Predicted, data: Data, split: str) -> Scores | RegressionScores:
    """Of one seed, `(1, n)`: what `evaluation.predictions` gives for a split, scored example by example."""
    y = split_of(data, split).y
    if data.num_classes is not None:
        return Scores.of(said, y.numpy())
    if not isinstance(said, Mixture):
        return RegressionScores.of(said[..., 0], said[..., 1], data.in_units(y).numpy())
    found, covered = by_row(*said.scores(data.in_units(y)))
    return RegressionScores(*(rows[None] for rows in (found["rmse"], found["nll"], found["crps"], covered)))


def read_scores(path: Path, digest: str) -> Scores | RegressionScores:
    """One cell's arrays, a row each."""
    written = path.read_bytes()
    if store.sha256(written) != digest:
        raise ValueError(
            f"expected {path} as it was written, but its SHA-256 differs: remove it and the .json beside it"
        )
    with np.load(io.BytesIO(written), allow_pickle=False) as file:
        kind = Scores if "hit" in file else RegressionScores
        return kind(*(file[field][None] for field in kind._fields))


def _debiased(said: Predicted, data: Data, split: str) -> dict[str, float]:
    """Of classes the ECE less its bias."""
    if data.num_classes is None:
        return {}
    y = split_of(data, split).y.numpy()
    return {f"ece_{bins}_debiased": comparison.ece_debiased(said, y, bins) for bins in (10, 15)}


def _calibrator(name: str, said: Predicted, data: Data) -> tuple[str, Any, Callable[[Predicted], Predicted]]:
    """What is fitted on the validation split, as it is called, and the map with it."""
    if isinstance(said, Mixture):
        raise ValueError(f"expected one normal target to fit the {name} on, got another mixture: leave calibrate out")
    y = split_of(data, "validation").y
    known = recalibration.known_as(data, name)
    parameter = known.fit(*recalibration.arguments_of(said), (y if data.num_classes is not None else data.in_units(y)).numpy())
    return known.parameter, parameter, lambda own: recalibration.applied(known.apply, recalibration.arguments_of(own), parameter)


_READ: dict[str, Data] = {}
"""The data of the last cell that this process scored: most cells of a grid are scored on the same, and reading takes longer."""


def _data_of(folder: Path, fit: Fit) -> Data:
    recipe = runs.recipe_in(folder)
    key = store.canonical(plain([recipe.data, recipe.of("data"), fit.record["data"]["hashes"]]))
    if key not in _READ:
        _READ.clear()
        _READ[key] = runs.data_of(folder)
    return _READ[key]


def _predicted(predictor: Predictor, data: Data, part: str, cell: Cell, num_samples: int) -> Predicted:
    """What the cell predicts before any calibrator: of classes the average over draws, and over members."""
    return predictions(predictor, data, part, ways=[cell.predict], num_samples=num_samples)[cell.predict]


def _check_draws(fit: Fit, cell: Cell) -> None:
    """Are several draws asked of what is one network? Known for sure only once there is a fit."""
    if cell.predict in DRAWN and fit.is_one(cell.predict):
        raise ValueError(f"expected draws that differ for predict {cell.predict}, but this fit is one network: `unmasked`")


def _head(loaded: Data, part: str, count: int) -> Data:
    """The data with only the first rows of one part; rows are in random order."""
    x, y = getattr(loaded, part)
    rows = torch.arange(min(count, len(y)))
    cut: dict[str, Any] = {part: Split(selected(x, rows), y[rows])}
    return loaded._replace(**cut)


def cell_facts(fits: Sequence[Fit], folders: Sequence[Path], cell: Cell, num_samples: int) -> dict[str, float]:
    """What a cell's quality was bought with; every entry is a column of the table. Summed over members.

    passes: networks evaluated for one prediction. FLOPs and bytes: `costs.costs`. seconds: of training, on its machine.
    """
    measured = [store.read_json(folder / "progress.json") for folder in folders if (folder / "progress.json").is_file()]
    facts: dict[str, float] = {
        "num_weights": sum(fit.topology.num_weights for fit in fits),
        "num_active": sum(fit.topology.num_active for fit in fits),
        "passes": len(fits) * (1 if cell.predict == "moments" else fits[0].num_draws(cell.predict, num_samples)),
        **costs.ensemble([costs.costs(fit, cell.predict, num_samples=num_samples) for fit in fits]),
    }
    if len(measured) == len(folders):
        seconds = sum(each["seconds"] for each in measured)
        facts |= {"seconds": seconds, "seconds_per_step": seconds / sum(each["step"] for each in measured)}
    return facts
