"""Is a fit read with the network that it is of? Weights of the same names and shapes fit many: what it says tells them apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

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

    def say() -> Tensor:
        facts = json.loads(store.canonical({name: fit.record.get(name) for name in ("shape", "inputs")}))  # in the file's order
        return parameters_of(next(fit.outcomes(stand_ins(facts, ROWS), "ticket")))

    return numbers_of(say, fit.topology.positions.device)


def numbers_of(say: Callable[[], Tensor], device: torch.device | str = "cpu") -> list[float] | None:
    """The first numbers of what is said; None where it is not the same twice, as of a network that draws, or where nothing is
    said of made-up rows: tokens, a likelihood without moments, a record that was made by hand."""
    try:
        with forked(device):
            one, other = (say().detach().double().cpu().numpy().ravel()[:NUMBERS] for _ in range(2))
    except Exception:
        return None
    return one.tolist() if np.isfinite(one).all() and np.array_equal(one, other) else None


def check(now: Sequence[float] | None, before: Sequence[float] | None, of: str) -> None:
    """Raises ValueError where something else is said than had been kept; of what says nothing, nothing is asked."""
    if not now or not before:
        return
    if not (len(now) == len(before) and np.allclose(now, before, rtol=0.02, atol=1e-3 * (1 + np.abs(before).max()))):
        raise ValueError(
            f"expected the network and the likelihood that {of}, but of the same made-up rows they say {now[0]:.4g} where it was "
            f"{before[0]:.4g}: an activation, a scale or the likelihood is another"
        )


def checked(fit: Own, before: Any) -> Own:
    """The same fit. Raises ValueError where it says something else than `told` had kept of it."""
    check(told(fit) if before else None, before, "this fit was trained with")
    return fit
