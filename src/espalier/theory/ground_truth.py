"""Ground truth by NUTS: what it samples, that it samples it, and who comes near the posterior predictive of `rivals`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import Tensor, nn

from espalier import calibration
from espalier.contracts import Topology
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.likelihoods import Normal
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.references.nuts import Chains, Convergence, Potential, nuts, program
from espalier.theory.claims import Claim, Curve, Finding, Picture, worst, worst_z
from espalier.theory.rivals import LOGISTIC, NETWORK, Array, Setup, compare, redraw, world
from espalier.topology.masks import initial

CHAINS = {True: (200, 60), False: (800, 150)}
"""Draws and warm-up of a chain on the linear model, by `quick`: both of its claims look at the same chains."""
LABELS = {
    "redraw": "CigL, fresh masks",
    "pairs": "CigL, collected pairs",
    "ticket": "CigL ticket",
    "mean": "CigL, posterior mean",
    "point": "point estimate (p = 1)",
    "mean field": "mean-field Gaussian",
    "units": "MC dropout of units",
}

# ------------------------------------------------------------------------------------- the conjugate linear model


def conjugate(x: Array, y: Array, prior_scale: float, precision: float) -> tuple[Array, Array]:
    """Mean `(k,)` and precision matrix `(k, k)` of w | x, y for y ~ N(x w, 1 / precision), w ~ N(0, prior_scale^2).

    Lambda = I / v + tau x'x, mean = tau Lambda^-1 x'y (Bishop 2006, eq. 3.53-3.54).
    """
    matrix = np.eye(x.shape[1]) / prior_scale**2 + precision * x.T @ x
    return np.asarray(precision * np.linalg.solve(matrix, x.T @ y), dtype=np.float64), matrix


class Linear(NamedTuple):
    """A sparse linear regression whose inputs are correlated, so that its posterior is too."""

    model: BayesianNetwork
    topology: Topology
    x: Tensor
    y: Tensor
    prior_scale: float
    precision: float

    @property
    def active(self) -> Array:
        """The inputs `(n, k)` of the active weights."""
        columns: Array = self.x.numpy()[:, self.topology.positions.numpy()]
        return columns


def _linear() -> Linear:
    rng, prior_scale, precision = np.random.default_rng(5), 0.4, 2.5
    x = rng.normal(size=(12, 20)) + 0.6 * rng.normal(size=(12, 1))
    y = x @ (prior_scale * rng.normal(size=20)) + rng.normal(size=12) / precision**0.5
    likelihood = Normal(precision, learn=False).double()
    likelihood.log_precision.fill_(math.log(precision))  # the module made it in float32
    net = nn.Linear(20, 1, bias=False).double()
    model = BayesianNetwork(net, likelihood=likelihood, prior_scale=prior_scale)
    topology = initial(model.shapes, 0.6, "uniform", generator=torch.Generator().manual_seed(1))
    return Linear(model, topology, torch.from_numpy(x), torch.from_numpy(y), prior_scale, precision)


@functools.cache
def _linear_chains(num_samples: int, warmup_steps: int) -> Chains:
    """Converged chains on `_linear`; the same for every formula that they are compared with."""
    linear = _linear()
    chains = nuts(
        linear.model, linear.topology, linear.x, linear.y, num_samples=num_samples, warmup_steps=warmup_steps, seed=3
    )
    chains.require_converged(chains.predict(linear.x), 1.05 if num_samples < 500 else 1.01, min(num_samples, 400))
    return chains


def _moments(values: Tensor, center: Array) -> tuple[Array, Array, Array, Array]:
    """By ArviZ, of draws `(chains, draws, k)`: means, second moments about `center`, and the Monte Carlo errors of both."""
    from arviz_base import from_dict
    from arviz_stats import mcse

    gap = values.numpy() - center
    errors: Any = mcse(from_dict({"posterior": {"first": gap, "second": gap[..., :, None] * gap[..., None, :]}}))
    second = np.einsum("cdi,cdj->ij", gap, gap) / math.prod(gap.shape[:2])
    return gap.mean((0, 1)) + center, second, errors["first"].to_numpy(), errors["second"].to_numpy()


def check_control(quick: bool, *, posterior: Callable[..., tuple[Array, Array]] = conjugate) -> Finding:
    """NUTS's means and covariances on the linear model against the closed form."""
    linear, chains = _linear(), _linear_chains(*CHAINS[quick])
    mean, matrix = posterior(linear.active, linear.y.numpy(), linear.prior_scale, linear.precision)
    covariance = np.linalg.inv(matrix)
    means, second, mean_error, second_error = _moments(chains.values, mean)
    upper = np.triu_indices(len(mean))
    found, errors = np.concatenate([means, second[upper]]), np.concatenate([mean_error, second_error[upper]])
    discrepancy, allowed = worst_z(found, np.concatenate([mean, covariance[upper]]), errors)
    sd, judged = np.sqrt(np.diag(covariance)), chains.convergence()["weights"]
    index = np.arange(len(mean))
    return Finding(
        f"mean and covariance of {len(mean)} active weights, {chains.values.shape[0]} chains x {chains.values.shape[1]}",
        discrepancy,
        allowed,
        "standard errors",
        {"worst_rhat": judged.worst[0], "worst_ess": judged.worst[1], "divergences": chains.divergences},
        pictures=(
            Picture(
                "NUTS and the closed form, mean and sd",
                "active weight",
                "posterior mean - closed form, with the posterior sd",
                (
                    Curve("closed form", index, 0 * sd, -sd, sd),
                    Curve("NUTS", index, means - mean, *(means - mean + s * np.sqrt(np.diag(second)) for s in (-1, 1))),
                ),
            ),
        ),
    )


def factorised(precision_matrix: Array) -> Array:
    """Variances `(k,)` of the Gaussian with independent weights nearest to N(mu, Lambda^-1) in KL(q || p): 1 / Lambda_ii.

    Source: Bishop 2006, eq. 10.12-10.15. They are at most the marginal variances (Lambda^-1)_ii.
    """
    variances: Array = 1 / np.diag(precision_matrix)
    return variances


def check_mean_field(quick: bool, *, variances: Callable[[Array], Array] = factorised) -> Finding:
    """The ELBO's gradient at the closed form, by the guide of `inference/mean_field`, is zero; NUTS is not narrower.

    In mean and log sd the negative ELBO of a linear model is convex, so that a stationary point is its only optimum.
    """
    linear, chains = _linear(), _linear_chains(*CHAINS[quick])
    mean, matrix = conjugate(linear.active, linear.y.numpy(), linear.prior_scale, linear.precision)
    claimed = variances(matrix)
    guide = GaussianGuide(linear.model, linear.topology, generator=torch.Generator().manual_seed(8))
    guide.values.data, guide.log_scale.data = torch.from_numpy(mean), torch.from_numpy(0.5 * np.log(claimed))
    elbo, gradients = TraceMeanField_ELBO(), []
    for _ in range(1000 if quick else 5000):
        loss = elbo.differentiable_loss(linear.model, guide, linear.x, linear.y)
        gradients.append(torch.cat(torch.autograd.grad(loss, [guide.values, guide.log_scale])).numpy())
    sample = np.stack(gradients)
    stationary, allowed = worst_z(sample.mean(0), 0.0, sample.std(0, ddof=1) / len(sample) ** 0.5)
    _, second, _, error = _moments(chains.values, mean)
    below = float(np.max((claimed - np.diag(second)) / np.diag(error)))  # one-sided: how far NUTS is narrower
    ratio, index = claimed / np.diag(np.linalg.inv(matrix)), np.arange(len(mean))
    found = np.diag(second)
    return Finding(
        f"{len(sample)} gradients of the ELBO at the closed form; its {len(mean)} variances against NUTS's",
        worst(stationary, below),
        allowed,
        "standard errors",
        {"gradient_z": stationary, "narrower_than_nuts_z": below, "variance_over_marginal": ratio.tolist()},
        f"The mean field keeps {ratio.min():.2f} to {ratio.max():.2f} of a weight's marginal variance here.",
        (
            Picture(
                "Variance of a weight: mean field and NUTS",
                "active weight",
                "variance",
                (
                    Curve("mean field, closed form", index, claimed, style="points"),
                    Curve("NUTS", index, found, found - 2 * np.diag(error), found + 2 * np.diag(error), style="points"),
                ),
                yscale="log",
            ),
        ),
    )


# ----------------------------------------------------------------------------------------------- the networks


def _interval(per_world: Sequence[Array]) -> tuple[float, float, float]:
    """Mean and 95 % t interval: over worlds, which differ in data, topology and seed; of one world, over its test inputs."""
    sample = np.array([each.mean() for each in per_world]) if len(per_world) > 1 else per_world[0]
    half = float(stats.t.isf(0.025, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return float(sample.mean()), float(sample.mean()) - half, float(sample.mean()) + half


class Compared(NamedTuple):
    """All worlds of one kind of network: its numbers, JSON-able, a sentence about them, and pictures."""

    figures: dict[str, Any]
    sentence: str
    pictures: tuple[Picture, ...]


def _compared(setup: Setup, quick: bool, monte_carlo: Callable[[Fit, Tensor], Tensor]) -> Compared:
    worlds = [world(setup, seed, quick) for seed in range(1, 2 if quick else 5)]
    inputs = [torch.as_tensor(each.data.test.x) for each in worlds]
    labels = [each.data.test.y.numpy() for each in worlds]
    truths = [each.reference.flatten(0, 1) for each in worlds]
    draws = [
        {"redraw": monte_carlo(each.fit, x), **each.draws, "nuts": truth}
        for each, x, truth in zip(worlds, inputs, truths, strict=True)
    ]
    found = [compare(*each) for each in zip(truths, draws, strict=True)]

    def row(name: str) -> dict[str, Any]:
        result: dict[str, Any] = {key: _interval([each[name][key] for each in found]) for key in found[0][name]}
        gap = [each[name]["total_variation"] - each["point"]["total_variation"] for each in found]
        result["total_variation_less_points"] = _interval(gap)
        probs = [each[name].double().mean(0).numpy() for each in draws]
        for score in (calibration.accuracy, calibration.nll):
            result[score.__name__] = float(np.mean([score(*each) for each in zip(probs, labels, strict=True)]))
        return result

    table = {name: row(name) for name in draws[0]}
    # Every drop rate is shown; the one that validation chose is judged.
    by_rate = [
        compare(truth, {str(rate): redraw(fit, x) for rate, fit in each.by_rate.items()})
        for each, x, truth in zip(worlds, inputs, truths, strict=True)
    ]
    rates = {rate: _interval([each[rate]["total_variation"] for each in by_rate]) for rate in by_rate[0]}
    halves = [0.5 * (w.reference[::2].mean((0, 1)) - w.reference[1::2].mean((0, 1))).abs().sum(-1) for w in worlds]
    judged = [each.judged for each in worlds]
    masked, point, posterior = table["redraw"], table["point"], table["nuts"]
    closed = -masked["total_variation_less_points"][0] / point["total_variation"][0]
    chosen = sorted({each.figures["drop_rate"] for each in worlds})
    figures = {
        "table": table,
        "share_of_the_distance_closed": closed,
        "redraw_total_variation_by_drop_rate": rates,
        "total_variation_between_halves_of_the_chains": float(np.mean([each.mean() for each in halves])),
        "rhat_and_ess": [{name: each.worst for name, each in one.items()} for one in judged],
        "worlds": [each.figures for each in worlds],
    }
    sentence = (
        f"{setup.what}, {worlds[0].figures['num_active']} active weights: masks close {100 * closed:.0f} % of the point "
        f"estimate's distance {point['total_variation'][0]:.3f}, their draws' sd is {masked['sd_over_draws'][0]:.3f} where "
        f"the posterior's is {posterior['sd_over_draws'][0]:.3f}, and validation chose drop rates of {chosen}"
    )
    pictures = (
        _distances(table, setup),
        _by_rate(rates, table, setup),
        _against(truths[0], draws[0], setup),
        *_diagnostics(judged, setup),
    )
    return Compared(figures, sentence, pictures)


def _distances(table: Mapping[str, Any], setup: Setup) -> Picture:
    points = []
    for index, name in enumerate(LABELS):
        mean, low, high = table[name]["total_variation"]
        points.append(Curve(LABELS[name], [index], [mean], [low], [high], style="points"))
    return Picture(f"Distance to the posterior predictive: {setup.what}", "method", "total variation", tuple(points))


def _by_rate(rates: Mapping[str, Sequence[float]], table: Mapping[str, Any], setup: Setup) -> Picture:
    positions, (mean, low, high) = [float(rate) for rate in rates], np.array(list(rates.values())).T
    level = np.tile(np.array(table["point"]["total_variation"])[:, None], len(rates))
    curves = (
        Curve(LABELS["redraw"], positions, mean, low, high, style="points"),
        Curve(LABELS["point"], positions, *level),
    )
    return Picture(f"By drop rate: {setup.what}", "drop rate", "total variation to NUTS", curves, xscale="log")


def _against(truth: Tensor, draws: Mapping[str, Tensor], setup: Setup) -> Picture:
    """Probabilities in tenths of NUTS's: a method's mean in each and its 10 to 90 % range."""
    mean = truth.mean(0).flatten().numpy()
    bins = np.minimum((10 * mean).astype(int), 9)
    kept = [each for each in range(10) if (bins == each).sum() > 4]
    curves = [Curve("equal", [0, 1], [0, 1], style="dashed")]
    for name in ("redraw", "point", "mean field"):
        flat = draws[name].double().mean(0).flatten().numpy()
        low, middle, high = np.array([[*np.quantile(flat[bins == b], [0.1, 0.5, 0.9])] for b in kept]).T
        curves.append(Curve(LABELS[name], [mean[bins == b].mean() for b in kept], middle, low, high, style="points"))
    return Picture(f"Probabilities: {setup.what}", "by NUTS", "by the method: median, 10-90 %", tuple(curves))


def _diagnostics(judged: Sequence[Mapping[str, Convergence]], setup: Setup) -> tuple[Picture, Picture]:
    """Histograms of R-hat and bulk ESS over all worlds, for what is compared and for the weights."""
    pictures = []
    for field, label in (("rhat", "R-hat"), ("ess_bulk", "bulk ESS")):
        values = {n: np.concatenate([getattr(each[n], field) for each in judged]) for n in ("predictive", "weights")}
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), 25)
        middle = (edges[1:] + edges[:-1]) / 2
        bars = [Curve(n, middle, np.histogram(v, edges)[0] / len(v), style="bars") for n, v in values.items()]
        pictures.append(Picture(f"Convergence of NUTS, {label}: {setup.what}", label, "fraction", tuple(bars)))
    return pictures[0], pictures[1]


def check_predictive(quick: bool, *, monte_carlo: Callable[[Fit, Tensor], Tensor] = redraw) -> Finding:
    """Total variation to NUTS's predictive of CigL's Monte Carlo predictive less the point estimate's, paired.

    A logistic regression has a log-concave posterior, with one mode to be near to; a hidden layer has mirror images of
    several. The latter takes several data sets to settle, so that quick leaves it out.
    """
    setups = (LOGISTIC,) if quick else (LOGISTIC, NETWORK)
    compared = {setup.what: _compared(setup, quick, monte_carlo) for setup in setups}
    limits = [each.figures["table"]["redraw"]["total_variation_less_points"][2] for each in compared.values()]
    return Finding(
        "total variation to NUTS, CigL with fresh masks less the point estimate: upper 95 % limit over "
        f"{'the test inputs of one data set' if quick else '4 data sets, seeds and topologies'}, "
        f"the worst of: {', '.join(compared)}",
        worst(*limits),
        0.0,
        "total variation",
        {name: each.figures for name, each in compared.items()},
        f"Nearer is not near; {'; '.join(each.sentence for each in compared.values())}. The set-up was chosen after a look: "
        "a hidden layer with a wide prior, or under-trained, had its masks farther from NUTS than the point estimate.",
        tuple(picture for each in compared.values() for picture in each.pictures),
    )


def check_posterior(quick: bool, *, potential: Callable[..., Callable[[Tensor], Tensor]] = Potential) -> Finding:
    """NUTS's potential against the traced program's joint, and its gradient against training's at keep_prob = 1."""
    data, seed = NETWORK.data(1), 1
    model = NETWORK.model(seed, prior_scale=0.6).double()
    topology = initial(model.shapes, NETWORK.sparsity, generator=torch.Generator().manual_seed(seed))
    x, y = torch.as_tensor(data.train.x).double(), data.train.y
    guide, elbo = MaskedGuide(model, topology), TraceMeanField_ELBO()
    energy, target = potential(model, topology, x, y, None), program(model, topology)
    generator = torch.Generator().manual_seed(2)
    values, gradients = [], []
    for _ in range(5 if quick else 100):
        point = torch.randn(topology.num_active, dtype=torch.float64, generator=generator)
        joint = -poutine.trace(poutine.condition(target, data={"values": point})).get_trace(x, y).log_prob_sum()
        guide.values.data = point.clone()
        (trained,) = torch.autograd.grad(elbo.differentiable_loss(model, guide, x, y), [guide.values])
        leaf = point.clone().requires_grad_()
        (sampled,) = torch.autograd.grad(energy(leaf), [leaf])
        values.append(float((energy(point) - joint).abs() / joint.abs()))
        gradients.append(float((sampled - trained).norm() / trained.norm()))
    return Finding(
        f"joint of NUTS's program and gradient of CigL's objective at keep_prob = 1, {len(values)} points",
        worst(*values, *gradients),
        1e-10,
        "relative",
        {"log_joint": worst(*values), "gradient": worst(*gradients)},
    )


CLAIMS = (
    Claim(
        "nuts-posterior",
        "NUTS samples the posterior whose mode training without masks finds: one density, one gradient.",
        "Lei et al. 2023, eq. 1-2; house rule for NUTS",
        check_posterior,
    ),
    Claim(
        "nuts-control",
        "NUTS gives the mean and covariance of the conjugate posterior on the active weights (the control).",
        "Bishop 2006, eq. 3.53-3.54; Hoffman & Gelman 2014",
        check_control,
    ),
    Claim(
        "nuts-mean-field",
        "The best Gaussian with independent weights has the variances 1 / Lambda_ii, never above the posterior's.",
        "Bishop 2006, eq. 10.12-10.15",
        check_mean_field,
    ),
    Claim(
        "nuts-predictive",
        "CigL's Monte Carlo predictive is nearer to the posterior predictive than the point estimate on its topology is.",
        "Lei et al. 2023, sec. 3.1 (the masks approximate the posterior)",
        check_predictive,
    ),
)
