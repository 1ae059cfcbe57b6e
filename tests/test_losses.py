"""Losses in the likelihood's place: each formula against another way to write it, and the same training by Pyro and without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits import digits, mlp
from espalier import losses, runs, shelf
from espalier.cli.main import main
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import initial
from espalier.training import objective
from espalier.training.options import Training, prepare
from espalier.training.watch import Watches
from watches import killed_and_resumed

LABELS = torch.tensor([2, 0, 3, 3, 1, 0])


def logits() -> Tensor:
    return (2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, z, retain_graph=True)
    return found


# -------------------------------------------------------------------------------------------------------------- formulas


def test_the_cross_entropy_is_torchs() -> None:
    assert torch.allclose(losses.cross_entropy(logits(), LABELS), F.cross_entropy(logits(), LABELS, reduction="none"), rtol=1e-12)


@pytest.mark.parametrize("b", [0.05, 1.0, 8.0])
def test_gradient_decay_is_the_published_loss_with_the_published_gradient(b: float) -> None:
    z = logits()
    found = losses.gradient_decay(z, LABELS, b)
    for row, y, one in zip(z.tolist(), LABELS.tolist(), found.tolist(), strict=True):
        others = sum(math.exp(value) for place, value in enumerate(row) if place != y)
        assert one == pytest.approx(-math.log(math.exp(row[y]) / (others + b * math.exp(row[y]))), rel=1e-12)
    p = z.detach().softmax(-1)
    right = p.gather(1, LABELS[:, None])
    slope = p / (1 + (b - 1) * right)
    slope = slope.scatter(1, LABELS[:, None], -(1 - right) / (1 + (b - 1) * right))
    assert torch.allclose(gradient(found.sum(), z), slope, rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_robust_loss_has_the_gradient_of_the_worst_case_and_through_p_another(temperature: float) -> None:
    z = logits()
    each = F.cross_entropy(z, LABELS, reduction="none")
    worst = temperature * (torch.logsumexp(each / temperature, 0) - math.log(len(each)))  # of all p: sum p l - t KL(p || uniform)
    found = losses.robust(z, LABELS, temperature)
    assert torch.allclose(gradient(found.mean(), z), gradient(worst, z), rtol=1e-10)

    weights = [math.exp(value / temperature) for value in each.tolist()]
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert torch.allclose(found.mean(), (shares * each).sum(), rtol=1e-12)
    more = 1 + (each - (shares * each).sum()) / temperature
    released = losses.robust(z, LABELS, temperature, through=True)
    assert torch.allclose(released, found, rtol=1e-12)
    assert torch.allclose(gradient(released.mean(), z), gradient((shares * more.detach() * each).sum(), z), rtol=1e-9)


def test_the_temperature_ranges_from_the_mean_to_the_worst_label() -> None:
    z = logits().detach()
    each = losses.cross_entropy(z, LABELS)
    assert float(losses.robust(z, LABELS, 1e9).mean()) == pytest.approx(float(each.mean()), rel=1e-6)
    assert float(losses.robust(z, LABELS, 1e-3).mean()) == pytest.approx(float(each.max()), rel=1e-6)


def test_temperature_and_b_move_with_the_training() -> None:
    z = logits().detach()
    dro, decay = losses.named("dro:4"), losses.named("gradient-decay:5:0.5")
    assert dro is not None
    assert decay is not None
    for taken in (0, 5, 18):
        progress, over = losses.Progress(taken, 20, 4), taken / 20
        assert torch.equal(dro(z, LABELS, progress), losses.robust(z, LABELS, 2 * (1 + math.cos(math.pi * over))))
        b = losses.SMALL + (5 - losses.SMALL) * min(1.0, 2 * over)
        assert torch.equal(decay(z, LABELS, progress), losses.gradient_decay(z, LABELS, b))


# ----------------------------------------------------------------------------------------------------- in the model's place


@pytest.mark.parametrize("spec", ["gradient-decay:4", "dro:0.5", "dro-released:0.5"])
@pytest.mark.parametrize("maps", [False, True])
def test_closed_form_and_pyro_train_the_same(spec: str, maps: bool) -> None:
    """maps: a label for each of 3 places of an example."""
    torch.manual_seed(0)
    top = [nn.Linear(7, 12), nn.Unflatten(1, (3, 4))] if maps else [nn.Linear(7, 4)]
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), *top)
    model = BayesianNetwork(net.double(), num_data=40, weight_decay=0.01)
    function = losses.named(spec)
    assert function is not None
    model.loss = losses.Loss(spec, function, 10, 2)
    x = torch.randn(8, 5, dtype=torch.float64)
    y = torch.randint(4, (8, 3) if maps else (8,))
    found = []
    for how in (objective.closed_form, objective.by_pyro):
        guide = MaskedGuide(model, initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(1)), 0.8)
        guide.generator = torch.Generator().manual_seed(2)
        model.zero_grad()
        terms = how(model, guide, x, y, objective.cast("float32", torch.device("cpu")))
        points = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([terms.loss, guide.values.grad, *points])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)
    assert objective.is_ours(model, guide, x, y)


def trained(loss: Any, watch: Watches = None, inference: str = "cigl", **options: Any) -> Fit:
    training = Training(epochs=4, batch_size=32, learning_rate=0.2, device="cpu", loss=loss)
    options = {"sparsity": 0.7, "delta_t": 7, "freeze": 0.5, **options}
    return shelf.load("inference", inference)(mlp(), digits(), training=training, seed=1, watch=watch, **options)


def test_it_trains_by_the_loss_and_resumes_bit_for_bit_where_that_moves(tmp_path: Path) -> None:
    fit = trained("dro:5")
    assert fit.record["loss"] == "dro:5"
    assert fit.history != trained("dro:50").history
    again = killed_and_resumed(lambda watch: trained("dro:5", watch), tmp_path, 25)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_a_function_of_ones_own_is_told_how_far_training_is() -> None:
    seen: list[float] = []
    epochs: list[int] = []

    def mine(logits: Tensor, y: Tensor, progress: losses.Progress) -> Tensor:
        seen.append(progress.fraction)
        epochs.append(progress.epoch)
        return F.cross_entropy(logits, y, reduction="none")

    fit = trained(mine, inference="rigl")
    assert fit.record["loss"] == "mine"
    steps = fit.history[-1]["step"]
    assert seen[-steps:] == [step / steps for step in range(steps)]
    assert epochs[-steps:] == [1 + step * len(fit.history) // steps for step in range(steps)]
    plain = trained("likelihood", inference="rigl")
    assert [row["loss"] for row in fit.history] == pytest.approx([row["loss"] for row in plain.history], rel=1e-5)
    assert "loss" not in plain.record


def test_the_more_the_gradient_decays_the_less_sure_is_the_network() -> None:
    fits = [trained(f"gradient-decay:{b}", inference="rigl") for b in (0.1, 1, 30)]
    sure = [float(fit.predict(digits().test.x)[0].amax(-1).mean()) for fit in fits]
    assert sure[0] > sure[1] > sure[2]


def test_a_recipe_has_it(tmp_path: Path) -> None:
    words = ["fit", "--model", "mlp", "--hidden", "20", "--inference", "mean_field", "--data", "digits", "--train-size", "200"]
    words += ["--epochs", "2", "--delta-t", "3", "--loss", "gradient-decay:3:0.2", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert runs.load(tmp_path / "run").record["loss"] == "gradient-decay:3:0.2"


@pytest.mark.parametrize(("spec", "said"), [
    ("focal:2", "expected a loss of likelihood, gradient-decay:B or .*, got 'focal:2'"),
    ("dro", "expected a loss dro:TEMPERATURE, got 'dro': other numbers than it takes"),
    ("dro:x", "expected a loss dro:TEMPERATURE, got 'dro:x': other numbers"),
    ("dro:0", "got 'dro:0': expected a temperature above 0, got 0"),
    ("dro:nan", "got 'dro:nan': expected finite numbers"),
    ("moon:inf", "got 'moon:inf': expected finite numbers"),
    ("gradient-decay:2:7", "expected a b above 0 and a warmup in .0, 1., a fraction of training, got 2 and 7"),
])  # fmt: skip
def test_a_loss_that_is_none_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training(loss=spec)


def test_what_does_not_go_with_a_loss_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="expected hard labels for a loss other than the likelihood"):
        Training(loss="dro:3", mixup=0.2)
    own = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), likelihood=lambda z: dist.Categorical(logits=z))
    with pytest.raises(ValueError, match="expected the categorical likelihood for loss dro:3, got function: leave loss at"):
        shelf.load("inference", "rigl")(own, digits(), training=Training(loss="dro:3"), delta_t=5)
    loss = losses.Loss("mine", lambda z, y, t: z.sum(), 10, 2)
    with pytest.raises(ValueError, match=r"expected loss mine to give one number for each of 6 labels, got \(\)"):
        loss(logits(), LABELS)
    with pytest.raises(ValueError, match=r"one row for each of the labels \(6,\), for loss mine, got \(5, 4\)"):
        loss(logits()[:5], LABELS)


class Counted(losses.Remembering):
    """-log p, and how many steps it was told of."""

    def meet(self, model: Any, data: Any, device: Any) -> None:
        self.memory = self.memory or {"steps": 0}

    def told(self, progress: losses.Progress, model: Any, guide: Any) -> None:
        self.memory["steps"] += 1

    def __call__(self, logits: Tensor, y: Tensor, progress: losses.Progress) -> Tensor:
        return losses.cross_entropy(logits, y)


def test_a_loss_that_remembers_does_so_for_each_training_of_its_own() -> None:
    mine = Counted()
    fits = [trained(mine) for _ in range(2)]
    assert torch.equal(fits[0].pairs.values, fits[1].pairs.values)
    assert [fit.model.loss.function.memory["steps"] for fit in fits] == [fits[0].history[-1]["step"]] * 2


def test_once_the_training_is_over_the_program_is_that_of_its_last_step() -> None:
    model = trained("dro:5").model
    x, y = digits().train.x[:8], digits().train.y[:8]
    with pyro.get_param_store().scope():
        trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"weights": model.initial})).get_trace(x, y)
    assert torch.isfinite(trace.log_prob_sum())


def test_a_training_too_short_for_anything_of_a_loss_is_told_of() -> None:
    model = losses.built(shelf.load("models", "mlp"), (64,), 10, "moon:4", hidden=(8,))
    data = digits()._replace(shape=(64,))
    training = Training(epochs=4, batch_size=128, device="cpu", loss="moon:4")
    with pytest.warns(UserWarning, match="loss moon:4 never began: it wants 5 epochs, and had 4"):
        shelf.load("inference", "rigl")(model, data, sparsity=0.5, delta_t=10**6, training=training)


def test_a_loss_that_asks_for_gradients_and_draws_is_tried_as_it_trains() -> None:
    """With gradients; and torch's stream is where it was."""

    def sharp(logits: Tensor, y: Tensor, progress: losses.Progress) -> Tensor:
        each = F.cross_entropy(logits + 0.01 * torch.randn_like(logits), y, reduction="none")
        gradient, = torch.autograd.grad(each.sum(), logits, create_graph=True)
        return each + 0.1 * gradient.square().sum(-1)

    torch.manual_seed(4)
    before = torch.get_rng_state()
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    torch.set_rng_state(before)
    assert prepare(model, digits(), Training(loss=sharp, device="cpu")).loss is not None
    assert torch.equal(torch.get_rng_state(), before)
