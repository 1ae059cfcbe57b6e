"""Simulation-based calibration on the conjugate linear model (Talts et al. 2018): where theta is drawn from the prior and
y from the model, the rank of theta among L draws from the posterior given y is uniform on 0..L.

The exact posterior is the control. CigL's guide has two atoms per active weight, 0 with probability 1 - p and u* with p, so
its ranks cannot be uniform. They follow a law in closed form: with y linear in theta and u* linear in y, (theta_j, u*_j) is
bivariate normal, and the rank is 0 or L where theta_j lies outside the atoms, and a binomial count where it lies between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from scipy import stats

from espalier import shelf
from espalier.contracts import Data, Split, Topology
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.randomness import seeded
from espalier.theory.claims import FALSE_ALARMS, SURPRISE, Claim, Curve, Finding, Picture, Ranks, surprise
from espalier.topology.masks import initial
from espalier.training.options import Training

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURES, EXAMPLES, SPARSITY = 6, 8, 1 / 3
PRECISION, PRIOR_SCALE, KEEP_PROB = 8.0, 0.6, 0.75
WIDE_FEATURES, WIDE_EXAMPLES, WIDE_PRIOR_SCALE = 300, 600, 0.01
"""A world to train in: its prior weighs as much as its data, so that the optimum owes much to the KL, and a step of 200
active weights has 200 draws of Z for the price of one."""
NUM_DRAWS = 31
PICTURED = 2000  # ranks of a picture: ArviZ simulates its bands at a cost that grows with their square

Posterior = Callable[[Floats, float, float], tuple[Floats, Floats]]
Optimum = Callable[[Floats, float, float, float], Floats]
Law = Callable[[Floats, float, int], Floats]


def posterior(x: Floats, precision: float, prior_scale: float) -> tuple[Floats, Floats]:
    """theta | y ~ N(G y, C) for y ~ N(x theta, 1/precision), theta ~ N(0, prior_scale^2): G `(d, n)` and C `(d, d)`.

    Bishop 2006, eq. 3.50-3.51.
    """
    covariance: Floats = np.asarray(np.linalg.inv(precision * x.T @ x + np.eye(x.shape[1]) / prior_scale**2))
    return precision * covariance @ x.T, covariance


def optimum(x: Floats, precision: float, prior_scale: float, keep_prob: float) -> Floats:
    """G `(k, n)`: the ELBO of the collapsed guide on the active columns x `(n, k)` has its optimum at u* = G y.

    E_Z |y - x (Z u)|^2 = |y - p x u|^2 + p (1 - p) sum_j u_j^2 |x_j|^2; its slope and that of p |u|^2 / 2v are set to 0.
    """
    gram = x.T @ x
    system = keep_prob * gram + (1 - keep_prob) * np.diag(np.diag(gram))
    return np.asarray(np.linalg.solve(system + np.eye(x.shape[1]) / (precision * prior_scale**2), x.T))


def by_enumeration(x: Floats, precision: float, prior_scale: float, keep_prob: float) -> Floats:
    """`optimum` from its definition: the normal equations of the expected loss, added up over all 2^k masks Z."""
    k = x.shape[1]
    system, right = keep_prob / prior_scale**2 * np.eye(k), np.zeros((k, len(x)))
    for mask in itertools.product((0.0, 1.0), repeat=k):
        z = np.asarray(mask)
        weight = float(np.prod(np.where(z == 1, keep_prob, 1 - keep_prob))) * precision
        system += weight * (x * z).T @ (x * z)
        right += weight * (x * z).T
    return np.asarray(np.linalg.solve(system, right))


def rank_law(covariance: Floats, keep_prob: float, num_draws: int) -> Floats:
    """`(2, L + 1)`: probability of theta < 0 (row 0) or > 0 (row 1) together with each rank of theta among L guide draws.

    covariance: of (theta, u), zero-mean normal, `(2, 2)`. By the orthant formula (Sheppard 1899), P(theta > 0, theta > u)
    = 1/4 + arcsin(corr(theta, theta - u)) / 2 pi: above both atoms the rank is L. In 0 < theta < u the draws below theta are
    the zeros, Bin(L, 1 - p); in u < theta < 0 they are the u, Bin(L, p).
    """
    (variance, both), (_, other) = covariance
    correlation = (variance - both) / math.sqrt(variance * (variance - 2 * both + other))
    outside = 0.25 + math.asin(correlation) / (2 * math.pi)
    ranks = np.arange(num_draws + 1)
    law = (0.5 - outside) * np.stack([stats.binom.pmf(ranks, num_draws, q) for q in (keep_prob, 1 - keep_prob)])
    law[0, 0] += outside
    law[1, -1] += outside
    return law


class Simulations(NamedTuple):
    """Draws of the joint distribution, `weights` `(S, d)` and `y` `(S, n)`, by the model's own Pyro program."""

    model: BayesianNetwork
    topology: Topology
    x: Floats
    weights: Floats
    y: Floats

    @property
    def active(self) -> Floats:
        """The active columns of x, `(n, k)`."""
        return self.x[:, self.topology.positions.numpy()]


@lru_cache(maxsize=4)
def simulate(
    count: int, features: int = FEATURES, examples: int = EXAMPLES, prior_scale: float = PRIOR_SCALE
) -> Simulations:
    """(theta, y) from `models/linear`, theta dense, with a fixed x of correlated columns and a fixed topology."""
    stream = torch.Generator().manual_seed(0)
    mixing = torch.eye(features) + 0.5 * math.sqrt(FEATURES / features) * torch.randn(
        features, features, generator=stream
    )
    x = (torch.randn(examples, features, generator=stream) @ mixing).double()
    with seeded(0), torch.no_grad():
        model = shelf.load("models", "linear")(
            (features,), 1, noise_precision=PRECISION, learn_precision=False, bias=False, prior_scale=prior_scale
        ).double()
        topology = initial(model.shapes, SPARSITY, generator=stream)
        traces = [poutine.trace(model).get_trace(x).nodes for _ in range(count)]
    weights, y = (torch.stack([trace[site]["value"] for trace in traces]).numpy() for site in ("weights", "y"))
    return Simulations(model, topology, x.numpy(), weights, y)


def guide_ranks(world: Simulations, u: Floats) -> Ints:
    """Ranks `(S, k)` of theta among `NUM_DRAWS` draws of the masked guide with values u `(S, k)`."""
    stream = torch.Generator().manual_seed(1)
    guide = MaskedGuide(world.model, world.topology, KEEP_PROB, generator=stream)
    positions, ranks = world.topology.positions, []
    for weights, values in zip(torch.from_numpy(world.weights), torch.from_numpy(u), strict=True):
        guide.values.data = values
        draws = guide.distribution().rsample(torch.Size([NUM_DRAWS]))
        ranks.append((draws < weights).sum(0)[positions])
    return torch.stack(ranks).numpy()


def fits(counts: NDArray[np.int64], probabilities: Floats, smallest: float = 10.0) -> float:
    """p-value of Pearson's chi-square test; cells expected below `smallest` are joined, with the next larger one."""
    expected = counts.sum() * probabilities.ravel()
    order = np.argsort(expected, kind="stable")
    joined = np.maximum(np.arange(len(order)) - int((expected < smallest).sum()), 0)
    seen, due = (np.bincount(joined, each[order]) for each in (counts.ravel(), expected))
    return float(stats.chi2.sf(((seen - due) ** 2 / due).sum(), len(due) - 1))


def _counts(cells: Ints, size: int) -> Ints:
    return np.bincount(cells, minlength=size).astype(np.int64)


def check_exact(quick: bool, *, formula: Posterior = posterior) -> Finding:
    world = simulate(8_000 if quick else 40_000)
    gain, covariance = formula(world.x, PRECISION, PRIOR_SCALE)
    noise = np.random.default_rng(2).standard_normal((len(world.y), NUM_DRAWS, FEATURES))
    draws = (world.y @ gain.T)[:, None] + noise @ np.linalg.cholesky(covariance).T
    ranks = (draws < world.weights[:, None]).sum(1)
    uniform = np.full(NUM_DRAWS + 1, 1 / (NUM_DRAWS + 1))
    p_values = [fits(_counts(column, NUM_DRAWS + 1), uniform) for column in ranks.T]
    # A posterior too wide or too narrow moves the ranks' spread alone: one number of all weights sees more than 32 cells.
    spread = np.square((ranks - NUM_DRAWS / 2) / (NUM_DRAWS + 1)).mean(1)
    due = (1 - (NUM_DRAWS + 1.0) ** -2) / 12
    spread_z = float((spread.mean() - due) / spread.std(ddof=1)) * math.sqrt(len(spread))
    return Finding(
        f"ranks of {FEATURES} weights drawn by the Pyro program among {NUM_DRAWS} draws of the closed-form posterior, "
        f"{len(ranks):,} data sets, with the uniform law by chi-square, and their pooled spread with its variance",
        surprise(2 * float(np.min([FEATURES * np.min(p_values), 2 * stats.norm.sf(abs(spread_z))]))),
        SURPRISE,
        "-log10 p",
        {"p_values": p_values, "spread_z": spread_z, "data_sets": len(ranks), "draws": NUM_DRAWS},
        pictures=(Ranks("Exact posterior, first weight", ranks[:PICTURED, 0], NUM_DRAWS),),
    )


def check_guide(quick: bool, *, formula: Optimum = optimum, law: Law = rank_law) -> Finding:
    world = simulate(8_000 if quick else 40_000)
    ranks = guide_ranks(world, world.y @ formula(world.active, PRECISION, PRIOR_SCALE, KEEP_PROB).T)
    active, size = world.topology.positions.numpy(), NUM_DRAWS + 1
    # The law owes the formula nothing: u* = G y with G by enumeration of the masks, y = x theta + noise.
    gain = by_enumeration(world.active, PRECISION, PRIOR_SCALE, KEEP_PROB)
    spread = gain @ (PRIOR_SCALE**2 * world.x @ world.x.T + np.eye(EXAMPLES) / PRECISION) @ gain.T
    both = PRIOR_SCALE**2 * gain @ world.x
    laws, p_values, uniform_p_values = [], [], []
    for j, position in enumerate(active):
        covariance = np.array([[PRIOR_SCALE**2, both[j, position]], [both[j, position], spread[j, j]]])
        laws.append(law(covariance, KEEP_PROB, NUM_DRAWS))
        cells = (world.weights[:, position] > 0) * size + ranks[:, j]
        p_values.append(fits(_counts(cells, 2 * size), laws[-1]))
        uniform_p_values.append(fits(_counts(ranks[:, j], size), np.full(size, 1 / size)))
    refuted = max(uniform_p_values) < FALSE_ALARMS
    marginal = [each.sum(0) for each in laws]
    extremes = float(np.mean(np.isin(ranks, (0, NUM_DRAWS))))
    return Finding(
        f"signs and ranks of {len(active)} active weights among {NUM_DRAWS} draws of the guide at its optimum, "
        f"{len(ranks):,} data sets, with the law of the two atoms by chi-square"
        + ("; uniformity is refuted for each weight" if refuted else "; uniformity is NOT refuted"),
        surprise(len(active) * float(np.min(p_values))) if refuted else math.inf,
        SURPRISE,
        "-log10 p",
        {
            "p_values": p_values,
            "uniform_minus_log10_p": [surprise(p) for p in uniform_p_values],
            "share_at_extremes": extremes,
            "share_at_extremes_predicted": float(np.mean([each[0] + each[-1] for each in marginal])),
            "total_variation_from_uniform": [float(0.5 * np.abs(each - 1 / size).sum()) for each in marginal],
            "data_sets": len(ranks),
        },
        breaks=(
            f"The guide is not calibrated: {extremes:.0%} of the true weights rank first or last among its draws, where "
            f"calibrated ones would in {2 / size:.0%}, for its spread is that of two atoms, 0 and u*, not the posterior's."
        ),
        pictures=(
            Ranks("Masked guide at its optimum, first active weight", ranks[:PICTURED, 0], NUM_DRAWS, marginal[0]),
        ),
    )


@lru_cache(maxsize=2)
def trained(epochs: int) -> tuple[Simulations, Fit]:
    """`inference/cigl` on a wide world at a constant rate, one step per epoch, all iterates kept."""
    world = simulate(1, WIDE_FEATURES, WIDE_EXAMPLES, WIDE_PRIOR_SCALE)
    x, y = torch.from_numpy(world.x), torch.from_numpy(world.y[0])
    nothing = Split(x[:0], y[:0])
    fit: Fit = shelf.load("inference", "cigl")(
        world.model,
        Data("linear", Split(x, y), nothing, nothing, nothing, (WIDE_FEATURES,), None),
        sparsity=SPARSITY,
        drop_rate=1 - KEEP_PROB,
        rule="static",
        freeze=0.0,
        average_from=0.1,
        training=Training(epochs, WIDE_EXAMPLES, learning_rate=0.02, momentum=0.0, rate="constant", device="cpu"),
        seed=3,
    )
    return world, fit


def check_optimum(quick: bool, *, formula: Optimum = optimum) -> Finding:
    """Each weight by itself, and all together: the slope of the trained on the closed form, which averages the noise of
    hundreds of weights away and sees what shrinks or stretches all of them, as a wrong prior or a wrong P(Z = 1) does."""
    (world, fit), blocks = trained(1_200 if quick else 6_000), 30
    # At a constant rate the mean iterate is u*: the gradient is linear in u, and Z is fresh. Blocks, for it is correlated.
    values = fit.pairs.values.numpy()
    means = values[len(values) % blocks :].reshape(blocks, -1, values.shape[1]).mean(1)
    expected = formula(world.x[:, fit.topology.positions.numpy()], PRECISION, WIDE_PRIOR_SCALE, KEEP_PROB) @ world.y[0]
    looks = np.column_stack([means, means @ expected / (expected @ expected)])
    found, error = looks.mean(0), looks.std(0, ddof=1) / math.sqrt(blocks)
    p_values = 2 * stats.t.sf(np.abs(found - np.append(expected, 1.0)) / error, blocks - 1)
    sharp = error[-1] < 0.01  # a training that diverged has standard errors that agree with anything
    count, places = len(expected), np.arange(1, len(expected) + 1)
    found, error, slope, its = found[:-1], error[:-1], found[-1], error[-1]
    return Finding(
        f"mean iterate of inference/cigl over {len(values):,} steps at a constant rate with the closed form u*, {count} "
        f"active weights one by one and by the slope of all, by Student's t on {blocks} blocks",
        surprise(2 * float(np.min([count * p_values[:-1].min(), p_values[-1]]))) if sharp else math.inf,
        SURPRISE,
        "-log10 p",
        {
            "trained": found.tolist(),
            "standard_error": error.tolist(),
            "closed_form": expected.tolist(),
            "slope": [float(slope), float(its)],
        },
        pictures=(
            Picture(
                "Training reaches the closed-form optimum",
                "active weight",
                "u",
                (
                    Curve("closed form", places, expected, style="points"),
                    Curve("mean iterate, 2 s.e.", places, found, found - 2 * error, found + 2 * error, "bars"),
                ),
            ),
        ),
    )


CLAIMS = (
    Claim(
        "sbc-exact",
        "The conjugate linear model's exact posterior is calibrated: ranks of the true weights are uniform.",
        "Talts et al. 2018; Bishop 2006, eq. 3.50",
        check_exact,
    ),
    Claim(
        "sbc-guide",
        "The guide's ranks are not uniform: they follow the law of its two atoms 0 and u*.",
        "CigL eq. 3 at noise scale 0; derived: orthant probabilities",
        check_guide,
    ),
    Claim(
        "sbc-optimum",
        "Training the masked guide on the linear model reaches the closed-form optimum u* of the ELBO.",
        "derived in theory/sbc.py",
        check_optimum,
    ),
)
