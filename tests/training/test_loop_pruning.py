"""Training under a pruning schedule: a dense network under a 0/1 mask in plain float64 torch, kills between prunings."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from digits import digits, mlp
from espalier import runs, shelf
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import erk, uniform
from espalier.training.loop import Loop
from espalier.training.options import Training
from espalier.training.rates import constant, cosine
from hashed import hashes
from pruned import dense
from rounding import close
from tiny import DECAY, batch_of, net
from watches import Killed

pytestmark = pytest.mark.usefixtures("float64")


class Reference:
    """A dense network, its mask, its own optimiser; the L2 acts on what is active."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        layers = net()
        self.first, self.b1, self.second, self.b2 = (p.detach().clone().requires_grad_() for p in layers.parameters())
        self.masks = [torch.ones_like(self.first), torch.ones_like(self.second)]
        parameters = [self.first, self.b1, self.second, self.b2]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr=1.0) if kind == "adam"
            else torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True)
        )  # fmt: skip

    def step(self, x: Tensor, y: Tensor, keep: Tensor, rate: float) -> None:
        """keep: Z of the active weights, in the order of their positions."""
        z = torch.zeros(90)
        z[torch.cat([mask.flatten() for mask in self.masks]).bool()] = keep.double()
        active = [self.first * self.masks[0], self.second * self.masks[1]]
        w1, w2 = active[0] * z[:54].reshape(9, 6), active[1] * z[54:].reshape(4, 9)
        loss = F.cross_entropy(torch.tanh(x @ w1.T + self.b1) @ w2.T + self.b2, y)
        # weight_decay is p / (N v): the bound p u^2 / (2 v N) is wd / 2 u^2 whatever p is
        squares = (active[0] ** 2).sum() + (active[1] ** 2).sum() + (self.b1**2).sum() + (self.b2**2).sum()
        self.optimizer.zero_grad()
        (loss + DECAY / 2 * squares).backward()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()

    def prune(self, counts: list[int]) -> None:
        for weight, mask, count in zip((self.first, self.second), self.masks, counts, strict=True):
            magnitude = torch.where(mask.bool(), weight.detach().abs(), -1.0).flatten()
            mask.view(-1).fill_(0.0)[magnitude.argsort(descending=True)[:count]] = 1.0

    @property
    def active(self) -> Tensor:
        flat = torch.cat([self.first.flatten(), self.second.flatten()])
        return flat[torch.cat([mask.flatten() for mask in self.masks]).bool()]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("keep_prob", [1.0, 0.8])
@pytest.mark.parametrize("rule", ["gradual", "one-shot"])
def test_pruning_trains_the_weights_of_a_dense_network_under_a_mask(kind: str, keep_prob: float, rule: str) -> None:
    targets, sizes, last = (13, 7), (54, 36), 34
    model, guide = dense(keep_prob)
    schedule = schedules.rule(rule, 6, last, 0.3, targets)
    rates = cosine(0.02 if kind == "adam" else 0.1, 60)
    loop, reference, sparse = Loop(model, guide, schedule, rates, optimizer=kind), Reference(kind), []
    for step in range(1, 61):
        x, y = batch_of(step)
        loop.step(x, y)
        if rule == "gradual" and step % 6 == 0 and step <= 30:
            rest = (1 - step / 30) ** 3  # a move replaces a step
            reference.prune([round(k + (n - k) * rest) for k, n in zip(targets, sizes, strict=True)])
        elif rule == "one-shot" and step == last - 1:
            reference.prune(list(targets))
        else:
            assert guide.keep is not None
            reference.step(x, y, guide.keep, rates(step))
        close(guide.values, reference.active)
        close(model.net[0].bias, reference.b1)
        close(model.net[2].bias, reference.b2)
        sparse.append(len(guide.values))
    assert sparse[-1] == 20
    assert len(set(sparse)) == (5 if rule == "gradual" else 2)


@pytest.mark.parametrize("allocation", ["erk", "uniform"])
@pytest.mark.parametrize("rule", ["gradual", "one-shot"])
def test_cigl_under_a_pruning_rule_ends_at_its_sparsity(rule: str, allocation: str) -> None:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=8, batch_size=32, device="cpu")  # 80 steps
    fit = shelf.load("inference", "cigl")(
        mlp(), digits(), rule=rule, sparsity=0.9, delta_t=7, freeze=0.5, average_from=0.5, allocation=allocation,
        training=training, seed=1,
    )  # fmt: skip
    shapes = [(30, 64), (10, 30)]
    assert fit.topology.counts == {"erk": erk, "uniform": uniform}[allocation](shapes, 0.1)
    assert fit.topology.num_active == 222
    assert fit.pairs.values.shape == (4, 222)
    ticket = torch.cat([p.flatten() for n, p in fit.ticket().named_parameters() if "weight" in n])
    assert not ticket[torch.isin(torch.arange(2220), fit.topology.positions, invert=True)].any()

    final = [count / size for count, size in zip(fit.topology.counts, (1920, 300), strict=True)]
    active, density = [], 1.0
    for step in range(1, 81):
        active.append(density)  # what a step computes with is what was there before it
        if rule == "gradual" and step % 7 == 0 and step <= 35:
            rest = (1 - step / 35) ** 3
            left = [round(k * n + (n - k * n) * rest) for k, n in zip(final, (1920, 300), strict=True)]
            density = sum(left) / 2220
        elif rule == "one-shot" and step == 39:
            density = 0.1
        if step % 10 == 0:
            row = fit.history[step // 10 - 1]
            assert row["density"] == pytest.approx(density, abs=1 / 2220)
            assert row["mean_density"] == pytest.approx(np.mean(active[-10:]), abs=1 / 2220)
            assert row["exchanged"] == 0
    assert sum(row["moves"] for row in fit.history) == (5 if rule == "gradual" else 1)


@pytest.mark.parametrize("rule", ["gradual", "one-shot"])
def test_averaging_before_the_last_pruning_is_refused(rule: str) -> None:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=8, batch_size=32, device="cpu")
    with pytest.raises(ValueError, match="expected averaging to start after the topology is frozen"):
        shelf.load("inference", "cigl")(
            mlp(), digits(), rule=rule, delta_t=7, freeze=0.75, average_from=0.5, training=training
        )


@pytest.mark.parametrize(("rule", "optimizer"), [("gradual", "sgd"), ("gradual", "adam"), ("one-shot", "adam")])
def test_a_run_killed_while_it_prunes_resumes_to_equal_files(rule: str, optimizer: str, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump({
        "model": "mlp", "hidden": [24], "inference": "cigl", "data": "digits", "train_size": 160, "rule": rule,
        "sparsity": 0.9, "drop_rate": 0.2, "delta_t": 7, "freeze": 0.75, "average_from": 0.75, "epochs": 8,
        "batch_size": 16, "optimizer": optimizer, "learning_rate": 0.01, "seed": 3,
    }))  # fmt: skip
    recipe = resolve(["--config", str(recipe_file)])
    fit = runs.start(recipe, tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    densities = [row["density"] for row in fit.history]
    middle = [density for density in densities if 0.1001 < density < 0.999]
    assert len(set(middle)) >= 4 if rule == "gradual" else densities[4] == 1.0
    # between two moves, at a move, just after one, and twice
    for number, kills in enumerate([[24], [35], [36], [25, 8]]):
        folder = tmp_path / f"run-{number}"
        with pytest.raises(KeyboardInterrupt):
            runs.start(recipe, folder, Killed(step=kills[0]))
        for kill in kills[1:]:
            with pytest.raises(KeyboardInterrupt):
                runs.resume(folder, Killed(step=kill))
        assert not runs.finished(folder)
        runs.resume(folder)
        assert hashes(folder) == expected


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_state_saved_between_two_prunings_continues_with_the_same_bits(kind: str) -> None:
    def fresh() -> Loop:
        model, guide = dense(0.8)
        return Loop(model, guide, schedules.gradual((9, 9), 3, 30), constant(0.1), optimizer=kind)

    loop = fresh()
    for step in range(1, 12):
        loop.step(*batch_of(step))
    assert 18 < len(loop.guide.values) < 90
    tensors, facts = loop.state()
    saved = Bundle({name: tensor.clone() for name, tensor in tensors.items()}, facts)
    stream = loop.guide.generator.get_state()
    other = fresh()
    other.restore(saved)
    other.guide.generator.set_state(stream)
    for step in range(12, 32):
        loop.step(*batch_of(step))
        other.step(*batch_of(step))
        assert torch.equal(loop.guide.values, other.guide.values)
        assert torch.equal(loop.guide.positions, other.guide.positions)
    assert len(other.guide.values) == 18
