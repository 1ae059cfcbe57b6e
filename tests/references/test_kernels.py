"""Laws of the arc-cosine kernel: closed forms and GPyTorch's own."""

from __future__ import annotations

import math
import unittest

import gpytorch
import numpy as np
import pytest
import torch
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from espalier.distributions.masked import effective_keep_prob
from espalier.references.kernels import DeepArcCosine, arc_cosine_1
from kernel_matrix import X, dense

laws = settings(max_examples=50)
scales = st.floats(0.05, 20.0)
cosines = st.floats(-1.0, 1.0)


def double(*values):
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


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
