"""The deep Gaussian process behind the method: the infinitely wide network as a kernel, and how the finite one meets it.

Every comparison is with `models/deep_gp` itself, with quadrature, with scikit-learn or with an exact evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier import references, shelf
from espalier.distributions.masked import draw_keep
from espalier.randomness import seeded
from espalier.references.kernels import DeepArcCosine, arc_cosine_1, empirical_covariance
from espalier.theory.claims import Claim, Curve, Finding, Picture, limit, worst, worst_z
from espalier.theory.finite_width import (
    CORNER,
    Floats,
    KernelOf,
    Mixture,
    at_infinity,
    coefficient,
    conditioned,
    covariances,
    distance,
    draws_of,
    exact_deep_evidence,
    expected,
    fan_in,
    features_of,
    float64_kernel,
    gap_to_numpy,
    matrix_of,
    mixture,
    moments,
    quadrature_kernel,
    rate,
    relu_moment,
    root_mean_square,
    sparse,
)

DENSITY = 0.25
X = torch.tensor(
    [[1.0, 0.5, -0.3], [-0.2, 0.8, 0.6], [0.9, 0.6, -0.2], [-1.0, -0.5, 0.3], [2.0, 1.0, -0.6], [0, 0, 1e-3]]
)
"""Near, far, opposite, parallel and short inputs."""


def check_kernel(
    quick: bool, *, kernel: KernelOf = DeepArcCosine, expectation: Callable[..., Tensor] = arc_cosine_1
) -> Finding:
    cosines = np.cos(np.linspace(0, math.pi, 13 if quick else 61))
    a, b, cosine = (each.ravel() for each in np.meshgrid([1e-3, 0.7, 5.0], [0.7, 2.0], cosines))
    c = cosine * np.sqrt(a * b)
    one = np.abs(expectation(*map(torch.from_numpy, (a, b, c))).numpy() - relu_moment(a, b, c)) / np.sqrt(a * b)
    error, cases = float(one.max()), 0
    keeps = [(1.0, 1.0, 1.0, 1.0), (1.0, 0.5, 0.75, 0.25)] + ([] if quick else [(0.75, 1.0, 0.5, 0.5)])
    for depth in (1, 2, 3):
        for keep in keeps:
            for rescale in (False, True):
                for bias in (0.0, 0.3):
                    options: dict[str, Any] = {
                        "keep_prob": keep[: depth + 1],
                        "rescale": rescale,
                        "bias_variance": bias,
                        "weight_variance": 1.7,
                    }
                    truth = quadrature_kernel(X, depth, **options)
                    found = matrix_of(float64_kernel(kernel, depth, **options), X).numpy()
                    scale = np.sqrt(np.outer(np.diag(truth), np.diag(truth)))
                    error, cases = worst(error, np.abs(found - truth) / scale), cases + 1
    angles = np.linspace(0, math.pi, 61)
    circle = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))
    plain: dict[str, Any] = {"rescale": False, "bias_variance": 0.0, "weight_variance": 2.0}
    curves = []
    for depth in (1, 2, 3):
        line = matrix_of(float64_kernel(kernel, depth, weight_variance=2.0), circle)[0].numpy() / 2
        dots = quadrature_kernel(circle[::6], depth, keep_prob=(1.0,) * (depth + 1), **plain)[0] / 2
        curves += [Curve(f"depth {depth}, kernel", angles, line)]
        curves += [Curve(f"depth {depth}, quadrature", angles[::6], dots, style="points")]
    return Finding(
        f"closed form and adaptive quadrature: {len(a)} single layers, {cases} kernels of depth 1 to 3 on 6 inputs, with "
        "and without biases, masks and rescaling",
        error, 1e-12, "relative to the variances",
        pictures=(Picture("Arc-cosine kernel of unit inputs", "angle (rad)", "correlation", tuple(curves)),),
    )


def check_prior(
    quick: bool,
    *,
    kernel: KernelOf = DeepArcCosine,
    scale: Callable[[float], float] = fan_in,
    powers: tuple[float, float] = (-1.0, -0.5),
) -> Finding:
    widths = (16, 32, 64, 128) if quick else (16, 32, 64, 128, 256)
    draws = 6000 if quick else 40_000
    limits = [matrix_of(float64_kernel(kernel, depth), CORNER).numpy() for depth in (1, 2, 3)]
    first = torch.from_numpy(moments()[0])
    second = torch.stack([first[0] / 2, first[1] / 2, arc_cosine_1(*first)])
    generator = torch.Generator().manual_seed(0)

    def units(widths: tuple[int, ...], count: int, factor: Tensor | float = 1.0) -> list[Tensor]:
        return [covariances(f) for f in draws_of(features_of(widths, 2), CORNER, count, generator, factor)]

    bias: dict[str, list[tuple[float, float]]] = {
        name: [] for name in ("dense", "topology", "mask Z", "dense, 3 layers")
    }
    spread: dict[str, list[tuple[float, float]]] = {"dense": [], "topology": []}
    for width in widths:
        wide = round(width / DENSITY)
        mean, error, _ = expected([part.sum(1) for part in units((width,), draws)], first)
        bias["dense"].append((mean - limits[1][0, 1], error))
        parts = units((wide,), draws // 2)
        factor = sparse([(wide, 2), (8, wide)], DENSITY, generator, scale)  # eight units of the second layer
        rows = factor[2 * wide :].view(8, wide).double().square()
        mean, its, _ = expected([rows @ part for part in parts], first)
        bias["topology"].append((mean - limits[1][0, 1], its))
        keep = [
            draw_keep(part[..., 0].numel(), DENSITY, part.device, generator).view(len(part), 1, -1) for part in parts
        ]
        masked = [scale(DENSITY) ** 2 * (z.double() @ part) for z, part in zip(keep, parts, strict=True)]
        mean, its, _ = expected(masked, first)
        bias["mask Z"].append((mean - limits[1][0, 1], its))

        pair = [part.sum(1) for part in units((width, width), draws // 4)]
        spread["dense"].append(root_mean_square(torch.cat(pair)[:, 2] - limits[1][0, 1]))
        mean, its, slope = expected(pair, second)  # in truth their mean is off by the bias of two layers:
        mean, its = mean + slope * bias["dense"][-1][0], math.hypot(its, slope * error)
        bias["dense, 3 layers"].append((mean - limits[2][0, 1], its))
        # a sparse top has weights for rho of the units alone: the others need not be there
        factor = sparse([(wide, 2), (width, wide)], DENSITY, generator, scale)
        single = [part.sum(1)[:, 2] for part in units((wide, width), draws // 4, factor)]
        spread["topology"].append(root_mean_square(torch.cat(single) - limits[1][0, 1]))

    looks: dict[str, tuple[float, float, float]] = {}  # found, expected, standard error
    for what, arms, power in (("bias", bias, powers[0]), ("fluctuation", spread, powers[1])):
        for name, pairs in arms.items():
            fit = rate(widths, *np.transpose(pairs))
            looks[f"power of K, {what}, {name}"] = (fit.slope, power, fit.error)
    for name in ("dense", "topology", "mask Z"):
        leading, its = at_infinity(widths, *np.transpose(bias[name]) * np.asarray(widths))
        looks[f"K x bias, {name}"] = (leading, coefficient(), its)
    # The whole network, nothing averaged by a formula: one layer and variances exact, two layers as averaged above.
    for layers, p in (((4,), 1.0), ((64,), 1.0), ((4, 50), 1.0), ((8, 50), 1.0), ((64,), (1.0, DENSITY))):
        model = shelf.load("models", "deep_gp")((2,), 16, widths=layers)
        found, errors = empirical_covariance(model, CORNER, draws, seed=layers[0], keep_prob=p)
        limit_of, its = matrix_of(float64_kernel(kernel, len(layers), keep_prob=p), CORNER).numpy(), 0.0
        between = float(limit_of[0, 1])
        if len(layers) == 2:
            between, its, _ = expected([part.sum(1) for part in units(layers[:1], draws)], first)
        looks[f"E[y y], widths {layers}, p {p}"] = (float(found[0, 0]), float(limit_of[0, 0]), float(errors[0, 0]))
        looks[f"E[y y'], widths {layers}, p {p}"] = (float(found[0, 1]), between, math.hypot(errors[0, 1], its))
    discrepancy, tolerance = worst_z(*np.transpose(list(looks.values())))
    return Finding(
        f"prior E[y y'] of models/deep_gp at widths {widths[0]} to {widths[-1]}, {draws} networks each, dense and at "
        f"density {DENSITY} with equal scaled fan-in, against the kernel: powers of K and the leading coefficient",
        discrepancy,
        tolerance,
        "standard errors",
        figures={what: {"found": f, "expected": e, "standard error": se} for what, (f, e, se) in looks.items()},
        breaks="At finite width the covariance between inputs is off by K^-1 times a known coefficient (58 % / K at "
        "orthogonal inputs) with two hidden layers or more; variances, and one hidden layer, are exact at every width.",
        pictures=(
            _decay("Bias of the prior covariance", "|E[y y'] - kernel|", widths, bias, powers[0]),
            _decay("One random network's kernel about its limit", "root mean square", widths, spread, powers[1]),
        ),
    )


def check_posterior(
    quick: bool,
    *,
    kernel: KernelOf = DeepArcCosine,
    posterior: Callable[..., tuple[Tensor, Tensor]] = references.exact_posterior,
    scale: Callable[[float], float] = fan_in,
    power: float = -1.0,
) -> Finding:
    widths = (16, 32, 64, 128) if quick else (16, 32, 64, 128, 256)
    draws, noise, bias = (8000 if quick else 20_000), 0.1, 1.0
    x = torch.tensor([-1.8, -1.3, -0.9, -0.2, 0.3, 0.9, 1.2, 1.9])[:, None]
    y, new = torch.sin(2 * x[:, 0]).double(), torch.linspace(-2.5, 2.5, 21)[:, None]
    limit_of = float64_kernel(kernel, 2, bias_variance=bias)
    mean, variance = (each.numpy() for each in posterior(limit_of, x.double(), y, new.double(), noise))
    generator = torch.Generator().manual_seed(0)
    gaps: dict[str, list[tuple[float, float]]] = {}
    effective: dict[str, list[float]] = {}
    bands: dict[str, Mixture] = {}
    for name, density in (("dense", 1.0), (f"density {DENSITY}", DENSITY)):
        for width in widths:
            model = features_of((round(width / density), width), 1)  # a sparse top reads rho of the units, exactly
            factor = sparse(model.shapes, density, generator, scale)
            parts = [
                conditioned((f @ f.mT).double(), y, noise)
                for f in draws_of(model, torch.cat([x, new]), draws, generator, factor, bias)
            ]
            found = mixture(*(torch.cat(each) for each in zip(*parts, strict=True)))
            gaps.setdefault(f"mean, {name}", []).append(distance(found.mean - mean, found.mean_covariance))
            gap = distance(found.variance - variance, found.variance_covariance)
            gaps.setdefault(f"variance, {name}", []).append(gap)
            effective.setdefault(name, []).append(found.effective)
            if width == widths[0]:
                bands[name] = found
    fits = {name: rate(widths, *np.transpose(found)) for name, found in gaps.items()}
    discrepancy, tolerance = worst_z(
        [fit.slope for fit in fits.values()], [power] * len(fits), [fit.error for fit in fits.values()]
    )
    grid = new[:, 0].numpy()
    curves = [_band("infinite width", grid, mean, variance)]
    curves += [_band(f"K = {widths[0]}, {name}", grid, b.mean, b.variance, "dashed") for name, b in bands.items()]
    curves += [Curve("data", x[:, 0].numpy(), y.numpy(), style="points")]
    return Finding(
        f"power of K of the root mean square gap, posterior of two hidden layers of {widths[0]} to {widths[-1]} units "
        f"({draws} networks each, weighted by their evidence) against GPyTorch's exact GP; 8 data, 21 points; powers that are "
        f"{tolerance * min(fit.error for fit in fits.values()):.2f} apart would be told apart",
        discrepancy,
        tolerance,
        "standard errors",
        figures={
            "widths": list(widths),
            "power of K": {
                name: {"found": f.slope, "expected": power, "standard error": f.error} for name, f in fits.items()
            },
            "gap, its standard error": {name: [list(each) for each in found] for name, found in gaps.items()},
            "effective draws": effective,
        },
        breaks="At finite width the posterior is a mixture, off by order 1/K in mean and in variance.",
        pictures=(
            _decay("Posterior of the finite network against the exact GP", "root mean square gap", widths, gaps, power),
            Picture("Posterior of f, mean +- 2 sd", "x", "f(x)", tuple(curves)),
        ),
    )


def check_reference(
    quick: bool,
    *,
    posterior: Callable[..., tuple[Tensor, Tensor]] = references.exact_posterior,
    elbo: Callable[..., Tensor] = references.elbo_draws,
) -> Finding:
    generator = torch.Generator().manual_seed(0)
    x, new = torch.randn(2, 10 if quick else 40, 3, generator=generator, dtype=torch.float64)
    y, noise, gaps = x[:, 0].sin() + x[:, 1].abs(), 0.05, {}
    options: dict[str, Any] = {"bias_variance": 0.2, "weight_variance": 0.7}
    for depth in (1, 2) if quick else (1, 2, 3):
        found = posterior(float64_kernel(DeepArcCosine, depth, **options), x, y, new, noise)
        points = torch.cat([x, new])
        table = quadrature_kernel(points, depth, keep_prob=(1.0,) * (depth + 1), rescale=False, **options)
        truth = scikit_learn(table, y, noise)
        for name, ours, theirs in zip(("mean", "variance"), found, truth, strict=False):
            gaps[f"exact GP, depth {depth}: {name}"] = float(np.abs(ours.numpy() - theirs).max())
    # No hidden layer, and an inducing point at every datum: the best q(u) is the posterior at x, its bound the evidence.
    model = references.VariationalDeepGP(x, (), noise)
    with torch.no_grad(), references.exactly(1e-10):
        table = model.layers[0].forward(x).covariance_matrix.numpy()
        gain = np.linalg.solve(table + noise * np.eye(len(x)), table).T
        _set_q(model, gain @ y.numpy(), noise * gain)
        bound = float(elbo(model, x, y, 1).mean())
    gaps["ELBO at the best q, nats"] = abs(bound - scikit_learn(np.kron(np.ones((2, 2)), table), y, noise)[2])
    return Finding(
        "GPyTorch's exact GP against scikit-learn's with the kernel by quadrature, and the ELBO of a variational deep GP "
        f"without hidden layers, at its optimum, against scikit-learn's evidence; {len(x)} data, {len(new)} points",
        worst(*gaps.values()),
        1e-6,  # the bound has a jitter of 1e-10 per datum
        "units of y, nats",
        figures=gaps,
    )


def check_bound(quick: bool, *, elbo: Callable[..., Tensor] = references.elbo_draws) -> Finding:
    draws, steps = (2000, 100) if quick else (50_000, 600)
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
    y = torch.sin(2 * x[:, 0])
    with seeded(0), references.exactly():
        model = references.VariationalDeepGP(x, (1,), 0.1)
        first: Any = model.layers[0]  # a warp of the inputs about the identity: little for the bound to lose
        first.covar_module.outputscale = 0.02
        first.mean_module.initialize(weights=torch.ones(1, 1, 1), bias=torch.zeros(1, 1))
        truth, error = exact_deep_evidence(model, x, y, draws, generator)
        trained = [p for name, p in model.named_parameters() if "variational" in name]
        optimizer = torch.optim.Adam(trained, 0.05)
        path, gaps = list[tuple[int, float, float]](), list[float]()
        for step in range(steps + 1):
            if step % (steps // 10) == 0:
                with torch.no_grad():
                    values = elbo(model, x, y, 1000)
                    gaps.append(gap_to_numpy(model, x, y, elbo))
                path.append((step, float(values.mean()), float(values.std()) / math.sqrt(1000)))
            optimizer.zero_grad()
            (-elbo(model, x, y, 8).mean()).backward()
            optimizer.step()
    excess = worst(*((bound - truth) / math.hypot(error, its) for _, bound, its in path))
    step, bounds, errors = np.transpose(path)
    level = np.full_like(step, truth)
    pictures = Picture(
        "Variational deep GP: the bound under the exact evidence",
        "Adam step",
        "nats",
        (Curve("ELBO", step, bounds, bounds - 2 * errors, bounds + 2 * errors),
         Curve("log p(y)", step, level, level - 2 * error, level + 2 * error, "dashed")),
    )
    return Finding(
        f"ELBO at {len(path)} points of a training, one hidden unit, against the log evidence by {draws} draws "
        "of the hidden layer with the top one integrated; 8 data: the largest excess. And draws of it by NumPy, to 1e-6 nats",
        worst(excess, limit(len(path)) * worst(*gaps) / 1e-6),
        limit(len(path)),
        "standard errors",
        figures={
            "log evidence": truth,
            "its standard error": error,
            "ELBO": bounds.tolist(),
            "largest gap to NumPy, nats": worst(*gaps),
            "gap": truth - float(bounds[-1]),
        },
        breaks=f"A bound, not an approximation: {truth - bounds[-1]:.2f} nats stay between it and the evidence, "
        "the divergence of q from the posterior.",
        pictures=(pictures,),
    )


def scikit_learn(table: Floats, y: Tensor, noise: float) -> tuple[Floats, Floats, float]:
    """Posterior mean and variance `(m,)` and log evidence by `GaussianProcessRegressor`, for a kernel matrix of n + m."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import PairwiseKernel

    index, n = np.arange(len(table), dtype=np.float64)[:, None], len(y)  # it asks for pairs of rows: their numbers
    lookup = PairwiseKernel(metric=lambda i, j, **_: table[int(i[0]), int(j[0])])
    model = GaussianProcessRegressor(lookup, alpha=noise, optimizer=None).fit(index[:n], y.numpy())
    mean, sd = model.predict(index[n:], return_std=True)
    return mean, sd**2, float(model.log_marginal_likelihood_value_)


def _set_q(model: Any, mean: Floats, covariance: Floats) -> None:
    """Make q(u) of the top layer N(mean, covariance). GPyTorch keeps it white: u = L v for a prior covariance L L'."""
    strategy = model.layers[-1].variational_strategy
    prior = model.layers[-1].forward(strategy.inducing_points).covariance_matrix.numpy()
    white = np.linalg.inv(np.linalg.cholesky(prior))
    root = np.linalg.cholesky(white @ covariance @ white.T)
    strategy._variational_distribution.variational_mean.copy_(torch.from_numpy(white @ mean))
    strategy._variational_distribution.chol_variational_covar.copy_(torch.from_numpy(root))
    strategy.variational_params_initialized.fill_(1)


def _decay(
    title: str, y: str, widths: Sequence[int], found: dict[str, list[tuple[float, float]]], power: float
) -> Picture:
    """Sizes against the width, with two standard errors, and what falls as K^power through the first of each."""
    k, curves = np.asarray(widths, dtype=np.float64), []
    for name, pairs in found.items():
        value, error = np.abs(np.transpose(pairs)[0]), np.transpose(pairs)[1]
        # a bar that reaches zero is cut at a tenth, for the logarithm
        curves += [Curve(name, k, value, np.maximum(value - 2 * error, 0.1 * value), value + 2 * error, "points")]
        curves += [Curve(f"{name}, K^{power:g}", k, np.median(value * k**-power) * k**power, style="dashed")]
    return Picture(title, "width K of the hidden layers (scaled fan-in)", y, tuple(curves), "log", "log")


def _band(label: str, x: Floats, mean: Floats, variance: Floats, style: Any = "line") -> Curve:
    return Curve(label, x, mean, mean - 2 * np.sqrt(variance), mean + 2 * np.sqrt(variance), style)


CLAIMS = (
    Claim(
        "nngp-kernel",
        "the arc-cosine recursion with biases and the masks' second moments is the infinitely wide network's covariance",
        "Cho & Saul 2009, sec. 2.1; Lee et al. 2018, sec. 2.3",
        check_kernel,
    ),
    Claim(
        "nngp-prior",
        "the finite network's prior covariance meets the kernel with a bias of order 1/K, the same dense and sparse at "
        "equal scaled fan-in, while one network's own kernel fluctuates by K^-1/2",
        "Lei et al. 2023, sec. 3.1; Neal 1996; derived: tr(H C) / 2K",
        check_prior,
    ),
    Claim(
        "nngp-posterior",
        "the finite network's posterior mean and variance meet those of the exact GP at rate 1/K, dense and sparse",
        "Lee et al. 2018; Hron et al. 2020; Lei et al. 2023, sec. 3.1",
        check_posterior,
    ),
    Claim(
        "deep-gp-reference",
        "the references are right where the answer is known: exact regression, and the bound of a one-layer deep GP",
        "Rasmussen & Williams 2006, sec. 2.2; Hensman et al. 2015",
        check_reference,
    ),
    Claim(
        "deep-gp-bound",
        "the doubly stochastic ELBO of a deep GP never exceeds its exact log evidence",
        "Salimbeni & Deisenroth 2017, sec. 3",
        check_bound,
    ),
)
