"""Selective prediction: what risk is left if the least certain examples are handed on to someone else?

`uncertainty` `(n,)` in any unit orders the examples, the most certain first; `losses` `(n,)`, at least 0, say what each
prediction cost: 1 - `accuracy_scores`, or any other score where less is better. Accepting the first k of n is a coverage of
k / n. Equal uncertainties have no order, so every number is its expectation over a random order of them: within m tied
examples of mean loss mu the expected loss accepted grows by mu each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlog1py, xlogy

from espalier.calibration.proportions import of_all_or_none
from espalier.calibration.resampling import Estimate, Ties, estimates, sums, tied, vector
from espalier.calibration.scores import LEVEL, NUM_RESAMPLES, SEED, Floats, Interval, Summary, require

COVERAGE, RISK = 0.8, 0.05
"""Where the summaries read the curve, unless they are told."""


class RiskCoverage(NamedTuple):
    """The curve for k = 1..n: `coverage` k / n, selective `risk`, the mean loss of the accepted, and `threshold`, the largest
    uncertainty among them; each `(n,)`."""

    coverage: Floats
    risk: Floats
    threshold: Floats


class _Steps(NamedTuple):
    """Groups of equal uncertainty, ascending, of R resamples, each `(R, G)`: how many `before`, how many in it (`size`), their
    `loss`, that of those before (`paid`), and the mean loss of one of them (`each`)."""

    before: Floats
    size: Floats
    paid: Floats
    loss: Floats
    each: Floats


def _pair(uncertainty: ArrayLike, losses: ArrayLike) -> tuple[Floats, Floats]:
    u, x = vector(uncertainty, "uncertainty"), vector(losses, "losses")
    require(u.shape == x.shape, "uncertainty and losses of one shape", (u.shape, x.shape), "pass one of each an example")
    require(bool((x >= 0).all()), "losses of at least 0", f"{x.min():.3g}", "pass 1 - accuracy_scores, or squared errors")
    return u, x


def _steps(ties: Ties, losses: Floats, counts: Floats) -> _Steps:
    size, loss = sums(counts, ties), sums(counts * losses, ties)
    each = np.divide(loss, size, out=np.zeros_like(loss), where=size > 0)
    return _Steps(size.cumsum(1) - size, size, loss.cumsum(1) - loss, loss, each)


def _harmonic(n: int) -> Floats:
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, n + 1))])


def _area(steps: _Steps, n: int) -> Floats:
    """sum_k R_k / n. In a group R_k = each + (paid - before each) / k, so its sum needs harmonic numbers alone."""
    h, first = _harmonic(n), np.rint(steps.before).astype(int)
    span = h[first + np.rint(steps.size).astype(int)] - h[first]
    return np.asarray((steps.loss + (steps.paid - steps.before * steps.each) * span).sum(1) / n)


def _generalized_area(steps: _Steps, n: int) -> Floats:
    return np.asarray((steps.size * (steps.paid + steps.loss / 2)).sum(1) / n**2)


def _accepted(n: int, coverage: float) -> int:
    """The smallest number of n that is a share of at least `coverage`."""
    return max(1, int(np.ceil(coverage * n - 1e-9)))


def _risk_at(steps: _Steps, n: int, coverage: float) -> Floats:
    k = _accepted(n, coverage)
    group = (steps.before + steps.size < k - 0.5).sum(1)[:, None]
    before, paid, each = (np.take_along_axis(a, group, 1)[:, 0] for a in (steps.before, steps.paid, steps.each))
    return np.asarray((paid + (k - before) * each) / k)


def _coverage_at(steps: _Steps, n: int, risk: float) -> Floats:
    end, tilt = steps.before + steps.size, steps.paid - steps.before * steps.each
    holds = steps.paid + steps.loss <= risk * end + 1e-12
    rises = (tilt < 0) & (steps.each > risk)  # R_k = each + tilt / k crosses `risk` within the group, or before it
    inside = np.floor(np.divide(tilt, risk - steps.each, out=np.zeros_like(tilt), where=rises) + 1e-9)
    reached = np.where(holds, end, np.where(rises, np.minimum(inside, end), 0))
    return np.asarray(np.where((reached > steps.before) & (steps.size > 0), reached, 0).max(1) / n)


def _ones(uncertainty: ArrayLike, losses: ArrayLike) -> tuple[_Steps, int]:
    u, x = _pair(uncertainty, losses)
    return _steps(tied(u), x, np.ones((1, len(u)))), len(u)


def _check(coverage: float = COVERAGE, risk: float = RISK) -> None:
    require(0 < coverage <= 1, "a coverage in (0, 1]", coverage, "it is a share of all examples")
    require(risk >= 0, "a risk of at least 0", risk, "it is a mean loss")


# --- The curve and its numbers ------------------------------------------------------------------------------------
def risk_coverage(uncertainty: ArrayLike, losses: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv & Wiener 2010). Raises ValueError for arrays that do not fit, or losses below 0."""
    u, x = _pair(uncertainty, losses)
    ties = tied(u)
    steps, k = _steps(ties, x, np.ones((1, len(u)))), np.arange(1, len(u) + 1)
    group = np.searchsorted(ties.starts, k - 1, side="right") - 1
    paid, before, each = steps.paid[0][group], steps.before[0][group], steps.each[0][group]
    return RiskCoverage(k / len(u), (paid + (k - before) * each) / k, u[ties.order])


def aurc(uncertainty: ArrayLike, losses: ArrayLike) -> float:
    """Area under the risk-coverage curve, 1/n sum_k R_k with R_k the risk at coverage k / n (Geifman et al. 2019), in units
    of the loss. Lower is better; the mean loss is what an order at random scores."""
    return float(_area(*_ones(uncertainty, losses))[0])


def excess_aurc(uncertainty: ArrayLike, losses: ArrayLike) -> float:
    """`aurc` less that of the best order, by the losses themselves (Geifman et al. 2019, E-AURC). The best is computed on
    these losses and not by its limit for 0/1 losses, r + (1 - r) log(1 - r) at error rate r. At least 0."""
    return max(0.0, aurc(uncertainty, losses) - aurc(losses, losses))


def augrc(uncertainty: ArrayLike, losses: ArrayLike) -> float:
    """Area under the generalized risk-coverage curve (Traub et al. 2024): the generalized risk is the loss of the accepted
    over *all* examples, so what is refused counts as 0, and the area is exact for the curve joined by lines from (0, 0). For
    0/1 losses it is (1 - AUROC) r (1 - r) + r^2 / 2, r the error rate and AUROC that of uncertainty for errors."""
    return float(_generalized_area(*_ones(uncertainty, losses))[0])


def risk_at_coverage(uncertainty: ArrayLike, losses: ArrayLike, coverage: float = COVERAGE) -> float:
    """The risk of the smallest number accepted that is a share of at least `coverage`."""
    _check(coverage)
    return float(_risk_at(*_ones(uncertainty, losses), coverage)[0])


def coverage_at_risk(uncertainty: ArrayLike, losses: ArrayLike, risk: float = RISK) -> float:
    """The largest coverage whose risk is at most `risk`; 0 where there is none. Read off the examples at hand it holds for
    no new ones: for a guarantee see `espalier.certificates`."""
    _check(risk=risk)
    return float(_coverage_at(*_ones(uncertainty, losses), risk)[0])


# --- Intervals ----------------------------------------------------------------------------------------------------
_NAMES = ("aurc", "excess_aurc", "augrc", "risk_at_coverage", "coverage_at_risk")


def _statistic(uncertainty: ArrayLike, losses: ArrayLike, coverage: float, risk: float) -> Callable[[Floats], Floats]:
    """Counts `(R, n)` to the five `_NAMES` `(R, 5)`."""
    u, x = _pair(uncertainty, losses)
    _check(coverage, risk)
    n, by_score, by_loss = len(u), tied(u), tied(x)

    def statistic(counts: Floats) -> Floats:
        steps = _steps(by_score, x, counts)
        area, best = _area(steps, n), _area(_steps(by_loss, x, counts), n)
        at = _risk_at(steps, n, coverage), _coverage_at(steps, n, risk)
        return np.stack([area, np.maximum(area - best, 0.0), _generalized_area(steps, n), *at], axis=1)

    return statistic


def selective_summary(
    uncertainty: ArrayLike, losses: ArrayLike, *, coverage: float = COVERAGE, risk: float = RISK, level: float = LEVEL,
    seed: int = SEED, num_resamples: int = NUM_RESAMPLES,
) -> Summary:  # fmt: skip
    """What a record keeps, ready for JSON: `aurc`, `excess_aurc`, `augrc`, `risk_at_coverage` and `coverage_at_risk`, each
    with its neighbour `NAME_interval`, a percentile bootstrap over examples (Efron 1979). Of losses that are 0 or 1 where all
    accepted ones are alike, which no resample tells from certain, that of the risk is `clopper_pearson`'s, and where all are
    alike the others are what its error rates allow under any uncertainty. With few errors they are too narrow: of a calibrated
    classifier with about 4, 11 and 38 of them 95 % intervals of the AURC cover .76, .84 and .93 of the time, mostly by being too
    low."""
    statistic, x = _statistic(uncertainty, losses, coverage, risk), vector(losses, "losses")
    n, found = len(x), estimates(statistic, (len(x),), level, num_resamples, seed)
    if np.isin(x, (0, 1)).all() and x.min() == x.max():
        ends = _any_order(*of_all_or_none(float(x[0]), n, level), risk)
        found = [each if name not in ends else Estimate(each.value, ends[name])
                 for name, each in zip(_NAMES, found, strict=True)]  # fmt: skip
    at = _NAMES.index("risk_at_coverage")
    if found[at].value in (0.0, 1.0) and np.isin(x, (0, 1)).all():
        found[at] = Estimate(found[at].value, of_all_or_none(found[at].value, _accepted(n, coverage), level))
    out: Summary = {"num_examples": n, **{name: each.value for name, each in zip(_NAMES, found, strict=True)}}
    return out | {f"{name}_interval": list(each.interval) for name, each in zip(_NAMES, found, strict=True)}


def _any_order(low: float, high: float, risk: float) -> dict[str, Interval]:
    """What error rates between `low` and `high` allow, between accepting every error last and accepting it first: of r errors, at
    coverage c, max(0, c - 1 + r) or min(c, r) are accepted [derived]."""
    least, most = low + float(xlog1py(1 - low, -low)), high - float(xlogy(high, high))
    sure = 1.0 if high <= risk else 0.0
    return {
        "aurc": (least, most), "excess_aurc": (0.0, most - least), "augrc": (low**2 / 2, high - high**2 / 2),
        "coverage_at_risk": (sure, 1.0 if low <= risk else min(1.0, (1 - low) / (1 - risk))),
    }  # fmt: skip


def selective_differences(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike], *, coverage: float = COVERAGE,
    risk: float = RISK, level: float = LEVEL, seed: int = SEED, num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Estimate]:  # fmt: skip
    """First less second in each number of `selective_summary`, with intervals paired by example: both are resampled alike.

    first, second: `(uncertainty, losses)` of two methods, or of two scores of one, on the same n examples.
    """
    sizes = tuple(len(vector(losses, "losses")) for _, losses in (first, second))
    require(sizes[0] == sizes[1], "two methods on the same examples", sizes, "score both on all of them, in one order")
    own, other = (_statistic(*pair, coverage, risk) for pair in (first, second))
    found = estimates(lambda counts: own(counts) - other(counts), sizes[:1], level, num_resamples, seed)
    return dict(zip(_NAMES, found, strict=True))
