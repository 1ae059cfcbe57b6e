"""Data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from espalier.data import Mixture, mixture, noisy


def test_the_truth_is_bayes_rule() -> None:
    made = mixture(3, 2, 4, scale=0.7, seed=1)
    x, _ = made.draw(6, seed=2)
    density = np.array([[[stats.multivariate_normal(m, 0.49 * np.eye(4)).pdf(row) for m in c] for c in made.means] for row in x])
    joint = density.mean(-1)
    assert np.allclose(np.exp(made.log_prob(x)), joint / joint.sum(1, keepdims=True), rtol=1e-10)
    assert np.isfinite(made.log_prob(1e3 * x)).all()


def test_labels_are_drawn_from_the_truth() -> None:
    made = Mixture(np.array([[[0.0]], [[1.0]]]), 1.0)
    x, y = made.draw(40_000, seed=3)
    p = np.exp(made.log_prob(x))[:, 1]
    for low in np.linspace(0.1, 0.8, 8):
        inside = (p >= low) & (p < low + 0.1)
        error = np.sqrt((p[inside] * (1 - p[inside])).sum()) / inside.sum()
        assert abs((y[inside] - p[inside]).mean()) < 4.5 * error


def test_a_split_knows_its_truth() -> None:
    made = mixture(4, 2, 3, seed=0)
    data = made.data(300, 200, seed=7)
    x, y = made.draw(500, seed=7)
    assert np.allclose(made.truth(data), np.exp(made.log_prob(x[300:])), atol=1e-5)  # inputs are kept in float32
    assert torch.equal(data.test.y, torch.from_numpy(y[300:]))
    assert data.num_classes == 4
    assert len(data.train.y) == 270


def test_the_truth_under_label_noise() -> None:
    p, rate = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]]), 0.3
    flips = (1 - rate) * np.eye(3) + rate / 2 * (1 - np.eye(3))  # from the true class to the label
    assert np.allclose(noisy(p, rate), p @ flips)
    assert noisy(p, rate).sum(1) == pytest.approx(1)
