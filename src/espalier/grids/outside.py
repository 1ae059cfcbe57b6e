"""How well a cell tells inputs of another world from its own, by every uncertainty that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from espalier import data
from espalier.calibration import UNCERTAINTIES, auroc_interval
from espalier.contracts import Data
from espalier.data.worlds import inputs_of
from espalier.prediction.evaluation import Predictions
from espalier.prediction.features import OnePass, few, gives_logits
from espalier.prediction.fit import How
from espalier.prediction.one_pass import ONE_NETWORK
from espalier.prediction.predictor import Predictor
from espalier.prediction.uncertainty import uncertainties

OF_THE_MEAN = ("predictive_entropy", "max_probability")
"""Uncertainties of one prediction, which a calibrator changes."""
_KNOWN: dict[tuple[str, str, str], Tensor] = {}
"""The other world as the last cell saw it: to bring ten thousand images to its form takes longer than to score them."""


def world(source: str, own: Data, data_dir: str | None) -> Tensor:
    """`data.out_of_distribution`, once for all cells on the same data. Raises ValueError as that does."""
    key = source, own.hashes.get("test", own.name), f"{inputs_of(own)} {data_dir}"
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = data.out_of_distribution(source, own, data_dir=data_dir)
    return _KNOWN[key]


def detections(
    predictor: Predictor,
    of: Data,
    inside: Any,
    outside: Tensor,
    way: How,
    num_samples: int,
    calibrated: Callable[[Predictions], Predictions] | None = None,
) -> dict[str, Any]:
    """`auroc_NAME` and `auroc_NAME_interval` for each uncertainty that is not 0 for all, as `classification_summary` has its
    scores; of a single network also those that `OnePass` fits on the training rows `of` the data. calibrated: of the mean
    prediction `(n, C)`; then only those of it alone."""
    if calibrated is None:
        own, other = (uncertainties(predictor, x, way, num_samples=num_samples) for x in (inside, outside))
        (fit, *more) = predictor.fits
        if not more and fit.is_one(way) and way in ONE_NETWORK and gives_logits(fit, few(inside), way):
            alone = OnePass(fit, of, way)
            own, other = own | alone.uncertainties(inside), other | alone.uncertainties(outside)
    else:
        means = (predictor.predict(x, way, num_samples=num_samples).double().mean(0).numpy() for x in (inside, outside))
        own, other = (_of_the_mean(calibrated(p)) for p in means)
    found: dict[str, Any] = {}
    for name, scores in own.items():
        if scores.any() or other[name].any():
            area = auroc_interval(scores, other[name])
            found |= {f"auroc_{name}": area.value, f"auroc_{name}_interval": list(area.interval)}
    return found


def _of_the_mean(p: Predictions) -> dict[str, NDArray[np.float64]]:
    return {name: UNCERTAINTIES[name](p[None]) for name in OF_THE_MEAN}
