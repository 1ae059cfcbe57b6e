"""Claims about who teaches: the draws of each fit have its mean and spread, several take even turns, and a batch has parts."""

from __future__ import annotations

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import Pair, Pairs
from espalier.topology.masks import initial
from espalier.training.distillation import distill
from espalier.training.options import Training
from espalier.training.student import Student
from espalier.training.teachers import Teacher, Teachers, cross_entropy, joined
from toys import net, toy

pytestmark = pytest.mark.usefixtures("float64", "own_store")
DRAWS = 4000


def fit_of(pairs: int = 3, keep_prob: float = 1.0, scales: bool = False, seed: int = 7, module: nn.Module | None = None,
           model: BayesianNetwork | None = None) -> Fit:  # fmt: skip
    """Pairs that differ in everything, of half the weights."""
    model, stream = model or BayesianNetwork(module or net()), torch.Generator().manual_seed(seed)
    topology, found = initial(model.shapes, 0.5, "uniform", generator=stream), []
    for _ in range(pairs):
        state = {name: t + 0.3 * torch.randn(t.shape, generator=stream) for name, t in model.state_dict().items()}
        u, scale = (torch.randn(topology.num_active, generator=stream) for _ in range(2))
        keep = torch.rand(u.shape, generator=stream) < keep_prob
        found.append(Pair(u, keep, state, 0.1 + scale.abs() if scales else None))
    record = {"task": "classification"}
    return Fit(model, topology, Pairs.of(found), keep_prob=keep_prob, rescale=False, record=record, history=[])


def probs(outcome: dist.TorchDistribution) -> Tensor:
    return outcome.logits.softmax(-1)


def is_near(draws: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Within 4.5 standard errors of the mean, entry by entry; the variance too, under its own for a law with these moments."""
    error = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() <= 4.5 * error + 1e-12).all()
    fourth = (draws - mean).pow(4).mean(0)
    assert ((draws.var(0) - variance).abs() <= 4.5 * ((fourth - variance**2).clamp(min=0) / len(draws)).sqrt() + 1e-12).all()


def test_of_a_mean_field_the_draws_are_the_mixture_of_its_pairs() -> None:
    fit, stream = fit_of(scales=True), torch.Generator().manual_seed(0)
    draws = torch.stack([Teacher(fit).draw(stream)[0] for _ in range(DRAWS)])
    assert fit.pairs.scales is not None
    variance = fit.pairs.scales.square().mean(0) + fit.pairs.values.var(0, correction=0)
    is_near(draws, fit.pairs.values.mean(0), variance)


def test_of_a_chain_they_are_its_states_evenly_each_with_its_own_biases() -> None:
    fit, stream = fit_of(), torch.Generator().manual_seed(0)
    counts = [0, 0, 0]
    for _ in range(900):
        values, state = Teacher(fit).draw(stream)
        place = next(index for index in range(3) if torch.equal(values, fit.pairs.values[index]))
        assert all(torch.equal(tensor, fit.pairs.state(place)[name]) for name, tensor in state.items())
        counts[place] += 1
    assert max(abs(count - 300) for count in counts) < 4.5 * math.sqrt(900 * 2 / 9)


def test_of_masks_what_they_say_is_the_mean_over_all_of_these() -> None:
    """The mean prediction of one row, by enumeration of the masks of a layer (the other's are always kept)."""
    fit = fit_of(keep_prob=0.625, module=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)))
    fit.model = fit.model.with_maskable(["0.weight"])
    topology = initial(fit.model.shapes, 0.5, "uniform", generator=torch.Generator().manual_seed(1))
    stream, rows, wanted = torch.Generator().manual_seed(2), toy().train.x[:2], torch.zeros(2, 3)
    states = [{name: t + 0.1 * index for name, t in fit.model.state_dict().items()} for index in range(2)]
    pairs = [Pair(torch.randn(6, generator=stream), torch.ones(6, dtype=torch.bool), state) for state in states]
    fit = Fit(fit.model, topology, Pairs.of(pairs), keep_prob=0.625, rescale=False, record={"task": "classification"}, history=[])
    teacher = Teacher(fit)
    for bits in itertools.product((0.0, 1.0), repeat=6):
        z = torch.tensor(bits)
        chance = 0.625 ** float(z.sum()) * 0.375 ** float(6 - z.sum())
        wanted += chance * probs(fit.model.outcome(fit.dense(teacher.values * z), rows, teacher.state)).detach()
    told = torch.stack([probs(teacher.says(rows, stream)) for _ in range(DRAWS)])
    assert ((told.mean(0) - wanted).abs() <= 4.5 * told.std(0) / math.sqrt(DRAWS)).all()


def test_several_take_even_turns_for_every_part_of_a_batch() -> None:
    """The mean is an ensemble's; what one says of a part is what it says alone."""
    wide = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 3))
    fits = [fit_of(1, seed=1), fit_of(1, seed=2, module=wide)]
    rows, stream = toy().train.x[:5], torch.Generator().manual_seed(0)
    alone = [probs(Teacher(fit).says(rows, stream)) for fit in fits]
    teachers, firsts = Teachers(fits, microbatches=2), 0
    for _ in range(400):
        told = probs(teachers.says(rows, stream))
        parts = slice(0, 2), slice(2, 5)
        who = [[torch.allclose(told[part], own[part], rtol=0, atol=1e-12) for own in alone] for part in parts]
        assert sorted(who) == [[False, True], [True, False]]
        firsts += who[0][0]
    assert abs(firsts - 200) < 4.5 * math.sqrt(400 / 4)


def test_they_are_measured_by_as_many_draws_of_each() -> None:
    fits = [fit_of(1, seed=seed) for seed in (1, 2, 3)]
    rows = toy().train.x[:5]
    alone = [probs(Teacher(fit).plainly(rows)) for fit in fits]
    told = [next(place for place, own in enumerate(alone) if torch.equal(own, probs(one))) for one in Teachers(fits).each(rows)]
    assert sorted(told) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_of_networks_without_masks_disagreement_is_that_of_all_of_them() -> None:
    """Two networks, and a chain of five states of which it takes four from end to end."""
    fits = [fit_of(1, seed=1), fit_of(5, seed=2)]
    for fit in fits:
        fit.record |= {"shape": [3], "num_outputs": 3, "target": (0.0, 1.0)}
    rows = toy().train.x
    teachers = Teachers(fits)
    found = teachers.probs(rows)
    assert not teachers.sampled
    assert torch.equal(found[:4], fits[0].predict(rows, "pairs").expand(4, -1, -1))
    assert torch.equal(found[4:], fits[1].predict(rows, "pairs")[[0, 1, 2, 3]])
    assert Teachers([*fits, fit_of(2, keep_prob=0.5)]).sampled


def test_a_precision_of_several_is_that_of_their_even_mixture() -> None:
    """Moment matching: the mean over both of (f - f_t)^2 + 1 / tau_t."""
    fits = []
    for seed, log_precision in ((1, 0.0), (2, 4.0)):
        fits.append(regression(seed, log_precision))
    rows = toy().train.x
    student = Student(fits[0].model, *Teacher(fits[0]).ticket(), lambda _: 0.0)
    student.match_precision([*Teachers(fits).each(rows)], rows, fits[0].dense)
    means = [fit.model.evaluate(fit.dense(fit.pairs.values[0]), rows, fit.pairs.state(0)).squeeze(-1) for fit in fits]
    wanted = (1 + math.exp(-4.0) + (means[0] - means[1]).square().mean()) / 2
    assert float(student.own["likelihood.log_precision"].detach()) == pytest.approx(-math.log(float(wanted)), rel=1e-9)


def regression(seed: int, log_precision: float, likelihood: object = "normal") -> Fit:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), likelihood=likelihood)
    fit = fit_of(1, seed=seed, model=model)
    if "likelihood.log_precision" in fit.pairs.states:
        fit.pairs.states["likelihood.log_precision"].fill_(log_precision)
    return fit


@pytest.mark.parametrize(("likelihood", "sentence"), [
    (lambda out: dist.StudentT(4.0, out.squeeze(-1), 1.0), "expected a categorical, Bernoulli or normal .* got StudentT"),
    (lambda out: dist.Normal(out, 1.0).to_event(1), r"Normal of shape \(2,\), but run 2 has Normal of shape \(2, 1\)"),
    (lambda out: dist.Bernoulli(logits=out.squeeze(-1)), "but run 2 has Bernoulli"),
], ids=["unknown", "shape", "kind"])  # fmt: skip
def test_teachers_of_another_kind_are_refused_before_any_work(likelihood, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Teachers([regression(1, 0.0), regression(2, 0.0, likelihood)]).check(toy().train.x[:2])


def test_one_that_has_nothing_to_disagree_about_is_said_to_be_one() -> None:
    assert not Teachers([fit_of(1)]).differ
    assert Teachers([fit_of(2)]).differ
    assert Teachers([fit_of(1, scales=True)]).differ
    assert Teachers([fit_of(1, keep_prob=0.5)]).differ
    assert Teachers([fit_of(1), fit_of(1, seed=8)]).differ


@pytest.mark.parametrize("make", [
    lambda x: dist.Categorical(logits=x), lambda x: dist.Bernoulli(logits=x), lambda x: dist.Normal(x, x.exp()),
    lambda x: dist.Normal(x, torch.tensor(0.7)).to_event(1),
], ids=["labels", "bits", "normal", "one scale"])  # fmt: skip
def test_outcomes_are_joined_row_by_row(make) -> None:
    x, y = torch.randn(5, 3), torch.ones(5)
    whole, parts = make(x), joined([make(x[:2]), make(x[2:])])
    y = y.unsqueeze(-1).expand(5, 3) if not isinstance(whole, dist.Categorical) else y
    of_whole = whole.log_prob(y)
    found = parts.log_prob(y)
    assert torch.allclose(found if found.shape == of_whole.shape else found.sum(-1), of_whole)


def test_a_student_of_two_comes_nearer_to_their_mixture_than_either_is() -> None:
    """Cross-entropy to the even mixture, at the rows that it learned from."""
    data = toy(64)
    fits = [fit_of(1, seed=1), fit_of(1, seed=2)]
    for fit in fits:
        fit.record |= {"shape": [3], "num_outputs": 3, "target": (0.0, 1.0)}
        fit.history = [{"epoch": 1, "step": 5}]
    rows = data.train.x
    alone = [fit.predict(rows, "unmasked")[0] for fit in fits]
    mixture = (alone[0] + alone[1]) / 2

    def far(p: Tensor) -> float:
        return float(-(mixture * p.clamp(min=1e-30).log()).sum(-1).mean())

    distill(fits[0], data, training=Training(batch_size=16, device="cpu"), seed=0, epochs=60, learning_rate=0.05, others=fits[1:])
    assert far(fits[0].predict(rows, "distilled")[0]) < min(map(far, alone)) - 0.02
    assert fits[1].student is None


def test_a_class_that_is_ruled_out_costs_nothing() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.5]], requires_grad=True)
    told = dist.Categorical(logits=torch.tensor([[0.2, -torch.inf, 0.1]]))
    loss = cross_entropy(told, dist.Categorical(logits=logits))
    expected = cross_entropy(dist.Categorical(logits=told.logits[:, [0, 2]]), dist.Categorical(logits=logits[:, [0, 2]]))
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
