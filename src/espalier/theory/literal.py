"""The literal guide of CigL's eq. 3 beside the collapsed one that trains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import Tensor, nn

from espalier.contracts import Topology
from espalier.distributions.masked import kl_bound
from espalier.guides.hierarchy import HierarchicalGuide, reversed_model
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.theory.claims import FALSE_ALARMS, SURPRISE, Claim, Curve, Finding, Picture, surprise, worst

Array = NDArray[np.float64]


def marginal_cdf(w: Array, v: Array, p: float, s: float) -> Array:
    """P(W <= w) of an always active weight: p N(V, 2 s^2) + (1 - p) N(0, s^2). U's and W's noise add where Z = 1."""
    result: Array = p * stats.norm.cdf(w, v, math.sqrt(2) * s) + (1 - p) * stats.norm.cdf(w, 0, s)
    return result


def check_marginal(quick: bool, *, cdf: Callable[[Array, Array, float, float], Array] = marginal_cdf) -> Finding:
    """A trace of a wide network is many draws: the first layer is fully active, the second 30 % by the mode of U."""
    rows, p, s = (100 if quick else 400), 0.8, 0.05
    generator = torch.Generator().manual_seed(11)
    model = BayesianNetwork(nn.Sequential(nn.Linear(100, rows, bias=False), nn.Linear(rows, 100, bias=False)).double())
    size = 100 * rows
    near = 0.15 * torch.randn(
        size, generator=generator, dtype=torch.float64
    )  # within a few s of zero, where parts overlap
    active = torch.rand(size, generator=generator) < 0.3
    far = torch.where(active, 1 + near, torch.zeros_like(near))  # 1 against 0: noise of .05 never changes the mode
    topology = Topology(torch.arange(size + int(active.sum())), (size, int(active.sum())), model.sizes)
    guide = HierarchicalGuide(model, topology, p, noise_scale=s)
    guide.values.data = torch.cat([near, far])
    torch.manual_seed(12)
    with torch.no_grad():
        w = np.stack([guide().numpy() for _ in range(20)])
    values, p = np.broadcast_to(guide.values.detach().numpy(), w.shape), guide.keep_prob
    parts = {
        "fully active layer": (w[:, :size].ravel(), values[:, :size].ravel()),
        "active at the mode": (w[:, size:][:, active].ravel(), values[:, size:][:, active].ravel()),
    }
    uniform = {name: cdf(draws, v, p, s) for name, (draws, v) in parts.items()}
    uniform["inactive, N(0, s^2)"] = stats.norm.cdf(w[:, size:][:, ~active].ravel(), 0, s)
    p_values = {name: float(stats.kstest(u, "uniform").pvalue) for name, u in uniform.items()}
    grid = np.linspace(0, 1, 201)
    curves = tuple(Curve(name, grid, np.searchsorted(np.sort(u), grid) / len(u) - grid) for name, u in uniform.items())
    return Finding(
        f"Kolmogorov-Smirnov test of {w.size:,} draws of the Pyro program against the mixture's distribution function",
        worst(*(surprise(3 * value) for value in p_values.values())), SURPRISE, "-log10 p", {"p-values": p_values},
        "Exact where M is certain; at temperature 1 a weight is active with its inclusion probability only, and the kept "
        "component has variance 2 s^2, not the s^2 of the collapsed guide.",
        (Picture("Empirical minus stated distribution function", "stated P(W <= w)", "difference", curves),),
    )  # fmt: skip


def two_weights(v: Array, p: float, s: float, temperature: float, prior: float, nodes: int = 48) -> tuple[float, float]:
    """KL(q(W) || N(0, prior^2 I)) and I(W; U, M), in nats, of two weights of which k = 1 is active, by quadrature.

    U by Gauss-Hermite in two dimensions, M by its two values, W on a grid: nothing is drawn.
    """
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    u1, u2 = (v[i] + s * x for i in (0, 1))
    mass = np.outer(weight, weight) / weight.sum() ** 2
    first = 1 / (1 + np.exp((np.abs(u2)[None, :] - np.abs(u1)[:, None]) / temperature))  # P(M = (1, 0) | U)
    axes = [np.linspace(min(0.0, each) - 8 * s, max(0.0, each) + 8 * s, 401) for each in v]
    kept = [p * stats.norm.pdf(axis[None, :], u[:, None], s) + (1 - p) * stats.norm.pdf(axis, 0, s)[None, :]
            for axis, u in zip(axes, (u1, u2), strict=True)]  # fmt: skip
    zero = [stats.norm.pdf(axis, 0, s) for axis in axes]
    # q(w1, w2) = E_U [ P(M1|U) kept(w1; u1) zero(w2) + P(M2|U) zero(w1) kept(w2; u2) ]
    one, two = (mass * first).sum(1) @ kept[0], (mass * (1 - first)).sum(0) @ kept[1]
    density = np.outer(one, zero[1]) + np.outer(zero[0], two)
    area = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])

    def entropy(q: Array, step: float) -> Any:
        return -(q * np.log(np.maximum(q, 1e-300))).sum(-1) * step

    marginal = float(entropy(density.ravel(), area))
    at_zero = [entropy(z, axis[1] - axis[0]) for z, axis in zip(zero, axes, strict=True)]
    given = [entropy(k, axis[1] - axis[0]) for k, axis in zip(kept, axes, strict=True)]  # of each node of U
    conditional = (mass * first).sum(1) @ given[0] + (mass * first).sum() * at_zero[1]
    conditional += (mass * (1 - first)).sum(0) @ given[1] + (mass * (1 - first)).sum() * at_zero[0]
    square = (density * (axes[0][:, None] ** 2 + axes[1][None, :] ** 2)).sum() * area
    cross = 0.5 * square / prior**2 + math.log(2 * math.pi * prior**2)
    return cross - marginal, marginal - float(conditional)


def check_gap(
    quick: bool,
    *,
    quadrature: Callable[..., tuple[float, float]] = two_weights,
    guide_class: type[HierarchicalGuide] = HierarchicalGuide,
) -> Finding:
    """Many layers of two weights, k = 1: each is one draw of the same small hierarchy."""
    layers, traces = (12, 40) if quick else (100, 150)
    p, s, prior, v = 0.8, 0.1, 0.5, (0.25, -0.15)
    model = BayesianNetwork(
        nn.Sequential(*(nn.Linear(2, 1, bias=False) for _ in range(layers))).double(), prior_scale=prior
    )
    topology = Topology(torch.arange(layers) * 2, (1,) * layers, model.sizes)
    tolerance = float(stats.t.isf(FALSE_ALARMS / 6, traces - 1))  # three looks, each by a standard error that is estimated
    figures, discrepancy, loose = {}, 0.0, 0.0
    for temperature in (0.02, 0.1, 1.0):
        guide = guide_class(model, topology, p, noise_scale=s, temperature=temperature)
        guide.values.data = torch.tensor(v, dtype=torch.float64).repeat(layers)
        torch.manual_seed(13)
        pairs = np.array([_penalty(model, guide) for _ in range(traces)]) / layers
        penalties, loose = pairs[:, 0], worst(loose, np.abs(pairs[:, 0] - pairs[:, 1]))
        estimate, error = float(np.mean(penalties)), float(np.std(penalties, ddof=1) / math.sqrt(traces))
        kl, information = quadrature(np.array(v), guide.keep_prob, s, temperature, prior)
        discrepancy = worst(discrepancy, abs(estimate - kl - information) / error)
        figures[f"T = {temperature:g}"] = {
            "penalty": estimate,
            "standard error": error,
            "KL": kl,
            "I(W; U, M)": information,
        }
    scan = np.geomspace(0.005, 2, 7 if quick else 25)
    both = np.array([two_weights(np.array(v), p, s, t, prior) for t in scan])
    return Finding(
        f"log q(U, M, Z, W) - log r - log prior of the Pyro programs, {traces * layers:,} draws of 2 weights with k = 1 at 3 "
        f"temperatures: pointwise log q(W | U, M) - log prior (within {loose:.0e}), on average KL + I by quadrature",
        discrepancy if loose <= 1e-9 else math.inf, tolerance, "standard errors", figures,
        "The bound is tight in Z but not in (U, M): it gives away I(W; U, M) = "
        f"{figures['T = 1']['I(W; U, M)']:.3f} nats here at temperature 1 (figure), the price of r(U, M | W) := q(U) q(M | U).",
        (Picture("What the literal ELBO charges for two weights, k = 1", "temperature", "nats",
                 (Curve("KL(q(W) || prior)", scan, both[:, 0]), Curve("gap I(W; U, M)", scan, both[:, 1])), xscale="log"),),
    )  # fmt: skip


def _penalty(model: BayesianNetwork, guide: HierarchicalGuide) -> tuple[float, float]:
    """Of one draw: log q(U, M, Z, W) - log r(U, M, Z | W) - log p(W), and what a bound tight in Z leaves of it.

    That is log q(W | U, M) - log p(W), here from the mixture's densities.
    """

    def prior() -> None:
        guide.reverse(pyro.sample("weights", model.prior()))

    with torch.no_grad(), pyro.get_param_store().scope():
        drawn = pyro.poutine.trace(guide).get_trace()
        seen = pyro.poutine.trace(pyro.poutine.replay(prior, trace=drawn)).get_trace()
        u, m, w = (drawn.nodes[name]["value"].numpy() for name in ("U", "M", "weights"))
        p, s = guide.keep_prob, guide.noise_scale
        mixture = np.log(p * stats.norm.pdf(w, m * u, s) + (1 - p) * stats.norm.pdf(w, 0, s))
        marginal = (mixture - stats.norm.logpdf(w, 0, model.prior_scale)).sum()
        return float(drawn.log_prob_sum() - seen.log_prob_sum()), float(marginal)


class _FixedMask(MaskedGuide):
    """The collapsed guide with Z given: expectations over Z are then sums."""

    fixed: Tensor

    def _draw(self, count: int) -> Tensor:
        return self.fixed


def check_limit(quick: bool, *, keep_weighting: Callable[[float, Array], Array] | None = None,
                prior_factor: float = 1.0) -> Finding:  # fmt: skip
    """E over Z by enumeration on both sides; over the noise of U and W by Monte Carlo with equal draws at every s.

    keep_weighting: P(Z) from p and the number of ones. prior_factor: on the collapsed KL's prior variance.
    """
    p, active = 0.75, (3 if quick else 4)
    generator = torch.Generator().manual_seed(17)
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Tanh(), nn.Linear(3, 1, bias=False)).double()
    model = BayesianNetwork(net, likelihood="normal", prior_scale=0.7, num_data=8)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, 0]) + 0.1 * torch.randn(8, generator=generator, dtype=torch.float64)
    positions = torch.tensor([0, 3, 7] if quick else [0, 3, 6, 7])
    topology = Topology(positions, (2, active - 2), model.sizes)
    here = torch.tensor([0.9, -0.6, 1.1] if quick else [0.9, -0.6, 0.7, 1.1], dtype=torch.float64)
    there = here * torch.tensor([0.6, 1.4, 0.8, 1.3][:active], dtype=torch.float64)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=active)), dtype=torch.float64)
    ones = masks.sum(1).numpy()
    chance = keep_weighting(p, ones) if keep_weighting else p**ones * (1 - p) ** (active - ones)
    collapsed_model = BayesianNetwork(
        net, likelihood=model.likelihood, num_data=8, prior_scale=0.7 * math.sqrt(prior_factor)
    )

    def collapsed(u: Tensor) -> tuple[float, Tensor]:
        elbo, gradient = 0.0, torch.zeros_like(u)
        for probability, mask in zip(chance, masks, strict=True):
            guide = _FixedMask(collapsed_model, topology, p)
            guide.values.data, guide.fixed = u.clone(), mask.bool()
            loss = TraceMeanField_ELBO().differentiable_loss(collapsed_model, guide, x, y)
            loss.backward()
            elbo, gradient = elbo - probability * float(loss.detach()), gradient - probability * guide.values.grad
        return elbo, gradient

    def literal(u: Tensor, s: float) -> tuple[float, Tensor]:
        guide = HierarchicalGuide(model, topology, p, noise_scale=s)
        guide.values.data = torch.zeros(model.num_weights, dtype=torch.float64).index_copy(0, positions, u)
        full = torch.zeros(len(masks), model.num_weights, dtype=torch.float64).index_copy(1, positions, masks)
        program, elbo = reversed_model(model, guide), torch.zeros((), dtype=torch.float64)
        for index, (probability, z) in enumerate(zip(chance, full, strict=True)):
            for draw in range(4 if quick else 8):
                torch.manual_seed(1000 * index + draw)  # equal noise at every s and at both points
                fixed = pyro.poutine.trace(pyro.poutine.condition(guide, {"Z": z})).get_trace(x, y)
                seen = pyro.poutine.trace(pyro.poutine.replay(program, trace=_as_sampled(fixed))).get_trace(x, y)
                elbo = elbo + probability * (seen.log_prob_sum() - fixed.log_prob_sum()) / (4 if quick else 8)
        elbo.backward()
        assert guide.values.grad is not None
        return float(elbo.detach()), guide.values.grad[positions]

    with pyro.get_param_store().scope():
        scales = [1e-2, 1e-4] if quick else [1e-1, 3e-2, 1e-2, 1e-3, 1e-4]
        at, gradient = collapsed(here)
        difference = at - collapsed(there)[0]
        slopes, gaps, levels = [], [], []
        for s in scales:
            value, slope = literal(here, s)
            slopes.append(float((slope - gradient).norm() / gradient.norm()))
            gaps.append(abs(value - literal(there, s)[0] - difference) / abs(difference))
            levels.append(value)
    rise = float(kl_bound(torch.zeros(()), p, 0.7, scales[-1]) - kl_bound(torch.zeros(()), p, 0.7, scales[-2]))
    return Finding(
        f"gradient and ELBO difference of the four-site program at s = {scales[-1]:g} against the collapsed guide under "
        f"TraceMeanField_ELBO; all 2^{active} masks enumerated, float64",
        worst(slopes[-1], gaps[-1]), 2e-3, "relative",
        {"s": scales, "gradient": slopes, "ELBO difference": gaps, "ELBO": levels,
         "rise of A(0) per weight, last two s": rise},
        "The ELBO itself diverges: each weight's -ln(s^2 / v) / 2 grows without limit, so that only gradients and "
        "differences at equal s have a limit.",
        (Picture("The literal guide against the collapsed one", "noise scale s", "relative difference",
                 (Curve("gradient", scales, slopes, style="points"), Curve("ELBO difference", scales, gaps, style="points"),
                  Curve("rate s", scales, [slopes[0] * s / scales[0] for s in scales], style="dashed")),
                 xscale="log", yscale="log"),),
    )  # fmt: skip


def _as_sampled(trace: Any) -> Any:
    """The trace with the conditioned Z marked as sampled: `replay` hands on only what was."""
    copied = trace.copy()
    copied.nodes["Z"]["is_observed"] = False
    return copied


CLAIMS = (
    Claim("literal-marginal", "as T -> 0 an active weight is p N(V, 2s^2) + (1 - p) N(0, s^2)",
          "Lei et al. 2023, eq. 3; issue 3", check_marginal),
    Claim("literal-gap", "with the exact r(Z | W, U, M) the ELBO loses I(W; U, M) and nothing else",
          "Ranganath et al. 2016; derived for eq. 3", check_gap),
    Claim("literal-limit", "as s -> 0 gradients and ELBO differences are the collapsed guide's",
          "derived in theory/literal.py", check_limit),
)  # fmt: skip
