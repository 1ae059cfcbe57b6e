"""What a fit predicts, calibrated: maps fitted on the validation split, applied where they were not fitted, kept with the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espalier.calibration import CALIBRATORS, DRAW_CALIBRATORS, REGRESSION_CALIBRATORS
from espalier.contracts import Data
from espalier.prediction import evaluation
from espalier.prediction.fit import Fit, How
from espalier.prediction.mixture import Mixture

FITTED_ON = "validation"
PER_DRAW = "draws-"
"""Before the name of a calibrator of every draw by itself."""


def names_of(data: Data) -> tuple[str, ...]:
    """The calibrators that suit a data set."""
    if data.num_classes is None:
        return (*REGRESSION_CALIBRATORS,)
    return (*CALIBRATORS, *(PER_DRAW + name for name in DRAW_CALIBRATORS))


def check(data: Data, split: str, names: Sequence[str]) -> None:
    """Raises ValueError, before any work, for a calibrator that there is not, or a split that it would be fitted on."""
    if unknown := [name for name in names if name not in names_of(data)]:
        raise ValueError(f"expected calibrators of {', '.join(names_of(data))} for {data.name}, got {unknown[0]!r}")
    if names and split == FITTED_ON:
        raise ValueError(f"expected another split than {FITTED_ON}, which calibrators are fitted on: use --split test")
    if names:
        evaluation.split_of(data, FITTED_ON)


def recalibrated(
    fit: Fit,
    data: Data,
    split: str,
    names: Sequence[str],
    *,
    ways: Sequence[How] | None = None,
    num_samples: int = 16,
    seed: int = 0,
    predicted: Mapping[How, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """By `way + calibrator` what it predicts for a split, as `evaluation.predictions` gives it; and by the same name the fitted
    parameters, JSON-able. Fitted on the validation split, on predictions of the same way. predicted: what
    `evaluation.predictions` gives for the split, with these samples and this seed, where it is at hand.

    Raises ValueError as `check` does, and for a likelihood whose predictive distribution is a mixture that no calibrator here
    knows.
    """
    check(data, split, names)
    ways = ways or fit.ways
    options: dict[str, Any] = {"ways": ways, "num_samples": num_samples, "seed": seed}
    found: dict[str, Any] = {}
    kept: dict[str, dict[str, Any]] = {}
    if not names:
        return found, kept
    fitted_on = evaluation.split_of(data, FITTED_ON)
    seen = evaluation.predictions(fit, data, FITTED_ON, **options)
    asked = predicted or evaluation.predictions(fit, data, split, **options)
    y = fitted_on.y.long().numpy() if data.num_classes is not None else data.in_units(fitted_on.y).numpy()
    for way in ways:
        if isinstance(seen[way], Mixture):
            raise ValueError("expected class probabilities or one normal target to calibrate, got another likelihood's mixture")
        for name in names:
            told, parameter = _mapped(fit, data, split, way, name, seen[way], asked[way], y, num_samples, seed)
            found[f"{way} + {name}"] = told
            kept[f"{way} + {name}"] = parameter
    return found, kept


def _mapped(
    fit: Fit, data: Data, split: str, way: How, name: str, seen: Any, asked: Any, y: Any, num_samples: int, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Predictions of a split after one calibrator, and its parameters by their name."""
    if data.num_classes is None:
        known = REGRESSION_CALIBRATORS[name]
        parameter = known.fit(seen[..., 0], seen[..., 1], y)
        return np.stack(known.apply(asked[..., 0], asked[..., 1], parameter), -1), {known.parameter: parameter}
    if not name.startswith(PER_DRAW):
        known = CALIBRATORS[name]
        parameter = known.fit(seen, y)
        return known.apply(asked, parameter), {known.parameter: parameter}
    known = DRAW_CALIBRATORS[name.removeprefix(PER_DRAW)]
    parts = [evaluation.split_of(data, part).x for part in (FITTED_ON, split)]
    draws = [fit.predict(x, way, num_samples=num_samples, seed=seed).numpy() for x in parts]
    parameter = known.fit(draws[0], y)
    return known.apply(draws[1], parameter), {known.parameter: parameter}
