"""Is a fit read with the network that it is of? Weights of the same names and shapes fit many: what it says tells them apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from espalier import store
from espalier.contracts import stand_ins
from espalier.prediction.predict import parameters_of
from espalier.randomness import forked

if TYPE_CHECKING:
    from espalier.prediction.fit import Fit

Own = TypeVar("Own", bound="Fit")
ROWS, NUMBERS = 2, 16
"""Made-up rows, and numbers of what is said of them that are kept."""


def told(fit: Fit) -> list[float] | None:
    """The first numbers that the ticket's distribution of y has at made-up rows; None where it says nothing of such."""
    try:
        facts = json.loads(store.canonical({name: fit.record.get(name) for name in ("shape", "inputs")}))  # in the file's order
        x, said = stand_ins(facts, ROWS), list[NDArray[np.float64]]()
        with forked(fit.topology.positions.device):  # a network may draw, and is then not known by what it says
            for _ in range(2):
                said.append(parameters_of(next(fit.outcomes(x, "ticket"))).detach().double().cpu().numpy().ravel()[:NUMBERS])
    except Exception:  # tokens, a likelihood without moments, a record that was made by hand
        return None
    return said[0].tolist() if np.array_equal(said[0], said[1]) else None


def checked(fit: Own, before: Any) -> Own:
    """The same fit. Raises ValueError where it says something else than `told` had kept of it."""
    now = told(fit) if before else None
    if now is None:
        return fit
    close = len(now) == len(before) and np.allclose(now, before, rtol=0.02, atol=1e-3 * (1 + np.abs(before).max()))
    if not close:
        raise ValueError(
            "expected the network and the likelihood that this fit was trained with, but of the same made-up rows they say "
            f"{now[0]:.4g} where it was {before[0]:.4g}: an activation, a scale or the likelihood is another"
        )
    return fit
