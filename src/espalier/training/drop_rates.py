"""The drop rate found while training: it follows the rate that would predict the validation split best at the present weights.

With r = sin^2 phi, phi goes down the gradient of the negative log-likelihood of the Monte Carlo predictive, estimated every few
steps on a batch of validation rows by a coupled difference: one set of uniform numbers, thresholded at two rates a little apart,
so that the two sets of masks differ only where the rates do, and the noise of the difference with them. It is unbiased for the
difference, and so for the derivative up to the square of the half-width. The log of a mean over few draws is biased
(Jensen), which where masks do most is most of the slope: the jackknife takes it off. (The delta method's half of the relative
variance over the number of draws leaves half of it at rates of .3, where p of one row differs by orders of magnitude.)

The best rate at evaluation depends on the rate of the training before, and meets it at a fixed point; following it during
training needs no other run. Where it ends there is a last look without masks (`last_look.py`). Derived for this project; its use
is in docs/drop-rate.md.

`init` and `step` are pure; `Found` evaluates the model and sets the guide's keep probability.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from espalier.contracts import Data
from espalier.data.streamed import some
from espalier.distributions.masked import (
    KeepProb,
    effective_keep_prob,
    given_keep_prob,
    mean_keep_prob,
    per_weight,
)
from espalier.distributions.priors import prior_scale_of, weight_decay_of
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide, groups
from espalier.likelihoods import matched
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit
from espalier.prediction.predict import sent, to_device
from espalier.randomness import own_stream
from espalier.store import Bundle
from espalier.training import distributed, last_look
from espalier.training.last_look import HIGHEST, LOWEST
from espalier.training.options import Training
from espalier.training.teachers import copied

STREAM, CHOICE = 11, 15
"""Of random numbers, apart from those of training: of estimates, and of which rows they are taken from."""
START = 0.01
FALLBACK = 0.1
"""CigL's own (Lei et al. 2023)."""
HALF_WIDTH = 0.06
"""Of the difference, in phi."""
DRAWS, ROWS, POOL = 4, 128, 1000
"""Masks and validation rows of one estimate, and rows that these are taken from."""
SHARE, MOST, LOOKS = 0.04, 0.08, 60
"""Of the work of training, that estimates take; and at most, where it is too short for so many of each rate."""
STEP, LAST_STEP, TURN = 0.03, 0.0075, 0.6
"""Of phi: until the fraction `TURN` of training, and at its end."""
DECAY, SQUARE_DECAY = 0.8, 0.95


DropRate = float | Literal["auto", "auto-kind", "auto-layer"]
"""P(Z = 0), or found while training: one, one for convolutions and one for the rest, or one a layer."""


class State(NamedTuple):
    """phi, and the running moments of its gradient (Adam, Kingma & Ba 2015)."""

    phi: float
    mean: float = 0.0
    square: float = 0.0
    taken: int = 0

    @property
    def rate(self) -> float:
        """P(Z = 0)."""
        return math.sin(self.phi) ** 2


def init(rate: float | None = None) -> State:
    """At a rate, or at `START`."""
    rate = START if rate is None else rate
    return State(math.asin(math.sqrt(rate)))


def step(state: State, gradient: float, progress: float) -> State:
    """One step of Adam on phi. gradient: d loss / d phi; progress: the fraction of training that is over."""
    taken = state.taken + 1
    mean = DECAY * state.mean + (1 - DECAY) * gradient
    square = SQUARE_DECAY * state.square + (1 - SQUARE_DECAY) * gradient**2
    size = STEP if progress <= TURN else STEP + (LAST_STEP - STEP) * min(1.0, (progress - TURN) / (1 - TURN))
    scale = math.sqrt(square / (1 - SQUARE_DECAY**taken))
    phi = state.phi - size * mean / (1 - DECAY**taken) / scale if scale > 0 else state.phi
    return State(min(max(phi, math.asin(math.sqrt(LOWEST))), math.asin(math.sqrt(HIGHEST))), mean, square, taken)


def sides(phi: float) -> tuple[float, float]:
    """The two angles of the difference, within [0, pi / 2]."""
    return max(0.0, phi - HALF_WIDTH), min(math.pi / 2, phi + HALF_WIDTH)


def loss_of(log_probs: Tensor) -> Tensor:
    """-log p of each example's mean over draws, `(n,)`, from log p of S >= 2 draws `(S, n)`, less the bias of few draws by the
    jackknife (Quenouille 1956): S l - (S - 1) times the mean of l with each draw left out; and not below -log p of the best
    draw, below which no mixture is."""
    count = len(log_probs)
    others = torch.stack([torch.cat([log_probs[:left], log_probs[left + 1 :]]) for left in range(count)])
    loss = math.log(count) - torch.logsumexp(log_probs, 0)
    without = math.log(count - 1) - torch.logsumexp(others, 1).mean(0)
    return torch.maximum(count * loss - (count - 1) * without, -log_probs.amax(0))


def period(batch_size: int, steps: int = 0, rates: int = 1) -> int:
    """Steps between two estimates, so that they take `SHARE` of the work, or up to `MOST` where there would be fewer than `LOOKS`
    of each rate: a step is three forward passes of its batch. steps: of the training."""
    work = 2 * DRAWS * ROWS / (3 * batch_size)
    return min(math.ceil(work / SHARE), max(math.ceil(work / MOST), steps // (LOOKS * rates)))


def begin(
    drop_rate: DropRate, model: BayesianNetwork, data: Data, training: Training, *, seed: int, rescale: bool = False
) -> tuple[float, list[Follower]]:
    """The keep probability that a training begins with, and what follows it to find its drop rate, where that is to be found.

    Without a validation split there is nothing to find it on: it is `FALLBACK`, and that is said. So is a training that ends
    before the first look.
    Raises ValueError, before any work, for anything else than a rate or `auto`, and for what `auto` cannot do.
    """
    if isinstance(drop_rate, Real):
        return given_keep_prob(float(drop_rate)), []
    if drop_rate not in ("auto", "auto-kind", "auto-layer"):
        raise ValueError(f"expected a drop_rate in [0, 1) or auto, auto-kind or auto-layer, got {drop_rate!r}")
    if rescale:
        raise ValueError(
            f"expected a number for drop_rate with rescale, got {drop_rate}: the pairs of one fit share one factor 1 / keep_prob"
        )
    if not len(data.validation.y):
        warnings.warn(
            f"{data.name} has no validation split to find the drop rate on: it is {FALLBACK}, as in the paper. Keep one "
            "(--validation 0.1), or give a number",
            stacklevel=3,
        )
        return effective_keep_prob(1 - FALLBACK), []
    batch_size = min(training.batch_size, len(data.train.y))
    if (first := period(batch_size, training.steps(data))) > training.steps(data):
        warnings.warn(
            f"the drop rate stays at {START}, where it begins: it is looked at every {first} steps, and there are "
            f"{training.steps(data)}. Train longer, in larger batches, or give a number",
            stacklevel=3,
        )
    found = Found(data, batch_size, training.steps(data), seed, drop_rate, model.shapes)
    found.keeps_prior = model.prior_scale is not None
    return effective_keep_prob(1 - init().rate), [found]


def shares(rule: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Of each layer which rate it has, numbered from 0."""
    of = {"auto": [0] * len(shapes), "auto-layer": list(range(len(shapes))), "auto-kind": [int(len(s) > 2) for s in shapes]}[rule]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(of))}
    return tuple(numbers[kind] for kind in of)


class Found(Follower):
    """The rate of one training, or those of its layers. data: whose validation split is looked at. batch_size: of the training;
    steps: of all of it. rule: `auto`, or by kind or layer, of which there are `shapes`: several rates are estimated in turn."""

    def __init__(
        self, data: Data, batch_size: int, steps: int, seed: int, rule: str = "auto", shapes: Sequence[tuple[int, ...]] = ((),)
    ) -> None:
        self.x, self.y = data.validation
        self.pool = min(POOL, len(self.y))
        self.chosen = some(len(self.y), POOL, own_stream(seed, CHOICE))
        self.steps, self.rule, self.of = steps, rule, shares(rule, shapes)
        self.states = [init() for _ in range(max(self.of) + 1)]
        self.every = period(batch_size, steps, len(self.states))
        self.told, self.prior = init().rate, list[float]()
        self.generator, self.seed = own_stream(seed, STREAM), seed
        self.keeps_prior = False
        """Is the prior scale the user's own? Then the decay follows the rate; else the decay stays and the prior follows."""

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Set the guide to the rates as they stand, and the model to what follows; where layers differ, from their mean."""
        each = tuple(effective_keep_prob(1 - self.states[own].rate) for own in self.of)
        before, guide.keep_prob = guide.keep_prob, each if len(self.states) > 1 else each[0]
        mean = mean_keep_prob(guide.keep_prob, guide.counts)
        self.told = 1 - mean
        self._follow(model, guide, before, mean)
        self.prior = [model.prior_scale, model.weight_decay] if model.prior_scale else []

    def _follow(self, model: BayesianNetwork, guide: MaskedGuide, before: KeepProb, mean: float) -> None:
        """Decay or prior, whichever is not the user's own."""
        if guide.keep_prob == before or not model.num_data or not model.prior_scale or not model.weight_decay:
            return
        if self.keeps_prior:
            model.weight_decay = weight_decay_of(model.prior_scale, model.num_data, mean, rescale=False)
        else:
            model.prior_scale = prior_scale_of(model.weight_decay, model.num_data, mean, rescale=False)

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Most steps do nothing. Validation rows are looked at, not the batch."""
        if taken % self.every:
            return
        number = taken // self.every % len(self.states)
        gradient = float(distributed.mean(self.gradient(model, guide, number)))
        if math.isfinite(gradient):
            self.states[number] = step(self.states[number], gradient, taken / self.steps)
            self.begin(model, guide)

    @torch.no_grad()
    def gradient(self, model: BayesianNetwork, guide: MaskedGuide, number: int = 0) -> Tensor:
        """The estimate of d loss / d phi at the guide's present values, phi that of rate `number`; the others stay."""
        device = guide.values.device
        rows = self.chosen[torch.randint(self.pool, (ROWS,), generator=self.generator)]
        x, y = to_device(self.x[rows], device), sent(self.y[rows], device)
        low, high = sides(self.states[number].phi)
        shared = groups(guide.positions, guide.shapes, guide.mask)
        count = len(guide.values) if shared is None else shared[1]
        logs: list[list[Tensor]] = [[], []]
        with batchnorm.by_the_batch(model) as norms:
            for _ in range(DRAWS):
                uniform = sent(torch.rand(count, generator=self.generator), device)  # on the CPU: the same wherever the fit is
                for side, angle in enumerate((low, high)):
                    rates = tuple(math.sin(angle if own == number else self.states[own].phi) ** 2 for own in self.of)
                    keep = uniform >= self._each(rates, guide, shared)
                    weights = guide.placed(guide.values * (keep if shared is None else keep[shared[0]]))
                    # No buffer is written: the norms are given copies.
                    logs[side].append(log_likelihood(model, weights, x, y, copied(model.state_dict()) if norms else None))
        below, above = (loss_of(torch.stack(side).double()).mean() for side in logs)
        return (above - below) / (high - low)

    def _each(self, rates: tuple[float, ...], guide: MaskedGuide, shared: tuple[Tensor, int] | None) -> float | Tensor:
        """Of the layers' rates, that of each Z: one number where there is one."""
        if len(self.states) == 1:
            return rates[0]
        each = per_weight(rates, guide.counts, guide.positions.device)
        assert isinstance(each, Tensor)
        return each if shared is None else each.new_ones(shared[1]).index_copy(0, shared[0], each)

    def bundle(self) -> Bundle:
        """What the next estimate depends on."""
        facts = {"drop_rate": [*map(list, self.states)], "drop_rate.told": self.told, "drop_rate.prior": self.prior,
                 "drop_rate.every": self.every}  # fmt: skip
        return Bundle({"drop_rate.stream": self.generator.get_state()}, facts)

    def asked(self) -> dict[str, Any]:
        return {"drop_rate": self.rule}

    def row(self) -> dict[str, float]:
        return {"drop_rate": self.told}

    def end(self, fit: Fit, data: Data) -> None:
        looked = fit.history[-1]["step"] // self.every * 2 * DRAWS * ROWS
        followed = 1 - mean_keep_prob(fit.keep_prob, fit.topology.counts)
        phis = [self.states[own].phi for own in self.of] if len(self.states) > 1 else [self.states[0].phi]
        rows, passes = last_look.look(fit, data, phis, own_stream(self.seed, CHOICE)) if looked else (0, 0)
        found = 1 - mean_keep_prob(fit.keep_prob, fit.topology.counts)
        own = {"rule": self.rule, "validation_rows": max(self.pool, rows), "followed": followed, "found": found,
               "forward_examples": looked + passes}  # fmt: skip
        if isinstance(fit.keep_prob, tuple):
            own["by_layer"] = [1 - each for each in fit.keep_prob]
        fit.record["drop_rate"] = own

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.states = [State(phi, mean, square, int(taken)) for phi, mean, square, taken in saved.facts["drop_rate"]]
        self.every = saved.facts.get("drop_rate.every", self.every)
        self.generator.set_state(saved.tensors["drop_rate.stream"])
        self.begin(model, guide)
        # A topology that has moved since has another mean rate, which the unbroken run learns of at its next estimate.
        self.told, self.prior = saved.facts.get("drop_rate.told", self.told), saved.facts.get("drop_rate.prior", self.prior)
        if self.prior:
            model.prior_scale, model.weight_decay = self.prior


def log_likelihood(model: BayesianNetwork, weights: Tensor, x: Any, y: Tensor, state: Mapping[str, Tensor] | None) -> Tensor:
    """log p(y_i | x_i, w), `(n,)`, of any likelihood; state: buffers and other parameters, the network's own where None."""
    outcome = model.outcome(weights, x, state)
    found: Tensor = outcome.log_prob(matched(y, outcome))
    return found.flatten(1).sum(1) if found.dim() > 1 else found
