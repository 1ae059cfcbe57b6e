"""Pruning: how many weights each move leaves (Zhu & Gupta 2018, eq. 1), which, and that nothing else changes with them.

The reference trains a dense float64 network in plain torch under a 0/1 mask that it prunes itself.
"""

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.optim
import pytest
import torch
import torch.nn.functional as F
import yaml
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor, nn

from espalier import runs, shelf
from espalier.contracts import Data, Evidence, Schedule, Topology
from espalier.data.sets import load
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import erk, initial, prune, uniform
from espalier.training.loop import Loop
from espalier.training.options import Training
from espalier.training.rates import constant, cosine, swa
from hashed import hashes
from rounding import close
from watches import Killed

NUM_DATA, BATCH, DECAY = 90, 16, 0.02
SHAPES = [(9, 6), (4, 9)]


pytestmark = pytest.mark.usefixtures("float64")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def dense(keep_prob: float = 1.0) -> tuple[BayesianNetwork, MaskedGuide]:
    prior_scale = math.sqrt(round(65536 * keep_prob) / 65536 / (NUM_DATA * DECAY))
    model = BayesianNetwork(net(), prior_scale=prior_scale, num_data=NUM_DATA, weight_decay=DECAY)
    stream = torch.Generator().manual_seed(1)
    return model, MaskedGuide(model, initial(model.shapes, 0.0), keep_prob, generator=stream)


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, generator=stream), torch.randint(0, 4, (BATCH,), generator=stream)


def evidence_of(topology: Topology, step: int, seed: int = 0) -> Evidence:
    stream = torch.Generator().manual_seed(1000 * step + seed)
    values = torch.randn(topology.num_active, generator=stream)
    return Evidence(step, values, torch.randn(topology.num_weights, generator=stream), stream)


# Which weights stay


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_scores_of_each_layer_stay_and_ties_go_to_the_lower_position(seed: int) -> None:
    chance = np.random.default_rng(seed)
    shapes = [(int(chance.integers(2, 7)), int(chance.integers(2, 7))) for _ in range(3)]
    topology = initial(shapes, 0.3, "uniform", generator=torch.Generator().manual_seed(seed))
    score = torch.from_numpy(chance.integers(0, 4, topology.num_active)).double()  # many ties
    counts = [int(chance.integers(1, count + 3)) for count in topology.counts]
    move = prune(topology, score, counts)

    expected, start, places = [], 0, topology.positions.tolist()
    for have, wanted in zip(topology.counts, counts, strict=True):
        ranked = sorted(range(start, start + have), key=lambda i: (-float(score[i]), places[i]))
        expected += sorted(ranked[:wanted])
        start += have
    assert move.source.tolist() == expected
    assert move.topology.positions.tolist() == [places[i] for i in expected]
    assert move.topology.counts == tuple(min(pair) for pair in zip(topology.counts, counts, strict=True))
    assert (move.topology.sizes, move.num_grown) == (topology.sizes, 0)


def test_a_layer_with_no_more_than_it_may_keep_keeps_all() -> None:
    topology = initial(SHAPES, 0.8, generator=torch.Generator().manual_seed(0))
    move = prune(topology, torch.rand(topology.num_active), [10**6, 10**6])
    assert torch.equal(move.topology.positions, topology.positions)
    assert move.source.tolist() == list(range(topology.num_active))


# When, and how many


def walk(schedule: Schedule, shapes: list[tuple[int, ...]], steps: int) -> dict[int, Topology]:
    """The topology after each of its moves, from a dense start."""
    topology, seen = initial(shapes, 0.0), {}
    for step in range(1, steps + 1):
        if schedule.due(step):
            topology = schedule.move(topology, evidence_of(topology, step)).topology
            seen[step] = topology
    return seen


@pytest.mark.parametrize(("delta_t", "last"), [(10, 100), (10, 101), (7, 50), (1, 30), (30, 31)])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_gradual_pruning_follows_the_cubic_of_zhu_and_gupta(delta_t: int, last: int, sparsity: float) -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, s_i = 0 at t_0 = 0, n moves of which the last is before `last`."""
    shapes = [(30, 20), (10, 30), (40, 10)]
    counts = erk(shapes, 1 - sparsity)
    schedule, seen = schedules.gradual(counts, delta_t, last), {}
    seen = walk(schedule, shapes, 2 * last)
    moves = (last - 1) // delta_t
    assert list(seen) == [delta_t * i for i in range(1, moves + 1)]
    assert schedule.last == last
    assert max(seen) < last
    sizes = [math.prod(shape) for shape in shapes]
    for step, topology in seen.items():
        for count, size, final in zip(topology.counts, sizes, counts, strict=True):
            final_sparsity = 1 - final / size
            s_t = final_sparsity + (0 - final_sparsity) * (1 - (step - 0) / (moves * delta_t)) ** 3
            assert abs(count - (1 - s_t) * size) <= 0.5 + 1e-9  # to the nearest whole weight
    assert seen[moves * delta_t].counts == counts
    for before, after in zip(list(seen.values())[:-1], list(seen.values())[1:], strict=True):
        assert torch.isin(after.positions, before.positions).all()  # what is gone does not return


def test_a_gradual_schedule_keeps_no_state_of_its_own() -> None:
    """Resumed from any point, by a new object, it goes the same way."""
    make = functools.partial(schedules.gradual, uniform(SHAPES, 0.2), 5, 60)
    one, seen = make(), walk(make(), SHAPES, 60)
    for step in (25, 40):
        topology = make().move(seen[step - 5], evidence_of(seen[step - 5], step)).topology
        assert torch.equal(topology.positions, seen[step].positions)
        assert one.move(initial(SHAPES, 0.0), evidence_of(initial(SHAPES, 0.0), step)).topology.counts == seen[step].counts


@pytest.mark.parametrize(("delta_t", "last"), [(100, 100), (100, 50), (5, 1), (5, 0), (0, 50), (-3, 50)])
def test_gradual_pruning_without_a_move_is_refused(delta_t: int, last: int) -> None:
    with pytest.raises(ValueError, match=f"expected a delta_t below the freeze at step {last}, got {delta_t}: nothing"):
        schedules.gradual((5, 5), delta_t, last)


@pytest.mark.parametrize("at", [1, 17])
def test_one_shot_pruning_is_one_move(at: int) -> None:
    counts = uniform(SHAPES, 0.3)
    schedule = schedules.one_shot(counts, at)
    assert [step for step in range(1, 100) if schedule.due(step)] == [at]
    assert schedule.last == at + 1
    topology = initial(SHAPES, 0.0)
    evidence = evidence_of(topology, at)
    move = schedule.move(topology, evidence)
    assert move.topology.counts == counts
    first = evidence.values[:54].abs()
    assert set(move.topology.positions[: counts[0]].tolist()) == set(first.topk(counts[0]).indices.tolist())


def test_a_rule_is_the_schedule_of_its_name() -> None:
    topology = initial(SHAPES, 0.6, generator=torch.Generator().manual_seed(0))
    by_name = {
        "rigl": schedules.rigl(5, 40, 0.3),
        "set": schedules.set_(5, 40, 0.3),
        "static": schedules.static(),
        "gradual": schedules.gradual((9, 9), 5, 40),
        "one-shot": schedules.one_shot((9, 9), 39),
    }
    assert set(schedules.RULES) == set(by_name)
    assert set(schedules.PRUNING) == {"gradual", "one-shot"}
    seen = set()
    for name, expected in by_name.items():
        schedule = schedules.rule(name, 5, 40, 0.3, (9, 9))
        assert schedule.last == expected.last
        assert [schedule.due(t) for t in range(1, 60)] == [expected.due(t) for t in range(1, 60)]
        moved, twin = (s.move(topology, evidence_of(topology, 20)) for s in (schedule, expected))
        assert torch.equal(moved.topology.positions, twin.topology.positions)
        seen.add(tuple(moved.topology.positions.tolist()))
    assert len(seen) == 5
    with pytest.raises(ValueError, match="expected a rule of rigl, set, static, gradual, one-shot, got 'gmp'"):
        schedules.rule("gmp", 5, 40, 0.3)


# The guide's move to fewer weights


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    return {name: slot.clone() for name, slot in optimizer.state[parameter].items()}


@pytest.mark.parametrize("family", [MaskedGuide, GaussianGuide])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_values_and_every_moment_travel_with_the_weights_that_stay(kind: str, family: type[MaskedGuide]) -> None:
    model, guide = dense()
    guide = family(model, guide.topology)
    loop = Loop(model, guide, schedules.static(), constant(0.05), optimizer=kind)
    for step in range(4):
        loop.step(*batch_of(step))
    names = [name for name, _ in guide.named_parameters()]
    held = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    before = {name: (p.detach().clone(), moments(loop.optimizer, p)) for name, p in guide.named_parameters()}
    others = {name: (p.detach().clone(), moments(loop.optimizer, p)) for name, p in model.named_parameters()}
    move = prune(guide.topology, guide.values.data.abs(), (11, 5))
    guide.move(move, loop.optimizer)

    assert guide.topology.counts == (11, 5)
    assert torch.equal(guide.positions, move.topology.positions)
    assert [name for name, _ in guide.named_parameters()] == names
    for name, parameter in guide.named_parameters():
        values, old = before[name]
        assert torch.equal(parameter.detach(), values[move.source])
        new = loop.optimizer.state[parameter]
        assert set(new) == set(old) == ({"momentum_buffer"} if kind == "sgd" else {"step", "exp_avg", "exp_avg_sq"})
        for key, moment in old.items():
            assert (moment != 0).all()
            assert torch.equal(new[key], moment if moment.dim() == 0 else moment[move.source])
    now = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    assert [id(p) for p in now] == [id(p) for p in (*guide.parameters(), *model.parameters())]  # in the same order
    assert set(loop.optimizer.state) == set(now)  # nothing of the dense weights is left behind
    assert all(old is not new for old, new in zip(held[: len(names)], now, strict=False))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), others[name][0])
        assert all(torch.equal(slot, others[name][1][key]) for key, slot in loop.optimizer.state[parameter].items())

    loop.step(*batch_of(9))  # and it goes on
    assert guide.values.shape == (16,)
    assert (guide.values.detach() != before["values"][0][move.source]).all()


def test_pyro_s_store_forgets_the_dense_weights_and_svi_goes_on_with_the_rest() -> None:
    """Two pruning moves under plain SVI; without momentum its steps are those of the loop."""
    rate, moves, steps = 0.05, (3, 6), range(1, 10)
    model, guide = dense(0.7)
    schedule = Schedule(
        100, lambda t: t in moves, lambda topology, e: prune(topology, e.values.abs(), (20 - e.step, 15 - e.step))
    )
    loop, expected = Loop(model, guide, schedule, constant(rate), momentum=0.0), []
    for step in steps:
        loop.step(*batch_of(step))
        expected.append((guide.values.detach().clone(), guide.positions.clone()))

    pyro.clear_param_store()  # one store for both would hand the second guide the values of the first
    other, twin = dense(0.7)
    svi = SVI(other, twin, pyro.optim.SGD({"lr": rate / NUM_DATA}), TraceMeanField_ELBO())
    for step, (values, positions) in zip(steps, expected, strict=True):
        store = pyro.get_param_store()
        if step in moves:
            twin(*batch_of(step))  # the loop's move draws a Z too
            twin.move(prune(twin.topology, twin.values.data.abs(), (20 - step, 15 - step)))
            assert not any("values" in name for name in store)
        else:
            svi.step(*batch_of(step))
            assert dict(store.named_parameters())["values"] is twin.values
        close(twin.values, values)
        assert torch.equal(twin.positions, positions)
    assert twin.values.shape == (23,)


def test_a_guide_that_was_pruned_can_be_copied_and_the_copy_goes_the_same_way() -> None:
    model, guide = dense(0.8)
    loop = Loop(model, guide, schedules.gradual((9, 9), 3, 100), constant(0.1))
    for step in range(1, 8):
        loop.step(*batch_of(step))
    twin = copy.deepcopy(loop)
    for step in range(8, 14):
        loop.step(*batch_of(step))
        twin.step(*batch_of(step))
    assert twin.guide is not guide
    assert torch.equal(twin.guide.values, guide.values)


# Against plain torch


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


# Through the programs


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def mlp() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10)).float())


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


# The learning rate of stochastic weight averaging


def test_the_swa_rate_is_flat_then_linear_then_flat() -> None:
    """Izmailov et al. 2018: constant, a linear fall, then a constant rate under which the averaged weights explore."""
    rate = swa(0.3, 400, floor=0.2)
    assert [rate(step) for step in (1, 77, 200, 201)] == pytest.approx([0.3] * 4)
    assert [rate(step) for step in (301, 302, 350, 400)] == pytest.approx([0.06] * 4)
    for step in (211, 251, 263, 299):  # the fall is from step 201 to step 301
        assert rate(step) == pytest.approx(0.3 + (0.06 - 0.3) * (step - 201) / 100)
    warm = swa(0.3, 400, warmup=50, floor=0.2)
    assert [warm(step) for step in (1, 20, 50, 51, 399)] == pytest.approx([0.006, 0.12, 0.3, 0.3, 0.06])


def test_training_at_the_swa_rate_uses_it() -> None:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=8, batch_size=32, rate="swa", learning_rate=0.2, device="cpu")
    fit = shelf.load("inference", "cigl")(mlp(), digits(), drop_rate=0.0, delta_t=5, training=training)
    seen = [row["learning_rate"] for row in fit.history]
    assert seen[:4] == pytest.approx([0.2] * 4)
    assert 0 < seen[6] == seen[7] < seen[5] < seen[4] < 0.2
    assert len(fit.pairs.values) == 2
    close(fit.dense(fit.pairs.values.mean(0)), next(fit.weights("ticket"))[0])


