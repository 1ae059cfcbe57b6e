"""What a claim of the theory is, and what checking it finds.

A check compares a formula with an answer that owes it nothing (closed form, quadrature, enumeration, another library,
Monte Carlo with its error). The formulas are its keyword arguments, so that a test can hand it a wrong one and see it
fail.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from espalier.pictures.data import Curve as Curve
from espalier.pictures.data import Picture as Picture
from espalier.pictures.data import Ranks as Ranks
from espalier.randomness import forked

FALSE_ALARMS = 1e-6
"""Probability that one statistical check says `fails` of a claim that holds, over all the numbers it looks at."""


class Finding(NamedTuple):
    """How far apart the two sides are. The claim holds if `discrepancy <= tolerance`, both in `unit`."""

    compared: str
    """What was compared with what, on how much."""
    discrepancy: float
    tolerance: float
    unit: str
    """'nats', 'relative', 'standard errors', '-log10 p' ..."""
    figures: Mapping[str, Any] = {}
    """Numbers worth keeping beside the verdict, JSON-able."""
    breaks: str = ""
    """One sentence: where the claim does not hold exactly. Empty where it does."""
    pictures: tuple[Picture | Ranks, ...] = ()

    @property
    def verdict(self) -> Literal["holds", "fails"]:
        return "holds" if self.discrepancy <= self.tolerance else "fails"  # a NaN fails


class Claim(NamedTuple):
    """One line of `espalier theory`."""

    name: str
    says: str
    source: str
    check: Callable[..., Finding]
    """`check(quick, *, formulas...)`: quick asks for the same comparison on fewer draws or a smaller grid."""
    fails: bool = False
    """Is it recorded that the claim does not hold? Then `espalier theory` does not mind."""


class Line(NamedTuple):
    """One line of the report."""

    name: str
    says: str
    source: str
    finding: Finding
    seconds: float
    quick: bool = False


def apart(check: Callable[..., Finding]) -> Callable[..., Finding]:
    """The check in a world of its own: torch's random stream and default type and Pyro's store are afterwards as they were."""

    @functools.wraps(check)
    def in_its_own(*arguments: Any, **formulas: Any) -> Finding:
        import pyro
        import torch

        dtype = torch.get_default_dtype()
        try:
            with forked(), pyro.get_param_store().scope():
                return check(*arguments, **formulas)
        finally:
            torch.set_default_dtype(dtype)

    return in_its_own


def limit(looks: int = 1) -> float:
    """Standard errors that the worst of `looks` two-sided normal comparisons stays within, but for `FALSE_ALARMS`."""
    return float(stats.norm.isf(FALSE_ALARMS / (2 * looks)))


def worst(*numbers: ArrayLike) -> float:
    """The largest of all these; NaN where one of them is (Python's own `max` drops it, and a claim would hold by it)."""
    return float(np.max(np.concatenate([np.ravel(np.asarray(each, dtype=np.float64)) for each in numbers])))


def surprise(p_value: float) -> float:
    """-log10 of a p-value (above 1, as Bonferroni's may be, it counts as 1; NaN stays); a check holds up to `SURPRISE`."""
    return float(-np.log10(np.clip(p_value, 1e-300, 1.0))) + 0.0


SURPRISE = surprise(FALSE_ALARMS)


def worst_z(estimate: ArrayLike, truth: ArrayLike, error: ArrayLike) -> tuple[float, float]:
    """The largest |estimate - truth| / error, and its `limit` over that many looks: a discrepancy and its tolerance.

    Differences below 1e-12 of the truth count as none: rounding where the standard error vanishes.
    """
    estimate, truth, error = (np.asarray(each, dtype=np.float64) for each in (estimate, truth, error))
    gap: NDArray[np.float64] = np.abs(estimate - truth)
    gap = np.where(gap <= 1e-12 * (1 + np.abs(truth)), 0.0, gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap == 0, 0.0, gap / error)
    return float(np.max(z)), limit(z.size)


def plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
