"""What is compared with NUTS: small networks on one topology, and every method trained on it.

All methods share topology, prior N(0, v), training data and initial weights. The drop rates are chosen by the validation
split's log-likelihood; neither NUTS nor the test split is looked at for it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import ClippedAdam
from scipy import stats
from torch import Tensor, nn
from torch.distributions import constraints

from espalier import calibration, shelf
from espalier.contracts import Data, Split, Topology
from espalier.data.sets import load
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction.fit import Fit
from espalier.prediction.predict import parameters_of
from espalier.randomness import seeded
from espalier.references.nuts import Convergence, Potential, nuts, program
from espalier.sparse import scatter
from espalier.training.options import Training

Array = NDArray[np.float64]
STRICT, LOOSE = (1.05, 100.0), (1.1, 50.0)
"""R-hat and effective draws, full and quick, that the worst of a thousand probabilities and the log joint must reach."""
PRIOR_SCALE = 1.0
RATES = (0.01, 0.05, 0.1, 0.2, 0.4)
QUICK_RATES = (0.02, 0.1)
DRAWS = 200


def _arms(seed: int) -> Data:
    """Three noisy spiral arms in the plane and a constant input, which does a bias's work; 60 rows to train on."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int) -> Split:
        y = torch.randint(0, 3, (count,), generator=generator)
        turn = torch.rand(count, generator=generator)
        radius, noise = 0.3 + 1.7 * turn, 0.35 * torch.randn(count, generator=generator)
        angle = 2 * math.pi * y / 3 + 2.2 * turn + noise
        return Split(torch.stack([radius * angle.cos(), radius * angle.sin(), torch.ones(count)], -1), y)

    return Data("arms", rows(60), rows(200), rows(1), rows(400), (3,), 3)


def _digits(seed: int) -> Data:
    return load("digits", train_size=100, split_seed=seed)


class Setup(NamedTuple):
    """A kind of network and its data."""

    data: Callable[[int], Data]
    widths: tuple[int, ...]
    sparsity: float
    what: str

    def model(self, seed: int, drop_rate: float = 0.0, prior_scale: float = PRIOR_SCALE) -> BayesianNetwork:
        """Without biases; `drop_rate` puts dropout of units before every layer. The same seed, the same initial weights."""
        layers: list[nn.Module] = [nn.Flatten()]
        with seeded(seed):
            for index, (fan, width) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
                layers += [nn.Tanh()] if index else []
                layers += [nn.Dropout(drop_rate), nn.Linear(fan, width, bias=False)]
        return BayesianNetwork(nn.Sequential(*layers), prior_scale=prior_scale)


LOGISTIC = Setup(_digits, (64, 10), 0.75, "logistic regression of digits")
NETWORK = Setup(_arms, (3, 12, 3), 0.4, "tanh network of three spiral arms")


class World(NamedTuple):
    """One data set, one topology, everything trained on it."""

    data: Data
    fit: Fit
    """CigL at the drop rate that validation chose."""
    by_rate: Mapping[float, Fit]
    """CigL at every drop rate."""
    draws: Mapping[str, Tensor]
    """Predictive draws `(S, n, C)` at the test inputs, by method; those of CigL are taken from `fit`."""
    reference: Tensor
    """NUTS: `(chains, draws, n, C)`."""
    judged: Mapping[str, Convergence]
    figures: dict[str, Any]


def _mean_field(model: BayesianNetwork, topology: Topology, data: Data, start: Tensor, steps: int) -> Tensor:
    """Draws `(DRAWS, k)` of the Gaussian with independent active weights that Pyro's SVI finds from `start` `(k,)`."""

    def guide(x: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", start.clone())
        scale = pyro.param("scale", torch.full_like(start, 0.05), constraint=constraints.positive)
        pyro.sample("values", dist.Normal(loc, scale).to_event(1))

    with seeded(9), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        optimizer = ClippedAdam({"lr": 0.02, "lrd": 0.05 ** (1 / steps)})
        svi = SVI(program(model, topology), guide, optimizer, TraceMeanField_ELBO())
        for _ in range(steps):
            svi.step(data.train.x, data.train.y)
        loc, scale = pyro.param("loc").detach(), pyro.param("scale").detach()
        drawn: Tensor = loc + scale * torch.randn(DRAWS, len(loc))
    return drawn


@torch.no_grad()
def _unit_dropout(fit: Fit, x: Tensor) -> Tensor:
    """MC dropout as Gal & Ghahramani 2016 have it: the trained net with its dropout of units left on, `(DRAWS, n, C)`."""
    (weights, state), *_ = fit.weights("ticket")
    with evaluating(fit.model), seeded(7):
        fit.model.train()
        return torch.stack([parameters_of(fit.model.outcome(weights, x, state)) for _ in range(DRAWS)])


def _chosen(fits: Mapping[float, Fit], predict: Callable[[Fit, Tensor], Tensor], data: Data) -> tuple[float, Fit]:
    """The drop rate whose Monte Carlo predictive has the best log-likelihood on the validation split."""
    x, y = torch.as_tensor(data.validation.x), data.validation.y.numpy()
    rate = min(fits, key=lambda each: calibration.nll(predict(fits[each], x).mean(0).numpy(), y))
    return rate, fits[rate]


def redraw(fit: Fit, x: Tensor) -> Tensor:
    """CigL's Monte Carlo predictive `(DRAWS, n, C)`: the last u under fresh masks; with a mask on weights, MC dropout."""
    return fit.predict(x, "redraw", num_samples=DRAWS)


@functools.cache
def world(setup: Setup, seed: int, quick: bool) -> World:
    data, rates = setup.data(seed), QUICK_RATES if quick else RATES
    training = Training(epochs=150 if quick else 300, batch_size=50, optimizer="adam", learning_rate=0.02)
    cigl, static = shelf.load("inference", "cigl"), shelf.load("inference", "static")
    options: dict[str, Any] = {"sparsity": setup.sparsity, "training": training, "seed": seed}
    fits = {r: cigl(setup.model(seed), data, drop_rate=r, rule="static", **options) for r in rates}
    rate, fit = _chosen(fits, redraw, data)
    point = static(setup.model(seed), data, **options)
    # Dropped inverted, W = M z / p: its share of the KL is M^2 / (2 p v), so its point estimate needs a prior p v.
    dropped = {r: static(setup.model(seed, r, PRIOR_SCALE * math.sqrt(1 - r)), data, **options) for r in rates}
    unit_rate, units = _chosen(dropped, _unit_dropout, data)
    topology, x = fit.topology, torch.as_tensor(data.test.x)
    for other in (point, units):
        if not torch.equal(other.topology.positions, topology.positions):
            raise RuntimeError("expected one topology for all methods: the seed no longer fixes it")
    model, train = setup.model(seed), data.train
    samples = _mean_field(model, topology, data, point.pairs.values[-1], 600 if quick else 1500)
    with torch.no_grad():
        dense = scatter(samples, topology.positions, topology.num_weights)
        gaussian = torch.stack([parameters_of(model.outcome(weights, x)) for weights in dense])
    chains = nuts(
        model,
        topology,
        torch.as_tensor(train.x),
        train.y,
        num_samples=120 if quick else 150,
        warmup_steps=80 if quick else 100,
        num_chains=3 if quick else 4,
        seed=seed,
        target_accept=0.7,
    )
    reference = chains.predict(x)
    judged = chains.require_converged(reference, *(LOOSE if quick else STRICT))
    draws = {way: fit.predict(x, way) for way in ("pairs", "ticket", "mean")}
    draws |= {"point": point.predict(x), "mean field": gaussian, "units": _unit_dropout(units, x)}
    mode = -float(Potential(model, topology, torch.as_tensor(train.x), train.y, None)(point.pairs.values[-1]))
    correct = point.predict(train.x)[0].argmax(-1) == train.y
    figures = {
        "num_active": topology.num_active,
        "drop_rate": rate,
        "drop_rate_of_units": unit_rate,
        "training_accuracy_of_point": float(correct.double().mean()),
        "log_joint": {"point": mode, "nuts_mean": float(chains.log_joint.mean())},
        "divergences": chains.divergences,
    }
    return World(data, fit, fits, draws, reference, judged, figures)


def compare(truth: Tensor, draws: Mapping[str, Tensor]) -> dict[str, dict[str, Array]]:
    """Against NUTS's draws, per method and test input `(n,)`: how far its predictive is from theirs.

    total_variation: of the mean probabilities. agreement: is the favoured class the same? Of the class that NUTS favours:
    wasserstein, the W1 distance between the draws of its probability, and sd_over_draws, their standard deviation.
    truth and draws: `(S, n, C)`.
    """
    truth = truth.double()
    mean, favoured = truth.mean(0), truth.mean(0).argmax(-1)
    rows = torch.arange(len(favoured))
    found = {}
    for name, each in draws.items():
        predicted, drawn = each.double().mean(0), each.double()[:, rows, favoured]
        pairs = zip(drawn.T.numpy(), truth[:, rows, favoured].T.numpy(), strict=True)
        found[name] = {
            "total_variation": (0.5 * (predicted - mean).abs().sum(-1)).numpy(),
            "agreement": (predicted.argmax(-1) == favoured).double().numpy(),
            "wasserstein": np.array([stats.wasserstein_distance(a, b) for a, b in pairs]),
            "sd_over_draws": drawn.std(0, correction=0).numpy(),
        }
    return found
