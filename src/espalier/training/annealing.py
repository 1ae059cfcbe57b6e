"""What a training changes of its prior as it goes: the KL's factor, rising from 0 (early steps fit, later ones are held to the
prior as well, Bowman et al. 2016); or a mixture prior whose spike narrows, under noise that dies away (Sun, Xiong & Liang 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from espalier.contracts import Data, Topology
from espalier.distributions.priors import MixtureNormal
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.store import Bundle
from espalier.topology.masks import global_topology, restricted
from espalier.training.options import Training
from espalier.training.rates import Rate


class KLWarmup(Follower):
    """kl_scale * min(1, t / rise) at step t: linear over the fraction `warmup` of `steps`, then the guide's own.

    Raises ValueError for a warmup outside [0, 1].
    """

    def __init__(self, warmup: float, steps: int) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"expected a kl_warmup in [0, 1], a fraction of training, got {warmup:g}")
        self.warmup, self.rise = warmup, max(1.0, warmup * steps)
        self.full = self.now = float("nan")

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.full = guide.kl_scale
        self._ready(0, guide)

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self._ready(taken, guide)

    def _ready(self, taken: int, guide: MaskedGuide) -> None:
        """For step taken + 1."""
        guide.kl_scale = self.now = self.full * min(1.0, (taken + 1) / self.rise)

    def asked(self) -> Mapping[str, Any]:
        return {"kl_warmup": self.warmup}

    def row(self) -> Mapping[str, float]:
        return {"kl_scale": self.now}

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self._ready(saved.facts["step"], guide)

    def end(self, fit: Fit, data: Data) -> None:
        fit.record["kl_warmup"] = self.warmup


class Annealed(NamedTuple):
    """Where a step stands: eta, the factor of the mixture prior, 0 before there is one; the spike's standard deviation; and the
    temperature in units of 1 / N."""

    eta: float
    spike_scale: float
    temperature: float


class Annealing(NamedTuple):
    """The stages of one training, by fractions of it: no prior but weight decay; from `begins` the mixture, its factor rising to
    1 at `whole`, under noise; then the spike's variance falls linearly from that of the first of `spike_scales` to that of the
    second, at `final`; then the temperature falls as one over the epochs since."""

    spike_scales: tuple[float, ...]
    temperature: float
    begins: float
    whole: float
    final: float

    def at(self, step: int, steps: int, per_epoch: int) -> Annealed:
        """Of step `step` of `steps`, counted from 1."""
        begins, whole, final = (round(fraction * steps) for fraction in self[2:])
        if step <= begins:
            return Annealed(0.0, self.spike_scales[0], 0.0)
        eta = min(1.0, (step - begins) / max(1, whole - begins))
        share = min(1.0, max(0.0, (step - whole) / max(1, final - whole)))
        first, last = (scale**2 for scale in self.spike_scales)
        cooled = max(1, math.ceil((step - final) / per_epoch))
        return Annealed(eta, math.sqrt(first + (last - first) * share), self.temperature / cooled)


def steepness(stages: Annealing, rate: Rate, step: int, steps: int, per_epoch: int, num_data: int) -> float:
    """rate * curvature of the spike per example, eta / N s^2: SGD with momentum m converges in a parabola where this is below
    2 (1 + m) (Polyak 1964)."""
    at = stages.at(step, steps, per_epoch)
    return rate(step) * at.eta / (num_data * at.spike_scale**2)


def spikes_that_suit(training: Training, data: Data, final: float) -> tuple[float, float]:
    """Standard deviations of the spike at first and at last: at last rate / N s^2 = 1/4 at the largest rate after the fraction
    `final` of training; at first ten times that variance, as in the paper."""
    steps = training.steps(data)
    rates = map(training.learning_rates(steps), range(min(steps, int(final * steps) + 1), steps + 1))
    last = math.sqrt(4 * max(rates) / len(data.train.y))
    return math.sqrt(10) * last, last


def survivors(model: BayesianNetwork, fit: Fit, sparsity: float | None = None) -> tuple[Topology, int]:
    """The weights of a dense fit's last pair that are likelier the slab's than the spike's, and how many these are; with a
    sparsity the likeliest of all, as many as that leaves, whose order is that of |w|.

    Raises ValueError where a layer is left without any, for a sparsity that leaves too few, and where a watch ended the training
    before there was a mixture.
    """
    if model.mixture is None:
        step = fit.history[-1]["step"]
        raise ValueError(f"expected a training that reaches its mixture prior, but it was ended at step {step}")
    values, threshold = fit.pairs.values[-1], model.prior().threshold
    likelier = values.abs() > threshold
    if sparsity is None:
        return restricted(fit.topology, likelier), int(likelier.sum())
    return global_topology(model.shapes, round((1 - sparsity) * model.num_weights), values), int(likelier.sum())


class Noise(Follower):
    """Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin 2014): SGD with plain momentum m and rate a is its
    discretisation where the gradient of the mean loss has noise N(0, 2 (1 - m) T / a), T the temperature over N. (Nesterov's
    has a friction of its own, of order m a times the curvature, so that its draws would be too narrow.)

    At temperature 1 the draws are the posterior's, up to the noise of batches and the size of steps: in a parabola of curvature h
    their variance is 1 / (1 - a h / 2 (1 + m)) of it. The guide's values have it; point estimates have no prior, and stay such.
    Raises ValueError for a temperature below 0.
    """

    nesterov = False

    def __init__(self, temperature: float, momentum: float, rate: Rate, generator: torch.Generator) -> None:
        if not 0 <= temperature < math.inf:
            raise ValueError(f"expected a temperature of 0 or more, in units of the posterior's, got {temperature:g}")
        self.temperature, self.momentum, self.rate, self.generator = temperature, momentum, rate, generator

    def asked(self) -> Mapping[str, Any]:
        return {"temperature": self.temperature}

    def before(self, taken: int, x: Any, y: Tensor, model: BayesianNetwork, guide: MaskedGuide) -> None:
        values = guide.values
        if self.temperature and values.grad is not None:
            temperature = self.temperature / (model.num_data or len(y))
            size = math.sqrt(2 * (1 - self.momentum) * temperature / self.rate(taken)) if self.rate(taken) else 0.0
            noise = torch.randn(values.shape, generator=self.generator, dtype=values.dtype, device=values.device)
            values.grad.add_(noise, alpha=size)

    def end(self, fit: Fit, data: Data) -> None:
        fit.record["temperature"] = self.temperature


class PriorAnnealing(Noise):
    """A mixture prior in its stages, under noise. lam: probability of the slab.

    Raises ValueError for stages that are out of order, a spike that widens, one too narrow for the steps, and what a
    `MixtureNormal` cannot be.
    """

    def __init__(
        self, stages: Annealing, lam: float, slab_scale: float, *, momentum: float, rate: Rate, generator: torch.Generator,
        steps: int, per_epoch: int, num_data: int,
    ) -> None:  # fmt: skip
        if not 0 <= stages.begins <= stages.whole <= stages.final <= 1:
            raise ValueError(f"expected stages in order within [0, 1], got {stages.begins}, {stages.whole}, {stages.final}")
        if not stages.spike_scales[0] >= stages.spike_scales[1]:
            raise ValueError("expected a spike that narrows, got standard deviations {:g} to {:g}".format(*stages.spike_scales))
        super().__init__(stages.temperature, momentum, rate, generator)
        self.stages, self.lam, self.slab_scale, self.steps, self.per_epoch = stages, lam, slab_scale, steps, per_epoch
        for spike_scale in stages.spike_scales:
            MixtureNormal(lam, slab_scale, spike_scale, 1)
        steepest = max(steepness(stages, rate, step, steps, per_epoch, num_data) for step in range(1, steps + 1))
        most = 2 * (1 + momentum)
        if steepest > most:
            raise ValueError(
                "expected a spike that steps at this learning_rate can follow, got standard deviations "
                f"{stages.spike_scales[0]:g} to {stages.spike_scales[1]:g}, in which they would swing: at {num_data} examples "
                f"widen them {math.sqrt(steepest / most):.2g} times, or lower the rate"
            )
        self.now, self.slab = stages.at(1, steps, per_epoch), float("nan")

    @classmethod
    def of(
        cls, training: Training, data: Data, stages: Annealing, lam: float, slab_scale: float, generator: torch.Generator
    ) -> PriorAnnealing:
        """That of a training."""
        steps, per_epoch = training.steps(data), training.steps_per_epoch(data)
        return cls(
            stages, lam, slab_scale, momentum=training.momentum, rate=training.learning_rates(steps), generator=generator,
            steps=steps, per_epoch=per_epoch, num_data=len(data.train.y),
        )  # fmt: skip

    def asked(self) -> Mapping[str, Any]:
        own = {"slab_probability": self.lam, "slab_scale": self.slab_scale}
        return own | {name: list(value) if isinstance(value, tuple) else value for name, value in self.stages._asdict().items()}

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self._ready(0, model, guide)

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self._ready(taken, model, guide)

    def _ready(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """For step taken + 1."""
        self.now = self.stages.at(taken + 1, self.steps, self.per_epoch)
        self.temperature = self.now.temperature
        prior = MixtureNormal(self.lam, self.slab_scale, self.now.spike_scale, model.num_weights, model.initial)
        model.mixture, guide.kl_scale = (prior, self.now.eta) if self.now.eta else (None, 1.0)
        if taken % self.per_epoch == 0:
            self.slab = float((prior.slab_probability(guide.values.detach()) > 0.5).double().mean())

    def row(self) -> Mapping[str, float]:
        """As the next step has them. slab: the share of weights that the prior of the moment takes for the slab's."""
        return {**self.now._asdict(), "slab": self.slab}

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self._ready(saved.facts["step"], model, guide)

    def end(self, fit: Fit, data: Data) -> None:
        fit.record |= {"temperature": self.stages.temperature, "kl_scale": 1.0, "stages": list(self.stages[2:])}
        if fit.model.mixture is not None:
            names = ("lam", "slab_scale", "spike_scale")
            fit.record["prior"] = {name: getattr(fit.model.mixture, name) for name in names}
