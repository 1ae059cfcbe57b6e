"""Claims about certificates.risks: losses against loops over examples, the p-value that each risk takes, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from budget import assert_mean
from espalier import calibration
from espalier.certificates import pvalues, risks

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def predictions(n: int = 240, classes: int = 5, seed: int = 0) -> Arrays:
    """Probabilities of the pruned `(n, C)`, labels, and the unpruned's probabilities."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.standard_normal((2, n, classes)) + 1.5 * np.eye(classes)[labels]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probs[0], labels, probs[1]


def masks(n: int = 40, seed: int = 1) -> Arrays:
    """Two-class probabilities `(n, 6, 7, 2)`, true masks `(n, 6, 7)`; of the first four, either, both or none is empty."""
    rng = np.random.default_rng(seed)
    probs, reference = rng.dirichlet((2, 1), (2, n, 6, 7))
    labels = rng.integers(2, size=(n, 6, 7))
    probs[[0, 2]] = reference[[0, 2]] = (0.9, 0.1)
    reference[3] = (0.9, 0.1)
    labels[[0, 1]] = 0
    return probs, labels, reference


def top(row: np.ndarray) -> int:
    """The lowest class of the largest probability."""
    return max(range(len(row)), key=lambda c: (row[c], -c))


# --- Losses ---------------------------------------------------------------------------------------------------------
def naive_miscoverage(row: np.ndarray, label: int, mass: float) -> float:
    """Classes from the most probable on, until they sum to `mass`: is the label outside?"""
    total, chosen = 0.0, []
    for c in sorted(range(len(row)), key=lambda c: (-row[c], c)):
        if total >= mass:
            break
        chosen.append(c)
        total += row[c]
    return float(label not in chosen)


NAIVE = {
    "error": lambda p, y, q: float(top(p) != y),
    "disagreement": lambda p, y, q: float(top(p) != top(q)),
    "gap": lambda p, y, q: float(top(p) != y) - float(top(q) != y),
    "brier": lambda p, y, q: sum((p[c] - (c == y)) ** 2 for c in range(len(p))) / 2,
    "miscoverage:0.9": lambda p, y, q: naive_miscoverage(p, y, 0.9),
    "miscoverage:0.5": lambda p, y, q: naive_miscoverage(p, y, 0.5),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAIVE)
def test_the_losses_are_those_of_a_loop_over_examples(name: str, dtype: type) -> None:
    probs, labels, reference = predictions()
    probs, reference = probs.astype(dtype), reference.astype(dtype)
    probs[:20] = reference[:20] = 0.2  # ties: the lowest class
    found = risks.named(name).losses(probs, labels, reference)
    wanted = [NAIVE[name](p, y, q) for p, y, q in zip(probs, labels, reference, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6 if dtype == np.float32 else 1e-12)
    assert found.dtype == np.float64
    assert risks.named(name).value(found) == pytest.approx(np.mean(wanted), rel=1e-6)
    assert len(set(found.tolist())) >= 2


def test_brier_and_error_are_those_of_calibration() -> None:
    probs, labels, reference = predictions()
    np.testing.assert_allclose(
        risks.named("brier").losses(probs, labels, reference), calibration.brier_scores(probs, labels) / 2, rtol=1e-12
    )
    np.testing.assert_array_equal(
        risks.named("error").losses(probs, labels, reference), 1 - calibration.accuracy_scores(probs, labels)
    )
    sure = np.eye(3, dtype=np.float32)[[0, 1, 2]] * np.float32(1.0000004)  # a rounded softmax keeps the loss in [0, 1]
    assert risks.named("brier").losses(sure, np.array([1, 1, 0]), sure).max() == 1


@pytest.mark.parametrize("case", ["random", "on the edges", "sure", "one example"])
def test_the_ece_is_that_of_calibration(case: str) -> None:
    probs, labels, reference = predictions(n=1 if case == "one example" else 400, classes=3)
    if case == "on the edges":  # a confidence of 9/15 belongs to the bin below
        confidence = np.random.default_rng(0).integers(6, 16, 400) / 15
        probs = np.stack([confidence, 1 - confidence, 0 * confidence], 1)
    if case == "sure":
        probs = np.eye(3)[labels]
    risk = risks.named("ece")
    losses = risk.losses(probs, labels, reference)
    assert losses.shape == (len(labels), 15)
    assert risk.value(losses) == pytest.approx(calibration.ece(probs, labels, 15), rel=1e-12, abs=1e-15)
    wanted = np.zeros((len(labels), 15))
    for i, (p, y) in enumerate(zip(probs, labels, strict=True)):
        (place,) = [b for b in range(15) if b / 15 < p.max() <= (b + 1) / 15]
        wanted[i, place] = (top(p) == y) - p.max()
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)


def test_selective_counts_the_accepted_and_their_errors() -> None:
    probs, labels, reference = predictions()
    risk = risks.named("selective:0.6")
    losses = risk.losses(probs, labels, reference)
    wanted = [
        (float(p.max() >= 0.6), float(p.max() >= 0.6 and top(p) != y)) for p, y in zip(probs, labels, strict=True)
    ]
    np.testing.assert_array_equal(losses, wanted)
    accepted, wrong = losses.sum(0)
    assert 25 < accepted < 240
    assert risk.value(losses) == pytest.approx(wrong / accepted)
    assert risk.value(np.zeros((9, 2))) == 0, "nobody accepted, nobody wrong"


def test_selective_losses_are_above_alpha_in_mean_just_where_the_accepted_err_more_than_alpha() -> None:
    rng = np.random.default_rng(2)
    for alpha in (0.05, 0.3):
        for rate in (0.04, 0.06, 0.29, 0.31):
            accepted = rng.random(5000) < 0.4
            error = np.where(accepted, rng.random(5000) < rate, rng.random(5000) < 0.9)
            found = risks.selective_losses(error, accepted, alpha)
            naive = [(e - alpha) * a + alpha for e, a in zip(error.astype(float), accepted, strict=True)]
            np.testing.assert_allclose(found, naive, rtol=1e-12)
            assert (found.mean() > alpha) == (error[accepted].mean() > alpha)
            assert 0 <= found.min() <= found.max() <= 1


def test_dice_is_that_of_a_loop_over_pixels() -> None:
    probs, labels, reference = masks()

    def naive(one: np.ndarray, other: np.ndarray) -> float:
        first = {tuple(at) for at in np.argwhere(one == 1)}
        second = {tuple(at) for at in np.argwhere(other == 1)}
        return 1 - 2 * len(first & second) / (len(first) + len(second)) if first or second else 0.0

    dice = risks.named("dice").losses(probs, labels, reference)
    change = risks.named("dice-change").losses(probs, labels, reference)
    mask, kept = probs.argmax(-1), reference.argmax(-1)
    np.testing.assert_allclose(dice, [naive(a, b) for a, b in zip(mask, labels, strict=True)], rtol=1e-12)
    np.testing.assert_allclose(change, [naive(a, b) for a, b in zip(mask, kept, strict=True)], rtol=1e-12)
    assert (mask[0].sum(), labels[0].sum(), dice[0]) == (0, 0, 0), "both masks empty: nothing is missed"
    assert (dice[1], dice[2], change[2], change[3]) == (1, 1, 0, 1), "one of them empty: all is"
    np.testing.assert_array_equal(risks.named("dice-change").losses(probs, 1 - labels, reference), change)


@pytest.mark.parametrize("name", [*risks.RISKS, "selective:0.5", "miscoverage:0.9"])
def test_the_labels_are_looked_at_just_where_the_risk_says_so(name: str) -> None:
    risk = risks.named(name)
    probs, labels, reference = masks() if name.startswith("dice") else predictions()
    other = risk.losses(probs, (labels + 1) % probs.shape[-1], reference)
    assert (not np.array_equal(other, risk.losses(probs, labels, reference))) == risk.needs_labels
    assert np.abs(other).max() <= risk.upper
    assert risk.name == name
    assert risk.says
    if not risk.needs_labels:
        np.testing.assert_array_equal(risk.losses(reference, labels, reference), 0)


# --- Names ----------------------------------------------------------------------------------------------------------
def test_a_name_with_a_number_is_that_risk() -> None:
    probs, labels, reference = predictions()
    for threshold in (0.3, 0.75):
        taken = risks.named(f"selective:{threshold}").losses(probs, labels, reference)[:, 0]
        np.testing.assert_array_equal(taken, probs.max(1) >= threshold)
    assert "0.8" in risks.named("selective:0.8").says
    assert "0.95" in risks.named("miscoverage:0.95").says
    assert all(risks.named(name).name == name for name in risks.RISKS)


@pytest.mark.parametrize("name", ["accuracy", "", "selective", "miscoverage:", "error:0.5", "Error"])
def test_an_unknown_risk_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected a risk of error, .*, selective:NUMBER, miscoverage:NUMBER, got"):
        risks.named(name)


@pytest.mark.parametrize("number", ["0", "1", "-0.2", "1.5", "half", "nan", "0.5:0.5"])
@pytest.mark.parametrize("kind", ["selective", "miscoverage"])
def test_a_number_outside_is_refused(kind: str, number: str) -> None:
    with pytest.raises(ValueError, match=rf"expected a number in \(0, 1\) after {kind}:, got '{number}'"):
        risks.named(f"{kind}:{number}")


# --- p-values -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["error", "disagreement", "miscoverage:0.9"])
def test_errors_are_tested_by_their_exact_tail(name: str) -> None:
    losses = (np.random.default_rng(3).random(500) < 0.05).astype(float)
    k = int(losses.sum())
    assert risks.named(name).p_value(losses, 0.1, 0.05) == float(pvalues.binomial(k, 500, 0.1))


@pytest.mark.parametrize("name", ["gap", "brier", "dice", "dice-change"])
def test_losses_between_are_tested_by_betting_in_their_order(name: str) -> None:
    rng, risk = np.random.default_rng(4), risks.named(name)
    losses = rng.integers(-1, 2, 400) * (rng.random(400) < 0.1) if name == "gap" else rng.beta(1, 12, 400)
    for delta in (0.05, 0.1):
        assert risk.p_value(losses, 0.15, delta) == float(pvalues.wsr(losses, 0.15, delta))
    assert risk.p_value(losses[::-1], 0.15, 0.1) != risk.p_value(losses, 0.15, 0.1)
    if name != "gap":
        for test, p in pvalues.OF_SUMS.items():
            assert risk.p_value(losses, 0.15, 0.1, test) == float(p(losses.sum(), 400, 0.15))


def test_the_ece_and_the_selective_error_have_tests_of_their_own() -> None:
    probs, labels, reference = predictions(n=900)
    risk = risks.named("ece")
    losses = risk.losses(probs, labels, reference)
    gap = 0.3 - calibration.ece(probs, labels, 15)
    assert risk.p_value(losses, 0.3, 0.1) == pytest.approx(math.exp(-900 * gap**2 / 2))
    risk = risks.named("selective:0.6")
    accepted, wrong = risk.losses(probs, labels, reference).sum(0).astype(int)
    found = risk.p_value(risk.losses(probs, labels, reference), 0.3, 0.1)
    assert found == float(pvalues.binomial(wrong, int(accepted), 0.3))
    few = np.zeros((900, 2))
    few[:24, 0] = 1
    assert risk.p_value(few, 0.3, 0.1) == 1


SENSELESS = [
    ("brier", "binomial", "expected losses of 0 or 1 for the binomial p-value, but brier has others: use wsr"),
    ("gap", "binomial", "expected losses of 0 or 1 for the binomial p-value, but gap has others"),
    ("gap", "hb", r"expected losses in \[0, 1\] for hb, but gap is signed: use wsr"),
    ("gap", "hinge", r"expected losses in \[0, 1\] for hinge, but gap is signed: use wsr"),
    ("error", "clt", "expected a test of binomial, wsr, anytime, hinge, hb, hoeffding, got 'clt'"),
    ("error", "bonferroni", "expected a test of binomial, wsr, anytime, hinge, hb, hoeffding, got 'bonferroni'"),
]


@pytest.mark.parametrize(("name", "test", "sentence"), SENSELESS)
def test_a_test_that_makes_no_sense_is_refused(name: str, test: str, sentence: str) -> None:
    risk = risks.named(name)
    with pytest.raises(ValueError, match=sentence):
        risk.p_value(risk.losses(*predictions()), 0.2, 0.1, test)


@pytest.mark.parametrize("test", ["binomial", "hinge", "hb", "hoeffding", "wsr", "mcdiarmid"])
def test_the_selective_error_has_no_other_test(test: str) -> None:
    """10 errors among 200 accepted of 500: hinge takes them for 210 losses of 500, and finds 0.0004."""
    losses = np.zeros((500, 2))
    losses[:200, 0] = losses[:10, 1] = 1
    with pytest.raises(ValueError, match="expected"):
        risks.named("selective:0.6").p_value(losses, 0.5, 0.05, test)


@pytest.mark.parametrize("test", ["hinge", "hb", "hoeffding", "wsr", "selective"])
def test_the_ece_has_no_other_test(test: str) -> None:
    losses = np.zeros((500, 15))
    losses[:, 14] = 0.02
    with pytest.raises(ValueError, match="expected"):
        risks.named("ece").p_value(losses, 0.1, 0.05, test)


@pytest.mark.parametrize("test", ["mcdiarmid", "selective"])
def test_a_mean_is_not_tested_as_something_else(test: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        risks.named("error").p_value(np.zeros(500), 0.1, 0.05, test)


def test_an_error_per_pixel_is_no_error_per_example() -> None:
    probs, labels, reference = masks(n=200)
    for name in ("error", "brier", "ece", "miscoverage:0.9", "selective:0.5"):
        with pytest.raises(ValueError, match=f"expected one label an example for the risk {name}, got .*: use dice"):
            risks.named(name).losses(probs, np.zeros_like(labels), reference)


# --- Covariate shift ------------------------------------------------------------------------------------------------
def shift(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Losses under P and their weights dQ/dP, where x is uniform under P, of density 0.4 + 1.2 x under Q; P(error | x) = x / 4.

    E_Q[L] is the integral of (0.4 + 1.2 x) x / 4: 0.15, where E_P[L] is 0.125.
    """
    x = rng.random(shape)
    return (rng.random(shape) < x / 4).astype(float), 0.4 + 1.2 * x


@pytest.mark.parametrize("name", ["error", "disagreement", "gap", "brier", "dice", "miscoverage:0.9"])
def test_shifted_losses_are_weighted_losses(name: str) -> None:
    case = masks(n=40) if name == "dice" else predictions(n=40)
    weights = np.random.default_rng(5).random(40) * 3
    risk = risks.named(name)
    found = risks.shifted(risk, weights, 3.0)
    wanted = [w * loss for w, loss in zip(weights, risk.losses(*case), strict=True)]
    np.testing.assert_allclose(found.losses(*case), wanted, rtol=1e-12)
    assert (found.name, found.test, found.upper, found.needs_labels) == (name, "wsr", 3.0, risk.needs_labels)
    assert "covariate shift with known weights of at most 3" in found.says
    assert found.p_value(wanted, 0.4, 0.1) == float(pvalues.wsr(wanted, 0.4, 0.1, 3.0))


def test_the_shifted_risk_is_that_of_the_other_inputs() -> None:
    losses, weights = shift(np.random.default_rng(6), (2000, 200))
    probs = np.stack([1 - losses, losses], -1)  # label 0, wrong where the loss is 1
    labels = np.zeros(200, dtype=np.int64)
    found = [
        (r := risks.shifted(risks.named("error"), w, 1.6)).value(r.losses(p, labels, p))
        for p, w in zip(probs, weights, strict=True)
    ]
    assert_mean(found, 0.15)
    assert_mean(losses.mean(1), 0.125)
    assert_mean(weights.mean(1), 1.0)


@pytest.mark.parametrize("weights", [[0.5, -0.1], [0.5, 2.1]])
def test_weights_outside_their_bound_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected weights in \[0, 2\], got .*: name their upper bound"):
        risks.shifted(risks.named("error"), weights, 2.0)


@pytest.mark.parametrize("name", ["ece", "selective:0.8"])
def test_what_is_no_mean_has_no_weighted_form(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"expected a risk that is a mean over examples, got {name}: .* has no weighted form"
    ):
        risks.shifted(risks.named(name), np.ones(5), 2.0)


@pytest.mark.parametrize("test", list(pvalues.OF_SUMS))
def test_weighted_losses_are_no_losses_in_0_1(test: str) -> None:
    """3 errors of weight 4 among 100: hinge says 2.6e-5, wsr in units of the bound 0.024; for one of weight 4 in 40 of mean
    1/10, P(none in 30) is 0.47 where hinge says 0.04."""
    risk = risks.shifted(risks.named("error"), np.full(100, 4.0), 4.0)
    with pytest.raises(ValueError, match="expected losses"):
        risk.p_value(np.repeat([4.0, 0.0], [3, 97]), 0.3, 0.05, test)


def test_nan_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="expected weights in"):
        risks.shifted(risks.named("error"), [0.5, math.nan], 2.0)


PROBS = np.array([[0.2, 0.8], [0.6, 0.4]])
LABELLED = [name for name, risk in risks.RISKS.items() if risk.needs_labels and not name.startswith("dice")]


@pytest.mark.parametrize("name", [*LABELLED, "miscoverage:0.9", "selective:0.7"])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 7], r"expected labels in 0\.\.1, got 7"),
        ([-1, 0], r"expected labels in 0\.\.1, got -1"),
        ([0.0, 1.0], "expected whole numbers as labels"),
        ([True, False], "expected whole numbers as labels"),
        ([0], r"expected whole numbers as labels, of shape \(2,\)"),
        ([[0], [1]], r"expected whole numbers as labels, of shape \(2,\)"),
        (None, "expected labels for the risk"),
    ],
)
def test_labels_are_looked_at_where_losses_are_made(name: str, labels: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        risks.named(name).losses(PROBS, labels, PROBS)  # type: ignore[arg-type]


def test_no_examples_have_no_losses() -> None:
    with pytest.raises(ValueError, match="expected probabilities .* of at least one example"):
        risks.named("error").losses(np.zeros((0, 2)), np.zeros(0, np.int64), None)


def test_torch_and_numpy_have_the_same_losses() -> None:
    import torch

    for name in (*LABELLED, "disagreement"):
        mine = risks.named(name).losses(PROBS, np.array([1, 1]), PROBS[::-1])
        theirs = risks.named(name).losses(torch.tensor(PROBS), torch.tensor([1, 1]), torch.tensor(PROBS[::-1].copy()))
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["error", "gap", "disagreement", "ece", "selective:0.8", "miscoverage:0.9", "brier"])
def test_what_is_no_probability_certifies_nothing(name: str) -> None:
    risk, probs, labels = risks.named(name), np.full((10, 2), 0.5), np.zeros(10, int)
    reference = probs if risk.compares else None
    risk.losses(probs, labels, reference)
    for wrong, said in ((np.full((10, 2), np.nan), "finite probs"), (np.log(probs), "rows of probs that sum to 1")):
        with pytest.raises(ValueError, match=said):
            risk.losses(wrong, labels, reference)
        if risk.compares:
            with pytest.raises(ValueError, match=said):
                risk.losses(probs, labels, wrong)


@pytest.mark.parametrize("name", ["gap", "disagreement", "dice-change"])
def test_a_risk_that_compares_wants_something_to_compare_with(name: str) -> None:
    shape = (4, 3, 2) if name == "dice-change" else (4, 2)
    probs, labels = np.full(shape, 0.5), np.zeros(shape[:-1], int)
    for reference in (None, probs[:1]):
        with pytest.raises(ValueError, match=f"the unpruned predictor's probabilities .* for the risk {name}, got"):
            risks.named(name).losses(probs, labels, reference)
