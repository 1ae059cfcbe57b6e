"""What a fit predicts, calibrated: maps fitted on the validation split, applied where they were not fitted, kept with the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import store
from espalier.calibration import CALIBRATORS, DRAW_CALIBRATORS, REGRESSION_CALIBRATORS
from espalier.calibration.calibrators import Calibrator
from espalier.contracts import Data
from espalier.prediction import evaluation
from espalier.prediction.fit import How
from espalier.prediction.mixture import Mixture
from espalier.prediction.predictor import Predictor

FITTED_ON = "validation"
PER_DRAW = "draws-"
"""Before the name of a calibrator of every draw by itself."""
KEPT = "calibrators.json"
"""What was fitted, in the folder of its run."""
Parameters = dict[str, dict[str, Any]]
"""`way + calibrator` -> its parameters by their name."""


def names_of(data: Data) -> tuple[str, ...]:
    """The calibrators that suit a data set."""
    if data.num_classes is None:
        return (*REGRESSION_CALIBRATORS,)
    return (*CALIBRATORS, *(PER_DRAW + name for name in DRAW_CALIBRATORS))


def check(data: Data, split: str, names: Sequence[str]) -> None:
    """Raises ValueError, before any work, for a calibrator that there is not, or a split that it would be fitted on."""
    if unknown := [name for name in names if name not in names_of(data)]:
        raise ValueError(f"expected calibrators of {', '.join(names_of(data))} for {data.name}, got {unknown[0]!r}")
    if names and evaluation.split_of(data, split).y.dim() > 1:
        raise ValueError("expected one label or target an example for calibrators, got several: leave --calibrate out")
    if names and split == FITTED_ON:
        raise ValueError(f"expected another split than {FITTED_ON}, which calibrators are fitted on: use --split test")
    if names:
        evaluation.split_of(data, FITTED_ON)


def recalibrated(
    fit: Predictor,
    data: Data,
    split: str,
    names: Sequence[str],
    *,
    ways: Sequence[How] | None = None,
    num_samples: int = 16,
    seed: int = 0,
    predicted: Mapping[How, Any] | None = None,
) -> tuple[dict[str, Any], Parameters]:
    """By `way + calibrator` what it predicts for a split, as `evaluation.predictions` gives it; and by the same name the fitted
    parameters, JSON-able. Fitted on the validation split, on predictions of the same way. predicted: what
    `evaluation.predictions` gives for the split, with these samples and this seed, where it is at hand.

    Raises ValueError as `check` does, and for a likelihood whose predictive distribution is a mixture that no calibrator here
    knows.
    """
    check(data, split, names)
    ways = ways or fit.ways
    kept: Parameters = {}
    if not names:
        return {}, kept
    fitted_on = evaluation.split_of(data, FITTED_ON)
    seen = evaluation.predictions(fit, data, FITTED_ON, ways=ways, num_samples=num_samples, seed=seed)
    y = fitted_on.y.long().numpy() if data.num_classes is not None else data.in_units(fitted_on.y).numpy()
    for way in ways:
        if isinstance(seen[way], Mixture):
            raise ValueError("expected class probabilities or one normal target to calibrate, got another likelihood's mixture")
        for name in names:
            known, arguments = _of(data, name, seen[way], fit, FITTED_ON, way, num_samples, seed)
            kept[f"{way} + {name}"] = {known.parameter: known.fit(*arguments, y)}
    return apply_kept(fit, data, split, kept, num_samples=num_samples, seed=seed, predicted=predicted), kept


def apply_kept(
    fit: Predictor,
    data: Data,
    split: str,
    kept: Parameters,
    *,
    num_samples: int = 16,
    seed: int = 0,
    predicted: Mapping[How, Any] | None = None,
) -> dict[str, Any]:
    """What `way + calibrator` predicts for a split, with parameters as `recalibrated` returns them or `read_kept` reads them."""
    ways = tuple(dict.fromkeys(_parted(arm)[0] for arm in kept))
    asked = predicted or evaluation.predictions(fit, data, split, ways=ways, num_samples=num_samples, seed=seed)
    found: dict[str, Any] = {}
    for arm, parameters in kept.items():
        way, name = _parted(arm)
        known, arguments = _of(data, name, asked[way], fit, split, way, num_samples, seed)
        found[arm] = applied(known.apply, arguments, parameters[known.parameter])
    return found


def read_kept(folder: Path, fit: Predictor, data: Data) -> Parameters:
    """The calibrators that `espalier evaluate --calibrate` left in a run's folder; none where there is no file.

    Raises ValueError for a file that it did not write.
    """
    path = folder / KEPT
    if not path.exists():
        return {}
    kept = store.read_json(path)
    try:
        for arm, parameters in kept.items():
            way, name = _parted(arm)
            if way not in fit.ways or name not in names_of(data) or set(parameters) != {known_as(data, name).parameter}:
                raise ValueError(arm)
            told = known_as(data, name).apply(*_even(data, name), *parameters.values())
            if not np.isfinite(np.asarray(told, dtype=np.float64)).all():
                raise ValueError(arm)
    except (ValueError, AttributeError, TypeError, LookupError) as error:
        raise ValueError(f"expected calibrators of this run in {path}, got others: it was altered, remove it") from error
    return dict(kept)


def _parted(arm: str) -> tuple[How, str]:
    """`way + calibrator` as the two."""
    way, _, name = arm.partition(" + ")
    return way, name  # type: ignore[return-value]


def known_as(data: Data, name: str) -> Calibrator:
    """The calibrator of that name for a data set."""
    if data.num_classes is None:
        return REGRESSION_CALIBRATORS[name]
    return DRAW_CALIBRATORS[name.removeprefix(PER_DRAW)] if name.startswith(PER_DRAW) else CALIBRATORS[name]


def arguments_of(said: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """What a calibrator takes of mean probabilities `(n, C)`; of draws of a regression `(S, n, 2)` means and scales."""
    return (said,) if said.ndim == 2 else (said[..., 0], said[..., 1])


def applied(apply: Callable[..., Any], arguments: tuple[NDArray[Any], ...], parameter: Any) -> Any:
    """What a calibrator makes of them, in the form of `evaluation.predictions`."""
    found = apply(*arguments, parameter)
    return np.stack(found, -1) if isinstance(found, tuple) else found


def _even(data: Data, name: str) -> tuple[NDArray[Any], ...]:
    """A prediction that every calibrator of a data set takes: what its parameters are tried on."""
    if data.num_classes is None:
        return np.zeros((1, 1)), np.ones((1, 1))
    even = np.full((1, data.num_classes), 1 / data.num_classes)
    return (even[None] if name.startswith(PER_DRAW) else even,)


def _of(
    data: Data, name: str, said: Any, fit: Predictor, split: str, way: How, num_samples: int, seed: int
) -> tuple[Calibrator, tuple[NDArray[Any], ...]]:
    """A calibrator, and the predictions that it takes: of a regression means and scales, of a draws' the draws."""
    known = known_as(data, name)
    if not name.startswith(PER_DRAW):
        return known, arguments_of(said)
    return known, (fit.predict(evaluation.split_of(data, split).x, way, num_samples=num_samples, seed=seed).numpy(),)
