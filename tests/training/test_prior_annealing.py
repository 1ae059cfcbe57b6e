"""The annealed mixture prior: its stages by hand, its noise against an exact posterior, and resumed (module annealing)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from digits import digits, mlp
from espalier import shelf
from espalier.distributions.priors import MixtureNormal
from espalier.guides.masked import MaskedGuide
from espalier.likelihoods import Normal
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.prediction.prior import of_fit
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.annealing import Annealing, Noise, PriorAnnealing, spikes_that_suit
from espalier.training.loop import Loop
from espalier.training.options import Training
from espalier.training.rates import constant, cosine
from espalier.training.watch import Watches
from watches import Killed, killed_and_resumed

PAPER = Annealing((math.sqrt(1.5e-5), math.sqrt(1.5e-6)), 0.01, 1 / 2, 2 / 3, 3 / 4)


def test_the_stages_are_the_papers() -> None:
    """Epochs 150, 200 and 225 of 300, of 4 steps each: no prior; eta to 1; the variance to a tenth; the temperature as 1 / e."""
    found = {epoch: PAPER.at(4 * epoch, 1200, 4) for epoch in (1, 150, 175, 200, 212.5, 225, 226, 235, 300)}
    variance = {epoch: annealed.spike_scale**2 for epoch, annealed in found.items()}
    assert [found[e].eta for e in (1, 150, 175, 200, 300)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [variance[e] for e in (175, 200, 212.5, 225, 300)] == pytest.approx([1.5e-5, 1.5e-5, 8.25e-6, 1.5e-6, 1.5e-6])
    temperatures = [found[e].temperature for e in (150, 175, 225, 226, 235, 300)]
    assert temperatures == pytest.approx([0, 0.01, 0.01, 0.01, 0.001, 0.01 / 75])


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_at_temperature_one_the_draws_are_the_posteriors(momentum: float) -> None:
    """A thousand weights with the same data under a prior of two scales, so a thousand chains: their last mean and second moment
    against quadrature."""
    lam, slab, spike, n, chains = 0.5, 1.0, 0.4, 6, 1000
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=stream)
    y = 0.5 * x[:, 0] + torch.randn(n, generator=stream)

    def joint(w: float) -> float:
        prior = lam * stats.norm.pdf(w, 0, slab) + (1 - lam) * stats.norm.pdf(w, 0, spike)
        return float(prior * np.exp(-0.5 * np.sum((y.numpy() - w * x[:, 0].numpy()) ** 2)))

    whole, first, second = (integrate.quad(lambda w, k=k: w**k * joint(w), -4, 4, limit=300)[0] for k in range(3))
    likelihood = Normal(learn=False)
    model = BayesianNetwork(nn.Linear(1, chains, bias=False), likelihood=likelihood, num_data=n)
    guide = MaskedGuide(model, initial(model.shapes, 0.0))
    steps, rate = 500, constant(0.01)
    follower = PriorAnnealing(
        Annealing((spike, spike), 1.0, 0.0, 0.0, 1.0), lam, slab, rate=rate, momentum=momentum, generator=stream, steps=steps,
        per_epoch=steps, num_data=n,
    )  # fmt: skip
    loop = Loop(model, guide, schedules.static(), rate, momentum=momentum, followers=[follower])
    for _ in range(steps):
        loop.step(x, y.unsqueeze(1).expand(n, chains))
    values = guide.values.detach().double().numpy()
    for power, exact in ((1, first / whole), (2, second / whole)):
        error = (values**power).std(ddof=1) / math.sqrt(chains)
        assert abs((values**power).mean() - exact) < 4 * error
        assert error < 0.15 * abs(exact)


OPTIONS = {"slab_probability": 1e-3, "spike_from": 0.05, "spike_to": 0.02, "refit_epochs": 2, "temperature": 0.1}


def trained(watch: Watches = None, **options: Any) -> Fit:
    training = Training(epochs=6, batch_size=32, learning_rate=0.1, device="cpu")
    infer = shelf.load("inference", "sghmc")
    return infer(mlp(), digits(), training=training, seed=1, watch=watch, average_from=0.5, **{**OPTIONS, **options})


def test_what_is_left_is_what_the_slab_is_likelier_for() -> None:
    whole, fit = trained(refit_epochs=0), trained()
    prior = MixtureNormal(1e-3, 0.2, 0.02, whole.topology.num_weights)
    last = whole.pairs.values[-1]
    kept = (prior.slab_probability(last) > 0.5).nonzero().flatten()
    assert 0.05 < len(kept) / len(last) < 0.9
    assert torch.equal(fit.topology.positions, kept)
    assert fit.record["selected"] == whole.record["selected"] == len(kept)
    assert len(fit.pairs.values) == 2
    assert fit.record["prior_scale"] == pytest.approx(0.2)
    assert whole.record["prior"] == {"lam": 1e-3, "slab_scale": 0.2, "spike_scale": pytest.approx(0.02)}
    assert [row["eta"] for row in whole.history][:3] == pytest.approx([0, 0, 0.1])  # of the step that follows
    weights = next(of_fit(whole, draws=1))
    assert float((weights.abs() < 0.1).double().mean()) > 0.99  # the mixture's, not the decay's prior


def test_at_a_sparsity_the_likeliest_are_kept() -> None:
    whole, fit = trained(refit_epochs=0), trained(sparsity=0.95)
    size = whole.pairs.values[-1].abs()
    count = round(0.05 * whole.topology.num_weights)
    assert fit.topology.num_active == count
    assert fit.record["selected"] == whole.record["selected"] > 2 * count  # what the prior takes for the slab's, still said
    assert float(size[fit.topology.positions].min()) >= float(size.sort(descending=True).values[count + 4])
    with pytest.raises(ValueError, match="expected sgd, refit_epochs of 0 or more, 1 with a sparsity, got sgd, 0"):
        trained(sparsity=0.5, refit_epochs=0)
    with pytest.raises(ValueError, match="lower the sparsity"):
        trained(sparsity=0.99999)


def test_noise_is_what_draws_differ_by() -> None:
    still, noisy = trained(temperature=0.0, refit_temperature=0.0), trained(refit_temperature=1.0)
    again = trained(temperature=0.0, refit_temperature=0.0)
    assert torch.equal(still.pairs.values, again.pairs.values)
    assert not torch.equal(still.pairs.values, noisy.pairs.values[:, : still.pairs.values.shape[1]])


@pytest.mark.parametrize("step", [7, 47, 63])
def test_killed_in_either_training_it_resumes_bit_for_bit(step: int, tmp_path: Path) -> None:
    fit = trained()
    again = killed_and_resumed(trained, tmp_path, step)
    assert again.history == fit.history
    assert again.record == fit.record
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_what_cannot_be_annealed_is_refused_before_any_work() -> None:
    for options, said in (
        ({"prior_from": 0.8}, "expected stages in order"),
        ({"spike_to": 0.1}, "expected a spike that narrows"),
        ({"temperature": -1.0}, "expected a temperature of 0 or more"),
        ({"slab_scale": 0.01}, "expected a probability of the slab in"),
        ({"refit_epochs": -1}, "expected sgd, refit_epochs of 0 or more, 1 with a sparsity"),
        ({"refit_temperature": -0.1}, "expected a temperature of 0 or more"),
        ({"spike_to": 1e-3}, "expected a spike that steps at this learning_rate can follow, .* at 320 examples widen them 3.7"),
    ):
        with pytest.raises(ValueError, match=said):
            trained(watch=Killed(step=1), **options)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_swing_in_a_spike_just_where_it_is_refused(momentum: float) -> None:
    """A weight in a parabola of curvature c under torch's own SGD, at rates a little below and above the bound."""
    most = 2 * (1 + momentum)
    ends = []
    for factor in (0.97, 1.03):
        w = torch.tensor([1.0], requires_grad=True)
        optimizer = torch.optim.SGD([w], factor * most, momentum=momentum)
        for _ in range(400):
            optimizer.zero_grad()
            (0.5 * w.square()).sum().backward()
            optimizer.step()
        ends.append(abs(float(w.detach())))
    assert ends[0] < 1
    assert not ends[1] <= 1  # or no number any more


def test_auto_is_as_narrow_as_steps_can_follow() -> None:
    first, last = spikes_that_suit(Training(epochs=10, batch_size=32, learning_rate=0.2), digits(), 0.75)
    assert cosine(0.2, 100)(76) / (320 * last**2) == pytest.approx(0.25)
    assert first**2 == pytest.approx(10 * last**2)
    fit = trained(spike_from="auto", spike_to="auto", refit_epochs=0)
    assert fit.record["prior"]["spike_scale"] == pytest.approx(math.sqrt(4 * cosine(0.1, 60)(46) / 320))


def test_a_prior_that_leaves_a_layer_empty_says_so() -> None:
    with pytest.raises(ValueError, match="expected weights in every layer, but of layer . none is left"):
        trained(slab_probability=1e-12, spike_from=1e3, spike_to=1e2, slab_scale=1e4)


def test_noise_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match="got -1"):
        Noise(-1.0, 0.9, constant(0.1), torch.Generator())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_draws_at_large_steps_are_as_wide_as_the_discretisation_is(momentum: float) -> None:
    """Two thousand weights in one parabola, rate times curvature 1/4: the posterior's variance over 1 - a h / 2 (1 + m), exactly
    (the stationary covariance of the steps). With Nesterov's momentum it would be half of the posterior's."""
    chains, noise, scale = 2000, 0.5, 0.7
    likelihood = Normal(noise**-2, learn=False)
    model = BayesianNetwork(nn.Linear(1, chains, bias=False), likelihood=likelihood, prior_scale=scale, num_data=4)
    x, curvature = torch.ones(4, 1), 1 / noise**2 + 1 / (4 * scale**2)  # of the mean loss, per weight
    guide, rate = MaskedGuide(model, initial(model.shapes, 0.0)), constant(0.25 / curvature)
    follower = Noise(1.0, momentum, rate, torch.Generator().manual_seed(1))
    loop = Loop(model, guide, schedules.static(), rate, momentum=momentum, followers=[follower])
    seen = []
    for step in range(240):
        loop.step(x, torch.zeros(4, chains))
        if step >= 120 and step % 30 == 0:
            seen.append(guide.values.detach().double())
    found, exact = torch.cat(seen).var().item(), 1 / (4 * curvature) / (1 - 0.25 / (2 * (1 + momentum)))
    assert found == pytest.approx(exact, rel=4 * math.sqrt(2 / len(torch.cat(seen))))
