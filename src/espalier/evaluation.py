"""A fit on a split: every way to predict, every score, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier import calibration
from espalier.batchnorm import has_batchnorm, training_batches
from espalier.contracts import Data, Split
from espalier.fit import WAYS, Fit, How

SPLITS = ("train", "validation", "calibration", "test")


def split_of(data: Data, name: str) -> Split:
    """The split called `name`. Raises ValueError for an unknown or an empty one."""
    if name not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {name!r}")
    split: Split = getattr(data, name)
    if not len(split.y):
        raise ValueError(f"expected examples in the {name} split, but this run was set up without: use another split")
    return split


def evaluate(
    fit: Fit, data: Data, split: str = "test", *, ways: Sequence[How] = WAYS, num_samples: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Scores of every way to predict on a split, JSON-able.

    `predict[way]` holds accuracy, nll, brier, ece_10, ece_15 and others, each with `NAME_interval` beside it and the ECE
    floors; for regression rmse, nll, crps, coverage in the units of the data. See calibration.py for their definitions.
    """
    part = split_of(data, split)
    if fit.inputs is None and has_batchnorm(fit.model):
        record = fit.record
        fit.inputs = training_batches(data, record["bn_batches"], record["batch_size"], fit.topology.positions.device)
    return {
        "split": split,
        "num_examples": len(part.y),
        "num_samples": num_samples,
        "num_weights": fit.topology.num_weights,
        "num_active": fit.topology.num_active,
        "density": fit.topology.density,
        "num_pairs": len(fit.pairs.values),
        "predict": {way: _scores(fit, data, part, way, num_samples, seed) for way in ways},
    }


def _scores(fit: Fit, data: Data, part: Split, way: How, num_samples: int, seed: int) -> dict[str, Any]:
    if data.num_classes is None:
        draws = fit.predict(part.x, way, num_samples=num_samples, seed=seed).double().numpy()
        targets = part.y.double().numpy() * data.target_scale + data.target_shift
        return dict(calibration.regression_summary(draws[..., 0], draws[..., 1], targets))
    return dict(
        calibration.classification_summary(mean_probabilities(fit, part, way, num_samples, seed), part.y.numpy())
    )


def mean_probabilities(fit: Fit, part: Split, way: How, num_samples: int = 16, seed: int = 0) -> Any:
    """The Monte Carlo predictive `(n, C)`, averaged over draws one at a time."""
    total, count = None, 0
    for draw in fit.draws(part.x, way, num_samples=num_samples, seed=seed):
        total = draw.double() if total is None else total + draw
        count += 1
    assert total is not None
    return (total / count).numpy()
