"""Recorded runs: reproducible, sharing what they should, and their cross-covariance by loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espalier.theory.recorded import DROP_RATE, WEIGHT_DECAY, cross_covariance, run, runs
from planted import collected


def test_cross_covariance_is_that_of_two_loops() -> None:
    keep, values, sign = collected(np.random.default_rng(2), 0.3, pairs=4, weights=3)
    sign = torch.tensor([1.0, -1.0, 1.0]).double()
    cross = cross_covariance(keep, values, sign, 0.8)
    for e in range(3):
        for f in range(3):
            by_hand = sum(
                float(sign[i] * (values[e + 1, i] - values[e, i]) * (float(keep[f + 1, i]) - 0.8)) for i in range(3)
            )
            assert cross[e, f] == pytest.approx(by_hand / 3, abs=1e-12)


def test_runs_are_reproducible_and_share_what_they_should() -> None:
    one = runs(True)[-1]
    again = run.__wrapped__(one.sparsity, 0, 50)
    np.testing.assert_array_equal(one.own, again.own)
    np.testing.assert_array_equal(one.nll, again.nll)
    assert one.scores["NLL"]["pairs"] == pytest.approx(one.nll[0].mean(), abs=1e-12)
    assert one.scores["NLL"]["reshuffled"] == pytest.approx(one.nll[1].mean(), abs=1e-12)
    assert one.keep_prob == pytest.approx(1 - DROP_RATE, abs=1e-5)
    assert one.value > 0 < WEIGHT_DECAY
