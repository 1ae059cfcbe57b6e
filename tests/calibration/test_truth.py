"""The divergence from a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from espalier.calibration import divergence, divergence_scores, nll_scores


def test_it_is_scipys_relative_entropy_of_each_row() -> None:
    rng = np.random.default_rng(0)
    t, p = rng.dirichlet(np.ones(5), 7), rng.dirichlet(np.ones(5), 7)
    assert divergence_scores(t, p) == pytest.approx([stats.entropy(a, b) for a, b in zip(t, p, strict=True)], rel=1e-12)
    assert divergence(t, p) == pytest.approx(divergence_scores(t, p).mean())
    assert divergence(t, t) == 0


def test_it_is_what_nll_has_above_the_entropy() -> None:
    rng = np.random.default_rng(1)
    t, p = rng.dirichlet(np.ones(3), 4), rng.dirichlet(np.ones(3), 4)
    expected = np.array([sum(t[i, c] * nll_scores(p[i : i + 1], [c])[0] for c in range(3)) for i in range(4)])
    assert divergence_scores(t, p) == pytest.approx(expected - stats.entropy(t, axis=1), rel=1e-12)


def test_zeros_are_finite_and_shapes_are_told() -> None:
    assert divergence([[1.0, 0.0]], [[1.0, 0.0]]) == 0
    assert divergence([[0.5, 0.5]], [[1.0, 0.0]]) == pytest.approx(0.5 * np.log(0.5) + 0.5 * (np.log(0.5) + 708.4), rel=1e-4)
    with pytest.raises(ValueError, match=r"expected truth like probs, \(1, 2\), got \(1, 3\)"):
        divergence([[0.5, 0.25, 0.25]], [[1.0, 0.0]])
