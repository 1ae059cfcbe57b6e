"""AGENT: a naive loop in float64 says the same, SVRG among it; what it costs is counted; a kill costs nothing."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits import digits
from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.prediction.costs import costs
from espalier.prediction.fit import Fit
from espalier.store import Bundle
from espalier.topology.masks import initial
from espalier.training.options import Training
from espalier.training.streams import Streams
from rounding import close
from toys import BATCH, CPU, DECAY, net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
EPOCHS, ROWS = 4, 5 * BATCH + 2


def naive(gamma: float, coefficient: float, memory: float, batch: int, mask: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """Parameters w1, b1, w2, b2 at the end, and gamma c of every epoch."""
    x, y = toy(ROWS).train
    order, count = Streams(5, CPU).order, max(1, ROWS // batch)
    parameters = [p.detach() * m for p, m in zip(net().parameters(), mask, strict=True)]
    velocity, snapshot, taken, factors = [torch.zeros_like(p) for p in parameters], None, 0, []

    def loss(point: list[Tensor], rows: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x[rows], point[0], point[1]))
        return F.cross_entropy(F.linear(hidden, point[2], point[3]), y[rows])

    def gradient(point: list[Tensor], rows: Tensor) -> list[Tensor]:
        free = [p.clone().requires_grad_() for p in point]
        return [g * m for g, m in zip(torch.autograd.grad(loss(free, rows), free), mask, strict=True)]

    for _ in range(EPOCHS):
        if snapshot is not None:
            parts = torch.arange(ROWS).tensor_split(count)
            a, b = (torch.stack([loss(point, rows) for rows in parts]) for point in (parameters, snapshot))
            if count > 1:
                slope = ((a - a.mean()) * (b - b.mean())).sum() / (b - b.mean()).square().sum()
                coefficient = memory * coefficient + (1 - memory) * float(slope)
        snapshot, u = parameters, gradient(parameters, torch.arange(ROWS))
        factors.append(gamma * coefficient)
        for rows in torch.randperm(ROWS, generator=order).split(batch)[:count]:
            here, there = gradient(parameters, rows), gradient(snapshot, rows)
            g = [h + DECAY * p + factors[-1] * (m - t) for h, p, m, t in zip(here, parameters, u, there, strict=True)]
            rate = 0.1 * (1 + math.cos(math.pi * taken / (count * EPOCHS)))
            velocity = [0.9 * v + one for v, one in zip(velocity, g, strict=True)]
            parameters = [p - rate * (one + 0.9 * v) for p, one, v in zip(parameters, g, velocity, strict=True)]
            taken += 1
    return parameters, factors


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("gamma", "coefficient", "memory", "batch"),
    [
        pytest.param(1.0, 1.0, 1.0, BATCH, id="SVRG"),
        pytest.param(1.0, 1.0, 1.0, ROWS, id="SVRG of all rows"),
        pytest.param(0.1, 0.1, 0.7, BATCH, id="as published"),
        pytest.param(0.8, 0.6, 0.2, BATCH, id="a generic point"),
    ],
)
def test_agent_is_a_naive_loop(gamma: float, coefficient: float, memory: float, batch: int) -> None:
    """Johnson & Zhang 2013 where gamma c is one; of one batch of all rows that is gradient descent."""
    training = Training(epochs=EPOCHS, batch_size=batch, learning_rate=0.2, weight_decay=DECAY, device="cpu")
    options = {"gamma": gamma, "coefficient": coefficient, "memory": memory, "rule": "static", "sparsity": 0.5, "seed": 5}
    fit = shelf.load("inference", "agent")(BayesianNetwork(net()), toy(ROWS), training=training, **options)
    start = initial([(4, 3), (3, 4)], 0.5, generator=Streams(5, CPU).topology)
    kept = torch.zeros(24).index_fill(0, start.positions, 1.0)
    mask = [kept[:12].view(4, 3), torch.ones(4), kept[12:].view(3, 4), torch.ones(3)]
    final, factors = naive(gamma, coefficient, memory, batch, mask)
    found = dict(fit.ticket("unmasked").named_parameters())
    for name, theirs in zip(("0.weight", "0.bias", "2.weight", "2.bias"), final, strict=True):
        close(found[name], theirs)
    assert [row["control"] for row in fit.history] == pytest.approx(factors, rel=1e-9)
    if gamma < 1:
        assert len(set(factors)) == EPOCHS


def normed() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 10))
    )


def run(watch: Recorder | None = None, **options: Any) -> Fit:
    training = Training(epochs=5, batch_size=32, learning_rate=0.1, device="cpu")
    settings = {"sparsity": 0.8, "drop_rate": 0.2, "gamma": 0.5, "delta_t": 7, "freeze": 0.7, "seed": 1, **options}
    return shelf.load("inference", "agent")(normed(), digits(), training=training, watch=watch, **settings)


def test_resumed_from_any_checkpoint_it_gives_the_same_fit_and_needs_its_own_state() -> None:
    watch = Recorder()
    whole = run(watch)
    expected = whole.bundle().tensors
    for checkpoint in watch.checkpoints[1:]:
        again = run(Recorder(copy.deepcopy(checkpoint)))
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.bundle().tensors.items())
        assert again.history == whole.history
        assert again.record == whole.record
    tensors, facts = watch.checkpoints[2]
    own = {name for name in tensors if name.startswith("control.")}
    assert {"control.values", "control.stream", "control.other.0", "control.mean.0", "control.mean.4"} < own
    for name in ("control.values", "control.other.0"):  # of the last epoch's end they are looked at once more, for c
        stale = {**tensors, name: tensors[name] * 0.5}
        forgot = run(Recorder(Bundle(stale, copy.deepcopy(facts))))
        assert not torch.equal(forgot.bundle().tensors["values"], expected["values"])


def test_without_masks_and_damped_to_nothing_it_is_rigl() -> None:
    """Same batches, same moves, same streams: what it does beside them moves nothing."""
    training = Training(epochs=5, batch_size=32, learning_rate=0.1, device="cpu")
    rigl = shelf.load("inference", "rigl")(
        normed(), digits(), training=training, sparsity=0.8, delta_t=7, freeze=0.7, seed=1
    )
    fit = run(drop_rate=0.0, gamma=1e-30)
    assert torch.equal(fit.topology.positions, rigl.topology.positions)
    assert torch.equal(fit.pairs.values[-1], rigl.pairs.values[-1])


def test_its_passes_are_paid_for() -> None:
    fit, steps, moves, rows = run(), 50, 4, 320
    assert sum(row["moves"] for row in fit.history) == moves
    looked = 3 * 32 * (steps - moves) + 5 * 3 * rows + 4 * rows  # at the snapshot; at w, with a gradient, and at the one before
    assert fit.record["control_variate"]["forward_examples"] == looked
    found, without = costs(fit), copy.copy(fit)
    without.record = {name: fact for name, fact in fit.record.items() if name != "control_variate"}
    active = fit.topology.num_active
    assert found["train_flops"] - costs(without)["train_flops"] == pytest.approx(2 * looked * active, rel=1e-9)
    held = active * (8 + 4 + 4) + 2 * 4 * (20 + 20 + 20 + 10)  # positions, values and u; biases and batch norm, and theirs
    assert found["state_bytes"] - costs(without)["state_bytes"] == held
