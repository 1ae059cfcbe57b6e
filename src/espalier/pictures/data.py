"""Pictures as data: what a claim or a grid wants drawn. `plots.py` draws them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from numpy.typing import ArrayLike


class Curve(NamedTuple):
    """One line of a picture: `y` over `x`, `(n,)` each, with a band or error bars from `low` to `high` where given."""

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    style: Literal["line", "dashed", "points", "dots", "bars"] = "line"
    """points are joined by a line, dots are not."""


class Picture(NamedTuple):
    """Curves over one pair of axes."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    xscale: Literal["linear", "log", "symlog"] = "linear"
    yscale: Literal["linear", "log", "symlog"] = "linear"
    names: tuple[str, ...] = ()
    """What x = 0, 1, ... stand for, where they are no numbers."""


class Ranks(NamedTuple):
    """A rank histogram: counts of simulation-based calibration ranks `(n,)` in 0..num_draws, and what they should follow.

    expected: probabilities of the `num_draws + 1` ranks; None is uniform.
    """

    title: str
    ranks: ArrayLike
    num_draws: int
    expected: ArrayLike | None = None


class Replicated(NamedTuple):
    """A statistic of replicated data sets `(R,)`, where the data's own lies among them, and its p-value."""

    title: str
    replicated: ArrayLike
    observed: float
    p_value: float
