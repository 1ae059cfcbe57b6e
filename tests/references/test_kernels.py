"""Laws of the arc-cosine kernel: closed forms, GPyTorch's own, and the finite network it is the limit of.

The network's prior covariance E[y y'] against the kernel, by width K of the hidden layers: equal for one hidden layer,
because y is linear in features that are independent draws of one law. With two or more, a layer sees the random kernel A
of the layer before it, E[A] = the limit, Cov(A) = C / K, and E[arc_cosine_1(A)] = arc_cosine_1(E[A]) + tr(H C) / 2K, with
H its Hessian: a bias of 1 / K, but none on the diagonal, where arc_cosine_1(a, a, a) = a / 2 is linear. A single random
network's kernel is off by K^-1/2.
"""

from __future__ import annotations

import math
import unittest
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from budget import FALSE_ALARMS
from espalier.distributions.masked import draw_keep, effective_keep_prob
from espalier.distributions.priors import FlatNormal
from espalier.references.kernels import DeepArcCosine, arc_cosine_1, empirical_covariance
from espalier.shelf import load
from espalier.topology.masks import random_topology

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # linear_operator scripts a function when it is imported
    import gpytorch
    from gpytorch.test.base_kernel_test_case import BaseKernelTestCase

laws = settings(deadline=None, max_examples=50, derandomize=True)
scales = st.floats(0.05, 20.0)
cosines = st.floats(-1.0, 1.0)

X = torch.tensor([[1.0, 0.5, -0.3], [-0.2, 0.8, 0.6], [0.9, 0.6, -0.2], [-1.0, -0.4, 0.4]])  # near, far and opposite


def double(*values):
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


def dense(kernel, x=X, **options):
    """The kernel matrix, in float64."""
    return kernel.double()(x.double(), **options).to_dense().detach()


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


# ------------------------------------------------------------------------------------------------------- one relu layer


@pytest.mark.parametrize(("a", "b", "c"), [(1.3, 0.7, 0.4), (0.2, 5.0, -0.8), (2.0, 2.0, 1.95), (1.0, 3.0, -1.7)])
def test_one_layer_is_the_integral_over_the_bivariate_normal(a, b, c):
    inverse, area = np.linalg.inv([[a, c], [c, b]]), 2 * math.pi * math.sqrt(a * b - c * c)

    def integrand(g, f):
        return f * g * math.exp(-0.5 * (inverse[0, 0] * f * f + 2 * inverse[0, 1] * f * g + inverse[1, 1] * g * g))

    # 12 standard deviations: beyond them lies less than 1e-30
    truth, _ = integrate.dblquad(integrand, 0, 12 * math.sqrt(a), 0, 12 * math.sqrt(b), epsabs=1e-11, epsrel=1e-11)
    assert arc_cosine_1(*double(a, b, c)).item() == pytest.approx(truth / area, abs=1e-9)


@laws
@given(scales, scales)
def test_one_layer_at_full_and_at_no_correlation(a, b):
    top = math.sqrt(a * b)
    assert arc_cosine_1(*double(a, a, a)).item() == a / 2  # exact
    assert arc_cosine_1(*double(a, b, top)).item() == pytest.approx(top / 2, rel=1e-14)
    assert arc_cosine_1(*double(a, b, -top)).item() == pytest.approx(0, abs=1e-14 * top)
    assert arc_cosine_1(*double(a, b, 0.0)).item() == pytest.approx(top / (2 * math.pi), rel=1e-14)


@laws
@given(scales, scales, cosines)
def test_one_layer_is_symmetric_homogeneous_and_splits_the_identity(a, b, cosine):
    c = cosine * math.sqrt(a * b)
    value = arc_cosine_1(*double(a, b, c))
    assert value == arc_cosine_1(*double(b, a, c))
    torch.testing.assert_close(arc_cosine_1(*double(3 * a, 3 * b, 3 * c)), 3 * value)
    # f g = relu(f) relu(g) + relu(-f) relu(-g) - relu(f) relu(-g) - relu(-f) relu(g)
    torch.testing.assert_close(2 * value - 2 * arc_cosine_1(*double(a, b, -c)), *double(c))


def test_derivatives_are_those_of_the_value_and_differentiable_again():
    inputs = tuple(value.requires_grad_() for value in double([1.3, 0.2], [0.7, 5.0], [0.4, -0.8]))
    assert torch.autograd.gradcheck(arc_cosine_1, inputs)
    assert torch.autograd.gradgradcheck(arc_cosine_1, inputs)
    batched = torch.func.vmap(torch.func.grad(arc_cosine_1))(*(value.detach() for value in inputs))
    torch.testing.assert_close(batched, torch.autograd.grad(arc_cosine_1(*inputs).sum(), inputs[0])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_at_coincident_and_opposite_inputs_are_the_limits(dtype):
    # Price: d/dc = P(f > 0, g > 0) = 1/2 or 0; d/da, d/db = 0, as sin t is; at a = 0 all of it is 0 / 0
    a, b, c = (
        torch.tensor(v, dtype=dtype, requires_grad=True) for v in ([2.0, 2.0, 0.0], [2.0, 2.0, 1.0], [2.0, -2.0, 0])
    )
    arc_cosine_1(a, b, c).sum().backward()
    assert a.grad.tolist() == [0, 0, 0]
    assert b.grad.tolist() == [0, 0, 0]
    assert c.grad.tolist() == [0.5, 0, 0.5]


# ----------------------------------------------------------------------------------------------------------- the kernel


def test_one_hidden_layer_is_the_closed_form():
    # Written out once more, as in Cho & Saul 2009: v^2 |x| |x'| (sin t + (pi - t) cos t) / 2 pi, t the angle of x and x'.
    x = X.double().numpy()
    norm = np.linalg.norm(x, axis=1)
    t = np.arccos(np.clip(x @ x.T / np.outer(norm, norm), -1, 1))
    truth = 1.7**2 * np.outer(norm, norm) * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
    np.testing.assert_allclose(dense(DeepArcCosine(1, weight_variance=1.7).double()), truth, rtol=1e-6)


def test_depth_zero_is_gpytorchs_linear_kernel():
    linear = gpytorch.kernels.LinearKernel()
    linear.variance = 1.7
    torch.testing.assert_close(dense(DeepArcCosine(0, weight_variance=1.7)), dense(linear))


@pytest.mark.parametrize("depth", range(6))
def test_the_diagonal_is_the_exact_recursion_in_both_modes(depth):
    kernel = DeepArcCosine(depth, weight_variance=1.7, bias_variance=0.3)
    v, s = kernel.double().weight_variance.item(), kernel.bias_variance.item()
    truth = v * X.double().square().sum(1) + (s if depth else 0)
    for layer in range(1, depth + 1):
        truth = v * truth / 2 + (s if layer < depth else 0)
    torch.testing.assert_close(dense(kernel).diagonal(), truth, rtol=1e-14, atol=0)
    torch.testing.assert_close(kernel(X.double(), diag=True), truth, rtol=1e-14, atol=0)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize(("dtype", "jitter"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_matrix_is_positive_semi_definite_to_jitter(depth, dtype, jitter):
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x = torch.cat([x, x[:5], -x[:5], 3 * x[:5], torch.zeros(1, 4, dtype=dtype), x[:5] + 1e-6])
    for bias_variance in (0.0, 0.5):
        matrix = DeepArcCosine(depth, bias_variance=bias_variance).to(dtype)(x).to_dense().detach().double()
        eigenvalues = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))
        assert eigenvalues[0] > -jitter * len(x) * eigenvalues[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gradients_are_finite_and_right_at_coincident_points(depth, dtype):
    kernel = DeepArcCosine(depth, weight_variance=1.7).to(dtype)
    x = torch.cat([X, X, -X, torch.zeros(1, 3)]).to(dtype).requires_grad_()
    matrix = kernel(x).to_dense()
    hyper, inputs = torch.autograd.grad(matrix.sum(), [kernel.raw_weight_variance, x], retain_graph=True)
    assert torch.isfinite(inputs).all()
    # k is v^(L+1) times a function of x, so dk/dv = (L + 1) k / v at any pair; v = softplus(raw)
    slope_of_v = torch.sigmoid(kernel.raw_weight_variance)
    truth = (depth + 1) * matrix.sum() / kernel.weight_variance * slope_of_v
    torch.testing.assert_close(hyper, truth.detach(), rtol=20 * torch.finfo(dtype).eps, atol=0)
    # and 2-homogeneous in x: Euler's relation sum x dk/dx = 2 k
    torch.testing.assert_close((inputs * x).sum(), 2 * matrix.sum(), rtol=20 * torch.finfo(dtype).eps, atol=0)


def test_both_variances_learn():
    kernel = DeepArcCosine(2, bias_variance=0.4)
    assert {name for name, _ in kernel.named_parameters()} == {"raw_weight_variance", "raw_bias_variance"}
    assert {name for name, _ in DeepArcCosine(2).named_parameters()} == {"raw_weight_variance"}
    assert DeepArcCosine(2).bias_variance.item() == 0
    kernel.initialize(weight_variance=2.5, bias_variance=0.1)
    assert kernel.weight_variance.item() == pytest.approx(2.5)
    assert kernel.bias_variance.item() == pytest.approx(0.1)
    kernel(X).to_dense().sum().backward()
    assert kernel.raw_weight_variance.grad.item() > 0
    assert kernel.raw_bias_variance.grad.item() > 0


def test_a_batch_of_kernels_is_each_kernel_and_every_column_may_be_a_batch():
    batch = DeepArcCosine(2, bias_variance=0.2, batch_shape=torch.Size([2]))
    batch.weight_variance = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    for index, variance in enumerate([0.5, 2.0]):
        one = DeepArcCosine(2, weight_variance=variance, bias_variance=0.2)
        torch.testing.assert_close(batch(X).to_dense()[index], one(X).to_dense())
        torch.testing.assert_close(batch(X, X[1:3]).to_dense()[index], one(X).to_dense()[:, 1:3])
        torch.testing.assert_close(batch(X, diag=True)[index], one(X, diag=True))
        columns = torch.stack([one(column).to_dense() for column in X.T])
        torch.testing.assert_close(batch.forward(X, X, last_dim_is_batch=True)[index], columns)
        diagonals = batch.forward(X, X, diag=True, last_dim_is_batch=True)[index]
        torch.testing.assert_close(diagonals, columns.diagonal(dim1=-2, dim2=-1))


class TestConformance(BaseKernelTestCase, unittest.TestCase):
    """The laws GPyTorch holds its own kernels to."""

    def create_kernel_no_ard(self, **options):
        return DeepArcCosine(2, bias_variance=0.1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "^expected a depth of 0 or more hidden layers, got -1$"),
        ({"weight_variance": 0.0}, "^expected variances above 0"),
        ({"bias_variance": -1.0}, "^expected variances above 0"),
        ({"keep_prob": 0.0}, r"^expected keep_prob in \(0, 1\], got 0.0"),
        ({"keep_prob": [0.5, 0.5]}, "^expected keep_prob for all layers or for each of 3 weight layers, got 2$"),
        ({"density": 1.5}, r"^expected a density in \(0, 1\], got 1.5"),
    ],
)
def test_what_makes_no_kernel_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeepArcCosine(**{"depth": 2, **options})


def test_a_kernel_without_biases_has_none_to_set():
    with pytest.raises(ValueError, match="^expected a kernel with a bias_variance"):
        DeepArcCosine(1).bias_variance = 0.5


# ------------------------------------------------------------------------------------------------- the factors of masks


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_without_biases_the_factors_of_all_layers_multiply(depth):
    whole, p = dense(DeepArcCosine(depth)), effective_keep_prob(0.9)
    masked = DeepArcCosine(depth, keep_prob=0.9)
    rescaled = DeepArcCosine(depth, keep_prob=0.9, rescale=True)
    sparse = DeepArcCosine(depth, keep_prob=0.9, density=0.1)
    torch.testing.assert_close(dense(masked), p ** (depth + 1) * whole)
    torch.testing.assert_close(dense(rescaled), p ** -(depth + 1) * whole)
    torch.testing.assert_close(dense(sparse), (0.1 * p) ** (depth + 1) * whole)


def test_with_biases_it_matters_which_layer_is_masked():
    first = DeepArcCosine(1, bias_variance=0.5, keep_prob=[0.5, 1.0])
    second = DeepArcCosine(1, bias_variance=0.5, keep_prob=[1.0, 0.5])
    assert first.factors == (0.5, 1.0)
    truth = dense(DeepArcCosine(1, bias_variance=0.5))
    torch.testing.assert_close(dense(second), 0.5 * truth)
    assert (dense(first) - 0.5 * truth).abs().max() > 0.1
    assert DeepArcCosine(1, keep_prob=0.5, rescale=[False, True]).factors == (0.5, 2.0)


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


# ---------------------------------------------------------------------------------------------- exact Gaussian processes


def test_exact_regression_is_the_numpy_solve():
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(2, 25, 3, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, 0]) + x[:, 1].abs() + 0.1 * torch.randn(25, generator=generator, dtype=torch.float64)

    class Regression(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = DeepArcCosine(2, weight_variance=1.5, bias_variance=0.2)

        def forward(self, inputs):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Regression(likelihood).double()
    likelihood.noise = 0.05
    model.eval()
    with torch.no_grad():
        posterior = model(new)
        everything = model.covar_module(torch.cat([x, new])).to_dense().numpy()
    prior, cross, own = everything[:25, :25], everything[25:, :25], everything[25:, 25:]
    solved = np.linalg.solve(prior + likelihood.noise.item() * np.eye(25), np.column_stack([y, cross.T]))
    np.testing.assert_allclose(posterior.mean.numpy(), cross @ solved[:, 0], atol=1e-8)
    np.testing.assert_allclose(posterior.variance.numpy(), np.diag(own - cross @ solved[:, 1:]), atol=1e-8)


def test_the_marginal_likelihood_trains_its_hyper_parameters():
    """Data drawn from the kernel at v = 3: from v = 0.3 its likelihood climbs to about there."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, dtype=torch.float64)
    covariance = dense(DeepArcCosine(1, weight_variance=3.0), x) + 0.01 * torch.eye(60)
    y = torch.linalg.cholesky(covariance) @ torch.randn(60, dtype=torch.float64)
    kernel = DeepArcCosine(1, weight_variance=0.3).double()
    optimizer = torch.optim.Adam(kernel.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        matrix = kernel(x).to_dense() + 0.01 * torch.eye(60)
        loss = -torch.distributions.MultivariateNormal(torch.zeros(60, dtype=torch.float64), matrix).log_prob(y)
        loss.backward()
        optimizer.step()
    assert kernel.weight_variance.item() == pytest.approx(3.0, rel=0.4)
