"""Distillation: the posterior predictive taught to one network; in plain float64 torch, and by enumeration of masks."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate
from torch import Tensor, nn

from espalier.contracts import Split
from espalier.inference import distilled
from espalier.network import BayesianNetwork
from espalier.prediction.fit import WAYS, Fit
from espalier.prediction.pairs import Pair, Pairs
from espalier.prediction.predict import outcome_of
from espalier.store import Bundle
from espalier.topology.masks import initial
from espalier.training import Training
from espalier.training.distillation import STREAM
from espalier.training.streams import Streams
from espalier.training.teachers import Teacher, cross_entropy
from rounding import close
from taught import Replay, logits_of, masked_fit, once, student_of, z_of
from toys import BATCH, CPU, P, net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", ["weight", "unit"])
@pytest.mark.parametrize("rescale", [False, True])
def test_one_step_of_distillation_has_the_gradient_of_the_cross_entropy(mask: str, rescale: bool) -> None:
    fit = masked_fit(mask=mask, rescale=rescale)
    replay, x = Replay(fit), toy().train.x
    loss = replay.loss(x, replay.target(x, z_of(fit, Streams([5, STREAM], CPU).mask)))
    gradients = torch.autograd.grad(loss, replay.student)
    once(fit, toy())
    for after, before, gradient in zip(student_of(fit), replay.student, gradients, strict=True):
        assert gradient.abs().max() > 1e-4
        close(after, before - 0.1 * (1 + 0.9) * gradient)  # the first step of Nesterov's momentum
    assert fit.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("parts", "masks"), [(2, 1), (1, 3), (2, 3)])
def test_each_part_of_a_batch_is_told_of_under_masks_of_its_own(parts: int, masks: int) -> None:
    fit = masked_fit()
    replay, streams = Replay(fit), Streams([5, STREAM], CPU)
    x = toy().train.x[torch.randperm(BATCH, generator=streams.order)]
    told = [torch.cat([replay.target(part, z_of(fit, streams.mask)) for part in x.chunk(parts)]) for _ in range(masks)]
    loss = replay.loss(x, sum(told) / masks)
    gradients = torch.autograd.grad(loss, replay.student)
    once(fit, toy(), microbatches=parts, masks=masks)
    for after, before, gradient in zip(student_of(fit), replay.student, gradients, strict=True):
        close(after, before - 0.1 * (1 + 0.9) * gradient)
    assert fit.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", ["weight", "unit"])
def test_distillation_is_nesterov_s_sgd_on_that_loss_under_a_cosine(mask: str) -> None:
    fit, data, epochs, rate = masked_fit(mask=mask), toy(5 * BATCH + 3), 4, 0.2
    replay, streams = Replay(fit), Streams([5, STREAM], CPU)
    optimiser = torch.optim.SGD(replay.student, lr=1.0, momentum=0.9, nesterov=True)
    losses, taken, steps = [], 0, 20
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.y), generator=streams.order).split(BATCH)[:5]:
            x = data.train.x[rows]
            loss = replay.loss(x, replay.target(x, z_of(fit, streams.mask)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * taken / steps))
            optimiser.step()
            losses.append(float(loss.detach()))
            taken += 1
    once(fit, data, rate, epochs=epochs)
    for mine, theirs in zip(student_of(fit), replay.student, strict=True):
        close(mine, theirs)
    assert [row["epoch"] for row in fit.history] == [1, 2, 3, 4, 5]  # on from its training
    assert [row["step"] for row in fit.history] == [5, 10, 15, 20, 25]
    for number, row in enumerate(fit.history[1:]):
        assert row["loss"] == pytest.approx(sum(losses[5 * number : 5 * number + 5]) / 5, rel=1e-10)
    facts = {name: fact for name, fact in fit.record["distilled"].items() if name != "information"}
    assert facts == {"epochs": 4, "learning_rate": 0.2, "masks": 1, "loss": fit.history[-1]["loss"], "steps": 20,
                     "num_teachers": 1, "temperature": 1.0}  # fmt: skip


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rescale", [False, True])
def test_one_draw_of_z_is_unbiased(rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over all 2^6 masks, the step is that towards the averaged teacher: cross-entropy is linear in its target."""
    x = toy().train.x
    fit = masked_fit(sparsity=0.75, rescale=rescale)
    assert fit.topology.num_active == 6
    replay, mean_target, steps = Replay(fit), torch.zeros(BATCH, 3), [torch.zeros(n) for n in (6, 4, 3)]
    for bits in itertools.product([False, True], repeat=6):
        keep, z = torch.tensor(bits), torch.zeros(24)
        z[fit.topology.positions] = keep.double()
        probability = P ** sum(bits) * (1 - P) ** (6 - sum(bits))
        mean_target += probability * replay.target(x, z)
        monkeypatch.setattr("espalier.training.teachers.draw_mask", lambda *_, keep=keep: keep)
        one = once(masked_fit(sparsity=0.75, rescale=rescale), toy())
        for step, after, before in zip(steps, student_of(one), replay.student, strict=True):
            step += probability * (after - before.detach())
    gradients = torch.autograd.grad(replay.loss(x, mean_target), replay.student)
    for step, gradient in zip(steps, gradients, strict=True):
        close(step, -0.1 * 1.9 * gradient)
        assert gradient.abs().max() > 1e-4


@pytest.mark.usefixtures("float64")
def test_distillation_sees_no_labels_and_leaves_everything_else_alone() -> None:
    fit, x = masked_fit(), toy().test.x
    before = {how: fit.predict(x, how, num_samples=5) for how in WAYS}
    tensors, default = copy.deepcopy(fit.bundle().tensors), torch.get_rng_state()
    state = copy.deepcopy(fit.model.state_dict())
    assert once(fit, toy()) is fit
    assert torch.equal(torch.get_rng_state(), default)
    after = fit.bundle().tensors
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in fit.model.state_dict().items())
    assert not fit.model.training
    for how in WAYS:
        assert torch.equal(fit.predict(x, how, num_samples=5), before[how])
    data = toy()
    others = data._replace(train=Split(data.train.x, (data.train.y + 1) % 3))
    blind = once(masked_fit(), others)
    for mine, theirs in zip(student_of(fit), student_of(blind), strict=True):
        assert torch.equal(mine, theirs)
    other = once(masked_fit(), toy(), seed=6)
    assert not torch.equal(student_of(fit)[0], student_of(other)[0])


@pytest.mark.usefixtures("float64")
def test_the_student_is_a_way_to_predict_and_a_plain_sparse_network(tmp_path: Path) -> None:
    fit, x = masked_fit(), toy().test.x
    assert fit.ways == WAYS
    with pytest.raises(ValueError, match="expected one of ticket, pairs, redraw, mean, unmasked, got 'distilled'"):
        fit.predict(x, "distilled")
    once(fit, toy(), epochs=3)
    assert fit.ways == (*WAYS, "distilled")
    values, b1, b2 = student_of(fit)
    dense = torch.zeros(24)
    dense[fit.topology.positions] = values
    probs = fit.predict(x, "distilled")
    assert probs.shape == (1, BATCH, 3)
    close(probs[0], logits_of(dense, b1, b2, x).softmax(-1))
    plain = fit.ticket("distilled")
    assert type(plain) is nn.Sequential
    assert int((plain[0].weight == 0).sum() + (plain[2].weight == 0).sum()) == 12  # the support is the ticket's
    with torch.no_grad():
        close(plain(x).softmax(-1), probs[0])
        assert not torch.equal(plain(x), fit.ticket()(x))
    fit.save(tmp_path / "fit")
    other = Fit.load(tmp_path / "fit", BayesianNetwork(net()))
    assert torch.equal(other.predict(x, "distilled"), probs)
    assert other.ways == fit.ways


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("part", ["values", "own.", "momentum.", "stream.order", "stream.mask", "step", "nothing"])
def test_every_part_of_distillation_s_checkpoint_is_needed(part: str) -> None:
    data, first = toy(5 * BATCH), Recorder()
    expected = student_of(once(masked_fit(), data, epochs=4, watch=first))
    (tensors, facts), (stale, stale_facts) = first.checkpoints[2], first.checkpoints[1]
    changed = {name: stale[name] if name.startswith(part) else tensor for name, tensor in tensors.items()}
    touched = [name for name in tensors if name.startswith(part)]
    assert bool(touched) == (part not in ("step", "nothing"))
    if part == "step":
        facts = {**facts, "step": stale_facts["step"]}
    saved = Bundle(changed, json.loads(json.dumps(facts)))
    resumed = once(masked_fit(), data, epochs=4, watch=(watch := Recorder(saved)))
    assert watch.steps == (15 if part == "step" else 10)
    same = all(torch.equal(mine, theirs) for mine, theirs in zip(student_of(resumed), expected, strict=True))
    assert same == (part == "nothing")


@pytest.mark.parametrize(("options", "sentence"), [
    ({"epochs": -1}, "expected whole distill_epochs of at least 0 and a rate above 0, got -1 and 0.1"),
    ({"rate": 0.0}, "expected whole distill_epochs of at least 0 and a rate above 0, got 1 and 0.0"),
    ({"rate": float("nan")}, "expected whole distill_epochs of at least 0 and a rate above 0"),
])  # fmt: skip
def test_impossible_distillations_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        once(masked_fit(), toy(), **options)


def test_without_masks_or_classes_there_is_nothing_to_distill() -> None:
    fit = masked_fit(keep_prob=1.0)
    fit.pairs = Pairs.of([fit.pairs.pair(0)])
    with pytest.raises(ValueError, match="expected a drop_rate above 0, or several runs: without random masks there is one"):
        once(fit, toy())
    with pytest.raises(ValueError, match="expected a categorical, Bernoulli or normal likelihood to distill, got Poisson"):
        cross_entropy(dist.Poisson(torch.ones(2)), dist.Poisson(torch.ones(2)))


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (dist.Normal(torch.tensor([0.3, -2.0]), 0.7), dist.Normal(torch.tensor([0.1, 1.0]), torch.tensor([1.3, 0.4]))),
        (dist.Bernoulli(logits=torch.tensor([0.3, -2.0])), dist.Bernoulli(logits=torch.tensor([1.0, 0.5]))),
        (dist.Categorical(logits=torch.tensor([[0.3, -2.0, 1.0]])), dist.Categorical(logits=torch.tensor([[1.0, 0.5, -0.2]]))),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_cross_entropy_is_the_teachers_entropy_and_its_divergence(teacher, student) -> None:
    expected = teacher.entropy() + torch.distributions.kl_divergence(teacher, student)
    torch.testing.assert_close(cross_entropy(teacher, student), expected)


def test_a_loss_that_is_not_finite_ends_distillation_with_advice() -> None:
    data = toy(3 * BATCH)
    data.train.x[-1] = float("inf")
    with pytest.raises(RuntimeError, match="stopped being finite: lower the distill_rate"):
        once(masked_fit(), data)


@pytest.mark.usefixtures("float64")
def test_teacher_and_student_normalise_by_the_batch() -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)))
    topology, stream = initial(model.shapes, 0.5, "uniform", generator=torch.Generator().manual_seed(7)), torch.Generator()
    state = {n: torch.rand(t.shape, generator=stream) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    pair = Pair(torch.randn(12, generator=stream), torch.rand(12, generator=stream) < P, state)
    x = toy().train.x
    begun = [{"epoch": 0, "step": 0}]
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record={}, history=begun, inputs=[x])

    def logits(active: Tensor, own: list[Tensor]) -> Tensor:
        dense = torch.zeros(24).index_put((topology.positions,), active)
        h = F.linear(x, dense[:12].reshape(4, 3), own[0])
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * own[1] + own[2]
        return F.linear(torch.tanh(h), dense[12:].reshape(3, 4), own[3])

    names = ["net.0.bias", "net.1.weight", "net.1.bias", "net.3.bias"]
    student = [P * pair.values, *(state[name].clone() for name in names)]
    for parameter in student:
        parameter.requires_grad_()
    z = z_of(fit, Streams([5, STREAM], CPU).mask)[topology.positions]
    target = logits(pair.values * z, [state[name] for name in names]).softmax(-1)
    loss = -(target * logits(student[0], student[1:]).log_softmax(-1)).sum() / len(x)
    gradients = torch.autograd.grad(loss, student)
    before = copy.deepcopy(fit.model.state_dict())
    once(fit, toy())
    assert fit.student is not None
    mine = [fit.student[0], *(fit.student[1][name] for name in names)]
    for after, start, gradient in zip(mine, student, gradients, strict=True):
        close(after, start - 0.1 * 1.9 * gradient)
    assert all(torch.equal(tensor, before[name]) for name, tensor in fit.model.state_dict().items())  # nor any buffer


@pytest.mark.usefixtures("float64")
def test_the_cross_entropy_of_two_normals_is_an_integral() -> None:
    teacher, student = dist.Normal(torch.tensor(0.4), 0.7), dist.Normal(torch.tensor(-0.3), 1.9)

    def integrand(y: float) -> float:
        at = torch.tensor(y)
        return float(-teacher.log_prob(at).exp() * student.log_prob(at))

    expected = integrate.quad(integrand, -8, 8, epsabs=1e-12)[0]
    assert float(cross_entropy(teacher, student)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_a_regression_is_distilled_with_its_noise() -> None:
    """-E log N(y; f_s, 1/tau_s), y ~ N(f_t, 1/tau_t): (1/tau_t + (f_t - f_s)^2) tau_s / 2 - ln(tau_s) / 2 + ln(2 pi) / 2."""
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), likelihood="normal")
    topology, stream = initial(model.shapes, 0.25, "uniform", generator=torch.Generator().manual_seed(7)), torch.Generator()
    state = {name: torch.randn(tensor.shape, generator=stream) for name, tensor in model.state_dict().items()}
    pair = Pair(torch.randn(12, generator=stream), torch.rand(12, generator=stream) < P, state)
    record = {"task": "regression"}
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record=record, history=[{"epoch": 0, "step": 0}])
    x, names = toy().train.x, ["net.0.bias", "net.2.bias", "likelihood.log_precision"]

    def mean(active: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
        dense = torch.zeros(16).index_put((topology.positions,), active)
        return torch.tanh(F.linear(x, dense[:12].reshape(4, 3), b1)) @ dense[12:] + b2

    student = [P * pair.values, *(state[name].clone() for name in names)]
    for parameter in student:
        parameter.requires_grad_()
    words = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=Streams([5, STREAM], CPU).mask)
    z = words.view(torch.int16)[:12] < round(65536 * P) - 32768
    gap = mean(pair.values * z, state[names[0]], state[names[1]]) - mean(*student[:3])
    tau_s, tau_t = student[3].exp(), state[names[2]].exp()
    loss = ((1 / tau_t + gap**2) * tau_s / 2 - tau_s.log() / 2 + math.log(2 * math.pi) / 2).mean()
    gradients = torch.autograd.grad(loss / tau_s.detach(), student)  # in units of the student's variance
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert norm > 1  # and is clipped
    gradients = [gradient / (norm + 1e-6) for gradient in gradients]
    once(fit, toy(classes=None))
    assert fit.student is not None
    mine = [fit.student[0], *(fit.student[1][name] for name in names)]
    for after, start, gradient in zip(mine[:3], student[:3], gradients[:3], strict=True):
        close(after, start - 0.1 * 1.9 * gradient)
    masks, spread = torch.Generator().manual_seed(0), []
    for _ in range(8):
        z = words.random_(-(2**63), None, generator=masks).view(torch.int16)[:12] < round(65536 * P) - 32768
        spread.append(1 / tau_t + (mean(pair.values * z, state[names[0]], state[names[1]]) - mean(*mine[:3])) ** 2)
    close(mine[3], -torch.stack(spread).mean().log())
    assert fit.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.parametrize(("masks", "epochs"), [(0, 0), (0, 3), (1, 3)])
def test_the_precision_is_that_of_predictions_and_not_of_a_networks_own_dropout(masks: int, epochs: int) -> None:
    """Its optimum given the means that the student predicts, by what it was compared with: moments, or masks."""
    stream = torch.Generator().manual_seed(4)
    x = torch.randn(64, 3, generator=stream)
    data = toy(classes=None)._replace(train=Split(x, x.sum(1)))
    torch.manual_seed(0)
    layers = [nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1), nn.Dropout(0.5)]
    model = BayesianNetwork(nn.Sequential(*layers), likelihood="normal")
    training = Training(epochs=10, batch_size=16, learning_rate=0.02, device="cpu")
    own = {"distill_epochs": epochs, "distill_masks": masks}
    fit = distilled.infer(model, data, sparsity=0.25, drop_rate=0.2, delta_t=2, training=training, seed=1, **own)
    assert fit.student is not None
    means, stream = fit.predict(x, "distilled")[0, :, 0], torch.Generator().manual_seed(0)
    if masks:
        teacher, told = Teacher(fit), []
        for _ in range(8):
            values, state = teacher.draw(stream)
            outcome = outcome_of(fit.model, fit.dense(values), x, state)
            told.append(torch.stack([outcome.mean, outcome.stddev], -1))
    else:
        told = [*fit.predict(x, "moments", num_samples=8)]
    spread = torch.stack([one[:, 1].square() + (one[:, 0] - means) ** 2 for one in told]).mean()
    assert float(fit.student[1]["likelihood.log_precision"]) == pytest.approx(-float(spread.log()), abs=1e-5)


def test_a_one_logit_network_is_distilled_like_the_same_network_with_two() -> None:
    """A sigmoid of f is the softmax of (0, f): the same masked teacher, the same steps."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNetwork(one, likelihood="bernoulli", maskable=["0.weight"])
    topology = initial(model.shapes, 0.25, generator=torch.Generator().manual_seed(7))
    pair = Pair(torch.randn(9), torch.rand(9) < P, copy.deepcopy(model.state_dict()))
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record={}, history=[{"epoch": 0, "step": 0}])
    once(fit, toy(classes=2))
    z = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=Streams([5, STREAM], CPU).mask)
    keep = z.view(torch.int16)[:9] < round(65536 * P) - 32768

    def logits(active: Tensor) -> Tensor:
        dense = torch.zeros(12).index_put((topology.positions,), active).reshape(4, 3)
        f = one[2](torch.tanh(F.linear(toy().train.x, dense, one[0].bias)))
        return torch.cat([torch.zeros_like(f), f], 1)

    with torch.no_grad():
        target = logits(pair.values * keep).softmax(-1)
    student = (P * pair.values).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(student), target), student)
    assert fit.student is not None
    torch.testing.assert_close(fit.student[0], (student - 0.1 * 1.9 * gradient).detach(), rtol=0, atol=1e-6)
