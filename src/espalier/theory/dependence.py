"""How Z and W depend on each other in CigL's collected pairs (Lei et al. 2023, Appendix C: more so when sparse).

Algorithm 1 collects Z(t) with u(t) after the step that Z(t) took part in: u_i(t) = u_i(t-1) - lr (1 + m) (Z_i g_i + wd u_i)
- lr m^2 b_i, with m and b Nesterov's momentum and its buffer. Z(t) owes nothing to the past, so that given the past
Cov(Z_i, u_i) = -lr (1 + m) (1 - p) E[Z_i g_i]. Summed over T steps the same recursion says what E[Z_i g_i] is: the mean of
Z_i g_i + wd u_i is -(1 - m) / lr times the mean step, (u_i(T) - u_i(0)) / T, up to one momentum buffer. Hence

    mean Cov(Z_i, u_i) = (1 + m) (1 - p) (lr wd mean u_i + (1 - m) (u_i(T) - u_i(0)) / T):                       (*)

a kept weight stands farther from 0 than a dropped one by one step of decay, plus the drift. No likelihood is left in it.
That is one weight and its own bit. Jointly, the step lowers the loss under its own mask by lr (1 + m) |Z g|^2, more than
under another mask, whose gradient differs: the pair (Z, u) predicts better than (Z', u), the more so the more a mask matters.

Estimates. Over steps: (Z_i(t) - p)(u_i(t) - u_i(t-1)), aligned with the sign of u at the window's start (weights of both
signs would cancel) and pooled over active weights; it has the mean of (Z_i(t) - p) u_i(t) at a hundredth of the noise, since
u(t-1) cannot depend on Z(t). Over pairs: the same with u less the u of the pair before, and a permutation null. (Less the
mean over pairs would be biased downwards: later u remember Z.) Prediction: the pairs against the same u beside later Z, less
the same for the net before its last step, which is zero in the mean and carries most of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from espalier.theory.claims import Claim, Curve, Finding, Picture, worst_z
from espalier.theory.recorded import MEASURES, MOMENTUM, NUM_SHIFTS, RATE, WEIGHT_DECAY, Floats, Run, runs

NUM_PERMUTATIONS = 1999
ALIGNED = "pooled correlation, aligned with the sign of u"
CLEAR = 0.025
"""One-sided p-value of a claimed direction: the 95 % interval lies wholly on the claimed side."""


def permuted(cross: Floats, rng: np.random.Generator, count: int = NUM_PERMUTATIONS) -> Floats:
    """Null draws `(count,)` of the trace: whole masks Z exchanged among pairs, as they may be if u does not know its Z."""
    pairs = np.arange(len(cross))
    return np.array([cross[pairs, rng.permutation(pairs)].sum() for _ in range(count)])


def step_covariance(
    rate: float, momentum: float, keep_prob: float, weight_decay: float, value: float, drift: float
) -> float:
    """(*): Cov(Z, u) of a step, from the mean u and the mean step `drift`, or their aligned sums over weights."""
    return (1 + momentum) * (1 - keep_prob) * (rate * weight_decay * value + (1 - momentum) * drift)


def gap(nll: Floats) -> tuple[float, float]:
    """NLL `(1 + R, n)`, the own pairing first: its mean less that of the R others, and the error over pairings."""
    own, *others = nll.mean(1)
    return float(own - np.mean(others)), float(np.std(others, ddof=1) * math.sqrt(1 + 1 / len(others)))


def gain(one: Run) -> Floats:
    """`(1 + NUM_SHIFTS, n)`: what the last step changed in the NLL under its own Z and under the others."""
    return one.nll - one.control_nll


def trend(sparsities: Floats, numbers: Floats, errors: Floats) -> tuple[float, float]:
    """Least-squares slope in log10(1 / density) and its error, from the runs' errors or, where larger, seeds' scatter."""
    decades = -np.log10(1 - sparsities)
    weights = (decades - decades.mean()) / np.sum((decades - decades.mean()) ** 2)
    levels = np.unique(sparsities)
    means = np.array([numbers[sparsities == each].mean() for each in sparsities])
    freedom = len(numbers) - len(levels)
    scatter = np.sum(((numbers - means) / errors) ** 2) / freedom if freedom else 1.0
    return float(weights @ numbers), float(np.sqrt(np.sum((weights * errors) ** 2) * max(1.0, scatter)))


def _by_sparsity(every: list[Run], numbers: Floats) -> dict[float, Floats]:
    sparsities = np.array([one.sparsity for one in every])
    return {float(level): numbers[sparsities == level] for level in np.unique(sparsities)}


def _curve(label: str, every: list[Run], numbers: Floats) -> Curve:
    """Means over seeds with 95 % t intervals; without intervals where there is one seed."""
    groups = _by_sparsity(every, numbers)
    mean = np.array([group.mean() for group in groups.values()])
    if min(map(len, groups.values())) < 2:
        return Curve(label, list(groups), mean)
    half = np.array([stats.t.ppf(0.975, len(g) - 1) * stats.sem(g) for g in groups.values()])
    return Curve(label, list(groups), mean, mean - half, mean + half)


def over_pairs(every: list[Run]) -> tuple[dict[str, Any], Picture]:
    """The pooled correlation over collected pairs, with its permutation null: one-sided p-values, for each run and for all."""
    rng, sparsities = np.random.default_rng(0), [one.sparsity for one in every]
    found, null = np.array([np.trace(r.pairs) for r in every]), np.stack([permuted(r.pairs, rng) for r in every])
    weight = null.var(1) ** -1 / np.sum(null.var(1) ** -1)
    pooled, pooled_null, bands = float(weight @ found), weight @ null, _by_sparsity(every, null)
    low, high = np.array([np.quantile(band, [0.025, 0.975]) for band in bands.values()]).T
    figures = {
        "correlation": found.tolist(),
        "null_sd": null.std(1).tolist(),
        "p_values": ((1 + (null >= found[:, None]).sum(1)) / (1 + null.shape[1])).tolist(),
        "pooled": pooled,
        "pooled_null_sd": float(pooled_null.std()),
        "pooled_p_value": float((1 + (pooled_null >= pooled).sum()) / (1 + len(pooled_null))),
    }
    curves = (
        Curve("one run", sparsities, found, style="points"),
        Curve("one run under permutation, 95 %", list(bands), (low + high) / 2, low, high),
    )
    return figures, Picture("Z and u over collected pairs", "sparsity", ALIGNED, curves)


def check_dependence(
    quick: bool,
    *,
    formula: Callable[[float, float, float, float, float, float], float] = step_covariance,
    steps: Callable[[Run], Floats] = lambda one: one.own,
) -> Finding:
    every = runs(quick)
    sparsities = [one.sparsity for one in every]
    found, error = np.array([one.correlation(steps(one)) for one in every]).T
    predicted = np.array(
        [formula(RATE, MOMENTUM, r.keep_prob, WEIGHT_DECAY, r.value, r.drift) / r.spread for r in every]
    )
    pairs, pairs_picture = over_pairs(every)
    overall_error = float(np.sum(error**-2) ** -0.5)
    overall = float(found @ error**-2) * overall_error**2
    return Finding(
        f"pooled correlation of Z and u after the step, over {len(every[0].own):,} steps of CigL on digits in each of "
        f"{len(every)} runs at sparsity {sparsities[0]:.0%} to {sparsities[-1]:.0%}, with formula (*)",
        *worst_z(found, predicted, error),
        "standard errors",
        {
            "sparsity": sparsities,
            "measured": found.tolist(),
            "standard_error": error.tolist(),
            "predicted": predicted.tolist(),
            "overall": [overall, overall_error],
            "pairs": pairs,
        },
        breaks=f"The correlation is {overall / overall_error:.0f} standard errors from zero and tiny, {overall:.2g}: a step of "
        f"decay is small beside the spread of u. The collected pairs alone show {pairs['pooled']:.1g}, and {NUM_PERMUTATIONS} "
        f"permutations of Z over them have a standard deviation of {pairs['pooled_null_sd']:.1g}.",
        pictures=(
            Picture(
                "Z and u after the step: kept weights stand farther from zero",
                "sparsity",
                ALIGNED,
                (
                    Curve(
                        "one run, 2 s.e. over steps", sparsities, found, found - 2 * error, found + 2 * error, "bars"
                    ),
                    _curve("decay and drift, formula (*)", every, predicted),
                ),
            ),
            pairs_picture,
        ),
    )


def _growth(every: list[Run], measured: list[tuple[float, float]], sign: int, of: str, breaks: str) -> Finding:
    """Does sign * number grow with sparsity? `measured` has each run's number and error."""
    numbers, errors = np.array(measured).T
    slope, error = trend(np.array([one.sparsity for one in every]), numbers, errors)
    means = {f"{level:.0%}": float(group.mean()) for level, group in _by_sparsity(every, numbers).items()}
    return Finding(
        f"slope of {of} in log10(1 / density), {len(every)} runs, with zero",
        float(stats.norm.sf(sign * slope / error)),
        CLEAR,
        "one-sided p",
        {"slope": slope, "standard_error": error, "by_sparsity": means},
        breaks=f"Per factor 10 of sparsity it changes by {slope:.1g} ± {2 * error:.1g} ("
        + ", ".join(f"{value:.2g} at {level}" for level, value in means.items())
        + f"): {breaks}.",
    )


def check_sparsity(quick: bool, *, steps: Callable[[Run], Floats] = lambda one: one.own) -> Finding:
    every = runs(quick)
    measured = [one.correlation(steps(one)) for one in every]
    why = (
        "decay and drift set it, and sparsity enters only through the size and spread of u; runs count alike, while "
        "weighting them by precision, first tried, let the dense ones decide and said holds"
    )
    return _growth(every, measured, 1, "the pooled correlation of Z and u over steps", why)


def check_prediction_sparsity(quick: bool, *, change: Callable[[Run], Floats] = gain) -> Finding:
    every = runs(quick)
    measured = [gap(change(one)) for one in every]
    why = "no straight line, for the sparsest nets have most of it"
    return _growth(every, measured, -1, "the test NLL of collected less reshuffled pairs, nats,", why)


def check_prediction(quick: bool, *, change: Callable[[Run], Floats] = gain) -> Finding:
    every = runs(quick)
    sparsities = [one.sparsity for one in every]
    gaps, error = np.array([gap(change(one)) for one in every]).T
    plain, plain_error = np.array([gap(one.nll) for one in every]).T
    pooled, pooled_error = float(gaps.mean()), float(np.sqrt(np.sum(error**2))) / len(every)
    over_examples = [stats.ttest_1samp(change(o)[0] - change(o)[1:].mean(0), 0).confidence_interval() for o in every]
    groups = _by_sparsity(every, gaps)
    curves = {
        name: tuple(
            _curve(way, every, np.array([one.scores[name][way] for one in every])) for way in every[0].scores[name]
        )
        for name in MEASURES
    }
    return Finding(
        f"test NLL of collected pairs less that of the same u beside the Z of {NUM_SHIFTS} later epochs (control variate: the "
        f"net before its last step), mean of {len(every)} runs, with zero",
        float(stats.t.cdf(pooled / pooled_error, NUM_SHIFTS - 1)),
        CLEAR,
        "one-sided p",
        {
            "sparsity": sparsities,
            "gap_nats": gaps.tolist(),
            "error_over_pairings": error.tolist(),
            "interval_over_examples": [[float(each.low), float(each.high)] for each in over_examples],
            "without_control_variate": [plain.tolist(), plain_error.tolist()],
            "mean_gap_nats": [pooled, pooled_error],
            "scores": {name: {c.label: np.asarray(c.y).tolist() for c in curves[name]} for name in curves},
        },
        breaks="By sparsity the gap is "
        + ", ".join(f"{each.mean():.1g} at {level:.0%}" for level, each in groups.items())
        + " nats: in a dense net one mask is much like another, and there is next to nothing to see.",
        pictures=(
            Picture(
                "Pairs as collected less reshuffled pairs",
                "sparsity",
                "difference of test NLL, nats",
                (
                    Curve("one run, 2 s.e.", sparsities, gaps, gaps - 2 * error, gaps + 2 * error, "bars"),
                    Curve("no dependence", list(groups), [0.0] * len(groups), style="dashed"),
                ),
            ),
            *(Picture(f"Digits, {name} by way to predict", "sparsity", name, curves[name]) for name in curves),
        ),
    )


APPENDIX = "CigL (Lei et al. 2023), Appendix C"
CLAIMS = (
    Claim(
        "zw-dependence",
        "Z and u of a step of Algorithm 1 are dependent: a kept weight stands farther from 0, by decay and drift.",
        "derived from Algorithm 1 in theory/dependence.py",
        check_dependence,
    ),
    Claim(
        "zw-sparsity", "The correlation of Z and W, weight by weight, grows with sparsity.", APPENDIX, check_sparsity, fails=True
    ),
    Claim(
        "zw-prediction",
        "Z and W depend on each other jointly: pairs predict better (NLL) than the same u beside the Z of other epochs.",
        APPENDIX,
        check_prediction,
    ),
    Claim(
        "zw-prediction-sparsity",
        "The advantage of collected over reshuffled pairs grows with sparsity.",
        APPENDIX,
        check_prediction_sparsity,
    ),
)
