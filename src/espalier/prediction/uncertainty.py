"""How uncertain a fit is of every row, by scores of its draws; a piece of the rows at a time, so that no stack of all is held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import nested
from espalier.calibration import REGRESSION_UNCERTAINTIES, UNCERTAINTIES
from espalier.calibration.uncertainty import Score
from espalier.likelihoods import WithUnknown
from espalier.prediction import one_pass
from espalier.prediction.fit import How
from espalier.prediction.predictor import Predictor

HELD = 20_000_000
"""Numbers of all draws that are held at once."""


OPEN: Mapping[str, Score] = {
    "unknown_probability": lambda draws: np.mean(np.asarray(draws), 0)[:, -1],
    "max_open_probability": lambda draws: 1 - np.mean(np.asarray(draws), 0)[:, :-1].max(-1),
}
"""Of draws `(S, n, C + 1)` whose last class is "unknown" (`likelihoods.WithUnknown`): its probability, and one less the largest
of the others, which are not renormalised (Lei et al. 2024, MOON's score). All other scores are of C classes, renormalised."""


def _open(fit: Predictor, x: Any, way: How, num_samples: int, seed: int) -> NDArray[np.float64]:
    """The draws `(S, n, C + 1)`."""
    draws = []
    for outcome in fit.outcomes(x, way, num_samples=num_samples, seed=seed):
        unknown = outcome.unknown.unsqueeze(-1)
        draws.append(torch.cat([outcome.logits.softmax(-1) * (1 - unknown), unknown], -1))
    return torch.stack(draws).numpy()


def uncertainties(
    fit: Predictor,
    x: object,
    way: How | None = None,
    *,
    names: Sequence[str] | None = None,
    num_samples: int = 16,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """By name a score of every row of x `(n,)`, of several labels or targets a row of each, `(n, ...)`, larger where less is
    known: see `calibration.UNCERTAINTIES`, and of a regression `calibration.REGRESSION_UNCERTAINTIES`.

    way: by default `fit.posterior`; of one network they are those of its one prediction, but for `distilled` of classes: what its
    masked networks would disagree by is `one_pass.information`, and the expected entropy what that leaves of the total. Networks
    with an output for "unknown" have two more, `OPEN`.
    names: which; None is all. Raises ValueError for a name that there is not.
    """
    way = way or fit.posterior
    known: dict[str, Score] = dict(REGRESSION_UNCERTAINTIES if fit.record.get("task") == "regression" else UNCERTAINTIES)
    if all(isinstance(own.model.likelihood, WithUnknown) for own in fit.fits) and getattr(fit, "pool", "") != "logits":
        known |= OPEN
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"expected uncertainties of {', '.join(known)}, got {unknown[0]!r}")
    taught = way == "distilled" and all(map(one_pass.is_taught, fit.fits))
    needed = [*(names or known), *(("mutual_information", "predictive_entropy") if taught else ())]
    rows = nested.rows_of(x)
    if not len(rows):
        raise ValueError("expected at least one row to be uncertain of, got none")
    first = fit.predict(rows[torch.arange(1)], way, num_samples=num_samples, seed=seed)
    if taught and first.dim() > 3:
        raise ValueError("expected one label a row for what one pass of `distilled` says of masks, got several: choose redraw")
    size = max(1, HELD // first.numel())
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in needed}
    for part in torch.arange(len(rows)).split(size):
        draws = fit.predict(rows[part], way, num_samples=num_samples, seed=seed).numpy()
        opened = _open(fit, rows[part], way, num_samples, seed) if OPEN.keys() & found.keys() else draws
        for name, pieces in found.items():
            own = opened if name in OPEN else draws
            pieces.append(known[name](own.reshape(len(own), -1, own.shape[-1])).reshape(own.shape[1:-1]))
    scores = {name: np.concatenate(pieces) for name, pieces in found.items()}
    if taught:
        # Of several such networks: within each and between them, by the chain rule.
        scores["mutual_information"] += np.mean([one_pass.information(own, rows) for own in fit.fits], 0)
        left = scores["predictive_entropy"] - scores["mutual_information"]
        scores["expected_entropy"] = np.maximum(left, 0.0)
    return {name: scores[name] for name in names or known}
