"""The finite network that the kernel is the limit of, and what masks do to both.

The network's prior covariance E[y y'] against the kernel, by width K of the hidden layers: equal for one hidden layer,
because y is linear in features that are independent draws of one law. With two or more, a layer sees the random kernel A
of the layer before it, E[A] = the limit, Cov(A) = C / K, and E[arc_cosine_1(A)] = arc_cosine_1(E[A]) + tr(H C) / 2K, with
H its Hessian: a bias of 1 / K, but none on the diagonal, where arc_cosine_1(a, a, a) = a / 2 is linear. A single random
network's kernel is off by K^-1/2.
"""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch
from scipy import stats

from budget import FALSE_ALARMS
from espalier.distributions.masked import draw_keep
from espalier.distributions.priors import FlatNormal
from espalier.references.kernels import DeepArcCosine, arc_cosine_1, empirical_covariance
from espalier.shelf import load
from espalier.topology.masks import random_topology
from kernel_matrix import X, dense


def deep_gp(widths, inputs=3, outputs=1, **options):
    return load("models", "deep_gp")((inputs,), outputs, widths=widths, **options)


def assert_covariance(estimate, truth, allowance=0.0):
    """The Monte Carlo means are the truth to a number of standard errors (the budget), plus an allowance for the width."""
    mean, error = estimate
    limit = stats.norm.isf(FALSE_ALARMS / (2 * mean.numel()))
    excess = (mean - truth).abs() - limit * error - allowance - 1e-12
    worst = int(excess.argmax())
    assert excess.max() <= 0, (
        f"mean {mean.flatten()[worst]:.6g} is {((mean - truth) / error).flatten()[worst]:.1f} standard errors from "
        f"{truth.flatten()[worst]:.6g}; the budget allows {limit:.1f}"
    )


def bias_bound(truth, depth, width):
    """How far a network of hidden layers of `width` may be from its limit, to first order in 1 / width.

    For two layers the most is at opposite inputs, where c = 0 at every width and E[sqrt(a b)], a and b means of relu(f)^2
    and relu(-f)^2, is short of its limit by (5 + 5 + 2) / 8K: .477 sqrt(k k') / K. The fluctuation of a layer adds to
    that of the layers before it, so L layers have at most L (L - 1) / 2 times that.
    """
    spread = truth.diagonal().sqrt()
    return depth * (depth - 1) / (4 * width) * torch.outer(spread, spread)


def slope(widths, errors):
    return np.polyfit(np.log(widths), np.log(np.abs(errors)), 1)[0]


# ------------------------------------------------------------------------------------ Monte Carlo of the finite network


def test_the_empirical_covariance_is_the_plain_loop():
    model, x = deep_gp((5, 4), outputs=2, prior_scale=0.8), X[:3]
    topology = random_topology(model.shapes, (9, 10, 6), torch.Generator().manual_seed(0))
    mean, error = empirical_covariance(model, x, 40, seed=3, topology=topology, keep_prob=[1, 0.5, 0.7], rescale=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weights = FlatNormal(0.8, model.num_weights).rsample(torch.Size([40]))
        keep = [
            torch.ones(40, 15),
            *(draw_keep(40 * n, p, torch.device("cpu")).view(40, n) / p for n, p in [(20, 0.5), (8, 0.7)]),
        ]
    active = torch.zeros(model.num_weights)
    active[topology.positions] = 1
    with torch.no_grad():
        for layer in model.net.hidden:
            layer.bias.zero_()
        outputs = torch.stack([model.evaluate(w, x) for w in weights * active * torch.cat(keep, 1)]).double()
    outer = (outputs @ outputs.mT / 2).detach()
    torch.testing.assert_close(mean, outer.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(error, outer.std(0) / math.sqrt(40), rtol=1e-4, atol=1e-6)


def test_a_seed_is_a_result_and_torchs_stream_stays_where_it_was():
    model = deep_gp((5,))
    before = torch.get_rng_state()
    first = empirical_covariance(model, X, 20, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, empirical_covariance(model, X, 20, seed=1)))
    assert not torch.equal(first[0], empirical_covariance(model, X, 20, seed=2)[0])
    with pytest.raises(ValueError, match="^expected at least 2 draws for a standard error, got 1$"):
        empirical_covariance(model, X, 1, seed=1)


def test_the_linear_model_is_the_linear_kernel():
    model = load("models", "linear")((3,), 1, prior_scale=1.3)
    kernel = gpytorch.kernels.LinearKernel()
    kernel.variance = 1.3**2
    assert_covariance(empirical_covariance(model, X, 20_000, seed=0), dense(kernel))
    assert_covariance(empirical_covariance(model, X, 20_000, seed=1, bias_variance=0.5), dense(kernel) + 0.5)


@pytest.mark.parametrize(("width", "outputs", "draws"), [(1, 1, 100_000), (20, 1, 50_000), (3000, 8, 2000)])
def test_one_hidden_layer_has_the_kernel_at_every_width(width, outputs, draws):
    truth = dense(DeepArcCosine(1, weight_variance=0.8**2, bias_variance=0.3))
    model = deep_gp((width,), outputs=outputs, prior_scale=0.8)
    assert_covariance(empirical_covariance(model, X, draws, seed=0, bias_variance=0.3), truth)


@pytest.mark.parametrize(("widths", "outputs", "draws"), [((128, 64), 16, 6000), ((64, 64, 64), 16, 6000)])
def test_a_wide_deep_network_has_the_kernel(widths, outputs, draws):
    depth = len(widths)
    truth = dense(DeepArcCosine(depth))
    estimate = empirical_covariance(deep_gp(widths, outputs=outputs), X, draws, seed=0)
    assert_covariance(estimate, truth, bias_bound(truth, depth, min(widths[:-1])))
    assert_covariance([part.diagonal() for part in estimate], truth.diagonal())  # no bias there


# Two orthogonal unit inputs: f and g of the first layer are independent N(0, 1), and everything is in closed form. The
# kernel A = (a, b, c) of the first layer is a mean over K units of (u^2, v^2, u v), u = relu(f), v = relu(g), with
# E[u] = 1 / sqrt(2 pi), E[u^2] = 1/2, E[u^3] = 2 / sqrt(2 pi), E[u^4] = 3/2.
CORNER = torch.eye(2)
LIMIT = torch.tensor([0.5, 0.5, 1 / (2 * math.pi)], dtype=torch.float64)
_CROSS = 3 / (4 * math.pi)  # E[u^3] E[v] - E[u^2] E[u v]
SPREAD = torch.tensor(
    [[1.25, 0, _CROSS], [0, 1.25, _CROSS], [_CROSS, _CROSS, 0.25 - 1 / (4 * math.pi**2)]], dtype=torch.float64
)


def second_order():
    """tr(H C) / 2: K times the bias of a net of two hidden layers at the corner."""
    hessian = torch.autograd.functional.hessian(lambda kernel: arc_cosine_1(*kernel), LIMIT)
    return 0.5 * (hessian * SPREAD).sum().item()


def test_two_hidden_layers_are_biased_by_one_over_their_first_width():
    """The expectation over first layers, with the linear term (mean zero) taken out, so that what is left is the bias."""
    generator, widths, biases, errors = torch.Generator().manual_seed(0), [16, 32, 64, 128], [], []
    gradient = torch.func.grad(lambda kernel: arc_cosine_1(*kernel))(LIMIT)
    for width in widths:
        u, v = torch.randn(2, 1_000_000 // width, width, generator=generator, dtype=torch.float64).relu()
        kernel = torch.stack([(u * u).mean(1), (v * v).mean(1), (u * v).mean(1)])
        rest = arc_cosine_1(*kernel) - arc_cosine_1(*LIMIT) - gradient @ (kernel - LIMIT[:, None])
        biases.append(rest.mean().item())
        errors.append(rest.std().item() / math.sqrt(len(u)))
    assert second_order() == pytest.approx(-0.071463, abs=1e-6)  # of a kernel of .1234: 58 % / K
    assert slope(widths, biases) == pytest.approx(-1, abs=0.03)
    scaled = np.array(widths) * biases
    # what is left of the coefficient is of order 1 / K
    assert (np.abs(scaled - second_order()) < 5 * np.array(widths) * errors + 0.05 / np.array(widths)).all()


@pytest.mark.parametrize("width", [4, 8])
def test_the_networks_own_bias_is_that_and_its_variances_have_none(width):
    mean, error = empirical_covariance(deep_gp((width, 50), inputs=2, outputs=16), CORNER, 40_000, seed=0)
    truth = dense(DeepArcCosine(2), CORNER)
    assert (truth - mean)[0, 1] > 5 * error[0, 1]  # seen
    predicted = truth[0, 1] + second_order() / width
    assert abs(mean[0, 1] - predicted) < 5 * error[0, 1] + 0.05 / width**2
    assert_covariance((mean.diagonal(), error.diagonal()), truth.diagonal())


@pytest.mark.parametrize("depth", [1, 2])
def test_the_kernel_of_one_random_network_is_off_by_the_root_of_its_width(depth):
    widths, errors = [16, 64, 256], []
    truth = dense(DeepArcCosine(depth), CORNER)[0, 1]
    for width, draws in zip(widths, [3000, 1500, 200], strict=True):
        model = deep_gp((width,) * depth, inputs=2, outputs=width)
        top = torch.eye(width).flatten()  # y = features / sqrt(K), so y . y' is the mean of v^2 E[...] over units
        torch.manual_seed(width)
        with torch.no_grad():
            for layer in model.net.hidden:
                layer.bias.zero_()
            off = []
            for _ in range(draws):
                weights = torch.randn(model.num_weights - width * width)
                first, second = model.evaluate(torch.cat([weights, top]), CORNER)
                off.append((first @ second).item() - truth)
        errors.append(np.sqrt(np.mean(np.square(off))))
    assert slope(widths, errors) == pytest.approx(-0.5, abs=0.05)
    if depth == 1:  # the variance is exactly Var(u v) / K
        assert np.array(errors) * np.sqrt(widths) == pytest.approx(math.sqrt(SPREAD[2, 2]), rel=0.25)


# ------------------------------------------------------------------------------------------------------ masked networks


@pytest.mark.parametrize(
    ("keep_prob", "rescale"),
    [((1, 0.5, 0.8), False), ((1, 0.5, 0.8), (False, True, False)), ((1, 1, 0.3), True)],
)
def test_a_mask_multiplies_its_layer_by_its_second_moment(keep_prob, rescale):
    options = {"keep_prob": keep_prob, "rescale": rescale, "bias_variance": 0.5}  # so that the layer matters
    truth = dense(DeepArcCosine(2, **options))
    estimate = empirical_covariance(deep_gp((100, 100), outputs=8), X, 3000, seed=0, **options)
    # the mask adds its own fluctuation: the layer has the variance of a layer of p K units, or less
    assert_covariance(estimate, truth, bias_bound(truth, 2, 100 * min(keep_prob)))


def test_the_top_layers_factor_is_exact_at_every_width():
    truth = dense(DeepArcCosine(1, keep_prob=(1, 0.4)))
    assert_covariance(empirical_covariance(deep_gp((3,)), X, 100_000, seed=0, keep_prob=(1, 0.4)), truth)


def test_a_topology_multiplies_by_its_density_and_at_equal_scaled_fan_in_by_nothing():
    model, density = deep_gp((100, 100), outputs=8), 0.2
    counts = (model.sizes[0], round(density * model.sizes[1]), round(density * model.sizes[2]))
    topology = random_topology(model.shapes, counts, torch.Generator().manual_seed(0))
    mean, error = empirical_covariance(model, X, 4000, seed=0, topology=topology)
    sparse, whole = dense(DeepArcCosine(2, density=(1, density, density))), dense(DeepArcCosine(2))
    assert_covariance((mean, error), sparse, bias_bound(sparse, 2, density * 100))
    # scaled by sqrt(1 / (density K)) instead of sqrt(1 / K), twice
    assert_covariance((mean / density**2, error / density**2), whole, bias_bound(whole, 2, density * 100))


def test_a_mask_on_few_inputs_keeps_the_variances_and_moves_the_covariances():
    """Over d inputs the masked first layer is a mixture of 2^d normals: enumerated, and met by the network."""
    x, p, truth = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), 0.5, 0.0
    for z in torch.cartesian_prod(*2 * [torch.tensor([0.0, 1.0])]):
        truth = truth + dense(DeepArcCosine(1), x * z) / 4
    kernel = dense(DeepArcCosine(1, keep_prob=(p, 1)), x)
    torch.testing.assert_close(truth.diagonal(), kernel.diagonal())
    assert truth[0, 1].item() == pytest.approx(0.5 / (2 * math.pi) + 0.125)  # and the kernel says 1 / 2 pi
    assert kernel[0, 1].item() == pytest.approx(1 / (2 * math.pi))
    estimate = empirical_covariance(deep_gp((50,), inputs=2, outputs=4), x, 20_000, seed=0, keep_prob=(p, 1))
    assert_covariance(estimate, truth)
    assert (estimate[0] - kernel)[0, 1] > 10 * estimate[1][0, 1]


def test_what_a_mask_on_the_inputs_moves_falls_as_one_over_their_number():
    """x = (1, ..., 1), x' = (1, -1, 1, ...) over sqrt(d): the mixture is over two binomials, summed without sampling."""
    inputs, moved = [64, 256, 1024], []
    for d in inputs:
        weight = stats.binom.pmf(np.arange(d // 2 + 1), d // 2, 0.5)
        plus, minus = torch.meshgrid(*2 * [torch.arange(d // 2 + 1, dtype=torch.float64)], indexing="ij")
        values = arc_cosine_1((plus + minus) / d, (plus + minus) / d, (plus - minus) / d)
        x = torch.ones(2, d, dtype=torch.float64) / math.sqrt(d)
        x[1, 1::2] *= -1
        kernel = dense(DeepArcCosine(1, keep_prob=(0.5, 1)), x)[0, 1]
        moved.append((np.outer(weight, weight) * values.numpy()).sum() - kernel.item())
    assert slope(inputs, moved) == pytest.approx(-1, abs=0.01)
