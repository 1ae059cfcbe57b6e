"""Claims about certificates.selection: each procedure against a naive one, and family-wise errors by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from budget import FALSE_ALARMS, assert_at_most
from espalier.certificates import pvalues, selection

NAN = math.nan


# --- Oracles: one hypothesis at a time; NaN <= level is False ---------------------------------------------------------
def naive_sequence(p: list[float], delta: float) -> list[int]:
    found: list[int] = []
    for place, value in enumerate(p):
        if not value <= delta:
            break
        found.append(place)
    return found


def naive_multi_start(p: list[float], delta: float, num_starts: int) -> list[int]:
    """The union of chains from starts len(p) // J apart, each a fixed sequence at delta / J to the end of the grid."""
    count = min(num_starts, len(p))
    starts = [i * (len(p) // count) for i in range(count)]
    return sorted({start + i for start in starts for i in naive_sequence(p[start:], delta / count)})


def naive_holm(p: list[float], delta: float) -> list[int]:
    found: list[int] = []
    for step, place in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        if not p[place] <= delta / (len(p) - step):
            break
        found.append(place)
    return sorted(found)


def naive_bonferroni(p: list[float], delta: float) -> list[int]:
    return [place for place, value in enumerate(p) if value <= delta / len(p)]


NAIVE: dict[str, Callable[[list[float], float], list[int]]] = {
    "fixed-sequence": naive_sequence,
    "multi-start": lambda p, delta: naive_multi_start(p, delta, 5),
    "holm": naive_holm,
    "bonferroni": naive_bonferroni,
}


def random_p_values(rng: np.random.Generator, delta: float) -> list[float]:
    """Small and large ones, ties among them, and some that are just a level of some procedure."""
    size = int(rng.integers(1, 24))
    p = rng.random(size) ** rng.integers(1, 8)
    if rng.random() < 0.5:
        p = np.round(p, 2)
    levels = [
        delta,
        delta / 5,
        delta / size,
        delta / max(1, size - 1),
        np.nextafter(delta, 1),
        np.nextafter(delta / size, 1),
    ]
    chosen = rng.random(size) < 0.2
    return np.where(chosen, rng.choice(levels, size), p).tolist()


# --- Procedures -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("procedure", selection.PROCEDURES)
def test_it_rejects_what_the_naive_procedure_does(procedure: str) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(1500):
        delta = float(rng.choice([0.01, 0.05, 0.1, 0.3, 0.6]))
        p = random_p_values(rng, delta)
        found = selection.rejected(p, delta, procedure)
        assert found == NAIVE[procedure](p, delta), (p, delta)
        assert all(type(place) is int for place in found)
        seen.add("none" if not found else "all" if len(found) == len(p) else "some")
    assert seen == {"none", "some", "all"}


@pytest.mark.parametrize("num_starts", [1, 2, 3, 7, 40])
def test_multi_start_is_the_union_of_its_chains(num_starts: int) -> None:
    rng = np.random.default_rng(num_starts)
    for _ in range(500):
        p = random_p_values(rng, 0.4)
        assert selection.rejected(p, 0.4, "multi-start", num_starts) == naive_multi_start(p, 0.4, num_starts), p
        if num_starts == 1:
            assert selection.rejected(p, 0.4, "multi-start", 1) == selection.rejected(p, 0.4)


@pytest.mark.parametrize("procedure", selection.PROCEDURES)
def test_none_some_all_and_a_p_value_that_is_delta(procedure: str) -> None:
    assert selection.rejected([0.5, 0.9, 0.7], 0.1, procedure) == []
    assert selection.rejected([0.0] * 12, 0.1, procedure) == list(range(12))
    assert selection.rejected([0.05], 0.05, procedure) == [0], "delta itself is enough"
    assert selection.rejected([np.nextafter(0.05, 1)], 0.05, procedure) == []
    assert selection.rejected([NAN, NAN], 0.05, procedure) == []
    with pytest.raises(ValueError, match="expected at least one p-value: the grid is empty"):
        selection.rejected([], 0.1, procedure)


def test_a_fixed_sequence_stops_at_the_first_that_fails_or_was_not_computed() -> None:
    assert selection.rejected([0.2, 0.0, 0.0], 0.1) == [], "the first fails: never the last of the grid instead"
    assert selection.rejected([0.01, 0.1, 0.11, 0.0], 0.1) == [0, 1]
    assert selection.rejected([0.01, NAN, 0.0], 0.1) == [0]
    assert selection.rejected([0.3, 0.01, 0.01, NAN, 0.01, 0.01], 0.1, "multi-start", 3) == [2, 4, 5]
    assert selection.rejected([0.001, NAN, 0.001], 0.1, "bonferroni") == [0, 2]


def test_holm_passes_over_a_p_value_that_was_not_computed() -> None:
    assert selection.rejected([0.001, NAN, 0.001], 0.1, "holm") == [0, 2]


def test_holm_rejects_all_that_bonferroni_does_and_more() -> None:
    rng, more = np.random.default_rng(1), 0
    for _ in range(300):
        p = random_p_values(rng, 0.3)
        few, many = (set(selection.rejected(p, 0.3, procedure)) for procedure in ("bonferroni", "holm"))
        assert few <= many
        more += few < many
    assert more > 10


def test_an_unknown_procedure_is_answered_with_the_known() -> None:
    with pytest.raises(
        ValueError, match="expected a procedure of fixed-sequence, multi-start, holm, bonferroni, got 'hommel'"
    ):
        selection.rejected([0.1], 0.1, "hommel")


def test_a_number_of_starts_is_looked_at_by_multi_start_alone() -> None:
    assert selection.rejected([0.01], 0.1, "fixed-sequence", num_starts=0) == [0]


# --- A climb --------------------------------------------------------------------------------------------------------
def test_a_climb_computes_no_more_than_it_needs_and_finds_the_same() -> None:
    rng, stopped = np.random.default_rng(2), 0
    for _ in range(300):
        p = random_p_values(rng, 0.3)
        asked: list[int] = []

        def p_value(place: int, p: list[float] = p, asked: list[int] = asked) -> float:
            asked.append(place)
            return p[place]

        found = selection.climb(p_value, len(p), 0.3)
        eager = selection.rejected(p, 0.3)
        assert selection.rejected(found, 0.3) == eager
        assert asked == list(range(min(len(p), len(eager) + 1))), "the rejected and the first that is not, once each"
        np.testing.assert_array_equal(found[: len(asked)], p[: len(asked)])
        assert found.shape == (len(p),)
        assert np.isnan(found[len(asked) :]).all()
        stopped += len(asked) < len(p)
    assert 50 < stopped < 300


def test_a_climb_stops_at_nan() -> None:
    found = selection.climb(lambda place: [0.01, NAN, 0.01][place], 3, 0.1)
    np.testing.assert_array_equal(found, [0.01, NAN, NAN])
    assert selection.climb(lambda place: 0.0, 0, 0.1).shape == (0,)


# --- Parts, fronts, several risks -----------------------------------------------------------------------------------
def test_halves_are_a_split_by_seed() -> None:
    for n, share in ((2, 0.5), (11, 0.5), (100, 0.3), (1000, 0.9)):
        one, other = selection.halves(n, 7, share)
        np.testing.assert_array_equal(np.sort(np.concatenate([one, other])), np.arange(n))
        assert len(one) == pytest.approx(share * n, abs=1)
        assert n < 100 or ((np.diff(one) < 0).any() and (np.diff(other) < 0).any())  # bets need examples in random order
        np.testing.assert_array_equal(one, selection.halves(n, 7, share)[0])
    assert not np.array_equal(selection.halves(100, 7)[0], selection.halves(100, 8)[0])
    for n, share in ((1, 0.5), (10, 0.0), (10, 1.0), (10, 0.05)):
        with pytest.raises(ValueError, match="expected two parts with examples, got"):
            selection.halves(n, 0, share)


def naive_front(p: list[float], cost: list[float]) -> list[int]:
    """Members that none is as good as in both and better in one; the first of equals; the safest first."""
    members = []
    for i in range(len(p)):
        beaten = False
        for j in range(len(p)):
            as_good = p[j] <= p[i] and cost[j] <= cost[i]
            better = p[j] < p[i] or cost[j] < cost[i]
            beaten |= as_good and (better or j < i)
        if not beaten:
            members.append(i)
    return sorted(members, key=lambda i: p[i])


def test_the_pareto_order_is_the_naive_front_from_the_safest_on() -> None:
    rng = np.random.default_rng(3)
    for _ in range(600):
        size = int(rng.integers(1, 30))
        p, cost = rng.random(size), rng.random(size)
        if rng.random() < 0.6:  # ties, in one and in both
            p, cost = np.round(p, 1), np.round(cost, 1)
        found = selection.pareto_order(p, cost)
        assert found == naive_front(p.tolist(), cost.tolist()), (p, cost)
        assert (np.diff(p[found]) > 0).all()
        assert (np.diff(cost[found]) < 0).all()
    assert selection.pareto_order([0.1, 0.1, NAN], [2.0, 2.0, 1.0])[0] == 0


def test_the_largest_p_value_stands_for_several_risks() -> None:
    p = np.random.default_rng(4).random((3, 20))
    np.testing.assert_array_equal(selection.largest(list(p)), [max(column) for column in p.T])
    assert np.isnan(selection.largest([[0.1, NAN], [0.2, 0.3]])[1])
    assert selection.largest([[0.1, 0.2]]).shape == (2,)


# --- Family-wise error, by simulation -------------------------------------------------------------------------------
N, ALPHA = 300, 0.1
P_OF_COUNT = pvalues.binomial(np.arange(N + 1), N, ALPHA)
BOUNDARY = [ALPHA] * 10
RISING = [0.01, 0.02, 0.03, 0.04, ALPHA, ALPHA, 0.12, 0.2, 0.3, 0.5]
BUMPY = [0.02, ALPHA, 0.03, 0.11, 0.04, ALPHA, 0.02, ALPHA, 0.06, ALPHA]


def shared(rng: np.random.Generator, risks: list[float], worlds: int, n: int = N) -> np.ndarray:
    """Errors `(worlds, m)` of predictors on one sample, nested: example i is an error of all with risk above U_i."""
    levels, place = np.unique(risks, return_inverse=True)
    steps = np.diff(levels, prepend=0, append=1)
    return rng.multinomial(n, steps, worlds)[:, :-1].cumsum(1)[:, place]


def separate(rng: np.random.Generator, risks: list[float], worlds: int, n: int = N) -> np.ndarray:
    return rng.binomial(n, risks, (worlds, len(risks)))


@pytest.mark.parametrize("sample", [shared, separate])
@pytest.mark.parametrize("risks", [BOUNDARY, RISING, BUMPY], ids=["boundary", "rising", "bumpy"])
@pytest.mark.parametrize("procedure", selection.PROCEDURES)
def test_a_bad_one_is_rarely_among_the_rejected(
    procedure: str, risks: list[float], sample: Callable[..., np.ndarray]
) -> None:
    worlds, delta, wrong, found_good = 10_000, 0.1, 0, 0
    bad = {place for place, risk in enumerate(risks) if risk >= ALPHA}
    for p in P_OF_COUNT[sample(np.random.default_rng(5), risks, worlds)]:
        found = selection.rejected(p, delta, procedure, num_starts=3)
        wrong += not bad.isdisjoint(found)
        found_good += not bad.issuperset(found)
    assert_at_most(wrong, worlds, delta)
    assert risks is BOUNDARY or found_good > 0.9 * worlds, "and good ones are found"


def test_fixed_sequence_spends_all_of_delta_and_a_procedure_without_correction_more() -> None:
    p = P_OF_COUNT[separate(np.random.default_rng(6), RISING, 10_000)]
    bad = np.array(RISING) >= ALPHA
    attained = P_OF_COUNT[P_OF_COUNT <= 0.1].max()  # a p-value of counts has jumps
    wrong = sum(4 in selection.rejected(row, 0.1) for row in p)
    assert stats.binomtest(wrong, 10_000, attained).pvalue > FALSE_ALARMS
    alone = ((p <= 0.1) & bad).any(1).sum()
    assert alone / 10_000 > 1.5 * attained


GRID = np.add.outer(np.array([0.0, 0.01, 0.03, 0.06, 0.1]), np.array([0.02, 0.03, 0.05, 0.07, 0.12])).ravel()
COST = np.add.outer(np.arange(5, 0, -1), np.arange(5, 0, -1) * 1.3).ravel()  # the riskier, the cheaper


@pytest.mark.parametrize("grid", ["risks that rise", "all on the boundary", "bumpy"])
def test_pareto_testing_on_a_grid_of_two_keeps_the_error(grid: str) -> None:
    """Learn the front and its order on one half, test on the other, take the cheapest that is rejected."""
    rng, worlds, delta = np.random.default_rng(7), 6000, 0.1
    risks = {"risks that rise": GRID, "all on the boundary": np.full(25, ALPHA), "bumpy": rng.permutation(GRID)}[grid]
    sample = separate if grid == "all on the boundary" else shared
    learn, test = (P_OF_COUNT[sample(rng, list(risks), worlds)] for _ in range(2))
    wrong = certified = same = 0
    for p_learn, p_test, fresh in zip(learn, test, learn, strict=True):
        order = selection.pareto_order(p_learn, COST)
        found = [order[place] for place in selection.rejected(p_test[order], delta)]
        wrong += any(risks[place] >= ALPHA for place in found)
        certified += bool(found) and risks[min(found, key=lambda place: COST[place])] < ALPHA
        order = selection.pareto_order(fresh, COST)
        same += any(risks[order[place]] >= ALPHA for place in selection.rejected(fresh[order], delta))
    assert_at_most(wrong, worlds, delta)
    if grid == "all on the boundary":
        assert same / worlds > 2 * delta, "on the data that gave the order it would not"
    else:
        assert certified > 0.8 * worlds


@pytest.mark.parametrize("one", [0.01, ALPHA])
def test_several_risks_at_once_need_no_correction(one: float) -> None:
    """One risk is at its limit, the other harmless or at its limit too, on the same examples."""
    errors = shared(np.random.default_rng(8), [one, ALPHA, 0.01], 20_000)
    p = selection.largest([P_OF_COUNT[errors[:, 0]], P_OF_COUNT[errors[:, 1]]])
    assert_at_most((p <= 0.1).sum(), len(p), 0.1)
    assert (selection.largest([P_OF_COUNT[errors[:, 2]], P_OF_COUNT[errors[:, 2]]]) <= 0.1).mean() > 0.9
