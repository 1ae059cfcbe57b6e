"""The KL of one weight's mixture, its two-sided bound, and the objective that follows from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, stats
from torch import Tensor, nn

from espalier.distributions.masked import draw_keep, kl_bound
from espalier.distributions.priors import prior_scale_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import scatter
from espalier.theory.claims import Claim, Curve, Finding, Picture, limit, worst
from espalier.topology.masks import erk, random_topology

Bound = Callable[[Tensor, float, float, float], Tensor]
Grid = list[tuple[float, float, float, float]]


def binary_entropy(p: float) -> float:
    """H(p) in nats."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log(p) - (1 - p) * math.log(1 - p)


@functools.cache
def kl_by_quadrature(m: float, p: float, v: float, s: float) -> float:
    """KL(p N(m, s^2) + (1 - p) N(0, s^2) || N(0, v)) in nats, by adaptive quadrature over both components; of one alone, in
    closed form."""
    if p in (0.0, 1.0):
        return 0.5 * ((s * s + p * m * m) / v - 1 - math.log(s * s / v))

    def integrand(w: float) -> float:
        log_q = np.logaddexp(math.log(p) + stats.norm.logpdf(w, m, s), math.log1p(-p) + stats.norm.logpdf(w, 0, s))
        return float(np.exp(log_q) * (log_q - stats.norm.logpdf(w, 0, math.sqrt(v))))

    low, high = min(0.0, m) - 12 * s, max(0.0, m) + 12 * s
    inner = sorted({0.0, m, m / 2, min(0.0, m) - 3 * s, max(0.0, m) + 3 * s, 3 * s, m - 3 * s})
    edges = [low, *(edge for edge in inner if low < edge < high), high]
    pieces = zip(edges, edges[1:], strict=False)
    return math.fsum(integrate.quad(integrand, a, b, epsabs=1e-12, epsrel=1e-11, limit=200)[0] for a, b in pieces)


def _grid(quick: bool) -> Grid:
    keeps = (0.9, 0.6) if quick else (0.99, 0.9, 0.6, 0.3)
    scales = ((1.0, 0.05), (0.2, 0.1)) if quick else ((1.0, 0.05), (0.2, 0.1), (0.04, 0.01), (2.0, 1.3))
    return [(ratio * s, p, v, s) for p in keeps for v, s in scales for ratio in (0.0, 0.5, 1.7, 3.0, -6.0, 20.0)]


def check_bound(quick: bool, *, bound: Bound = kl_bound, entropy: Callable[[float], float] = binary_entropy) -> Finding:
    grid = _grid(quick)
    exact = np.array([kl_by_quadrature(*cell) for cell in grid])
    upper = np.array([float(bound(torch.tensor(m, dtype=torch.float64), p, v**0.5, s)) for m, p, v, s in grid])
    slack, room = upper - exact, np.array([entropy(p) for _, p, _, _ in grid])
    # Both ends are attained: the upper one at m = 0, the lower one for |m| >> s. A bound that is only loose is not this one.
    attained = [abs(slack[i]) if m == 0 else abs(slack[i] - room[i]) for i, (m, _, _, s) in enumerate(grid)
                if m == 0 or abs(m) > 15 * s]  # fmt: skip
    outside = np.maximum(-slack, slack - room)
    ratios = np.linspace(0, 8, 17 if quick else 65)
    curves = []
    for p in (0.9, 0.6):
        kl = np.array([kl_by_quadrature(r * 0.05, p, 1.0, 0.05) for r in ratios])
        top = np.array([float(bound(torch.tensor(r * 0.05, dtype=torch.float64), p, 1.0, 0.05)) for r in ratios])
        curves += [Curve(f"A - KL, p = {p:g}", ratios, top - kl),
                   Curve(f"H(p), p = {p:g}", ratios, np.full(len(ratios), binary_entropy(p)), style="dashed")]  # fmt: skip
    dip = np.array([kl_by_quadrature(m, 0.9, 1.0, 0.05) for m in (0.0, 0.05, 0.1, 0.3, 1.0)])
    return Finding(
        f"A(m) - H(p) <= KL <= A(m), both ends attained, against adaptive quadrature at {len(grid)} points (m, p, v, s)",
        worst(outside, *attained), 1e-8, "nats",
        {"kl at m = 0, .05, .1, .3, 1 (p .9, s .05, v 1)": dip.tolist(), "largest slack": float(slack.max()),
         "smallest slack": float(slack.min())},
        "The KL is not monotone in |m|: it dips by up to H(p) within a few s of zero, where the bound A, and so the paper's "
        "p/2 |U|^2, does not; equality holds at m = 0 alone.",
        (Picture("What the bound gives away per active weight (v = 1, s = 0.05)", "|m| / s", "nats", tuple(curves)),),
    )  # fmt: skip


def gal_kl(m: Tensor, p: float, prior_scale: float, s: float) -> Tensor:
    """Gal & Ghahramani's 2016 approximation for a mixture of two Gaussians: A(m) - H(p), meant for rows of many weights."""
    return kl_bound(m, p, prior_scale, s) - binary_entropy(p)


def check_gal(quick: bool, *, approximation: Bound = gal_kl) -> Finding:
    """Rows of K weights share one Z: both components have covariance s^2 I, so only the direction of m is no Gaussian.

    There the row is the one-dimensional mixture at |m| = sqrt(K) times that of one weight; the other K - 1 directions add
    A(0) each, exactly.
    """
    p, v, s, m = 0.9, 1.0, 0.05, 0.04  # one weight is well inside its noise
    sizes = np.array([1, 8, 64, 256] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256])
    zero = float(kl_bound(torch.zeros((), dtype=torch.float64), p, v**0.5, s))
    errors = []
    for k in sizes:
        exact = kl_by_quadrature(m * math.sqrt(k), p, v, s) + (k - 1) * zero
        row = float(approximation(torch.tensor(m * math.sqrt(k), dtype=torch.float64), p, v**0.5, s)) + (k - 1) * zero
        errors.append(exact - row)
    error = np.array(errors)
    outside = np.maximum(-error, error - binary_entropy(p)).max()  # the lower bound: never above, never H(p) below
    return Finding(
        f"KL - (A - H): within [H(p)/10, H(p)] for one weight, gone for rows of {sizes[-1]}; quadrature, |m| = {m / s:g} s",
        worst(outside, error[-1]) if error[0] > 0.1 * binary_entropy(p) else math.inf, 1e-4, "nats",  # nor for single weights
        {"row size": sizes.tolist(), "error": error.tolist(), "H(p)": binary_entropy(p)},
        f"For element-wise masks K is 1 and the large-K argument has nothing to hold: the error is {error[0]:.3f} of at most "
        f"H(p) = {binary_entropy(p):.3f} nats per weight at |m| = {m / s:g} s.",
        (Picture("Gal & Ghahramani's approximation against the size of a row", "weights that share one Z",
                 "KL - approximation, nats", (Curve(f"|m| = {m / s:g} s per weight, p = {p:g}", sizes, error, style="points"),
                                              Curve("H(p)", sizes, np.full(len(sizes), binary_entropy(p)), style="dashed")),
                 xscale="log"),),
    )  # fmt: skip


def mixture_log_density(w: NDArray[np.float64], m: float, p: float, s: float) -> NDArray[np.float64]:
    """log(p N(w; m, s^2) + (1 - p) N(w; 0, s^2))."""
    kept, dropped = stats.norm.logpdf(w, m, s), stats.norm.logpdf(w, 0.0, s)
    result: NDArray[np.float64] = np.logaddexp(math.log(p) + kept, math.log1p(-p) + dropped)
    return result


def check_monte_carlo(quick: bool, *, log_density: Callable[..., NDArray[np.float64]] = mixture_log_density) -> Finding:
    draws, rng, generator = (100_000 if quick else 400_000), np.random.default_rng(3), torch.Generator().manual_seed(3)
    cells = [(0.1, 0.9, 1.0, 0.05), (0.3, 0.6, 0.2, 0.1), (-0.02, 0.9, 0.04, 0.01)]
    scores, errors = [], []
    for m, p, v, s in cells:
        w = m * draw_keep(draws, p, torch.device("cpu"), generator).numpy() + s * rng.standard_normal(draws)
        terms = log_density(w, m, p, s) - stats.norm.logpdf(w, 0.0, math.sqrt(v))
        scores.append(terms.mean())
        errors.append(terms.std(ddof=1) / math.sqrt(draws))
    exact = [kl_by_quadrature(*cell) for cell in cells]
    z = np.abs(np.array(scores) - exact) / errors
    return Finding(
        f"E_q[log q - log prior] over {draws:,} draws of (Z, W) against quadrature, at {len(cells)} points",
        float(z.max()), limit(len(cells)), "standard errors",
        {"estimate": scores, "quadrature": exact, "standard error": errors},
    )  # fmt: skip


def l2_of(weight_decay: float, u: Tensor) -> Tensor:
    """CigL's decay (Lei et al. 2023, eq. 1): wd / 2 sum u^2, on every active weight, also where Z = 0."""
    return 0.5 * weight_decay * u.square().sum()


def check_objective(
    quick: bool, *, decay: Callable[[float, Tensor], Tensor] = l2_of, prior: Callable[..., float] = prior_scale_of
) -> Finding:
    num_data, keep_prob, weight_decay = 1000, 0.8, 3e-3
    generator = torch.Generator().manual_seed(5)
    gap = 0.0
    for rescale in (False, True):
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        scale = prior(weight_decay, num_data, round(65536 * keep_prob) / 65536, rescale=rescale)
        model = BayesianNetwork(net, prior_scale=scale, num_data=num_data, weight_decay=weight_decay)
        topology = random_topology(model.shapes, erk(model.shapes, 0.5), generator)
        guide = MaskedGuide(model, topology, keep_prob, rescale=rescale, generator=generator)
        x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (16,), generator=generator)
        points = list(model.net.parameters())  # biases, whose decay is the same
        for _ in range(2 if quick else 20):
            state = generator.get_state()
            guide.zero_grad()
            model.zero_grad()
            (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / num_data).backward()
            generator.set_state(state)
            ours = [parameter.grad for parameter in (guide.values, *points)]
            model.zero_grad()
            u = guide.values.detach().clone().requires_grad_()
            keep = draw_keep(len(u), keep_prob, u.device, generator)
            factor = guide.scale
            output = model.evaluate(scatter(u * keep * factor, guide.positions, model.num_weights), x)
            decays = [decay(weight_decay, each) for each in (u, *points)]
            (nn.functional.cross_entropy(output, y) + torch.stack(decays).sum()).backward()
            for mine, other in zip(ours, (u, *points), strict=True):
                assert mine is not None
                assert other.grad is not None
                gap = worst(gap, (mine - other.grad).abs())
            guide.values.data += 0.3 * torch.randn(len(u), generator=generator, dtype=torch.float64)
    return Finding(
        "gradient of -ELBO / N through Pyro against mean cross-entropy + wd/2 (sum u^2 + sum b^2) written by hand, equal Z; "
        "float64",
        gap, 1e-10, "absolute", {},
        "Equality is of gradients: the ELBO has constants that diverge as s -> 0, and the true KL is below A by up to "
        "H(p) per active weight.",
    )  # fmt: skip


def check_prior_scale(quick: bool, *, prior: Callable[..., float] = prior_scale_of) -> Finding:
    """The mapping's meaning, without the mapping: at this scale the gradient of p u^2 / 2v is N wd u."""
    published = [
        (1e-4, 45_000, 0.9, 0.45),
        (1e-4, 45_000, 0.99, 0.47),
        (5e-4, 45_000, 0.9, 0.20),
        (5e-4, 45_000, 0.99, 0.21),
    ]
    scales = [prior(wd, n, p, rescale=False) for wd, n, p, _ in published]
    rounding = worst(*(abs(round(scale, 2) - printed) for scale, (_, _, _, printed) in zip(scales, published, strict=True)))
    ratio = worst(*(abs(p / scale**2 / (n * wd) - 1) for scale, (wd, n, p, _) in zip(scales, published, strict=True)))
    rescaled = prior(1e-4, 45_000, 0.9, rescale=True)  # m = u / p: p (u/p)^2 / 2v
    ratio = worst(ratio, abs((0.9 * (1 / 0.9) ** 2 / rescaled**2) / (45_000 * 1e-4) - 1))
    return Finding(
        "prior sd implied by weight decay 1e-4 and 5e-4 (N = 45,000): the printed .45 (.47 at p = .99) and .20 (.21), and the "
        "gradient of p u^2 / 2v against N wd u",
        worst(rounding, ratio), 1e-9, "relative", {"prior scale at wd 1e-4, 5e-4, p .9": [scales[0], scales[2]],
                                                "rescaled, wd 1e-4": rescaled},
    )  # fmt: skip


CLAIMS = (
    Claim("kl-bound", "A(m) - H(p) <= KL(q(W) || N(0, v)) <= A(m)", "derived in theory/kl.py", check_bound),
    Claim("kl-gal", "KL ~ A - H(p) is for rows that share a Z, not for single weights",
          "Gal & Ghahramani 2016, appendix; derived in theory/kl.py", check_gal),
    Claim("kl-monte-carlo", "a Monte Carlo KL estimates the mixture's", "definition", check_monte_carlo),
    Claim("objective-cigl", "-ELBO / N with the bound A is CigL's loss",
          "Lei et al. 2023, eq. 1; derived in theory/kl.py", check_objective),
    Claim("objective-prior-scale", "weight decay wd is the prior sqrt(p / (N wd)): 0.45 and 0.20 as published",
          "Lei et al. 2023, settings; derived in theory/kl.py", check_prior_scale),
)  # fmt: skip
