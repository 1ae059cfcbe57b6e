"""Type-I errors of the p-values: exact over all laws of a kind, and simulated at the boundary."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from binomial import naive_binomial
from budget import assert_at_most, assert_mean
from espalier.certificates import pvalues

WORLDS = 20_000
Sums = Callable[..., np.ndarray]
OF_COUNTS: dict[str, Sums] = {"binomial": pvalues.binomial, **pvalues.OF_SUMS}


# --- Type-I error, exactly: laws on a lattice, and every sequence of signed losses ----------------------------------
def law_of_sum(law: np.ndarray, n: int) -> np.ndarray:
    found = np.ones(1)
    for _ in range(n):
        found = np.convolve(found, law)
    return found


@pytest.mark.parametrize("name", OF_COUNTS)
def test_it_is_super_uniform_whatever_the_law_of_the_losses(name: str) -> None:
    """P(p <= u) <= u at every u, by convolution, for losses on 0, 1/m, ..., 1 of mean alpha."""
    rng, parts = np.random.default_rng(6), 1 if name == "binomial" else 4
    for n in (1, 3, 10, 40, 90):
        for _ in range(12):
            law = rng.dirichlet(np.full(parts + 1, 0.3))
            values = np.arange(parts + 1) / parts
            alpha = float(law @ values)
            if not 0.001 < alpha < 0.999:
                continue
            chances = law_of_sum(law, n)
            sums = np.arange(len(chances)) if parts == 1 else np.arange(len(chances)) / parts
            p = np.maximum.accumulate(OF_COUNTS[name](sums, n, alpha))
            assert (chances.cumsum() <= p + 1e-9).all(), (n, alpha)


SIGNED = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=9)))  # every sequence of 9 losses


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_the_wealth_of_wsr_is_a_martingale_at_the_boundary(alpha: float) -> None:
    """E K_i = 1 for every i, over all sequences with their probabilities: no bet has seen its own loss."""
    law = {-1.0: 0.2, 0.0: 0.6 - alpha, 1.0: 0.2 + alpha}
    chances = np.prod(np.vectorize(law.get)(SIGNED), axis=1)
    wealth = np.exp(pvalues.wsr_path(SIGNED, alpha, 0.1))
    np.testing.assert_allclose(chances @ wealth, 1, rtol=1e-12)
    best = 1 / pvalues.wsr(SIGNED, alpha, 0.1)
    for u in np.unique(best):
        assert chances[best >= u].sum() <= 1 / u + 1e-12, "Ville, for every level and not only delta"


def test_e_values_of_batches_multiply_wherever_each_was_stopped() -> None:
    """Two batches of 4, each stopped where it first looks good: the product of their e-values has mean 1, exactly."""
    chances = np.prod(np.vectorize({-1.0: 0.2, 0.0: 0.5, 1.0: 0.3}.get)(SIGNED[:, :8]), axis=1) / 3  # the ninth is free
    product = np.ones(len(SIGNED))
    for batch in (SIGNED[:, :4], SIGNED[:, 4:8]):
        wealth = np.exp(pvalues.wsr_path(batch, 0.1, 0.1))
        good = wealth >= 1.2
        assert 0.1 < chances @ good.any(1) < 0.9
        product *= wealth[np.arange(len(wealth)), np.where(good.any(1), good.argmax(1), 3)]
    assert chances @ product == pytest.approx(1, rel=1e-12)


# --- Type-I error by simulation -------------------------------------------------------------------------------------
def beta_of(mean: float, sd: float) -> tuple[float, float]:
    size = mean * (1 - mean) / sd**2 - 1
    return mean * size, (1 - mean) * size


def bernoulli(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> np.ndarray:
    return (rng.random(shape) < mean).astype(float)


def beta(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> np.ndarray:
    return rng.beta(*beta_of(mean, 0.1), shape)


def signed(rng: np.random.Generator, shape: tuple[int, int], mean: float) -> np.ndarray:
    """1 with probability 0.1 + mean, -1 with 0.1."""
    u = rng.random(shape)
    return (u < 0.1 + mean).astype(float) - (u > 0.9)


LAWS = {"bernoulli": bernoulli, "beta": beta, "signed": signed}


def worlds_of(law: str, n: int, mean: float, worlds: int = WORLDS) -> list[np.ndarray]:
    """Losses `(worlds, n)` in chunks."""
    rng, step = np.random.default_rng([n, round(1e6 * mean), len(law)]), 2000
    return [LAWS[law](rng, (step, n), mean) for _ in range(worlds // step)]


SIZES = [(60, 0.2), (400, 0.05)]


@pytest.mark.parametrize(("n", "alpha"), [*SIZES, (2000, 0.02), (9000, 0.03)])
@pytest.mark.parametrize("name", OF_COUNTS)
def test_errors_at_the_boundary_are_rarely_certified(name: str, n: int, alpha: float) -> None:
    errors = np.random.default_rng(n).binomial(n, alpha, 200_000)
    table = OF_COUNTS[name](np.arange(n + 1) if n < 1000 else np.arange(n // 10), n, alpha)
    p = table[np.minimum(errors, len(table) - 1)]
    for delta in (0.05, 0.1):
        assert_at_most((p <= delta).sum(), len(p), delta)
    if name == "binomial":
        largest = int((table <= 0.1).sum()) - 1
        assert_at_most((p > 0.1).sum(), len(p), 1 - naive_binomial(largest, n, alpha))  # and as often as may be


@pytest.mark.parametrize(("n", "alpha"), SIZES)
@pytest.mark.parametrize("name", pvalues.OF_SUMS)
def test_continuous_losses_at_the_boundary_are_rarely_certified(name: str, n: int, alpha: float) -> None:
    sums = np.concatenate([chunk.sum(1) for chunk in worlds_of("beta", n, alpha)])
    p = pvalues.OF_SUMS[name](sums, n, alpha)
    for delta in (0.05, 0.1):
        assert_at_most((p <= delta).sum(), WORLDS, delta)


@pytest.mark.parametrize("delta", [0.05, 0.1])
@pytest.mark.parametrize(("n", "alpha"), SIZES)
@pytest.mark.parametrize("law", LAWS)
def test_wsr_rarely_certifies_the_boundary_watched_or_not(law: str, n: int, alpha: float, delta: float) -> None:
    last = ever = 0
    for losses in worlds_of(law, n, alpha):
        last += int((pvalues.wsr(losses, alpha, delta) <= delta).sum())
        ever += int((pvalues.wsr_path(losses, alpha, delta).max(1) >= math.log(1 / delta)).sum())
    assert_at_most(last, WORLDS, delta)
    assert_at_most(ever, WORLDS, delta)
    if law != "beta":  # of little variance: a bet of at most 1 hardly reaches 1 / delta by luck
        assert last > 0.1 * delta * WORLDS, "and does not hold by being blind"


def test_wsr_holds_in_units_of_its_upper_bound() -> None:
    """Losses w L with weights w of 1/2 or 3, whose mean is 1."""
    rng, held = np.random.default_rng(8), 0
    for _ in range(10):
        w = np.where(rng.random((2000, 300)) < 0.2, 3.0, 0.5)
        held += int((pvalues.wsr(w * bernoulli(rng, w.shape, 0.1), 0.1, 0.1, 3.0) <= 0.1).sum())
    assert_at_most(held, WORLDS, 0.1)


def test_hb_of_raw_signed_losses_is_invalid() -> None:
    """As the reference code of Pareto testing has it. The sums that are negative are refused, the others look harmless."""
    rng = np.random.default_rng(9)
    flips = rng.multinomial(2000, [0.12, 0.10, 0.78], 20_000)
    gains = flips[:, 0] - flips[:, 1]
    with pytest.raises(ValueError, match=r"expected sums of 2000 losses in \[0, 1\]"):
        pvalues.hb(gains, 2000, 0.02)
    p = pvalues.hb(np.maximum(gains, 0), 2000, 0.02)  # larger sums, larger p-values: and yet
    assert 0.27 < (p <= 0.1).mean() < 0.33, "the note found 0.30 at a nominal 0.10"


def test_batches_multiply_their_evidence() -> None:
    """A second batch after a look at the first: their product reaches 1 / delta with probability delta at most."""
    delta, held = 0.1, 0
    for first, second in zip(worlds_of("signed", 150, 0.05), worlds_of("signed", 151, 0.05), strict=True):
        one, other = (pvalues.wsr_path(batch, 0.05, delta)[:, -1] for batch in (first, second))
        held += int((one + other >= math.log(1 / delta)).sum())
    assert_at_most(held, WORLDS, delta)


def test_the_error_among_the_accepted_is_rarely_certified_at_the_boundary() -> None:
    """Accepted with probability 0.4 (fewer than 25 now and then), wrong with probability alpha where accepted."""
    rng = np.random.default_rng(10)
    for n, alpha in ((80, 0.2), (1000, 0.05)):
        accepted = rng.binomial(n, 0.4, WORLDS)
        errors = rng.binomial(accepted, alpha)
        p = pvalues.selective(errors, accepted, alpha)
        assert (p[accepted < 25] == 1).all()
        for delta in (0.05, 0.1):
            assert_at_most((p <= delta).sum(), WORLDS, delta)


@pytest.mark.parametrize(("n", "spread"), [(300, 0.15), (3000, 0.04)])
def test_a_binned_calibration_error_at_the_boundary_is_rarely_certified(n: int, spread: float) -> None:
    """Six bins that are over- and under-confident by `spread`: a binned error of `spread`, which the plug-in exceeds."""
    rng = np.random.default_rng(11)
    share, confidence = np.array([0.05, 0.1, 0.1, 0.15, 0.2, 0.4]), np.array([0.3, 0.45, 0.55, 0.65, 0.75, 0.82])
    hit_rate = confidence + spread * np.array([1, -1, 1, -1, 1, -1])
    counts = rng.multinomial(n, share, WORLDS)
    ece = np.abs(rng.binomial(counts, hit_rate) - counts * confidence).sum(1) / n
    assert_mean((ece.reshape(100, -1).mean(1) < spread).astype(float), 0.0)  # Jensen: above, in mean
    for delta in (0.05, 0.1):
        assert_at_most((pvalues.mcdiarmid(ece, n, spread) <= delta).sum(), WORLDS, delta)


@pytest.mark.parametrize("law", LAWS)
def test_a_risk_far_above_alpha_is_never_certified(law: str) -> None:
    """A two-sided bet would always do so: the reference code certifies a risk of 0.15 at alpha = 0.10 in every run."""
    for losses in worlds_of(law, 1000, 0.15, 4000):
        assert (pvalues.wsr(losses, 0.1, 0.1) <= 0.1).mean() < 0.01
        assert np.quantile(pvalues.wsr_path(losses, 0.1, 0.1)[:, -1], 0.99) < 0, "and the bets lose in the end"
        if law != "signed":
            for p in pvalues.OF_SUMS.values():
                assert float(p(losses.sum(1), 1000, 0.1).min()) > 0.1


def test_clt_promises_too_much() -> None:
    """Why it wants asymptotic=True: twice the nominal level at n = 100, and not for want of variance."""
    p = np.concatenate([pvalues.clt(x, 0.1, asymptotic=True) for x in worlds_of("bernoulli", 100, 0.1)])
    assert (p <= 0.05).mean() > 0.1
