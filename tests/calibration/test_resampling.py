"""Claims about calibration.resampling: counts are those of resamples, ties are groups, estimates are a bootstrap's."""

from __future__ import annotations

import numpy as np
import pytest

from budget import assert_mean
from espalier.calibration import bootstrap_interval
from espalier.calibration.resampling import counts, estimates, resampled, sums, tied, vector


def test_counts_are_multinomial() -> None:
    found = counts(np.random.default_rng(0), 5, 20_000)
    assert (found.sum(1) == 5).all()
    assert_mean(found, np.ones(5))
    assert_mean((found - 1) ** 2, np.full(5, 0.8))
    assert_mean((found[:, 0] - 1) * (found[:, 1] - 1), -0.2)


def test_ties_are_the_groups_of_equal_scores() -> None:
    ties = tied(np.array([3.0, 1, 2, 1, 3]))
    np.testing.assert_array_equal(ties.starts, [0, 2, 3])
    np.testing.assert_array_equal(sums(np.array([[1.0, 2, 4, 8, 16]]), ties), [[10, 4, 17]])


def test_the_mean_has_the_interval_of_the_plain_bootstrap() -> None:
    x = np.random.default_rng(1).exponential(size=400)
    (found,) = estimates(lambda c: (c @ x / c.sum(1))[:, None], (400,), num_resamples=4000)
    assert found.value == pytest.approx(x.mean())
    # two bootstraps of 4000: a 2.5 % point has a standard error of .042 deviations
    np.testing.assert_allclose(found.interval, bootstrap_interval(x, num_resamples=4000, seed=3), atol=0.25 * x.std() / 20)


def test_blocks_change_nothing_and_samples_are_resampled_each_for_itself() -> None:
    seen = []
    resampled(lambda a, b: seen.append((a.shape, b.shape)) or a.sum(1), (300_000, 10), 7)
    assert [shape for shape, _ in seen] == [(3, 300_000), (3, 300_000), (1, 300_000)]
    assert {shape[1] for _, shape in seen} == {10}


def test_what_is_no_vector_is_refused_by_its_name() -> None:
    for bad in (np.ones((2, 2)), np.array([1.0, np.nan]), np.array([])):
        with pytest.raises(ValueError, match=r"expected finite losses of shape \(n,\)"):
            vector(bad, "losses")
    with pytest.raises(ValueError, match="expected level between 0 and 1, got 1.5"):
        estimates(lambda c: c, (3,), level=1.5)
