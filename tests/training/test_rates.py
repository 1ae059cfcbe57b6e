"""Learning rates by step."""

from __future__ import annotations

import math

import pytest

from espalier.training import rates


def test_a_cosine_rate_warms_up_linearly_and_ends_at_nearly_zero():
    rate = rates.cosine(0.4, 100, warmup=20)
    assert [rate(step) for step in (1, 7, 20)] == pytest.approx([0.02, 0.14, 0.4])
    assert rate(21) == pytest.approx(0.4)  # the cosine begins at the peak
    assert rate(61) == pytest.approx(0.2)  # half way: 40 of 80 steps
    assert rate(41) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))  # a quarter: cos(pi / 4)
    assert 0 < rate(100) < 0.4 * 1e-3
    assert all(rate(step) > rate(step + 1) for step in range(21, 100))


def test_a_stepwise_rate_is_multiplied_every_so_many_steps_from_the_start_of_training():
    rate = rates.stepwise(0.3, 50, factor=0.5, warmup=10)
    assert [rate(step) for step in (1, 4, 10)] == pytest.approx([0.03, 0.12, 0.3])
    assert [rate(step) for step in (11, 50, 51, 100, 101, 151)] == pytest.approx([0.3, 0.3, 0.15, 0.15, 0.075, 0.0375])


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up():
    rate = rates.constant(0.2, warmup=4)
    assert [rate(step) for step in (1, 2, 4, 5, 999)] == pytest.approx([0.05, 0.1, 0.2, 0.2, 0.2])
    assert rates.constant(0.2)(1) == 0.2
