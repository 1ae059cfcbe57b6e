"""Runs of several trainings: killed in any of them they resume to equal files; the distilled net and the lottery ticket.

Independent answers: both methods replayed in plain float64 torch, and expectations by enumeration of all masks.
"""

import copy
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
import yaml
from scipy import integrate
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from espalier import runs, shelf
from espalier.contracts import Data, Split
from espalier.data.sets import load
from espalier.network import BayesianNetwork, under
from espalier.prediction import evaluation
from espalier.prediction.fit import WAYS, Fit, Pair, Pairs
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.topology.masks import erk, from_bits, initial
from espalier.training.distillation import cross_entropy, distill
from espalier.training.options import Training
from espalier.training.phases import Phase
from espalier.training.streams import Streams
from hashed import hashes
from places import PROGRAM
from rounding import close
from watches import Killed, Recorder

P, BATCH, DECAY = 0.625, 16, 0.01
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("own_store")


# Killed and resumed


RECIPES: dict[str, dict[str, Any]] = {  # ten steps an epoch
    "distilled": {"epochs": 4, "distill_epochs": 3, "delta_t": 6, "freeze": 0.5, "average_from": 0.5, "rule": "set"},
    "lottery": {"epochs": 3, "rounds": 2, "rewind_epochs": 1, "average_from": 0.5},
}
TOTAL = {"distilled": 70, "lottery": 100}


@functools.cache
def recipe_text(name: str) -> str:
    return yaml.safe_dump({
        "model": str(PROGRAM), "inference": name, "data": "digits", "train_size": 160, "sparsity": 0.7,
        "drop_rate": 0.2, "batch_size": 16, "augment": "crop-flip", "bn_batches": 3, "learning_rate": 0.05, "seed": 3,
        **RECIPES[name],
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Fit, dict[str, str]]]:
    @functools.cache
    def run(name: str) -> tuple[Path, Fit, dict[str, str]]:
        folder, watch = tmp_path_factory.mktemp("whole") / name, Killed()
        recipe_file = folder.with_suffix(".yaml")
        recipe_file.write_text(recipe_text(name))
        fit = runs.start(resolve(["--config", str(recipe_file)]), folder, watch)
        assert watch.seen == [TOTAL[name], TOTAL[name] // 10]
        return folder, fit, hashes(folder)

    return run


# Where each kill lands, counted in steps (or epochs' ends) of the process that is killed.
KILLS = {
    "distilled": {
        "in the first training": [{"step": 13}],
        "at its last step": [{"step": 40}],
        "at its end": [{"epoch": 4}],
        "at the first step of distillation": [{"step": 41}],
        "in distillation": [{"step": 57}],
        "at the end of an epoch of it": [{"epoch": 6}],
        "in each": [{"step": 25}, {"step": 33}, {"step": 12}],  # epoch 3, then distillation epoch 2, then 3
    },
    "lottery": {
        "before the rewind point": [{"step": 5}],
        "at the rewind point": [{"epoch": 1}],
        "in the dense training": [{"step": 15}],
        "at its end": [{"epoch": 4}],
        "in the second": [{"step": 52}],
        "in the last": [{"step": 95}],
        "in each": [{"step": 8}, {"step": 38}, {"step": 25}, {"step": 33}],
    },
}


@pytest.mark.parametrize(("name", "case"), [
    (name, case) for name, cases in KILLS.items() for case in cases
])  # fmt: skip
def test_a_run_of_several_trainings_killed_in_any_resumes_to_equal_files(
    name: str, case: str, whole: Callable[[str], Any], tmp_path: Path
) -> None:
    _, _, expected = whole(name)
    (tmp_path / "recipe.yaml").write_text(recipe_text(name))
    folder, done = tmp_path / "run", 0
    for number, kill in enumerate(KILLS[name][case]):
        watch = Killed(**kill)
        recipe = resolve(["--config", str(tmp_path / "recipe.yaml")])
        with pytest.raises(KeyboardInterrupt):
            runs.resume(folder, watch) if number else runs.start(recipe, folder, watch)
        assert not runs.finished(folder)
        done = 10 * ((done + watch.seen[0]) // 10)
        if watch.seen[0] % 10 == 0 and "step" in kill:
            done -= 10  # a step's end is before its epoch's
    last = Killed()
    runs.resume(folder, last)
    assert last.seen[0] == TOTAL[name] - done  # what a checkpoint holds is not done again
    assert hashes(folder) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_of_several_trainings_can_be_read_and_evaluated(name: str, whole: Callable[[str], Any]) -> None:
    folder, fit, _ = whole(name)
    other = runs.load(folder)
    other.inputs = fit.inputs
    assert other.ways == fit.ways == ((*WAYS, "distilled") if name == "distilled" else WAYS)
    data = runs.data_of(folder)
    for how in fit.ways:
        assert torch.equal(other.predict(data.test.x, how), fit.predict(data.test.x, how))
    assert set(evaluation.evaluate(other, data)["predict"]) == set(fit.ways)


def test_a_phase_without_a_watch_has_nothing_to_resume() -> None:
    first = Phase()
    assert first.resume() is None
    first.epoch({}, lambda: Bundle({"a": torch.ones(1)}, {"n": 1}))
    assert first.next().resume() is None


def test_a_checkpoint_of_a_later_phase_holds_the_last_of_the_earlier_ones() -> None:
    watch = Recorder()
    first = Phase(watch)
    first.epoch({}, lambda: Bundle({"a": torch.ones(1)}, {"n": 1}))
    second = first.next()
    second.epoch({}, lambda: Bundle({"a": torch.zeros(2)}, {"n": 2}))
    third = second.next()
    third.epoch({}, lambda: Bundle({"a": torch.full((3,), 3.0)}, {"n": 3}))
    tensors, facts = watch.checkpoints[-1]
    assert {name: len(tensor) for name, tensor in tensors.items()} == {"a": 1, "next.a": 2, "next.next.a": 3}
    assert facts == {"n": 1, "next": {"n": 2, "next": {"n": 3}}}

    phase, seen = Phase(Recorder(watch.checkpoints[-1])), []
    for _ in range(3):
        seen.append(phase.resume())
        phase = phase.next()
    assert [(list(bundle.tensors), bundle.facts) for bundle in seen] == [(["a"], {"n": n}) for n in (1, 2, 3)]
    assert [len(bundle.tensors["a"]) for bundle in seen] == [1, 2, 3]
    assert phase.resume() is None
    # Killed again in the third: the checkpoint still has all that came before.
    again = Recorder(watch.checkpoints[-1])
    one = Phase(again)
    one.resume()
    two = one.next()
    two.resume()
    two.next().epoch({}, lambda: Bundle({"a": torch.zeros(4)}, {"n": 4}))
    assert again.checkpoints[-1].facts == {"n": 1, "next": {"n": 2, "next": {"n": 4}}}


# Distillation, by hand


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def logits_of(dense: Tensor, b1: Tensor, b2: Tensor, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, dense[:12].reshape(4, 3), b1)), dense[12:].reshape(3, 4), b2)


def toy(count: int = BATCH, classes: int | None = 3) -> Data:
    stream = torch.Generator().manual_seed(4)
    x, y = torch.randn(count, 3, generator=stream), torch.randint(0, 3, (count,), generator=stream)
    part, empty = Split(x, y), Split(x[:0], y[:0])
    return Data("toy", part, empty, part, part, (3,), classes)


def masked_fit(sparsity: float = 0.5, mask: str = "weight", rescale: bool = False, keep_prob: float = P) -> Fit:
    """A fit of three pairs that differ in everything, put together here."""
    model = BayesianNetwork(net())
    stream = torch.Generator().manual_seed(7)
    topology = initial(model.shapes, sparsity, "uniform", generator=stream)
    pairs = []
    for _ in range(3):
        state = {n: t + 0.3 * torch.randn(t.shape, generator=stream) for n, t in model.state_dict().items()}
        values = torch.randn(topology.num_active, generator=stream)
        pairs.append(Pair(values, torch.rand(values.shape, generator=stream) < keep_prob, state))
    return Fit(
        model, topology, Pairs.of(pairs), keep_prob=keep_prob, rescale=rescale, mask=mask,
        record={"task": "classification"}, history=[{"epoch": 1, "step": 5}],
    )  # fmt: skip


class Replay:
    """The student and its teacher in plain torch. Z is handed over as a vector over all 24 weights."""

    def __init__(self, fit: Fit) -> None:
        self.positions, factor = fit.topology.positions, 1 / P if fit.rescale else 1.0
        pairs = [fit.pairs.pair(i) for i in range(3)]
        self.teacher = torch.zeros(24)
        self.teacher[self.positions] = sum(pair.values for pair in pairs) / 3 * factor
        self.teacher_biases = [sum(pair.state[f"net.{i}.bias"] for pair in pairs) / 3 for i in (0, 2)]
        start = sum(pair.values * pair.keep for pair in pairs) / 3 * factor
        self.student = [start.clone(), *(bias.clone() for bias in self.teacher_biases)]
        for parameter in self.student:
            parameter.requires_grad_()

    def target(self, x: Tensor, z: Tensor) -> Tensor:
        return logits_of(self.teacher * z, *self.teacher_biases, x).softmax(-1)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        dense = torch.zeros(24).index_put((self.positions,), self.student[0])
        logits = logits_of(dense, self.student[1], self.student[2], x)
        return -(target * (logits - logits.logsumexp(-1, keepdim=True))).sum() / len(x)


def student_of(fit: Fit) -> list[Tensor]:
    assert fit.student is not None
    values, state = fit.student
    return [values, state["net.0.bias"], state["net.2.bias"]]


def z_of(fit: Fit, stream: torch.Generator) -> Tensor:
    """Z over the 24 weights as the engine draws it: 16-bit words, a weight or a unit each."""
    count = fit.topology.num_active if fit.mask == "weight" else 3 + 4
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=stream)
    drawn = (words.view(torch.int16)[:count] < round(65536 * P) - 32768).double()
    if fit.mask == "unit":
        return torch.cat([drawn[:3].repeat(4), drawn[3:].repeat(3)])
    z = torch.zeros(24)
    z[fit.topology.positions] = drawn
    return z


def once(fit: Fit, data: Data, rate: float = 0.1, seed: int = 5, epochs: int = 1, **options: Any) -> Fit:
    training = Training(batch_size=BATCH, device="cpu")
    return distill(
        fit, data, training=training, streams=Streams(seed, CPU), epochs=epochs, learning_rate=rate, **options
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", ["weight", "unit"])
@pytest.mark.parametrize("rescale", [False, True])
def test_one_step_of_distillation_has_the_gradient_of_the_cross_entropy(mask: str, rescale: bool) -> None:
    fit = masked_fit(mask=mask, rescale=rescale)
    replay, x = Replay(fit), toy().train.x
    loss = replay.loss(x, replay.target(x, z_of(fit, Streams(5, CPU).mask)))
    gradients = torch.autograd.grad(loss, replay.student)
    once(fit, toy())
    for after, before, gradient in zip(student_of(fit), replay.student, gradients, strict=True):
        assert gradient.abs().max() > 1e-4
        close(after, before - 0.1 * (1 + 0.9) * gradient)  # the first step of Nesterov's momentum
    assert fit.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", ["weight", "unit"])
def test_distillation_is_nesterov_s_sgd_on_that_loss_under_a_cosine(mask: str) -> None:
    fit, data, epochs, rate = masked_fit(mask=mask), toy(5 * BATCH + 3), 4, 0.2
    replay, streams = Replay(fit), Streams(5, CPU)
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
    assert [row["epoch"] for row in fit.history] == [1, 31, 32, 33, 34]  # after the 30 epochs of Training's default
    assert [row["step"] for row in fit.history] == [5, 10, 15, 20, 25]
    for number, row in enumerate(fit.history[1:]):
        assert row["loss"] == pytest.approx(sum(losses[5 * number : 5 * number + 5]) / 5, rel=1e-10)
    assert fit.record["distilled"] == {"epochs": 4, "learning_rate": 0.2, "loss": fit.history[-1]["loss"]}


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
        monkeypatch.setattr("espalier.training.distillation.draw_mask", lambda *_, keep=keep: keep)
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
    assert watch.steps == 10
    same = all(torch.equal(mine, theirs) for mine, theirs in zip(student_of(resumed), expected, strict=True))
    assert same == (part == "nothing")


@pytest.mark.parametrize(("options", "sentence"), [
    ({"epochs": 0}, "expected distill_epochs of at least 1 and a rate above 0, got 0 and 0.1"),
    ({"rate": 0.0}, "expected distill_epochs of at least 1 and a rate above 0, got 1 and 0.0"),
    ({"rate": float("nan")}, "expected distill_epochs of at least 1 and a rate above 0"),
])  # fmt: skip
def test_impossible_distillations_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        once(masked_fit(), toy(), **options)


def test_without_masks_or_classes_there_is_nothing_to_distill() -> None:
    with pytest.raises(ValueError, match="expected a drop_rate above 0: without random masks there is one network"):
        once(masked_fit(keep_prob=1.0), toy())
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


# Distillation through its program


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def plain_net(norm: bool) -> BayesianNetwork:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(30)] if norm else []
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), *middle, nn.ReLU(), nn.Linear(30, 10)))


@functools.cache
def distilled(norm: bool) -> Fit:
    return shelf.load("inference", "distilled")(
        plain_net(norm), digits(), sparsity=0.8, drop_rate=0.4, delta_t=10, distill_epochs=20, distill_rate=0.1, seed=1,
        training=Training(epochs=15, batch_size=32, learning_rate=0.2, device="cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("norm", [False, True])
def test_the_distilled_net_is_nearer_to_the_predictive_than_the_ticket(norm: bool) -> None:
    fit, x = distilled(norm), digits().train.x
    target = fit.predict(x, "redraw", num_samples=100).mean(0)

    def divergence(how: str) -> float:
        return float(F.kl_div(fit.predict(x, how)[0].log(), target, reduction="batchmean"))

    assert divergence("distilled") < 0.5 * min(divergence(how) for how in ("ticket", "mean", "unmasked"))
    assert [row["epoch"] for row in fit.history] == list(range(1, 36))
    assert {"validation_accuracy", "validation_nll", "validation_ece"} <= set(fit.history[-1])


def test_statistics_of_the_distilled_net_are_its_own() -> None:
    fit, x = distilled(True), digits().test.x[:50]
    weights, state = next(fit.weights("distilled"))
    by_hand = fit.model.network(weights, state)
    update_bn([[batch] for batch in digits().train.x[:320].split(32)], by_hand)
    with torch.no_grad():
        expected = by_hand.eval()(x).softmax(-1)
        torch.testing.assert_close(fit.predict(x, "distilled")[0], expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(fit.ticket("distilled")(x).softmax(-1), expected, rtol=0, atol=2e-5)


@pytest.mark.usefixtures("float64")
def test_teacher_and_student_normalise_by_the_batch() -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)))
    topology, stream = initial(model.shapes, 0.5, "uniform", generator=torch.Generator().manual_seed(7)), torch.Generator()
    state = {n: torch.rand(t.shape, generator=stream) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    pair = Pair(torch.randn(12, generator=stream), torch.rand(12, generator=stream) < P, state)
    x = toy().train.x
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record={}, history=[{"step": 0}], inputs=[x])

    def logits(active: Tensor, own: list[Tensor]) -> Tensor:
        dense = torch.zeros(24).index_put((topology.positions,), active)
        h = F.linear(x, dense[:12].reshape(4, 3), own[0])
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * own[1] + own[2]
        return F.linear(torch.tanh(h), dense[12:].reshape(3, 4), own[3])

    names = ["net.0.bias", "net.1.weight", "net.1.bias", "net.3.bias"]
    student = [pair.draw(0).clone(), *(state[name].clone() for name in names)]
    for parameter in student:
        parameter.requires_grad_()
    z = z_of(fit, Streams(5, CPU).mask)[topology.positions]
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
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record=record, history=[{"step": 0}])
    x, names = toy().train.x, ["net.0.bias", "net.2.bias", "likelihood.log_precision"]

    def mean(active: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
        dense = torch.zeros(16).index_put((topology.positions,), active)
        return torch.tanh(F.linear(x, dense[:12].reshape(4, 3), b1)) @ dense[12:] + b2

    student = [pair.draw(0).clone(), *(state[name].clone() for name in names)]
    for parameter in student:
        parameter.requires_grad_()
    words = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=Streams(5, CPU).mask)
    z = words.view(torch.int16)[:12] < round(65536 * P) - 32768
    gap = mean(pair.values * z, state[names[0]], state[names[1]]) - mean(*student[:3])
    tau_s, tau_t = student[3].exp(), state[names[2]].exp()
    loss = ((1 / tau_t + gap**2) * tau_s / 2 - tau_s.log() / 2 + math.log(2 * math.pi) / 2).mean()
    gradients = torch.autograd.grad(loss, student)
    once(fit, toy(classes=None))
    assert fit.student is not None
    mine = [fit.student[0], *(fit.student[1][name] for name in names)]
    for after, start, gradient in zip(mine, student, gradients, strict=True):
        close(after, start - 0.1 * 1.9 * gradient)
    assert fit.history[-1]["loss"] == pytest.approx(float(loss.detach()), rel=1e-12)


WRONG = {"drop_rate": 0.0, "distill_epochs": 0, "distill_rate": 0.0}


@pytest.mark.parametrize("option", WRONG)
def test_a_distillation_that_cannot_be_is_refused_before_any_work(option: str) -> None:
    watch = Recorder()
    training = Training(epochs=1, batch_size=32, device="cpu")
    with pytest.raises(ValueError, match="expected"):
        shelf.load("inference", "distilled")(
            plain_net(False), digits(), training=training, delta_t=5, watch=watch, **{option: WRONG[option]}
        )
    assert watch.steps == 0


def test_a_one_logit_network_is_distilled_like_the_same_network_with_two() -> None:
    """A sigmoid of f is the softmax of (0, f): the same masked teacher, the same steps."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model = BayesianNetwork(one, likelihood="bernoulli", maskable=["0.weight"])
    topology = initial(model.shapes, 0.25, generator=torch.Generator().manual_seed(7))
    pair = Pair(torch.randn(9), torch.rand(9) < P, copy.deepcopy(model.state_dict()))
    fit = Fit(model, topology, Pairs.of([pair]), keep_prob=P, rescale=False, record={}, history=[{"step": 0}])
    once(fit, toy(classes=2))
    z = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=Streams(5, CPU).mask)
    keep = z.view(torch.int16)[:9] < round(65536 * P) - 32768

    def logits(active: Tensor) -> Tensor:
        dense = torch.zeros(12).index_put((topology.positions,), active).reshape(4, 3)
        f = one[2](torch.tanh(F.linear(toy().train.x, dense, one[0].bias)))
        return torch.cat([torch.zeros_like(f), f], 1)

    with torch.no_grad():
        target = logits(pair.values * keep).softmax(-1)
    student = (pair.values * pair.keep).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(student), target), student)
    assert fit.student is not None
    torch.testing.assert_close(fit.student[0], (student - 0.1 * 1.9 * gradient).detach(), rtol=0, atol=1e-6)


def test_a_loaded_fit_is_distilled_like_the_one_that_was_saved(tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=32, device="cpu")
    fit = shelf.load("inference", "cigl")(plain_net(True), digits(), delta_t=5, training=training, drop_rate=0.3)
    fit.save(tmp_path / "fit")
    loaded, x = Fit.load(tmp_path / "fit", plain_net(True)), digits().test.x[:50]
    for one in (fit, loaded):
        distill(one, digits(), training=training, streams=Streams(5, CPU), epochs=1, learning_rate=0.1)
    assert torch.equal(loaded.predict(x, "distilled"), fit.predict(x, "distilled"))


class Twice(nn.Module):
    """One normalisation in two places: its tensors have two names."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.norm = norm(12)
        self.same = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.same(self.again(torch.tanh(self.norm(self.first(x.flatten(1))))))))


@pytest.mark.parametrize(("norm", "how"), [(nn.LayerNorm, "distilled"), (nn.BatchNorm1d, "ticket")])
def test_the_plain_network_of_a_shared_module_predicts_what_the_fit_does(norm: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    fit = shelf.load("inference", "distilled")(
        BayesianNetwork(Twice(norm)), digits(), sparsity=0.5, drop_rate=0.3, delta_t=5, distill_epochs=2,
        distill_rate=0.2, training=Training(epochs=4, batch_size=32, device="cpu"),
    )  # fmt: skip
    x = digits().test.x[:50]
    with torch.no_grad():
        torch.testing.assert_close(fit.ticket(how)(x).softmax(-1), fit.predict(x, how)[0], rtol=0, atol=2e-5)


# Lottery tickets, by hand


def lottery(watch: Recorder | None = None, model: BayesianNetwork | None = None, **options: Any) -> Fit:
    training = Training(epochs=3, batch_size=BATCH, learning_rate=0.2, weight_decay=DECAY, device="cpu")
    settings = {"sparsity": 0.7, "average_from": 1.0, "seed": 5, **options}
    data = toy(5 * BATCH + 2)
    return shelf.load("inference", "lottery")(
        model or BayesianNetwork(net()), data, training=training, watch=watch, **settings
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rounds", "rewind"), [(1, 0), (3, 0), (2, 2)])
def test_a_lottery_ticket_is_train_prune_rewind_in_plain_torch(rounds: int, rewind: int) -> None:
    """Frankle & Carbin 2019, with the rewinding of Frankle et al. 2020: dense training, then as many sparse ones as rounds."""
    x, y = toy(5 * BATCH + 2).train
    order = Streams(5, CPU).order

    def train(start: list[Tensor], masks: list[Tensor], epochs: int, cosine: bool) -> list[Tensor]:
        parameters = [tensor.clone().requires_grad_() for tensor in start]
        optimiser, taken = torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True), 0
        for _ in range(epochs):
            for rows in torch.randperm(len(y), generator=order).split(BATCH)[:5]:
                w1, w2 = parameters[0] * masks[0], parameters[2] * masks[1]
                hidden = torch.tanh(F.linear(x[rows], w1, parameters[1]))
                squares = sum((tensor**2).sum() for tensor in (w1, w2, parameters[1], parameters[3]))
                loss = F.cross_entropy(F.linear(hidden, w2, parameters[3]), y[rows]) + DECAY / 2 * squares
                optimiser.zero_grad()
                loss.backward()
                rate = 0.1 * (1 + math.cos(math.pi * taken / (5 * epochs))) if cosine else 0.2
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
                taken += 1
        return [tensor.detach() for tensor in parameters]

    begin, masks = [p.detach() for p in net().parameters()], [torch.ones(4, 3), torch.ones(3, 4)]
    if rewind:
        begin = train(begin, masks, rewind, cosine=False)
    for number in range(rounds + 1):
        final = train(begin, masks, 3, cosine=True)
        if number < rounds:
            counts = erk([(4, 3), (3, 4)], 0.3 ** ((number + 1) / rounds))
            for weight, mask, count in zip((final[0], final[2]), masks, counts, strict=True):
                best = torch.where(mask.bool(), weight.abs(), -1.0).flatten().topk(count).indices
                mask.zero_().view(-1)[best] = 1.0

    watch = Recorder()
    fit = lottery(watch, rounds=rounds, rewind_epochs=rewind)
    assert watch.steps == 5 * (3 * (rounds + 1) + rewind)
    assert fit.topology.num_active == round(0.3 * 24)
    kept = torch.cat([mask.flatten() for mask in masks]).bool()
    assert torch.equal(fit.topology.positions, kept.nonzero().squeeze(1))
    for how in ("ticket", "unmasked"):
        plain = list(fit.ticket(how).parameters())
        for mine, theirs in zip(sorted(plain, key=lambda t: t.shape), sorted(
            [final[0] * masks[0], final[1], final[2] * masks[1], final[3]], key=lambda t: t.shape
        ), strict=True):  # fmt: skip
            close(mine, theirs)


def topologies(watch: Recorder, sizes: tuple[int, ...], trainings: int) -> list[Tensor]:
    """Positions of each training, from the last checkpoint: it holds them all."""
    found, tensors = [], watch.checkpoints[-1].tensors
    for _ in range(trainings):
        found.append(from_bits(tensors["topology"], sizes).positions)
        tensors = under("next.", tensors)
    assert not tensors
    return found


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(4, 3), (3, 4)], {"rounds": 4}),
        ([(2, 3), (5, 2), (3, 5)], {"rounds": 6, "sparsity": 0.3, "allocation": "uniform"}),
    ],
)  # fmt: skip
def test_every_round_of_the_lottery_keeps_some_of_what_was_left(
    shapes: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(wide, narrow) for narrow, wide in shapes]
    model = BayesianNetwork(nn.Sequential(*itertools.chain(*((layer, nn.Tanh()) for layer in layers[:-1])), layers[-1]))
    watch, rounds = Recorder(), options["rounds"]
    fit = lottery(watch, model, **options)
    found = topologies(watch, model.sizes, rounds + 1)
    density = 1 - options.get("sparsity", 0.7)
    wanted = [round(density ** (i / rounds) * model.num_weights) for i in range(rounds + 1)]
    assert all(0 <= len(p) - count < len(shapes) for p, count in zip(found, wanted, strict=True))  # a layer's rounding
    assert (len(found[0]), len(found[-1])) == (wanted[0], wanted[-1])
    assert torch.equal(found[-1], fit.topology.positions)
    for before, after in itertools.pairwise(found):
        assert torch.isin(after, before).all()


def test_masks_are_random_in_the_last_round_alone() -> None:
    plain, masked = Recorder(), Recorder()
    first, second = lottery(plain), lottery(masked, drop_rate=1 - P)
    assert (first.keep_prob, second.keep_prob) == (1.0, P)
    assert torch.equal(first.topology.positions, second.topology.positions)
    for one, other in zip(plain.checkpoints[1:10], masked.checkpoints[1:10], strict=True):  # three trainings of three epochs
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert not torch.equal(first.pairs.values, second.pairs.values)
    assert not second.pairs.keep.all()


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rewind_epochs": -1}])
def test_an_impossible_lottery_is_refused(options: dict[str, int]) -> None:
    watch = Recorder()
    with pytest.raises(ValueError, match="expected rounds of at least 1 and rewind_epochs of at least 0, got"):
        lottery(watch, **options)
    assert watch.steps == 0
