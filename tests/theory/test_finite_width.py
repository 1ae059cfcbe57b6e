"""Quadrature, mixtures and rates of the finite networks: against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from budget import assert_mean
from espalier.references.gaussian_processes import VariationalDeepGP
from espalier.references.kernels import DeepArcCosine
from espalier.theory import deep_gp, finite_width


def test_the_quadrature_is_known_at_right_and_straight_angles():
    a, b = np.array([2.0, 2.0, 2.0]), np.array([0.5, 0.5, 0.5])
    found = finite_width.relu_moment(a, b, np.array([0.0, 1.0, -1.0]))
    np.testing.assert_allclose(found, [1 / (2 * math.pi), 0.5, 0.0], atol=1e-14)


def test_the_mixture_is_the_exact_posterior_where_all_draws_are_one_kernel():
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    kernel = deep_gp.matrix_of(deep_gp.float64_kernel(DeepArcCosine, 2, bias_variance=0.5), x)
    y = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    found = finite_width.mixture(*finite_width.conditioned(kernel.expand(200, 7, 7), y, 0.1))
    mean, variance, _ = deep_gp.scikit_learn(kernel.numpy(), y, 0.1)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    assert found.effective == pytest.approx(200)
    assert np.abs(found.mean_covariance).max() < 1e-20


def test_the_evidence_is_scikit_learns_and_that_of_a_deep_gp_whose_hidden_layer_is_the_identity_too():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    y = torch.sin(3 * x[:, 0])
    model = VariationalDeepGP(x, (1,), 0.1)
    model.layers[0].covar_module.outputscale = 1e-10
    model.layers[0].mean_module.initialize(weights=torch.ones(1, 1, 1), bias=torch.zeros(1, 1))
    table = model.layers[1].forward(x).covariance_matrix.detach().numpy()
    truth = deep_gp.scikit_learn(np.kron(np.ones((2, 2)), table), y, 0.1)[2]
    assert finite_width.conditioned(torch.from_numpy(table)[None], y, 0.1)[0].item() == pytest.approx(truth, abs=1e-8)
    found, error = finite_width.exact_deep_evidence(model, x, y, 500, torch.Generator().manual_seed(0))
    assert found == pytest.approx(truth, abs=1e-2)  # the prior's jitter of 1e-8 is seen
    assert error < 1e-3


def test_too_few_effective_draws_are_refused():
    with pytest.raises(RuntimeError, match="^expected 100 effective draws, got 1.0 of 200: draw more$"):
        finite_width.weights_of(torch.tensor([100.0] + [0.0] * 199))


def test_a_rate_is_found_beside_its_next_power():
    widths = np.array([8, 16, 32, 64, 128])
    values = -0.3 / widths * np.exp(1.5 / widths)
    fit = finite_width.rate(widths, values, 0.01 * np.abs(values))
    assert fit.slope == pytest.approx(-1, abs=1e-10)
    assert finite_width.at_infinity(widths, 2 + 3 / widths, np.full(5, 0.1))[0] == pytest.approx(2)


def test_the_error_of_a_distance_is_left_out_of_it_and_reported():
    gaps = 3 + 0.5 * np.random.default_rng(0).normal(size=(4000, 5))
    roots, errors = np.transpose([finite_width.distance(gap, 0.25 * np.eye(5)) for gap in gaps])
    assert_mean(roots**2, 9.0)
    assert errors.mean() == pytest.approx(roots.std(), rel=0.05)


def test_a_width_whose_gap_is_not_told_from_0_says_nothing_of_the_rate() -> None:
    widths, values, errors = [8, 16, 32, 64, 128], [1 / 8, 1 / 16, 1 / 32, 1 / 64, 0.0], [1e-3, 1e-3, 1e-3, 1e-3, math.inf]
    assert finite_width.rate(widths, values, errors).slope == pytest.approx(-1, abs=1e-6)
    with pytest.raises(RuntimeError, match="expected three widths at which the gap is told from 0, got 2"):
        finite_width.rate(widths, [1.0, 0.5, 0.0, 0.0, 0.0], [0.1, 0.1, *[math.inf] * 3])
