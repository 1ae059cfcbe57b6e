"""Algorithm 1 replayed: the engine's steps equal those of a naive float64 implementation written from method.md alone.

`naive.py` keeps dense tensors, an explicit dense Z and hand-written optimisers, and was written without sight of the
engine. Batches, initial topology and the engine's Z are handed over; everything else must come out equal to 1e-10. Then
each pinned-down convention is changed alone in the naive version, and the comparison must fail.
"""

from __future__ import annotations

import copy
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import naive
from espalier.distributions.masked import effective_keep_prob
from espalier.distributions.priors import prior_scale_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Loop
from espalier.training.rates import cosine

STEPS, DELTA_T, T_END, FRACTION, NUM_DATA, DECAY = 60, 5, 50, 0.8, 333, 3e-3
COLLECT = (57, 58, 60)
TOLERANCE = 1e-10


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 14), nn.Tanh(), nn.Linear(14, 9), nn.ReLU(), nn.Linear(9, 3))


def conv_net() -> nn.Module:
    """No biases under batch norm: their true gradient is zero, and rounding would be amplified."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def dead_columns(generator: torch.Generator) -> Tensor:
    """Inputs of which six in eight columns are always zero: their weights have gradient zero and tie exactly."""
    x = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    x[:, :6] = 0
    return x


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(12, 2, 6, 6, generator=generator, dtype=torch.float64)


SCENARIOS: dict[str, dict[str, Any]] = {
    "mlp, adam, ties": {"net": mlp, "inputs": dead_columns, "optimizer": "adam", "rate": 0.01, "sparsity": 0.4},
    "mlp, momentum, rescaled": {
        "net": mlp, "inputs": dead_columns, "optimizer": "momentum", "rate": 0.1, "sparsity": 0.4, "rescale": True,
    },
    "mlp, plain sgd": {"net": mlp, "inputs": dead_columns, "optimizer": "sgd", "rate": 0.2, "sparsity": 0.6},
    "conv with batch norm, nesterov": {
        "net": conv_net, "inputs": images, "optimizer": "nesterov", "rate": 0.05, "sparsity": 0.7,
    },
    # Not Adam here: under batch norm the true gradient of a lone grown weight is zero (its channel is scale-invariant),
    # and Adam, whose fresh moments divide rounding by rounding, makes 1e-9 of it. Seen, and so for no other optimiser.
    "conv with batch norm, momentum, rescaled": {
        "net": conv_net, "inputs": images, "optimizer": "momentum", "rate": 0.05, "sparsity": 0.7, "rescale": True,
    },
}  # fmt: skip


def engine(
    net: Any, inputs: Any, optimizer: str, rate: float, sparsity: float, rescale: bool = False, keep_prob: float = 0.8
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the engine; return what it went through and the arguments that make the naive version replay it."""
    torch.manual_seed(5)
    plain = net().double()
    generator = torch.Generator().manual_seed(6)
    p = effective_keep_prob(keep_prob)
    model = BayesianNetwork(
        plain, num_data=NUM_DATA, weight_decay=DECAY, prior_scale=prior_scale_of(DECAY, NUM_DATA, p, rescale=rescale)
    )
    topology = initial(model.shapes, sparsity, generator=generator)
    guide = MaskedGuide(model, topology, keep_prob, rescale=rescale, generator=torch.Generator().manual_seed(7))
    rates = cosine(rate, STEPS, warmup=7)
    loop = Loop(
        model,
        guide,
        schedules.rigl(DELTA_T, T_END, FRACTION),
        rates,
        optimizer="adam" if optimizer == "adam" else "sgd",
        momentum=0.0 if optimizer == "sgd" else 0.9,
    )
    if optimizer == "momentum":
        loop.optimizer.param_groups[0]["nesterov"] = False
    names = [weight.name for weight in model.weights]
    batches, draws = [], []
    trace: dict[str, Any] = {"weights": [], "masks": [], "others": [], "buffers": [], "moments": [], "pairs": []}
    model.train()
    with pyro.get_param_store().scope():
        for step in range(1, STEPS + 1):
            x, y = inputs(generator), torch.randint(0, 3, (len(inputs(generator)),), generator=generator)
            positions = guide.positions.clone()
            loop.step(x, y)
            batches.append((x, y))
            draws.append(_dense(model, guide.keep, positions))
            trace["weights"].append(_dense(model, guide.values.detach(), guide.positions))
            trace["masks"].append(_dense(model, torch.ones_like(guide.positions, dtype=torch.bool), guide.positions))
            trace["others"].append({k: v.detach().clone() for k, v in model.net.named_parameters()})
            trace["buffers"].append({k: v.clone() for k, v in model.net.named_buffers()})
            slots = loop.optimizer.state.get(guide.values, {})
            first = slots.get("exp_avg", slots.get("momentum_buffer"))
            trace["moments"].append(None if first is None else _dense(model, first, guide.positions))
            if step in COLLECT:
                trace["pairs"].append((guide.keep.clone(), guide.values.detach().clone()))
    averaged = torch.stack([keep * values for keep, values in trace["pairs"]]).mean(0) * guide.scale
    trace["ticket"] = _dense(model, averaged, guide.positions)
    arguments = {
        "net": plain,
        "maskable": names,
        "masks": _dense(model, torch.ones_like(topology.positions, dtype=torch.bool), topology.positions),
        "batches": batches,
        "draws": draws,
        "num_data": NUM_DATA,
        "weight_decay": DECAY,
        "learning_rates": [rates(step) for step in range(1, STEPS + 1)],
        "optimizer": optimizer,
        "keep_prob": p,
        "rescale": rescale,
        "delta_t": DELTA_T,
        "t_end": T_END,
        "drop_fraction": FRACTION,
        "collect_at": COLLECT,
    }
    return trace, arguments


def _dense(model: BayesianNetwork, values: Tensor, positions: Tensor) -> dict[str, Tensor]:
    flat = torch.zeros(model.num_weights, dtype=values.dtype)
    flat[positions] = values
    return {name: part.clone() for name, part in model.unflatten(flat).items()}


def discrepancy(trace: dict[str, Any], oracle: Any, with_moments: bool) -> float:
    """The largest difference in anything at any step; infinite where the topologies differ."""
    worst = 0.0
    for step in range(STEPS):
        for name, mask in oracle.masks[step].items():
            if not torch.equal(mask, trace["masks"][step][name]):
                return float("inf")
        for kind in ("weights", "others", "buffers"):
            ours, theirs = trace[kind][step], getattr(oracle, kind)[step]
            assert set(ours) == set(theirs)
            worst = max([worst, *(float((ours[name] - theirs[name]).abs().max()) for name in ours)])
        moments = trace["moments"][step]
        if with_moments and moments is not None:
            gaps = [float((moments[name] - oracle.moments[step][name][0]).abs().max()) for name in moments]
            worst = max([worst, *gaps])
    gaps = [float((trace["ticket"][name] - oracle.ticket[name]).abs().max()) for name in trace["ticket"]]
    return max([worst, *gaps])


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    return {name: engine(**copy.deepcopy(scenario)) for name, scenario in SCENARIOS.items()}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_engine_replays_algorithm_1(played: dict[str, Any], name: str) -> None:
    trace, arguments = played[name]
    oracle = naive.replay(**arguments)
    assert len(oracle.moved) == 9  # t = 5, 10 ... 45, all before T_end = 50
    moved = sum(
        not torch.equal(before[tensor], after[tensor])
        for before, after in zip(oracle.masks, oracle.masks[1:], strict=False)
        for tensor in before
    )
    assert moved >= 9, "the topology hardly moved: this scenario tests nothing"
    assert discrepancy(trace, oracle, with_moments=SCENARIOS[name]["optimizer"] != "sgd") < TOLERANCE


@pytest.mark.parametrize("mutation", naive.mutations())
def test_each_convention_shows_when_it_alone_is_changed(played: dict[str, Any], mutation: str) -> None:
    conventions = naive.mutations()[mutation]
    gaps = [
        discrepancy(trace, naive.replay(**arguments, conventions=conventions), with_moments=False)
        for trace, arguments in played.values()
    ]
    assert max(gaps) > 1e4 * TOLERANCE, f"{mutation} is invisible: largest discrepancy {max(gaps):.1e}"
