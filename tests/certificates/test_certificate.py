"""The decision: what is certified, what is not looked at, what would help; simulated worlds whose risks are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from budget import assert_rate
from espalier.certificates import certificate, pvalues
from espalier.certificates.certificate import Anytime, Promise, certify, larger_alpha, more_examples, pareto
from espalier.certificates.risks import named

ERROR, GAP, BRIER = named("error"), named("gap"), named("brier")


def bernoulli(risks: list[float], n: int, seed: int) -> np.ndarray:
    """Losses `(m, n)` of candidates that fail on nested sets of examples, as pruned nets do."""
    u = np.random.default_rng(seed).random(n)
    return (u[None] < np.array(risks)[:, None]).astype(float)


def test_a_fixed_sequence_stops_at_its_first_failure_and_looks_no_further() -> None:
    losses, seen = bernoulli([0.01, 0.02, 0.2, 0.01, 0.0], 500, 0), []

    def of(place: int) -> list[np.ndarray]:
        seen.append(place)
        return [losses[place]]

    found = certify(of, 5, [Promise(ERROR, 0.06)], 0.05)
    assert (found.rejected, found.chosen, found.stopped, seen) == ([0, 1], 1, 2, [0, 1, 2])
    assert found.observed[2] == [losses[2].mean()]
    assert found.observed[3] is None
    assert np.isnan(found.p_values[3:]).all()
    assert found.p_values[1] == pvalues.binomial(int(losses[1].sum()), 500, 0.06)
    all_seen = certify(lambda i: [losses[i]], 5, [Promise(ERROR, 0.06)], 0.05, "holm")
    assert all_seen.rejected == [0, 1, 3, 4]
    assert (all_seen.chosen, all_seen.stopped) == (4, 2)


def test_nothing_certified_is_an_answer_and_never_the_most_pruned() -> None:
    found = certify(lambda i: [np.ones(50)], 100, [Promise(ERROR, 0.03)], 0.05)
    assert (found.rejected, found.chosen, found.stopped) == ([], None, 0)
    everything = certify(lambda i: [np.zeros(400)], 100, [Promise(ERROR, 0.03)], 0.05)
    assert (everything.chosen, everything.stopped) == (99, None)


def test_several_promises_hold_at_once_by_the_largest_p_value() -> None:
    rng = np.random.default_rng(1)
    errors, brier = (
        (rng.random((3, 400)) < [[0.01], [0.02], [0.02]]).astype(float),
        rng.beta(1, [[30], [30], [4]], (3, 400)),
    )
    promises = [Promise(ERROR, 0.06), Promise(BRIER, 0.1)]
    found = certify(lambda i: [errors[i], brier[i]], 3, promises, 0.05)
    each = [[float(p.p_value(x[i], 0.05)) for p, x in zip(promises, (errors, brier), strict=True)] for i in range(3)]
    assert found.p_values == [max(own) for own in each]
    assert found.chosen == 1
    assert each[2][0] <= 0.05 < each[2][1]


def test_certificates_are_wrong_in_at_most_delta_of_the_worlds() -> None:
    """Candidates whose risks cross alpha: the probability that any certified one is above it."""
    risks, alpha, delta, worlds = [0.02, 0.04, 0.05 + 1e-9, 0.08], 0.05, 0.1, 2000
    wrong = {"fixed-sequence": 0, "multi-start": 0, "holm": 0, "bonferroni": 0}
    for world in range(worlds):
        losses = bernoulli(risks, 300, world + 10)
        for procedure in wrong:
            rejected = certify(lambda i, own=losses: [own[i]], 4, [Promise(ERROR, alpha)], delta, procedure).rejected
            wrong[procedure] += any(risks[i] > alpha for i in rejected)
    for procedure, count in wrong.items():
        assert count <= delta * worlds, procedure
    assert wrong["fixed-sequence"] > 0.02 * worlds  # and not by never certifying


@pytest.mark.parametrize("promise", [Promise(ERROR, 0.06), Promise(BRIER, 0.06), Promise(ERROR, 0.06, "hinge")])
def test_the_examples_that_are_said_to_help_do(promise: Promise) -> None:
    losses = np.tile([1.0] + [0.0] * 24, 5)  # a rate of 0.04 on 125
    assert promise.p_value(losses, 0.05) > 0.05
    n = more_examples(promise, losses, 0.05)
    assert n is not None
    assert n % 125 == 0
    assert (
        promise.p_value(np.tile(losses, n // 125), 0.05) <= 0.05 < promise.p_value(np.tile(losses, n // 125 - 1), 0.05)
    )
    level = larger_alpha(promise, losses, 0.05)
    assert level is not None
    assert promise._replace(alpha=level).p_value(losses, 0.05) <= 0.05
    assert promise._replace(alpha=level - 0.001).p_value(losses, 0.05) > 0.05
    assert more_examples(promise, np.tile([1.0] + [0.0] * 9, 20), 0.05) is None  # observed above alpha


def test_anytime_certifies_by_looking_after_every_batch_and_stays_honest() -> None:
    delta, alpha, worlds = 0.1, 0.2, 400
    false, labels = 0, []
    for world in range(worlds):
        rng = np.random.default_rng([5, world])
        null, good = Anytime(1, alpha, delta), Anytime(1, alpha, delta)
        for _ in range(20):
            if null.update(rng.random((1, 25)) < alpha) == "certified":
                false += 1
                break
        for _ in range(40):
            if good.update(rng.random((1, 25)) < 0.1) == "certified":
                labels.append(good.labels[0])
                break
    assert false <= delta * worlds + 4 * math.sqrt(delta * (1 - delta) * worlds)
    assert len(labels) > 0.9 * worlds
    assert np.median(labels) < 400  # and it stops early


def test_anytime_goes_on_to_the_next_candidate_and_knows_when_it_is_hopeless() -> None:
    rng = np.random.default_rng(3)
    watch = Anytime(3, 0.1, 0.05)
    states = [watch.update((rng.random((1, 50)) < np.array([[0.0], [0.02], [0.5]])).astype(float)) for _ in range(20)]
    assert states[-1] == "hopeless"
    assert watch.certified == 2
    assert watch.labels[0] <= watch.labels[1] <= 1000
    assert states.index("hopeless") > 0


def test_a_batch_that_is_refused_is_not_kept() -> None:
    watch = Anytime(1, 0.1, 0.05)
    for wrong in ([[2.0]], [[np.nan]], [0.0], np.zeros((2, 1))):
        with pytest.raises(ValueError, match=r"expected losses \(1, b\) in \[0, 1\]"):
            watch.update(wrong)
    assert watch.update(np.zeros((1, 100))) == "certified"
    assert watch.labels == [32]


def test_the_opposite_bet_is_hopeless_too_soon_in_at_most_delta_of_the_worlds() -> None:
    delta, worlds = 0.1, 400
    early = 0
    for world in range(worlds):
        rng = np.random.default_rng([6, world])
        early += Anytime(1, 0.1, delta).update(rng.random((1, 500)) < 0.1) == "hopeless"
    assert early <= delta * worlds + 4 * math.sqrt(delta * (1 - delta) * worlds)


def test_pareto_testing_over_a_plane_takes_the_cheapest_that_holds() -> None:
    """Risk grows with pruning a and falls with abstention b; cost falls with a and grows with b."""
    a, b = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, 4), indexing="ij"))
    risks, cost = 0.02 + 0.2 * a * (1 - 0.8 * b), 1 - 0.7 * a + 0.2 * b
    wrong, found_some, better = 0, 0, 0
    for world in range(200):
        u = np.random.default_rng([8, world]).random(2000)
        losses = (u[None] < risks[:, None]).astype(float)
        chosen, order, p = pareto([losses], cost, [Promise(ERROR, 0.08)], 0.1, seed=world)
        assert len(p) == len(order)
        assert len(set(order)) == len(order)
        if chosen is not None:
            found_some += 1
            wrong += risks[chosen] > 0.08
            better += cost[chosen] < cost[0]
    assert wrong <= 0.1 * 200 + 3 * math.sqrt(0.09 * 200)
    assert found_some > 150
    assert better > 150
    none, _, p = pareto([np.ones((4, 100))], np.arange(4), [Promise(ERROR, 0.1)], 0.1)
    assert none is None
    assert len(p) == 1  # one candidate is cheapest and as safe as all


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one promise and one candidate, got 0 and 3"):
        certify(lambda i: [], 3, [], 0.05)
    with pytest.raises(ValueError, match=r"expected delta in \(0, 1\), got 1"):
        certify(lambda i: [np.zeros(3)], 1, [Promise(ERROR, 0.1)], 1.0)
    with pytest.raises(ValueError, match="expected a procedure of fixed-sequence"):
        certify(lambda i: [np.zeros(3)], 1, [Promise(ERROR, 0.1)], 0.1, "sidak")


def test_a_rate_of_wrong_certificates_at_the_boundary_is_the_binomial_tail() -> None:
    """One candidate of risk exactly alpha: P(certified) is the largest binomial tail below delta, exactly."""
    n, alpha, delta, worlds = 200, 0.1, 0.1, 5000
    counts = np.random.default_rng(9).binomial(n, alpha, worlds)
    hits = sum(certify(lambda i, k=k: [np.repeat([1.0, 0.0], [k, n - k])], 1, [Promise(ERROR, alpha)], delta).chosen == 0
               for k in counts)  # fmt: skip
    tail = pvalues.binomial(np.arange(n + 1), n, alpha)
    assert_rate(hits, worlds, float(tail[tail <= delta].max()))


def facts(**own: Any) -> dict[str, Any]:
    return {
        "alpha": 0.05, "delta": 0.1, "n": 500, "lambda": 0.4, "seed": 0, "settings": {"weights": None},
        "risks": [{"name": "error", "says": "classification error", "alpha": 0.05, "test": "binomial"}],
        "chosen": {"num_active": 600, "num_weights": 1000, "density": 0.6, "bytes": 4321},
    } | own  # fmt: skip


def test_the_sentence_says_what_is_certified_and_what_is_not() -> None:
    said = certificate.sentence(facts())
    assert said == (
        "With confidence 0.9 over the draw of 500 calibration examples: classification error is at most 0.05, at lambda 0.4, "
        "600 of 1,000 weights active (60 %), 4,321 bytes."
    )
    assert certificate.sentence(facts(**{"lambda": None})).startswith(
        "Nothing certified: that classification error is at most"
    )
    anchor = {"alpha": 0.03, "delta": 0.02, "certified": True, "p_value": 0.01, "observed": 0.01}
    assert "at most 0.08 with confidence 0.88" in certificate.sentence(facts(anchor=anchor))
    assert "The anchor failed" in certificate.sentence(facts(anchor={**anchor, "certified": False}))
    assert any("video" in line for line in certificate.assumptions(facts()))


def test_pareto_testing_of_examples_in_the_order_of_a_file_is_shuffled_first() -> None:
    """All errors in the second half of the file, a risk above alpha: betting in that order would certify it always."""
    wrong = 0
    for world in range(200):
        rng = np.random.default_rng([12, world])
        y = np.sort(rng.integers(0, 2, 1000))
        losses = ((rng.random(1000) < 0.24) & (y == 1)).astype(float)  # a risk of 0.12
        wrong += pareto([losses[None]], [1.0], [Promise(BRIER, 0.1)], 0.1, seed=world)[0] is not None
    assert wrong <= 0.1 * 200
