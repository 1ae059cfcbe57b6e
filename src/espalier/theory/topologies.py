"""A distribution over topologies: `KSubset`, what its mode leaves out, and gradients through draws of it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from scipy import special, stats
from torch import Tensor, nn

from espalier.contracts import Topology
from espalier.data.sets import load as load_data
from espalier.distributions.subsets import KSubset, log_normaliser, overlap_with_mode
from espalier.guides.hierarchy import HierarchicalGuide, LayerSubsets, LeaveOneOutELBO, reversed_model
from espalier.network import BayesianNetwork
from espalier.shelf import load
from espalier.theory.claims import SURPRISE, Claim, Curve, Finding, Picture, limit, surprise, worst
from espalier.training.options import Training

Array = NDArray[np.float64]


def subsets_by_hand(logits: Array, k: int) -> tuple[Array, Array]:
    """All k-subsets `(count, n)` as 0/1 rows and their probabilities: P(M) proportional to exp(sum of its logits)."""
    rows = np.array([[float(i in chosen) for i in range(len(logits))]
                     for chosen in itertools.combinations(range(len(logits)), k)])  # fmt: skip
    return rows, special.softmax(rows @ logits)


def check_enumeration(
    quick: bool, *, enumerate_all: Callable[[Array, int], tuple[Array, Array]] = subsets_by_hand
) -> Finding:
    rng, error, p_values = np.random.default_rng(2), 0.0, []
    cells = [(4, 2), (9, 3), (12, 5)] if quick else [(n, k) for n in range(2, 13) for k in range(1, n)]
    torch.manual_seed(3)
    for n, k in cells:
        logits = 2.5 * rng.standard_normal(n)
        rows, probs = enumerate_all(logits, k)
        subset = KSubset(torch.tensor(logits), k)
        entropy = -(probs * np.log(probs)).sum()
        for ours, theirs in ((subset.log_prob(torch.tensor(rows)).exp(), probs), (subset.mean, probs @ rows),
                             (subset.entropy(), entropy), (subset.mode, rows[probs.argmax()])):  # fmt: skip
            error = worst(error, np.abs(ours.numpy() - theirs))
        draws = subset.sample(torch.Size([4000])).numpy()
        powers = 2 ** np.arange(n)
        codes, seen = np.unique(draws @ powers, return_counts=True)
        observed = dict(zip(codes.tolist(), seen.tolist(), strict=True))
        p_values.append(_chi_square(np.array([observed.get(float(code), 0) for code in rows @ powers]), probs))
    sampling = surprise(len(p_values) * float(np.min(p_values)))
    return Finding(
        f"density, inclusion probabilities, entropy, mode (discrepancy) and draws (chi-square, -log10 p {sampling:.1f} of "
        f"{SURPRISE:g}) against all subsets, {len(cells)} pairs (n, k) up to n = 12",
        error if sampling <= SURPRISE else math.inf, 1e-12, "absolute", {"-log10 p of the draws": sampling},
    )  # fmt: skip


LEAST_EXPECTED = 20
"""Draws expected in a cell of a chi-square test, at least: its tail is the law's there, with 5 it is half as likely again."""
MOST_SHARED = 0.2
"""Of its weights, that the mode shares with a draw where taking the mode is a large step."""


def _chi_square(observed: NDArray[np.int64], probs: Array) -> float:
    """p-value: of the cells of small expectation together by their exact binomial, of the others, given these, by chi-square."""
    count, expected = int(observed.sum()), probs * observed.sum()
    small, p_values = expected < LEAST_EXPECTED, list[float]()
    if small.any():
        p_values.append(float(stats.binomtest(int(observed[small].sum()), count, min(1.0, float(probs[small].sum()))).pvalue))
    seen, wanted = observed[~small].astype(float), expected[~small]
    if len(seen) > 1 and seen.any():
        wanted = wanted * seen.sum() / wanted.sum()
        p_values.append(float(stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(seen) - 1)))
    return len(p_values) * float(np.min(p_values)) if p_values else 1.0


def log_elementary_symmetric(logits: Array, k: int) -> float:
    """log e_k(exp(logits)) by the textbook recursion e_j <- e_j + x_i e_{j-1}, one item after the other, in log space."""
    table = np.full(k + 1, -np.inf)
    table[0] = 0.0
    for logit in logits:
        table[1:] = np.logaddexp(table[1:], table[:-1] + logit)
    return float(table[k])


def check_large(quick: bool, *, reference: Callable[[Array, int], float] = log_elementary_symmetric) -> Finding:
    rng = np.random.default_rng(4)
    errors: dict[str, list[float]] = {"contour": [], "saddlepoint": []}
    sizes = [200, 2000] if quick else [20, 60, 200, 600, 2000, 6000]
    for n in sizes:
        logits, k = 1.5 * rng.standard_normal(n), max(2, n // 20)
        exact = reference(logits, k)
        for method, found in errors.items():
            found.append(abs(float(log_normaliser(torch.tensor(logits), k, method)) - exact))
    big = torch.tensor(1.5 * rng.standard_normal(100_000))
    start = time.perf_counter()
    subset = KSubset(big, 5_000)
    subset.log_prob(subset.mode)
    density = time.perf_counter() - start
    subset.sample()
    drawn = time.perf_counter() - start - density
    curves = tuple(Curve(name, sizes, np.maximum(found, 1e-16), style="points") for name, found in errors.items())
    return Finding(
        f"log normaliser (what KSubset uses beyond the tree) against the O(n k) recursion, n to {sizes[-1]}, k = n / 20",
        worst(*errors["contour"]), 1e-8, "nats",
        {"n": sizes, **errors, "seconds at n = 100,000: log_prob, sample": [density, drawn]},
        "The saddle-point expansion is an approximation of order 1 / (Var S)^2 "
        f"({errors['saddlepoint'][0]:.1e} nats at n = {sizes[0]}); KSubset sums the contour integral instead, to rounding.",
        (Picture("Error of log Z", "items n (k = n / 20)", "nats", curves, xscale="log", yscale="log"),),
    )  # fmt: skip


def draw_one_by_one(logits: Array, k: int, count: int, rng: np.random.Generator) -> Array:
    """Draws of P(M) item by item from a table of e_j of the items still to come: the list method, O(n k) memory."""
    n = len(logits)
    table = np.full((n + 1, k + 1), -np.inf)
    table[n, 0] = 0.0
    for i in range(n - 1, -1, -1):
        table[i] = table[i + 1]
        table[i, 1:] = np.logaddexp(table[i, 1:], table[i + 1, :-1] + logits[i])
    left, draws = np.full(count, k), np.zeros((count, n))
    for i in range(n):
        need = np.maximum(left, 1)
        odds = np.exp(np.minimum(0.0, logits[i] + table[i + 1, need - 1] - table[i, need]))
        draws[:, i] = (left > 0) & (rng.random(count) < odds)
        left = left - draws[:, i].astype(int)
    return draws


def check_mode(quick: bool, *, overlap: Callable[[Tensor, int], Tensor] = overlap_with_mode) -> Finding:
    """Weights of an MLP trained on the digits by RigL at 95 % sparsity, with the values it holds for inactive ones: 0."""
    data = load_data("digits")
    model = load("models", "mlp")(data.shape, data.num_outputs, hidden=(64, 64))
    training = Training(epochs=3 if quick else 20, batch_size=64, device="cpu")
    fit = load("inference", "rigl")(model, data, sparsity=0.95, delta_t=20, training=training, seed=0)
    trained = next(fit.weights("unmasked"))[0].split(model.sizes)
    rng, rows, z = np.random.default_rng(5), {}, []
    generator = torch.Generator().manual_seed(6)
    layers = {
        f"trained layer {i + 1}": (w, k) for i, (w, k) in enumerate(zip(trained, fit.topology.counts, strict=True))
    }
    layers["normal, sd 0.05, 5 %"] = (0.05 * torch.randn(4000, generator=generator), 200)
    for name, (w, k) in layers.items():
        logits = w.detach().abs().double()
        exact = float(overlap(logits, k))
        top = np.argsort(-logits.numpy(), kind="stable")[:k]
        draws = draw_one_by_one(logits.numpy(), k, 400 if quick else 2000, rng)[:, top].sum(1) / k
        z.append(abs(draws.mean() - exact) / np.maximum(draws.std(ddof=1) / math.sqrt(len(draws)), 1e-9))
        rows[name] = {
            "overlap": exact,
            "by list sampling": float(draws.mean()),
            "k / n": k / len(w),
            "sd": float(w.std()),
        }
    scan = np.geomspace(1e-3, 3, 13 if quick else 40)
    curves = tuple(Curve(name, scan, [float(overlap(w.detach().abs().double() / t, k)) for t in scan])
                   for name, (w, k) in layers.items())  # fmt: skip
    first = rows["normal, sd 0.05, 5 %"]["overlap"]
    return Finding(
        f"E|M and top-k| / k at temperature 1 against {400 if quick else 2000} draws of another sampler, {len(layers)} layers; "
        f"at sd .05 below {MOST_SHARED:g}",
        worst(*z) if first < MOST_SHARED else math.inf, limit(len(z)), "standard errors", rows,
        "Taking the mode is a large step at temperature 1: eq. 3's M shares "
        f"{100 * first:.1f} % of its weights with the top-k at sd .05 and 5 % density, where chance alone gives 5 %.",
        (Picture("How much of M is the top-k", "temperature", "E|M and top-k| / k", curves, xscale="log"),),
    )  # fmt: skip


class _Scripted(HierarchicalGuide):
    """The guide with draws of M and Z that are told, in turn: expectations are then sums."""

    script: Iterator[tuple[Tensor, Tensor]]

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        m, z = next(self.script)
        with _Told(M=m, Z=z):
            return super().forward(x, y)


class _Told(pyro.poutine.messenger.Messenger):
    """Sets the values of sites and leaves them latent, where `condition` would make them observed."""

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        if message["name"] in self.values:
            message["value"], message["done"] = self.values[message["name"]], True


def check_leave_one_out(quick: bool, *, elbo: Callable[[int], LeaveOneOutELBO] = LeaveOneOutELBO) -> Finding:
    """`count` weights, one active: every topology with every mask, and every pair of these that two particles can draw."""
    count = 2 if quick else 3
    generator = torch.Generator().manual_seed(8)
    net = nn.Sequential(nn.Linear(count, 1, bias=False), nn.Tanh()).double()
    model = BayesianNetwork(net, likelihood="normal", prior_scale=0.6)
    x = torch.randn(5, count, generator=generator, dtype=torch.float64)
    y = torch.randn(5, generator=generator, dtype=torch.float64)
    guide = _Scripted(model, Topology(torch.tensor([0]), (1,), (count,)), 0.7, temperature=0.4)
    guide.values.data = torch.tensor([0.8, -0.5, 0.3][:count], dtype=torch.float64)
    topologies = torch.eye(count, dtype=torch.float64)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=torch.float64)
    pairs = [(m, z) for m in topologies for z in masks]
    p = guide.keep_prob

    def chance_of(z: Tensor) -> float:
        return math.prod(p if bit else 1 - p for bit in z.tolist())

    def exact() -> Tensor:
        """d/dV of sum_M sum_Z q(M | V) q(Z) [log p(y | ZMV) + log p(ZMV)], by autograd through the sum itself."""
        v = guide.values.detach().clone().requires_grad_()
        q = torch.softmax(v.abs() / 0.4, 0)  # k = 1
        total = torch.zeros((), dtype=torch.float64)
        for i, m in enumerate(topologies):
            for z in masks:
                w = z * m * v
                chance = q[i] * chance_of(z)
                mean = torch.tanh((x * w).sum(-1))
                precision = torch.exp(model.likelihood.log_precision.detach())  # type: ignore[attr-defined]
                total = total + chance * (-0.5 * precision * (y - mean).square().sum() - 0.5 * w.square().sum() / 0.36)
        return torch.autograd.grad(total, v)[0]

    with torch.no_grad():
        log_q = [float(LayerSubsets(guide.values.abs() / 0.4, (1,), (count,)).log_prob(m)) for m, _ in pairs]
    chance = np.exp(log_q) * np.array([chance_of(z) for _, z in pairs])
    estimator, expected, spread = elbo(2), *torch.zeros(2, count, dtype=torch.float64)
    program = reversed_model(model, guide)
    truth = exact()
    with pyro.get_param_store().scope():
        for i, j in itertools.combinations_with_replacement(range(len(pairs)), 2):
            guide.zero_grad()
            guide.script = iter((pairs[i], pairs[j]))
            estimator.differentiable_loss(program, guide, x, y).backward()
            assert guide.values.grad is not None
            weight = chance[i] * chance[j] * (1 if i == j else 2)  # the estimator does not know their order
            expected -= weight * guide.values.grad
            spread += weight * (guide.values.grad + truth).square()
    return Finding(
        f"expected gradient of LeaveOneOutELBO over all {len(pairs) ** 2} pairs of draws (M, Z) against autograd through the "
        "enumerated sum",
        float((expected - truth).abs().max()), 1e-10, "absolute",
        {"gradient": truth.tolist(), "standard deviation of one estimate": spread.sqrt().tolist()},
    )  # fmt: skip


CLAIMS = (
    Claim("subsets-enumeration", "KSubset is P(M) proportional to exp(sum M logit) over k-subsets", "Lei et al. 2023, eq. 3",
          check_enumeration),
    Claim("subsets-large", "its density is exact at any n", "Chen, Dempster & Liu 1994; Daniels 1954", check_large),
    Claim("subsets-mode", "the mode (top-k) is a large step away from eq. 3 at temperature 1",
          "derived in theory/topologies.py", check_mode),
    Claim("subsets-gradient", "leave-one-out score-function gradients through draws of M are unbiased",
          "Kool, van Hoof & Welling 2019", check_leave_one_out),
)  # fmt: skip
