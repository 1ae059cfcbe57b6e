"""A fit on a split: every way to predict, every score, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from espalier import calibration
from espalier.contracts import PARTS, Data, Split
from espalier.prediction.fit import How
from espalier.prediction.mixture import Mixture
from espalier.prediction.predictor import Predictor

Predictions = NDArray[np.float64]
Predicted = Any
"""`Predictions`, or the `Mixture` of a likelihood that is neither of classes nor normal."""
Way = TypeVar("Way", bound=str)
SPLITS = PARTS


def split_of(data: Data, name: str) -> Split:
    """The split called `name`. Raises ValueError for an unknown or an empty one."""
    if not isinstance(data, Data):
        raise ValueError(f"expected Data, got a {type(data).__name__}: a fit comes first, then its data")
    if name not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {name!r}")
    split: Split = getattr(data, name)
    if not len(split.y):
        raise ValueError(f"expected examples in the {name} split, but this run was set up without: use another split")
    return split


def predictions(
    fit: Predictor,
    data: Data,
    split: str = "test",
    *,
    ways: Sequence[How] | None = None,
    num_samples: int = 16,
    seed: int = 0,
) -> dict[How, Predicted]:
    """What every way predicts for a split: mean probabilities `(n, ..., C)`; all draws `(S, n, 2)`, means and standard
    deviations, of a regression of one normal target; the `Mixture` of any other. Of classes, ways that are one network are
    evaluated once."""
    part, ways = split_of(data, split), ways or fit.ways
    _check_classes(fit, data)
    for member in fit.fits:
        check_prepared(member.record, data)
    fit.look_at(data)
    if data.num_classes is not None:
        found: dict[How, Predicted] = {}
        for way, same in fit.alike(ways).items():
            found[way] = found[same] if same in found else _mean(fit.draws(part.x, way, num_samples=num_samples, seed=seed))
        return found
    if part.y.dim() > 1 or not all(isinstance(each, Normal) for each in fit.outcomes(part.x[torch.arange(1)], "mean")):
        return {way: fit.mixture(part.x, way, num_samples=num_samples, seed=seed) for way in ways}
    return {way: fit.predict(part.x, way, num_samples=num_samples, seed=seed).numpy() for way in ways}


def _check_classes(fit: Predictor, data: Data) -> None:
    """Raises ValueError for classes of other names, or in another order, than those of the fit's training: of two sets that
    name theirs each by itself the same number means different things."""
    own = [*map(str, data.classes)]
    for member in fit.fits:
        known = [*map(str, member.record.get("data", {}).get("classes", []))]
        if known and own and known != own:
            raise ValueError(
                f"expected the classes {', '.join(known)} in this order, as in training, but {data.name} has {', '.join(own)}: "
                "say classes= to from_arrays"
            )


def check_prepared(record: Mapping[str, Any], data: Data) -> None:
    """Raises ValueError for inputs or targets that were scaled, or a frame whose columns were ordered, otherwise than in
    training: standardised by its own rows a set is another one to the network. What an older record leaves out is not asked."""
    facts = data.facts()
    known = {"scaled inputs": [of.get("inputs") for of in (record, facts)],
             "scaled targets": [of.get("target") for of in (record, facts)],
             "columns in their order": [of.get("data", {}).get("features") for of in (record, facts)]}  # fmt: skip
    for what, (before, own) in known.items():
        if before is not None and own is not None and not _alike(before, own):
            raise ValueError(
                f"expected {what} as in training, but {data.name} has others: put new rows into the data of training, "
                "data._replace(test=Split(data.inputs(x), (y - data.target_shift) / data.target_scale)), or y as it is for labels"
            )


def _alike(before: Any, own: Any) -> bool:
    """The same but for the last digits of numbers; the dtype of inputs, which says itself what is wrong with it, aside."""
    if isinstance(before, Mapping) and isinstance(own, Mapping):
        return all(_alike(before.get(name), own.get(name)) for name in {*before, *own} - {"dtype"})
    if isinstance(before, list | tuple) and isinstance(own, list | tuple):
        return len(before) == len(own) and all(map(_alike, before, own))
    if isinstance(before, int | float) and isinstance(own, int | float):
        return math.isclose(before, own, rel_tol=1e-4, abs_tol=1e-6)
    return bool(before == own)


def evaluate(
    fit: Predictor,
    data: Data,
    split: str = "test",
    *,
    num_samples: int = 16,
    predicted: Mapping[How, Predicted] | None = None,
) -> dict[str, Any]:
    """Scores of every way to predict on a split, JSON-able. Where an example has several labels or targets, means are over all
    of them and intervals over examples.

    `predict[way]` holds accuracy, nll, brier, ece_10, ece_15 and others, each with `NAME_interval` beside it and the ECE
    floors; for regression rmse, nll, crps, coverage in the units of the data. See calibration/scores.py for their definitions.
    predicted: what `predictions` returned, where it is at hand. Of an ensemble, counts are sums over its members.
    """
    if predicted is None:
        predicted = predictions(fit, data, split, num_samples=num_samples)
    scores = score(predicted, data, split)
    weights, active = (sum(getattr(own.topology, name) for own in fit.fits) for name in ("num_weights", "num_active"))
    return {
        "split": split,
        "num_examples": len(split_of(data, split).y),
        "num_samples": num_samples,
        "num_weights": weights,
        "num_active": active,
        "density": active / weights,
        "num_pairs": sum(len(own.pairs.values) for own in fit.fits),
        "num_bins": calibration.NUM_BINS,
        "predict": scores,
    }


def score(predicted: Mapping[Way, Any], data: Data, split: str = "test") -> dict[Way, dict[str, Any]]:
    """Scores of any predictive distributions on a split, by name; each as `predictions` returns them, in its units."""
    y = split_of(data, split).y
    if data.num_classes is not None:
        summary = calibration.classification_summary if y.dim() == 1 else calibration.clustered_summary
        return {way: summary(p, y.long().numpy()) for way, p in predicted.items()}  # masks may be 0.0 and 1.0
    targets = data.in_units(y)
    return {
        way: p.summary(targets)
        if isinstance(p, Mixture)
        else calibration.regression_summary(p[..., 0], p[..., 1], targets.numpy())
        for way, p in predicted.items()
    }


def _mean(draws: Iterator[Tensor]) -> Predictions:
    """The average of the draws, one at a time; of equal draws exactly that draw, so that one network's ways are equal."""
    mean, count = next(draws).double(), 1
    for draw in draws:
        count += 1
        mean = mean + (draw - mean) / count
    return mean.numpy()
