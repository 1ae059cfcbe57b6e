"""One pass of means and variances: exact through masked products, off by 1 / fan-in through a ReLU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from espalier.network import BayesianNetwork
from espalier.prediction.moments import Moments
from espalier.prediction.propagation import propagate, scaled
from espalier.sparse import scatter
from espalier.theory.claims import Claim, Curve, Finding, Picture, worst
from espalier.topology.masks import random_topology

Floats = NDArray[np.float64]
Weighted = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of values u and keep probabilities p the mean and the variance of a weight."""


def masked(u: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Of Z u, Z ~ Bernoulli(p): p u and p (1 - p) u^2."""
    return p * u, p * (1 - p) * u**2


def check_products(quick: bool, *, weighted: Weighted = masked) -> Finding:
    """Two masked layers with biases through the pass that predicts, beside the sum over all masks; float64."""
    apart = []
    for seed in range(2 if quick else 8):
        stream = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double()
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        model = BayesianNetwork(net)
        topology = random_topology(model.shapes, (8, 4), stream)
        u, probs = torch.randn(12, generator=stream, dtype=torch.float64), torch.tensor([0.7] * 8 + [0.9] * 4).double()
        x, state = torch.randn(3, 5, generator=stream, dtype=torch.float64), dict(model.state_dict())

        def dense(values: Tensor, positions: Tensor = topology.positions, total: int = topology.num_weights) -> Tensor:
            return scatter(values, positions, total)

        mean = second = torch.zeros(3, 2, dtype=torch.float64)
        for bits in itertools.product((0.0, 1.0), repeat=12):
            z = torch.tensor(bits, dtype=torch.float64)
            said = model.evaluate(dense(z * u), x, state).detach()
            share = torch.where(z == 1, probs, 1 - probs).prod()
            mean, second = mean + share * said, second + share * said**2
        weights = Moments(*map(dense, weighted(u, probs)))
        found = propagate(model, weights, x, state, scaled(lambda *_: 1.0))
        variance = second - mean**2
        for mine, own in ((found.loc, mean), (found.variance, variance)):
            apart.append(float(((mine - own).abs() / own.abs().max()).max()))
    return Finding(
        f"mean and variance of the outputs of {len(apart) // 2} networks of two masked layers, 3 inputs each, against the sum "
        "over all 4,096 masks; float64",
        worst(*apart), 1e-9, "relative", {},
        "Where a mask is shared, by units, filters or the positions of a convolution, what a layer gives is not independent, "
        "and the next layer's variance is off by what its factor says.",
    )  # fmt: skip


def of_sums(terms: NDArray[np.int64], p: float) -> tuple[Floats, Floats]:
    """Mean and variance of relu(sum_j Z_j s_j), exact: the sum's distribution by the discrete Fourier transform of its
    characteristic function, a product over j. terms: whole numbers s `(units, K)`."""
    length = 1 << int(2 * np.abs(terms).sum(1).max() + 2).bit_length()
    angles = 2 * np.pi * np.fft.fftfreq(length)
    transform = np.ones((len(terms), length), complex)
    for column in terms.T:
        transform *= 1 - p + p * np.exp(-1j * angles * column[:, None])
    share, values = np.fft.ifft(transform, axis=1).real, np.maximum(np.fft.fftfreq(length, 1 / length), 0)
    mean = share @ values
    return mean, share @ values**2 - mean**2


def rectified(loc: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """By the rule that predicts."""
    found: Any = F.relu(Moments(loc, variance))
    return found.loc, found.variance


def check_relu(quick: bool, *, rule: Weighted = rectified) -> Finding:
    """Of units of K masked weights, drawn at random and rounded to whole numbers, how the gap falls with K."""
    p, random = 0.7, np.random.default_rng(3)
    widths = [8 << place for place in range(4 if quick else 6)]
    gaps: list[tuple[float, float]] = []
    for width in widths:
        terms = np.rint(20 * random.standard_normal((100, width))).astype(np.int64)
        mean, variance = p * terms.sum(1), p * (1 - p) * (terms.astype(np.float64) ** 2).sum(1)
        found = [part.numpy() for part in rule(torch.from_numpy(mean), torch.from_numpy(variance))]
        exact = of_sums(terms, p)
        units = np.sqrt(variance), variance
        gap = [np.sqrt(np.mean(((a - b) / c) ** 2)) for a, b, c in zip(found, exact, units, strict=True)]
        gaps.append((float(gap[0]), float(gap[1])))
    powers = [float(np.polyfit(np.log(widths), np.log(own), 1)[0]) for own in zip(*gaps, strict=True)]
    means, variances = zip(*gaps, strict=True)
    curves = tuple(Curve(name, np.array(widths), own) for name, own in (("mean", means), ("variance", variances)))
    return Finding(
        "power of the fan-in K by which mean and variance of a masked unit's ReLU meet the exact ones (Fourier), "
        f"K {widths[0]} to {widths[-1]}, 100 units each, with -1",
        worst(*(abs(power + 1) for power in powers)), 0.25, "powers of K", {"powers": powers, "gaps": gaps},
        f"The sum of few masked weights is not normal: at K = {widths[0]} the mean is off by {100 * gaps[0][0]:.1f} % of the "
        f"sum's deviation, the variance by {100 * gaps[0][1]:.1f} % of its variance.",
        (Picture("A masked unit's ReLU, taken for normal", "fan-in K", "relative gap", curves, xscale="log", yscale="log"),),
    )  # fmt: skip


CLAIMS = (
    Claim("moments-products", "through masked products one pass of means and variances is what all masks say, exactly",
          "derived in prediction/moments.py; Wang & Manning 2013", check_products),
    Claim("moments-relu", "through a ReLU it is off by order 1/K in the number of masked weights a unit has",
          "Frey & Hinton 1999; derived in theory/one_pass.py", check_relu),
)  # fmt: skip
