"""Claims about calibration.temperature: a temperature that is fitted while logits are dropped."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from espalier.calibration import SEED, apply_temperature, fit_dropped_temperature, fit_temperature
from espalier.calibration.calibrators import CALIBRATORS, HOTTEST


def confident(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are 2.2 times those the labels were drawn from, with a constant added to each row."""
    rng = np.random.default_rng(seed)
    z = 1.5 * rng.standard_normal((n, classes))
    labels = (z + rng.gumbel(size=z.shape)).argmax(1)
    return softmax(2.2 * z + rng.standard_normal((n, 1)), axis=1), labels


def test_the_temperature_is_the_lowest_of_a_naive_double_loop() -> None:
    probs, labels = confident(40, 4)
    rate, count = 0.25, 5

    def loss(temperature: float) -> float:
        total = 0.0
        for index in range(count):
            uniform = np.random.default_rng([SEED, index]).random((40, 4))
            for row in range(40):
                logs = [np.log(p) for p in probs[row]]
                kept = [(z - sum(logs) / 4) * (u >= rate) / temperature for z, u in zip(logs, uniform[row], strict=True)]
                total -= kept[labels[row]] - np.log(sum(np.exp(z) for z in kept))
        return total / (count * 40)

    found = fit_dropped_temperature(probs, labels, drop_rate=rate, num_masks=count)
    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-7})
    assert found == pytest.approx(best.x, rel=1e-5)
    assert found != pytest.approx(fit_temperature(probs, labels), rel=0.01)


def test_many_masks_are_their_expectation() -> None:
    probs, labels = confident(300, 3, seed=1)
    z, rate = np.log(probs) - np.log(probs).mean(1, keepdims=True), 0.3

    def expected(temperature: float) -> float:
        total = 0.0
        for mask in product((0, 1), repeat=3):
            chance = rate ** (3 - sum(mask)) * (1 - rate) ** sum(mask)
            total -= chance * log_softmax(np.array(mask) * z / temperature, axis=1)[np.arange(300), labels].mean()
        return total

    best = minimize_scalar(expected, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-8}).x
    found = np.array([fit_dropped_temperature(probs, labels, drop_rate=rate, num_masks=40, seed=k) for k in range(12)])
    error = found.std(ddof=1) / 12**0.5
    assert abs(found.mean() - best) < 4 * error
    assert error < 0.01 * best


def test_without_dropping_it_is_the_temperature() -> None:
    probs, labels = confident(500, 6)
    assert fit_dropped_temperature(probs, labels, drop_rate=0.0) == pytest.approx(fit_temperature(probs, labels), rel=1e-9)


def test_it_is_finite_where_no_label_is_wrong() -> None:
    probs, _ = confident(500, 5)
    assert fit_temperature(probs, probs.argmax(1)) == 1 / HOTTEST
    found = fit_dropped_temperature(probs, probs.argmax(1))
    assert 0.1 < found < 10
    later = fit_dropped_temperature(apply_temperature(probs, 0.5), probs.argmax(1))  # logits twice as large
    assert later == pytest.approx(2 * found, rel=1e-9)


def test_a_rate_of_one_leaves_nothing_and_is_refused() -> None:
    probs, labels = confident(20, 3)
    for rate, masks in ((1.0, 4), (-0.1, 4), (0.1, 0)):
        with pytest.raises(ValueError, match=r"expected a drop_rate in \[0, 1\) and num_masks of at least 1"):
            fit_dropped_temperature(probs, labels, drop_rate=rate, num_masks=masks)
    assert CALIBRATORS["dropped-logit"].fit is fit_dropped_temperature
