"""Claims about the student that learns while its teacher trains: it is Nesterov SGD on the masked outputs, in plain torch; the
teacher does not notice it; what goes wrong with it costs no training."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import BayesianNetwork, Data, Split, Training, calibration
from espalier.distributions.masked import draw_keep
from espalier.guides.masked import MaskedGuide
from espalier.inference import cigl, distilled
from espalier.prediction.fit import Fit
from espalier.randomness import own_stream
from espalier.training import objective
from espalier.training.finite import Finite
from espalier.training.woven import BEGINS, STREAM, Woven
from fitted import digits
from toys import net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
EPOCHS, RATE, KEEP = 20, 0.3, 0.75
OPTIONS: dict[str, Any] = {
    "sparsity": 0.5, "drop_rate": 1 - KEEP, "delta_t": 3, "freeze": 0.5, "average_from": 0.6, "rule": "static", "seed": 3,
}  # fmt: skip
TRAINING = Training(epochs=EPOCHS, batch_size=8, learning_rate=0.2, device="cpu")


def fitted(**options: Any) -> Fit:
    return distilled.infer(BayesianNetwork(net()), toy(), training=TRAINING, **{**OPTIONS, "distill_rate": RATE, **options})


class Listener:
    """Writes down what a student is told, and of whom it could be told more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[Tensor, Tensor]] = []
        self.began: list[Tensor] = []
        self.teachers: list[list[Tensor]] = []
        real = Woven.after

        def after(
            woven: Woven, taken: int, x: Tensor, outputs: Sequence[Tensor], model: BayesianNetwork, guide: MaskedGuide
        ) -> None:
            if taken > woven.first:
                biases = [tensor.detach().clone() for name, tensor in model.state_dict().items() if "bias" in name]
                self.began = self.began or [guide.values.detach() * KEEP, *biases]
                self.teachers.append([guide.values.detach().clone(), *biases])
                self.heard.append((x.clone(), torch.stack(list(outputs))))
            real(woven, taken, x, outputs, model, guide)

        monkeypatch.setattr(Woven, "after", after)


def logits_of(positions: Tensor, network: Sequence[Tensor], x: Tensor) -> Tensor:
    dense = torch.zeros(24).index_put((positions,), network[0])
    hidden = torch.tanh(F.linear(x, dense[:12].reshape(4, 3), network[1]))
    return F.linear(hidden, dense[12:].reshape(3, 4), network[2])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("draws", "parts", "masks"), [(1, 1, 1), (3, 1, 1), (1, 1, 4), (3, 1, 2), (2, 2, 3)])
def test_it_is_nesterov_sgd_towards_the_masked_outputs_by_plain_torch(
    draws: int, parts: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the training's own draws, and of as many more as it is to be told the mean of."""
    listener = Listener(monkeypatch)
    fit = fitted(num_particles=draws, microbatches=parts, distill_masks=masks)
    assert {len(output) for _, output in listener.heard} == {draws}
    positions, stream = fit.topology.positions, own_stream(OPTIONS["seed"], STREAM)
    steps = len(listener.heard)
    assert steps == round((1 - BEGINS) * 2 * EPOCHS)
    student = [tensor.clone().requires_grad_() for tensor in listener.began]
    momenta = [torch.zeros_like(tensor) for tensor in student]
    for number, ((x, output), (values, *biases)) in enumerate(zip(listener.heard, listener.teachers, strict=True), 1):
        told = [*output.softmax(-1)]
        for _ in range(masks - draws):
            zs = [draw_keep(len(positions), KEEP, torch.device("cpu"), stream) for _ in range(parts)]
            said = [logits_of(positions, [values * z, *biases], part) for z, part in zip(zs, x.chunk(parts), strict=True)]
            told.append(torch.cat(said).softmax(-1))
        logits = logits_of(positions, student, x)
        loss = -(torch.stack(told).mean(0) * logits.log_softmax(-1)).sum() / len(x)
        gradients = torch.autograd.grad(loss, student)
        rate = RATE / 2 * (1 + math.cos(math.pi * (number - 1) / steps))
        for tensor, momentum, gradient in zip(student, momenta, gradients, strict=True):
            momentum.mul_(0.9).add_(gradient)
            tensor.data -= rate * (gradient + 0.9 * momentum)
    assert fit.student is not None
    values, state = fit.student
    for mine, theirs in zip([values, state["net.0.bias"], state["net.2.bias"]], student, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dropout", "traced"), [(0.0, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize("masks", [1, 4])
def test_the_teacher_does_not_notice(masks: int, dropout: float, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the network draws by itself, and where Pyro traces it: the student's own draws are of another stream."""
    if traced:
        monkeypatch.setattr(objective, "is_ours", lambda *_: False)

    def model() -> BayesianNetwork:
        return BayesianNetwork(nn.Sequential(net(), nn.Dropout(dropout)))

    alone = cigl.infer(model(), toy(), training=TRAINING, **OPTIONS)
    watched = distilled.infer(model(), toy(), training=TRAINING, **OPTIONS, distill_rate=RATE, distill_masks=masks)
    for mine, theirs in zip(watched.pairs[:2], alone.pairs[:2], strict=True):
        assert torch.equal(mine, theirs)
    assert [row["loss"] for row in watched.history] == [row["loss"] for row in alone.history]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{}, {"microbatches": 2}, {"num_particles": 2, "microbatches": 2}], ids=str)
def test_by_pyro_it_learns_just_the_same(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    closed = fitted(**options)
    monkeypatch.setattr(objective, "is_ours", lambda *_: False)
    traced = fitted(**options)
    assert torch.equal(closed.pairs.keep, traced.pairs.keep)
    assert closed.student is not None
    assert traced.student is not None
    torch.testing.assert_close(traced.student[0], closed.student[0], rtol=1e-9, atol=1e-9)


def test_by_pyro_batch_norm_and_noise_of_the_network_are_as_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are those of the training alone, and the student has dropout of its own, not its teacher's."""
    monkeypatch.setattr(objective, "is_ours", lambda *_: False)
    drawn: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    real = Woven.after

    class Noisy(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(super().forward(torch.ones_like(x)))
            return x * drawn[-1]

    def after(woven: Woven, taken: int, *given: Any) -> None:
        heard = drawn[-1]
        real(woven, taken, *given)
        if taken > woven.first:
            pairs.append((heard, drawn[-1]))

    monkeypatch.setattr(Woven, "after", after)
    training = Training(epochs=EPOCHS, batch_size=8, learning_rate=0.1, bn_batches=1, device="cpu")
    counted = []
    for infer in (cigl.infer, distilled.infer):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), Noisy(0.5), nn.Linear(16, 3))
        fit = infer(BayesianNetwork(body), toy(), training=training, **OPTIONS)
        counted.append(fit.model.state_dict()["net.1.num_batches_tracked"])
    assert counted == [training.steps(toy())] * 2
    assert pairs
    assert not any(torch.equal(heard, own) for heard, own in pairs)


def test_the_history_says_how_far_it_is_from_its_teacher() -> None:
    rows = fitted().history
    first = round(BEGINS * EPOCHS)
    assert all("distill_loss" not in row for row in rows[:first])
    losses = [row["distill_loss"] for row in rows[first:]]
    assert len(losses) == EPOCHS - first
    assert all(0 < loss < math.log(3) + 0.5 for loss in losses)


@pytest.mark.parametrize(("rate", "why"), [(30.0, "it ended farther from its teacher"), (1e38, "stopped being finite")])
def test_a_student_that_runs_away_costs_no_training(rate: float, why: str) -> None:
    with pytest.warns(UserWarning, match=f"the fit has no distilled net: .*{why}.*lower the distill_rate"):
        fit = fitted(distill_rate=rate)
    assert fit.student is None
    alone = cigl.infer(BayesianNetwork(net()), toy(), training=TRAINING, **OPTIONS)
    assert torch.equal(fit.pairs.values, alone.pairs.values)


def test_it_begins_when_the_topology_stands_still_within_an_epoch_too() -> None:
    data, training = digits(), Training(epochs=2, batch_size=64, device="cpu")
    per_epoch = training.steps_per_epoch(data)
    assert Woven.of(training, data, 0.9).first == math.ceil(1.8 * per_epoch) >= training.step_at(0.9, data)
    for sooner in (0.5, BEGINS):
        assert Woven.of(training, data, sooner).first == math.ceil(2 * BEGINS * per_epoch)


def test_without_an_epoch_to_learn_in_it_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"expected steps to distill in after 1 of training .*, got none of 40: train"):
        fitted(average_from=1.0)


def test_on_digits_one_pass_is_as_good_as_sixteen() -> None:
    data = digits()
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = distilled.infer(
            model, data, sparsity=0.8, drop_rate="auto", delta_t=10, training=Training(epochs=15, bn_batches=2, device="cpu")
        )
    x, labels = data.test.x, data.test.y.numpy()
    nll = {
        how: calibration.nll(fit.predict(x, how, num_samples=16).mean(0).numpy(), labels)  # type: ignore[arg-type]
        for how in ("distilled", "redraw")
    }
    assert nll["distilled"] < nll["redraw"] + 0.01


class Aside(nn.Module):
    """With statistics that no estimate mends, and a bias that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.unused = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(8, 2)
        self.normed = nn.InstanceNorm1d(1, track_running_stats=True)
        self.unused.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.normed(self.a(x).unsqueeze(1)).squeeze(1))
        return {"logits": self.b(h), "aside": self.unused(h)}


@pytest.mark.parametrize("masks", [1, 3])
def test_a_student_resumes_with_all_that_it_began_with(masks: int) -> None:
    def run(watch: Recorder) -> Fit:
        model, options = BayesianNetwork(Aside(), output="logits"), {**OPTIONS, "distill_masks": masks}
        return distilled.infer(model, toy(), training=TRAINING, watch=watch, **options)

    seen = Recorder()
    whole = run(seen)
    again = run(Recorder(seen.checkpoints[8]))
    assert whole.student is not None
    assert again.student is not None
    assert torch.equal(again.student[0], whole.student[0])
    assert all(torch.equal(again.student[1][name], tensor) for name, tensor in whole.student[1].items())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_several_labels_an_example_it_hands_out_a_student(smoothing: float) -> None:
    """Sequences of five, each with a label of its own."""
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, 3, generator=stream)
    rows = (x[:40], x[40:50], x[50:])
    parts = [Split(each, each.argmax(-1)) for each in rows]
    data = Data("sequences", parts[0], parts[1], parts[1], parts[2], (5, 3), 3)
    training = dataclasses.replace(TRAINING, label_smoothing=smoothing)
    fit = distilled.infer(BayesianNetwork(net()), data, training=training, **OPTIONS)
    assert "distilled" in fit.ways
    assert fit.predict(rows[2], "distilled").shape == (1, 10, 5, 3)


def test_a_student_whose_end_is_seen_a_step_later_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a step's loss is looked at when the next one is given: the training goes on, and its history is JSON."""

    class Later(Finite):
        def see(self, step: int, loss: torch.Tensor) -> None:
            self.settle()
            self.kept = step, loss.detach()

        def settle(self) -> None:
            step, loss = self.__dict__.pop("kept", (0, torch.zeros(())))
            if not torch.isfinite(loss):
                raise self.failed(step)

    monkeypatch.setattr("espalier.training.distillation.Finite", Later)
    with pytest.warns(UserWarning, match="the fit has no distilled net: .* stopped being finite"):
        fit = fitted(distill_rate=1e38)
    assert fit.student is None
    json.dumps(fit.history, allow_nan=False)
