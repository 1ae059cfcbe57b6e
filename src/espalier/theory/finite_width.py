"""The finite network beside its infinite width: its random kernels, its exact posterior, and the powers of K they follow.

Sparse is sparse above the first layer: a mask on d inputs mixes normals, which moves covariances by O(1/d) at every
width. At equal scaled fan-in and density rho the layers have K / rho units and weights scaled by rho^-1/2, so that every
unit keeps K inputs, of variance 1 / K each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gpytorch
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import integrate
from scipy.special import gamma, ndtr
from torch import Tensor, nn

from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.randomness import seeded
from espalier.references.kernels import arc_cosine_1
from espalier.topology.masks import random_topology

Floats = NDArray[np.float64]
KernelOf = Callable[..., Any]
"""`DeepArcCosine` or what stands in for it."""
CORNER = torch.eye(2)
"""Two orthogonal unit inputs: the first layer's f and g are independent N(0, 1), so its moments are in closed form."""
_CHUNK = 1 << 22  # numbers held at once


def relu_moment(a: Floats, b: Floats, c: Floats) -> Floats:
    """E[relu(f) relu(g)] by adaptive quadrature over f of relu(f) E[relu(g) | f], a normal's mean above zero."""
    spread = np.sqrt(np.maximum(b - c * c / a, 1e-300))

    def integrand(t: float) -> Floats:  # f = sqrt(a) t
        mean = c / np.sqrt(a) * t
        above = mean * ndtr(mean / spread) + spread * np.exp(-0.5 * (mean / spread) ** 2) / math.sqrt(2 * math.pi)
        return np.asarray(np.sqrt(a) * t * above * math.exp(-0.5 * t * t) / math.sqrt(2 * math.pi))

    # 12 standard deviations: beyond them lies less than 1e-30
    return np.asarray(integrate.quad_vec(integrand, 0, 12, epsabs=1e-15, epsrel=1e-13, norm="max")[0])


def quadrature_kernel(
    x: Tensor, depth: int, *, keep_prob: Sequence[float], rescale: bool, bias_variance: float, weight_variance: float
) -> Floats:
    """The recursion of `DeepArcCosine` by `relu_moment`, the mask's second moment summed over the states of Z."""
    inputs = x.double().numpy()
    c = inputs @ inputs.T
    for layer, p in enumerate(keep_prob):
        if layer > 0:
            a, b = np.broadcast_arrays(np.diag(c)[:, None], np.diag(c))
            c = relu_moment(a, b, c)
        second = sum(prob * (z / p if rescale else z) ** 2 for z, prob in ((0.0, 1 - p), (1.0, p)))
        c = weight_variance * second * c + (bias_variance if layer < depth else 0)
    return np.asarray(c)


def float64_kernel(kernel: KernelOf, depth: int, **options: Any) -> Any:
    """A kernel whose parameters are float64 from the start: a float32 one keeps seven digits of a variance."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return kernel(depth, **options)
    finally:
        torch.set_default_dtype(before)


def matrix_of(kernel: Any, x: Tensor) -> Tensor:
    """The kernel matrix, float64, without gradients."""
    matrix: Tensor = kernel(x.double()).to_dense().detach()
    return matrix


def features_of(widths: tuple[int, ...], inputs: int) -> BayesianNetwork:
    """`models/deep_gp` without its top weights: outputs sqrt(1/K_L) relu(...), whose products are one network's kernel."""
    model = shelf.load("models", "deep_gp")((inputs,), 1, widths=widths)
    net = model.network(model.initial)
    net.top = nn.Identity()
    return BayesianNetwork(net)


def fan_in(density: float) -> float:
    """What makes up for a layer's missing weights: sqrt(1 / (rho K)) in place of sqrt(1 / K)."""
    return 1 / math.sqrt(density)


def sparse(
    shapes: Sequence[tuple[int, ...]], density: float, generator: torch.Generator, scale: Callable[[float], float]
) -> Tensor:
    """What a random topology, dense in the first layer, multiplies the weights by, `(num_weights,)`: 0, 1 or the scale."""
    sizes = [math.prod(shape) for shape in shapes]
    counts = [sizes[0], *(round(density * size) for size in sizes[1:])]
    factor = torch.zeros(sum(sizes))
    factor[random_topology(shapes, counts, generator).positions] = scale(density)
    factor[: sizes[0]] = 1
    return factor


def draws_of(
    model: BayesianNetwork,
    x: Tensor,
    count: int,
    generator: torch.Generator,
    factor: Tensor | float = 1.0,
    bias: float = 0.0,
) -> Iterator[Tensor]:
    """Outputs `(chunk, n, K)` at x under the prior: weights N(0, 1) times `factor`, biases N(0, `bias`)."""
    biases = {f"net.{name}": p for name, p in model.net.named_parameters()}
    chunk = max(1, _CHUNK // (model.num_weights + len(x) * sum(shape[0] for shape in model.shapes)))
    with torch.no_grad():
        for start in range(0, count, chunk):
            number = min(chunk, count - start)
            weights = factor * torch.randn(number, model.num_weights, generator=generator)
            state = {n: math.sqrt(bias) * torch.randn(number, *p.shape, generator=generator) for n, p in biases.items()}
            yield torch.vmap(lambda w, s: model.evaluate(w, x, s))(weights, state)


def covariances(features: Tensor) -> Tensor:
    """`(..., 2, K)` -> `(..., K, 3)`: each unit's part of a = |f|^2, b = |g|^2 and c = f.g."""
    f, g = features.double().unbind(-2)
    return torch.stack([f * f, g * g, f * g], -1)


def moments() -> tuple[Floats, Floats]:
    """Mean `(3,)` and covariance `(3, 3)` of a unit's (u^2, v^2, u v) at the corner: u = relu(f), v = relu(g) independent."""
    one, two, three, four = (2 ** (k / 2) * gamma((k + 1) / 2) / (2 * math.sqrt(math.pi)) for k in (1, 2, 3, 4))
    cross, square = three * one - two * one**2, four - two**2
    return np.array([two, two, one**2]), np.array(
        [[square, 0, cross], [0, square, cross], [cross, cross, two**2 - one**4]]
    )


def coefficient() -> float:
    """K times the bias of two hidden layers at the corner, to first order: tr(H C) / 2, H the Hessian of `arc_cosine_1`
    at the first layer's mean kernel, C / K the covariance of its kernel. Sparse layers of equal scaled fan-in have more
    of it, but only along the mean kernel, where H is zero, as `arc_cosine_1` is homogeneous of degree one."""
    mean, spread = moments()
    hessian = torch.autograd.functional.hessian(lambda kernel: arc_cosine_1(*kernel), torch.from_numpy(mean))
    return float(0.5 * (hessian.numpy() * spread).sum())


def expected(seen: Sequence[Tensor], mean: Tensor) -> tuple[float, float, float]:
    """E[arc_cosine_1(A)] and its standard error, from draws A `(chunk, 3)` or `(chunk, units, 3)` of E[A] = `mean`, whose
    linear term is left out for that; and the slope in c. It is E[y y'] of a layer on top of the kernels A."""
    gradient = torch.func.grad(lambda kernel: arc_cosine_1(*kernel))(mean)
    rest = [arc_cosine_1(*each.unbind(-1)) - (each - mean) @ gradient for each in seen]
    values = torch.cat([each.view(len(each), -1).mean(1) for each in rest])
    return float(values.mean()), float(values.std() / math.sqrt(len(values))), float(gradient[2])


def weights_of(evidence: Tensor, least: float = 100.0) -> tuple[Tensor, float]:
    """Importance weights `(S,)` of draws from the prior, by log evidence, and their effective sample size 1 / sum w^2.

    Raises RuntimeError where that is below `least`: the weights then say nothing.
    """
    weight = torch.softmax(evidence, 0)
    effective = float(1 / weight.square().sum())
    if effective < least:
        raise RuntimeError(f"expected {least:g} effective draws, got {effective:.1f} of {len(weight)}: draw more")
    return weight, effective


def conditioned(kernels: Tensor, y: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """log N(y; 0, K + noise) `(S,)`, and mean and variance `(S, m)` of f at the m points after the first n = len(y), for
    kernels `(S, n + m, n + m)`: last weights are normal given the hidden ones, so this is exact."""
    n = len(y)
    factor = torch.linalg.cholesky(kernels[:, :n, :n] + noise * torch.eye(n, dtype=kernels.dtype))
    target = y.view(1, n, 1).expand(len(kernels), n, 1)
    white, cross = (torch.linalg.solve_triangular(factor, right, upper=False) for right in (target, kernels[:, :n, n:]))
    evidence = -0.5 * white.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    variance = kernels[:, n:, n:].diagonal(dim1=1, dim2=2) - cross.square().sum(1)
    return evidence - 0.5 * n * math.log(2 * math.pi), (cross.mT @ white)[..., 0], variance


class Mixture(NamedTuple):
    """The exact posterior of a finite network as an importance-weighted mixture over draws of its hidden weights."""

    mean: Floats
    variance: Floats
    mean_covariance: Floats
    """Of the Monte Carlo error of `mean`, `(m, m)`; delta method."""
    variance_covariance: Floats
    effective: float
    """Effective sample size of the weights, 1 / sum w^2."""


def mixture(evidence: Tensor, means: Tensor, variances: Tensor) -> Mixture:
    """Draws by their log evidence `(S,)`, with means and variances `(S, m)`. Raises RuntimeError as `weights_of`."""
    weight, effective = weights_of(evidence)
    mean = weight @ means
    second = variances + (means - mean).square()
    variance = weight @ second
    errors = [weight[:, None] * gap for gap in (means - mean, second - variance)]
    of_mean, of_variance = ((error.mT @ error).numpy() for error in errors)
    return Mixture(mean.numpy(), variance.numpy(), of_mean, of_variance, effective)


class Rate(NamedTuple):
    """log |value| = intercept + slope log K + correction / K, by weighted least squares."""

    slope: float
    error: float
    intercept: float


def rate(widths: ArrayLike, values: ArrayLike, errors: ArrayLike) -> Rate:
    """The power of K that `values` follow, with its standard error, the next power of 1/K fitted with it; by those values that
    are told from 0. Raises RuntimeError below three of them."""
    k, value, error = (np.asarray(each, dtype=np.float64) for each in (widths, values, errors))
    told = ~np.isinf(error) & (value != 0)
    if told.sum() < 3:
        raise RuntimeError(f"expected three widths at which the gap is told from 0, got {told.sum()}: draw more networks")
    k, value, error = k[told], value[told], error[told]
    weight = np.abs(value) / error
    design = np.stack([np.log(k), np.ones_like(k), 1 / k], 1) * weight[:, None]
    covariance = np.linalg.inv(design.T @ design)
    found = covariance @ design.T @ (weight * np.log(np.abs(value)))
    return Rate(float(found[0]), float(np.sqrt(covariance[0, 0])), float(found[1]))


def at_infinity(widths: ArrayLike, values: ArrayLike, errors: ArrayLike) -> tuple[float, float]:
    """The constant of values = constant + slope / K by weighted least squares, and its standard error."""
    k, value, error = (np.asarray(each, dtype=np.float64) for each in (widths, values, errors))
    design = np.stack([1 / error, 1 / (k * error)], 1)
    covariance = np.linalg.inv(design.T @ design)
    return float((covariance @ design.T @ (value / error))[0]), float(np.sqrt(covariance[0, 0]))


def root_mean_square(values: Tensor) -> tuple[float, float]:
    """Root mean square and its standard error."""
    square = values.square()
    root = float(square.mean().sqrt())
    return root, float(square.std() / math.sqrt(len(values)) / (2 * root))


def distance(gap: Floats, covariance: Floats) -> tuple[float, float]:
    """Root mean square of a gap `(m,)` known with this error covariance, its share taken out, and its standard error."""
    square = gap @ gap - np.trace(covariance)
    error = math.sqrt(4 * gap @ covariance @ gap + 2 * np.sum(covariance**2))
    root = math.sqrt(max(square, 0.0) / len(gap))
    return root, error / (2 * root * len(gap)) if root else math.inf


def exact_deep_evidence(
    model: Any, x: Tensor, y: Tensor, draws: int, generator: torch.Generator, least: float = 100.0
) -> tuple[float, float]:
    """log p(y) of a deep GP with one hidden layer, and its standard error: hidden values drawn from the prior jointly, the
    top layer integrated exactly. Raises RuntimeError below `least` effective draws."""
    first, top = model.layers
    evidence = []
    with torch.no_grad():
        noise = float(model.likelihood.noise)
        prior = first.forward(x.expand(first.output_dims, *x.shape))
        mean, root = prior.mean, torch.linalg.cholesky(prior.covariance_matrix + 1e-8 * torch.eye(len(x)).to(x))
        for start in range(0, draws, 1000):
            normal = torch.randn(min(1000, draws - start), *mean.shape, 1, generator=generator).to(x)
            outer = top.forward((mean + (root @ normal)[..., 0]).mT)
            evidence.append(conditioned(outer.covariance_matrix, y - outer.mean[0], noise)[0])
    logs = torch.cat(evidence)
    effective = weights_of(logs)[1]
    return float(torch.logsumexp(logs, 0)) - math.log(draws), math.sqrt(1 / effective - 1 / draws)


@torch.no_grad()
def elbo_by_numpy(model: Any, x: Tensor, y: Tensor, num_samples: int) -> Floats:
    """Draws `(num_samples,)` of a variational deep GP's bound, nats, of the top layer's moments and the parameters of every q:
    E log N(y; f, noise) less KL(N(m, S) | N(0, I)) of each unit, white (Salimbeni & Deisenroth 2017, eq. 16)."""
    with gpytorch.settings.num_likelihood_samples(num_samples):
        top = model(x)
    noise, kl = float(model.likelihood.noise), 0.0
    square = (y.numpy() - top.mean.numpy()) ** 2 + top.variance.numpy()
    for layer in model.layers:
        q = layer.variational_strategy._variational_distribution
        mean, root = q.variational_mean.numpy(), np.tril(q.chol_variational_covar.numpy())
        scale = np.abs(np.diagonal(root, axis1=-2, axis2=-1))
        kl += float(0.5 * ((root**2).sum() + (mean**2).sum() - mean.size) - np.log(scale).sum())
    fit: Floats = -0.5 * (np.log(2 * np.pi * noise) + square / noise).sum(-1)
    return fit - kl


def gap_to_numpy(model: Any, x: Tensor, y: Tensor, elbo: Callable[..., Tensor]) -> float:
    """The largest difference of `elbo`'s draws, nats, on one random stream."""
    found = []
    for bound in (elbo, elbo_by_numpy):
        with seeded(1):
            found.append(np.asarray(bound(model, x, y, 8)))
    return float(np.abs(found[0] - found[1]).max())
