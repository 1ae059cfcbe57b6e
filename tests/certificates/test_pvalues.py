"""Claims about certificates.pvalues: fixed values, naive oracles in loops, refusals, and how few examples can do.

The oracles are written from the papers: Hoeffding 1963, Bentkus 2004, Bates et al. 2021, Waudby-Smith & Ramdas 2024.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy import stats

from binomial import mass, naive_binomial
from espalier.certificates import pvalues

Sums = Callable[..., np.ndarray]
OF_COUNTS: dict[str, Sums] = {"binomial": pvalues.binomial, **pvalues.OF_SUMS}


# --- Oracles: one loss, one count, one term at a time ---------------------------------------------------------------
def naive_hoeffding(total: float, n: int, alpha: float) -> float:
    return math.exp(-2 * n * (alpha - total / n) ** 2) if total / n < alpha else 1.0


def naive_kl(total: float, n: int, alpha: float) -> float:
    a = total / n
    if a >= alpha:
        return 1.0
    return math.exp(-n * ((a * math.log(a / alpha) if a > 0 else 0.0) + (1 - a) * math.log((1 - a) / (1 - alpha))))


def naive_bentkus(total: float, n: int, alpha: float) -> float:
    return min(1.0, math.e * naive_binomial(math.ceil(total), n, alpha))


def naive_hb(total: float, n: int, alpha: float) -> float:
    return min(naive_kl(total, n, alpha), naive_bentkus(total, n, alpha))


def naive_hinge(total: float, n: int, alpha: float, step: float = 1 / 16) -> float:
    """The smallest Markov bound over real a in (S, n + 2], on a grid that has the whole numbers too."""
    masses = [mass(n, alpha, b) for b in range(n + 1)]
    best = 1.0
    for i in range(1, round((n + 2) / step) + 1):
        a = i * step
        if a > total:
            best = min(best, math.fsum((a - b) * m for b, m in enumerate(masses) if b < a) / (a - total))
    return best


def naive_wealth(losses: list[float], alpha: float, delta: float, upper: float, path: bool) -> list[float]:
    """K_1..K_n by a loop that has seen L_1..L_{i-1} when it bets on L_i."""
    n, wealth, found = len(losses), 1.0, []
    sum_, squares, variance = 0.0, 0.0, 0.25
    for i in range(1, n + 1):
        horizon = i * math.log(1 + i) if path else n
        bet = min(1.0, math.sqrt(2 * math.log(1 / delta) / (horizon * variance)))
        loss = losses[i - 1] / upper
        wealth *= 1 - bet * (loss - alpha / upper)
        sum_ += loss
        mean = (0.5 + sum_) / (1 + i)
        squares += (loss - mean) ** 2
        variance = (0.25 + squares) / (1 + i)
        found.append(wealth)
    return found


def naive_wsr(losses: list[float], alpha: float, delta: float, upper: float = 1.0) -> float:
    return min(1.0, 1 / max(naive_wealth(losses, alpha, delta, upper, path=False)))


# --- Values and formulas --------------------------------------------------------------------------------------------
FIXED = {
    "binomial 243": (pvalues.binomial(243, 9000, 0.03), 0.048991),
    "binomial 244": (pvalues.binomial(244, 9000, 0.03), 0.055818),
    "binary hb": (pvalues.binomial(225, 9000, 0.03), 2.41220e-3),
    "hb": (pvalues.hb(225, 9000, 0.03), 6.55705e-3),
    "1000 hoeffding": (pvalues.hoeffding(30, 1000, 0.05), 0.449329),
    "1000 kl": (pvalues.hoeffding_kl(30, 1000, 0.05), 0.00756445),
    "1000 hb": (pvalues.hb(30, 1000, 0.05), 0.00347143),
    "1000 hinge": (pvalues.hinge(30, 1000, 0.05), 0.00249412),
    "1000 binomial": (pvalues.binomial(30, 1000, 0.05), 0.00127707),
    "200 hoeffding": (pvalues.hoeffding(24, 200, 0.2), 0.0773047),
    "200 kl": (pvalues.hoeffding_kl(24, 200, 0.2), 0.010946),
    "200 hb": (pvalues.hb(24, 200, 0.2), 0.00533401),
    "200 hinge": (pvalues.hinge(24, 200, 0.2), 0.00376215),
    "200 binomial": (pvalues.binomial(24, 200, 0.2), 0.00196227),
    "hinge 3": (pvalues.hinge(3, 50, 0.2), 0.00714873),
    "hinge 4.5": (pvalues.hinge(4.5, 50, 0.2), 0.0491146),
    "hinge 7.2": (pvalues.hinge(7.2, 50, 0.2), 0.374895),
    "hb 3": (pvalues.hb(3, 50, 0.2), 0.01538),
    "wsr constant": (pvalues.wsr([0.05] * 100, 0.1, 0.1), 0.00835594),
    "wsr binary": (pvalues.wsr([0, 0, 0, 1] * 50, 0.4, 0.05), 1.82225e-4),
    "wsr signed": (pvalues.wsr([1, -1, 0, 0, 0] * 60, 0.1, 0.1, 1.0), 0.0310781),
}


@pytest.mark.parametrize("case", FIXED)
def test_the_values_of_the_note_are_found(case: str) -> None:
    found, wanted = FIXED[case]
    digits = len(f"{wanted:e}".split("e")[0].replace(".", "").rstrip("0"))
    assert float(found) == pytest.approx(
        wanted, rel=0.51 * 10.0 ** (1 - digits) * (10 / float(f"{wanted:e}".split("e")[0]))
    )


CASES = [(12, 0.3, s) for s in (0.0, 0.4, 1.0, 2.5, 3.6, 5.0, 12.0)]
CASES += [(60, 0.1, s) for s in (0.0, 1.0, 2.2, 5.9, 6.0, 7.5, 60.0)] + [
    (150, 0.02, 0.3),
    (150, 0.5, 51.25),
    (1, 0.4, 0.0),
]


@pytest.mark.parametrize(("n", "alpha", "total"), CASES)
def test_each_formula_is_the_naive_one(n: int, alpha: float, total: float) -> None:
    assert float(pvalues.hoeffding(total, n, alpha)) == pytest.approx(naive_hoeffding(total, n, alpha), rel=1e-10)
    assert float(pvalues.hoeffding_kl(total, n, alpha)) == pytest.approx(naive_kl(total, n, alpha), rel=1e-10)
    assert float(pvalues.bentkus(total, n, alpha)) == pytest.approx(naive_bentkus(total, n, alpha), rel=1e-9)
    assert float(pvalues.hb(total, n, alpha)) == pytest.approx(naive_hb(total, n, alpha), rel=1e-9)
    assert float(pvalues.hinge(total, n, alpha)) == pytest.approx(naive_hinge(total, n, alpha), rel=1e-9)
    k = round(total)
    assert float(pvalues.binomial(k, n, alpha)) == pytest.approx(naive_binomial(k, n, alpha), rel=1e-9)
    assert float(pvalues.binomial(k, n, alpha)) == pytest.approx(stats.binomtest(k, n, alpha, "less").pvalue, rel=1e-10)


@pytest.mark.parametrize(("n", "alpha"), [(9000, 0.03), (500, 0.05), (40, 0.25)])
def test_binomial_and_hb_are_mapies(n: int, alpha: float) -> None:
    counts = np.unique(np.linspace(0, n * 2 * alpha, 60).astype(int))
    mean = (counts - 1e-9).clip(0) / n  # they ceil n * mean, which rounding lifts above the count: see the note, 3.1
    theirs = compute_hoeffding_bentkus_p_value(mean, n, alpha)[:, 0]
    np.testing.assert_allclose(pvalues.hb(counts, n, alpha), np.minimum(1, theirs), rtol=1e-6)
    binary = compute_hoeffding_bentkus_p_value(mean, n, alpha, binary=True)[:, 0]
    smaller = np.minimum(pvalues.hoeffding_kl(counts, n, alpha), pvalues.binomial(counts, n, alpha))
    np.testing.assert_allclose(smaller, np.minimum(1, binary), rtol=1e-6)


def test_wsr_is_the_loop_that_bets_before_it_sees() -> None:
    rng = np.random.default_rng(0)
    for n, upper in itertools.product((1, 2, 7, 80), (0.5, 1.0, 3.0)):
        for _ in range(20):
            losses = upper * (1 - 2.5 * rng.random(n) ** rng.integers(1, 4))
            alpha, delta = upper * rng.uniform(0.02, 0.9), rng.uniform(0.01, 0.4)
            found = float(pvalues.wsr(losses, alpha, delta, upper))
            assert found == pytest.approx(naive_wsr(losses.tolist(), alpha, delta, upper), rel=1e-9)
            path = np.exp(pvalues.wsr_path(losses, alpha, delta, upper))
            np.testing.assert_allclose(path, naive_wealth(losses.tolist(), alpha, delta, upper, path=True), rtol=1e-9)


def test_clt_and_mcdiarmid_and_selective_are_their_formulas() -> None:
    losses = np.random.default_rng(1).random((6, 40))
    for row, found in zip(losses, pvalues.clt(losses, 0.45, asymptotic=True), strict=True):
        assert found == pytest.approx(stats.norm.cdf(stats.ttest_1samp(row, 0.45).statistic), rel=1e-10)
    np.testing.assert_allclose(
        pvalues.mcdiarmid([0.0, 0.03, 0.05, 0.2], 2000, 0.05), [math.exp(-2.5), math.exp(-0.4), 1, 1]
    )
    slack = math.sqrt(2 * math.log(20) / 2000)  # of the note: 0.055 at n = 2000
    assert slack == pytest.approx(0.055, abs=5e-4)
    assert float(pvalues.mcdiarmid(0.1 - slack, 2000, 0.1)) == pytest.approx(0.05)
    found = pvalues.selective([1, 1, 3, 0], [24, 25, 60, 0], 0.2)
    np.testing.assert_allclose(found, [1, naive_binomial(1, 25, 0.2), naive_binomial(3, 60, 0.2), 1], rtol=1e-10)


def test_hinge_is_never_above_hb_nor_below_the_exact_tail() -> None:
    rng = np.random.default_rng(2)
    for _ in range(2000):
        n, alpha = int(rng.integers(1, 600)), rng.uniform(0.002, 0.9)
        total = min(n, rng.uniform(0, 1.3) * n * alpha)
        hinge, hb = float(pvalues.hinge(total, n, alpha)), float(pvalues.hb(total, n, alpha))
        assert hinge <= hb * (1 + 1e-9), (n, alpha, total)
        exact = float(pvalues.binomial(math.floor(total), n, alpha))  # binary losses are among those it must hold for
        assert hinge >= exact * (1 - 1e-9) - 1e-250, (n, alpha, total)


def test_p_values_grow_with_the_losses_and_fall_with_alpha() -> None:
    totals, alphas = np.arange(0, 60), np.linspace(0.02, 0.6, 30)
    for p in OF_COUNTS.values():
        assert (np.diff(p(totals, 200, 0.15)) >= -1e-12).all()
        assert (np.diff([float(p(12, 200, alpha)) for alpha in alphas]) <= 1e-12).all()


def test_the_order_of_the_losses_matters_to_wsr_alone() -> None:
    rng = np.random.default_rng(3)
    losses, binary = rng.beta(1, 8, 120), (rng.random(120) < 0.1).astype(int)
    orders = [rng.permutation(120) for _ in range(10)]
    for p in (pvalues.hb, pvalues.hinge, pvalues.hoeffding):
        np.testing.assert_allclose(
            [float(p(losses[o].sum(), 120, 0.2)) for o in orders], float(p(losses.sum(), 120, 0.2))
        )
    assert {float(pvalues.binomial(binary[o].sum(), 120, 0.2)) for o in orders} == {
        float(pvalues.binomial(binary.sum(), 120, 0.2))
    }
    assert len({round(float(pvalues.wsr(losses[o], 0.2, 0.1)), 9) for o in orders}) == 10
    assert len({round(float(pvalues.wsr(losses, 0.2, delta)), 9) for delta in (0.01, 0.05, 0.1)}) == 3, "and delta does"


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_an_array_of_sums_gives_p_values_of_its_shape(shape: tuple[int, ...]) -> None:
    counts = np.random.default_rng(4).integers(0, 20, shape)
    for p in (*OF_COUNTS.values(), pvalues.hoeffding_kl, pvalues.bentkus):
        found = p(counts, 50, 0.2)
        assert (found.shape, found.dtype) == (shape, np.float64)
        np.testing.assert_array_equal(np.ravel(found), [float(p(k, 50, 0.2)) for k in counts.ravel()])
    assert pvalues.mcdiarmid(counts / 50, 50, 0.2).shape == shape
    assert pvalues.selective(counts, np.full(shape, 40), 0.2).shape == shape
    losses = np.random.default_rng(5).random((*shape, 30))
    if losses.size:
        assert pvalues.wsr(losses, 0.4, 0.1).shape == shape
        assert pvalues.wsr_path(losses, 0.4, 0.1).shape == (*shape, 30)
        assert pvalues.clt(losses, 0.4, asymptotic=True).shape == shape


def test_hinge_is_not_negative() -> None:
    assert float(pvalues.hinge(13.7, 517, 0.7751842740912105)) >= 0


def test_clt_certifies_nothing_from_losses_that_do_not_vary() -> None:
    assert float(pvalues.clt(np.zeros(2), 0.05, asymptotic=True)) == 1


# --- Refusals -------------------------------------------------------------------------------------------------------
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a rate": (
        lambda: pvalues.binomial(0.027 * 9000, 9000, 0.03),
        "expected errors as integer counts, got float64: count them",
    ),
    "whole floats": (lambda: pvalues.binomial([3.0], 10, 0.3), "do not multiply a rate by n"),
    "flags": (lambda: pvalues.binomial([True], 10, 0.3), "expected errors as integer counts, got bool"),
    "too many": (lambda: pvalues.binomial([3, 11], 10, 0.3), r"expected counts in 0\.\.10, got 3\.\.11"),
    "negative": (lambda: pvalues.binomial([-1, 2], 10, 0.3), r"expected counts in 0\.\.10, got -1\.\.2"),
    "alpha 0": (lambda: pvalues.binomial(1, 10, 0.0), r"expected alpha in \(0, 1\), got 0"),
    "alpha 1": (lambda: pvalues.hb(1, 10, 1.0), r"expected alpha in \(0, 1\), got 1"),
    "alpha nan": (lambda: pvalues.hinge(1, 10, math.nan), r"expected alpha in \(0, 1\), got nan"),
    "alpha of ece": (lambda: pvalues.mcdiarmid(0.1, 10, 1.5), r"expected alpha in \(0, 1\), got 1\.5"),
    "alpha of hoeffding": (lambda: pvalues.hoeffding(1, 10, -0.1), r"expected alpha in \(0, 1\), got -0\.1"),
    "alpha of n": (lambda: pvalues.smallest_n(0.0, 0.1), r"expected alpha in \(0, 1\), got 0"),
    "signed sums": (lambda: pvalues.hb([-3.0, 2.0], 10, 0.3), r"expected sums of 10 losses in \[0, 1\], got -3\.\.2"),
    "sums above n": (
        lambda: pvalues.hinge(10.5, 10, 0.3),
        r"expected sums of 10 losses in \[0, 1\], got 10\.5\.\.10\.5",
    ),
    "nan sums": (lambda: pvalues.hoeffding([math.nan, 1.0], 10, 0.3), "expected sums of 10 losses"),
    "a loss above upper": (
        lambda: pvalues.wsr([0.2, 1.5], 0.3, 0.1),
        r"expected losses of at most 1, got 1\.5: name their upper bound",
    ),
    "a loss above 3": (lambda: pvalues.wsr_path([0.2, 3.5], 0.3, 0.1, 3.0), r"expected losses of at most 3, got 3\.5"),
    "a nan loss": (lambda: pvalues.wsr([0.2, math.nan], 0.3, 0.1), "expected losses of at most 1, got nan"),
    "alpha above upper": (lambda: pvalues.wsr([0.2], 0.6, 0.1, 0.5), r"expected alpha in \(0, 0\.5\), got 0\.6"),
    "delta 0": (lambda: pvalues.wsr([0.2], 0.6, 0.0), r"expected delta in \(0, 1\), got 0"),
    "delta 1": (lambda: pvalues.wsr_path([0.2], 0.6, 1.0), r"expected delta in \(0, 1\), got 1"),
    "no losses": (lambda: pvalues.wsr([], 0.6, 0.1), r"expected losses \(\.\.\., n\), got shape \(0,\)"),
    "one number": (lambda: pvalues.wsr(0.2, 0.6, 0.1), r"expected losses \(\.\.\., n\), got shape \(\)"),
    "clt in silence": (
        lambda: pvalues.clt([0.1, 0.2], 0.3),
        "expected asymptotic=True for the CLT p-value: it promises nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses_and_says_what_it_expected(case: str) -> None:
    call, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_smallest_n_refuses_a_delta_outside() -> None:
    with pytest.raises(ValueError, match=r"expected delta in \(0, 1\), got 2"):
        pvalues.smallest_n(0.1, 2.0)


@pytest.mark.parametrize(("errors", "accepted"), [([1.5], [10]), ([30], [10]), ([1], [99.9])])
def test_selective_refuses_what_is_no_count(errors: list[float], accepted: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pvalues.selective(errors, accepted, 0.2)


def test_a_rate_times_n_would_certify_one_error_too_many() -> None:
    counts = np.arange(9001)
    floored = np.floor((1 - (9000 - counts) / 9000) * 9000).astype(int)
    assert floored[244] == 243
    assert 0.15 < (floored < counts).mean() < 0.25
    single = np.floor((1 - ((9000 - counts) / 9000).astype(np.float32).astype(float)) * 9000).astype(int)
    assert 0.45 < (single < counts).mean() < 0.55, "a float32 accuracy loses half of the counts"
    assert float(pvalues.binomial(243, 9000, 0.03)) <= 0.05 < float(pvalues.binomial(244, 9000, 0.03))
    assert float(pvalues.binomial(floored[244], 9000, 0.03)) <= 0.05, "what the published code would have done"


# --- How few examples can do ----------------------------------------------------------------------------------------
FEWEST = {
    0.01: (299, 308, 14979),
    0.02: (149, 154, 3745),
    0.03: (99, 103, 1665),
    0.05: (59, 63, 600),
    0.1: (29, 32, 150),
}


@pytest.mark.parametrize("alpha", FEWEST)
def test_the_fewest_examples_that_certify_anything(alpha: float) -> None:
    exact, betting, plain = FEWEST[alpha]
    assert pvalues.smallest_n(alpha, 0.05) == exact
    for name, p, n in (
        ("binomial", pvalues.binomial, exact),
        ("hb", pvalues.hb, exact),
        ("hoeffding", pvalues.hoeffding, plain),
    ):
        assert float(p(0, n, alpha)) <= 0.05 < float(p(0, n - 1, alpha)), name
    assert (
        float(pvalues.wsr(np.zeros(betting), alpha, 0.05))
        <= 0.05
        < float(pvalues.wsr(np.zeros(betting - 1), alpha, 0.05))
    )
