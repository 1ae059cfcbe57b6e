"""The claims of theory/deep_gp.py hold, and each is seen to fail when its formula is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from budget import assert_mean
from espalier.references.gaussian_processes import VariationalDeepGP, elbo_draws, exact_posterior
from espalier.references.kernels import DeepArcCosine, arc_cosine_1
from espalier.theory import deep_gp, finite_width

CHECKS = {claim.name: claim.check for claim in deep_gp.CLAIMS}


def kernel_with(change):
    """`DeepArcCosine` whose options go through `change` first."""

    def kernel(depth, **options):
        return DeepArcCosine(depth, **change(options))

    return kernel


def one_minus(options):
    keep = options.get("keep_prob", 1.0)
    if isinstance(keep, float):
        return options
    return {**options, "keep_prob": [1 - p if p < 1 else p for p in keep]}


def elbo_with(kl):
    """The ELBO with its KL multiplied by `kl`."""

    def elbo(model, x, y, num_samples, num_data=None):
        return elbo_draws(model, x, y, num_samples, num_data) - (kl - 1) * model.variational_strategy.kl_divergence()

    return elbo


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "nngp-kernel": {
        "factor 2, Cho & Saul's k_1": {"expectation": lambda a, b, c: 2 * arc_cosine_1(a, b, c)},
        "sign of the angle": {"expectation": lambda a, b, c: arc_cosine_1(a, b, -c)},
        "1 - p for p": {"kernel": kernel_with(one_minus)},
        "rescale the other way": {"kernel": kernel_with(lambda o: {**o, "rescale": not o.get("rescale", False)})},
        "no biases": {"kernel": kernel_with(lambda o: {**o, "bias_variance": 0.0})},
    },
    "nngp-prior": {
        "factor 2": {"kernel": kernel_with(lambda o: {**o, "weight_variance": 2.0})},
        "density where the fan-in has it": {"kernel": kernel_with(lambda o: {**o, "density": 0.25})},
        "sparse layers scaled as dense ones": {"scale": lambda density: 1.0},
        "1 / density for its root": {"scale": lambda density: 1 / density},
        "the rates exchanged": {"powers": (-0.5, -1.0)},
    },
    "nngp-posterior": {
        "factor 2": {"kernel": kernel_with(lambda o: {**o, "weight_variance": 2.0})},
        "half the bias variance": {"kernel": kernel_with(lambda o: {**o, "bias_variance": 0.5 * o["bias_variance"]})},
        "noise as a standard deviation": {
            "posterior": lambda k, x, y, new, noise: exact_posterior(k, x, y, new, noise**0.5)
        },
        "sparse layers scaled as dense ones": {"scale": lambda density: 1.0},
        "rate of the square": {"power": -2.0},
    },
    "deep-gp-reference": {
        "noise as a standard deviation": {
            "posterior": lambda k, x, y, new, noise: exact_posterior(k, x, y, new, noise**0.5)
        },
        "variance of y for that of f": {
            "posterior": lambda k, x, y, new, noise: (lambda m, v: (m, v + noise))(
                *exact_posterior(k, x, y, new, noise)
            )
        },
        "half the KL": {"elbo": elbo_with(0.5)},
        "sign of the KL": {"elbo": elbo_with(-1.0)},
    },
    "deep-gp-bound": {
        "half the KL": {"elbo": elbo_with(0.5)},
        "no KL": {"elbo": elbo_with(0.0)},
        "sign of the KL": {"elbo": lambda *args: elbo_with(-1.0)(*args).clamp(max=1e3)},
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_claim_holds(name):
    finding = CHECKS[name](True)
    assert finding.verdict == "holds", finding
    assert finding.pictures or name == "deep-gp-reference"


@pytest.mark.parametrize(("name", "mutation"), [(name, m) for name, ms in MUTATIONS.items() for m in ms])
def test_a_wrong_formula_is_seen(name, mutation):
    finding = CHECKS[name](True, **MUTATIONS[name][mutation])
    assert finding.verdict == "fails", (finding.discrepancy, finding.tolerance)


# ------------------------------------------------------------------------------------- the independent answers themselves


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
