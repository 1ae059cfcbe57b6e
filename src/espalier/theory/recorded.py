"""Trainings by Algorithm 1 that keep what `dependence` asks: how every step's Z and u go together, and pairs with other Z."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import calibration, data, shelf
from espalier.distributions.masked import effective_keep_prob
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit, How
from espalier.prediction.pairs import Pairs, State
from espalier.randomness import seeded
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Info
from espalier.training.options import Training, prepare
from espalier.training.streams import Streams, find_device
from espalier.training.train import train
from espalier.training.watch import Watch

Floats = NDArray[np.float64]

SPARSITIES, QUICK_SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99), (0.0, 0.8, 0.99)
DROP_RATE, RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.1, 0.9, 5e-4  # the paper's r, and its settings of WRN-22-2
NUM_SHIFTS = 8
SINGLE: tuple[How, ...] = ("ticket", "mean", "unmasked")
MEASURES: dict[str, Callable[..., float]] = {
    "accuracy": calibration.accuracy,
    "NLL": calibration.nll,
    "ECE": calibration.ece,
}


class Recorder(Watch):
    """Watches u and Z of every step after `first`: aligned covariances, moments of u, and for each epoch's last step u and
    the other parameters as they were before it."""

    def __init__(self, model: BayesianNetwork, guide: MaskedGuide, first: int) -> None:
        self.model, self.guide, self.first = model, guide, first
        self.own: list[float] = []
        self.control: list[float] = []
        self.before: list[tuple[Tensor, State]] = []
        self.last = self.moved = guide.values.detach().clone()
        self.state = self._state()

    def on_step(self, info: Info) -> None:
        u = self.guide.values.detach().clone()
        self.previous = self.last, self.state
        moved = u.double() - self.last.double()
        if info.step == self.first:
            self.start, self.sign = u.double(), u.double().sign()
            self.sum, self.squares = torch.zeros_like(self.start), torch.zeros_like(self.start)
        elif info.step > self.first and self.guide.keep is not None:
            aligned = self.sign * (self.guide.keep.double() - self.guide.probs)
            self.own.append(float(aligned @ moved))
            self.control.append(float(aligned @ self.moved))  # the step before, which cannot know this Z
            self.sum, self.squares = self.sum + u, self.squares + u.double().square()
        self.last, self.moved, self.state = u, moved, self._state()

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        if self.own:
            self.before.append(self.previous)

    def _state(self) -> State:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


class Run(NamedTuple):
    """What one training tells. Covariances are sums over active weights, aligned with the sign of u."""

    sparsity: float
    keep_prob: float
    own: Floats
    """`(T,)`, per step: sum_i sign_i (Z_i(t) - p) (u_i(t) - u_i(t-1))."""
    control: Floats
    """`(T,)`, the same with the step before: its mean is zero whatever the dependence."""
    value: float
    """sum_i sign_i mean u_i."""
    drift: float
    """sum_i sign_i (u_i(T) - u_i(0)) / T."""
    spread: float
    """sum_i sd(Z_i) sd(u_i), moments over steps: what turns covariances into pooled correlations."""
    pairs: Floats
    """`(P - 1, P - 1)`: share of u of pair e with Z of pair f in the pooled correlation, which is the trace."""
    nll: Floats
    """`(1 + NUM_SHIFTS, n)`: test NLL, nats, of the pairs (u of e, Z of e + s), s = 0, 1, ...; the same u for all s."""
    control_nll: Floats
    """The same with u, and the other parameters, before the step that their Z took part in."""
    scores: dict[str, dict[str, float]]
    """Test accuracy, NLL and ECE, each by way to predict."""

    def correlation(self, covariances: Floats) -> tuple[float, float]:
        """Pooled correlation of `(T,)` step covariances and its standard error: they are martingale differences."""
        error = float(covariances.std(ddof=1)) / math.sqrt(len(covariances))
        return float(covariances.mean()) / self.spread, error / self.spread


def cross_covariance(keep: Tensor, values: Tensor, sign: Tensor, keep_prob: float) -> Floats:
    """`(P - 1, P - 1)`: entry (e, f) is sum_i sign_i (u_i - u_i of the pair before)(Z_i - p) / (P - 1), u of e, Z of f.

    keep, values: `(P, k)`; sign: `(k,)`. The trace is the aligned covariance over pairs, summed over weights.
    """
    moved = sign * values.double().diff(dim=0)
    return np.asarray((moved @ (keep[1:].double() - keep_prob).T / len(moved)).numpy())


def paired_with(fit: Fit, pairs: Pairs, shift: int) -> Floats:
    """Predictive `(n, C)` on the digits' test split of the first u of `pairs` beside the Z of `shift` pairs later.

    Those Z were drawn after u, so that u cannot know them. Biases stay with their u. NUM_SHIFTS pairs are left out at the
    end, for every shift.
    """
    count = len(pairs.values) - NUM_SHIFTS
    states = {name: tensor[:count] for name, tensor in pairs.states.items()}
    mixed = Fit(
        fit.model,
        fit.topology,
        Pairs(pairs.values[:count], pairs.keep[shift : shift + count], states),
        keep_prob=fit.keep_prob,
        rescale=fit.rescale,
        record=fit.record,
        history=fit.history,
    )
    return np.asarray(mixed.predict(data.load("digits").test.x, "pairs").double().mean(0).numpy())


@lru_cache(maxsize=64)
def run(sparsity: float, seed: int, epochs: int) -> Run:
    """Algorithm 1 on scikit-learn's digits at a constant rate (the paper's is piecewise constant): `inference/cigl`, with a
    watch that sees its guide. Pairs and steps are those of the second half of training."""
    digits, streams = data.load("digits"), Streams(seed, find_device("cpu"))
    keep_prob = effective_keep_prob(1 - DROP_RATE)
    training = Training(
        epochs, 64, learning_rate=RATE, momentum=MOMENTUM, rate="constant", weight_decay=WEIGHT_DECAY, device="cpu"
    )
    with seeded(seed):
        model = shelf.load("models", "mlp")(digits.shape, digits.num_outputs, hidden=(256, 256))
    model = prepare(model, digits, training, keep_prob=keep_prob)
    guide = MaskedGuide(
        model, initial(model.shapes, sparsity, generator=streams.topology), keep_prob, generator=streams.mask
    )
    watch = Recorder(model, guide, training.step_at(0.5, digits))
    schedule = schedules.rigl(20, training.step_at(0.25, digits), 0.3)
    fit = train(model, guide, schedule, digits, training=training, streams=streams, average_from=0.5, watch=watch)

    steps, labels = len(watch.own), digits.test.y.numpy()
    mean = watch.sum / steps
    deviation = (watch.squares / steps - mean.square()).clamp(min=0).sqrt()
    spread = float(deviation.sum()) * math.sqrt(keep_prob * (1 - keep_prob))
    before = Pairs(
        torch.stack([values for values, _ in watch.before]),
        fit.pairs.keep,
        {name: torch.stack([state[name] for _, state in watch.before]) for name in fit.pairs.states},
    )
    own, control = (
        [paired_with(fit, pairs, shift) for shift in range(NUM_SHIFTS + 1)] for pairs in (fit.pairs, before)
    )
    probs: dict[str, Floats] = {"pairs": own[0], "reshuffled": own[1]}
    for way in SINGLE:
        probs[way] = fit.predict(digits.test.x, way)[0].double().numpy()
    return Run(
        sparsity,
        keep_prob,
        np.array(watch.own),
        np.array(watch.control),
        float(watch.sign @ mean),
        float(watch.sign @ (watch.last.double() - watch.start)) / steps,
        spread,
        cross_covariance(fit.pairs.keep, fit.pairs.values, watch.sign, keep_prob) / spread,
        np.stack([calibration.nll_scores(each, labels) for each in own]),
        np.stack([calibration.nll_scores(each, labels) for each in control]),
        {name: {way: measure(p, labels) for way, p in probs.items()} for name, measure in MEASURES.items()},
    )


def runs(quick: bool) -> list[Run]:
    """All trainings that the claims share, sparsity by sparsity."""
    if quick:
        return [run(sparsity, 0, 50) for sparsity in QUICK_SPARSITIES]
    return [run(sparsity, seed, 100) for sparsity in SPARSITIES for seed in range(5)]
