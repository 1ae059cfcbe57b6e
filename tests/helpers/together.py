"""Run by training/test_distributed.py, under torchrun and in the test's own process: the same trainings, in float64.

    torchrun --nproc_per_node 2 together.py FOLDER RECIPE      every process leaves FOLDER/RANK/CASE.safetensors and seen.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier import losses, runs, store
from espalier.contracts import Data, Split
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import distributed
from espalier.training.control_variates import ControlVariate
from espalier.training.distillation import distill
from espalier.training.drop_rates import Found
from espalier.training.function_space import FunctionSpaceKL, context_of
from espalier.training.options import Training
from espalier.training.streams import Streams, find_device
from espalier.training.train import train
from watches import Ending

BATCH, EPOCHS, EXAMPLES = 32, 8, 160  # of the whole: 5 steps an epoch, 40 in all
MOVES = 9  # every third step before the freeze at 30

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.2},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "set": {"rule": "set", "learning_rate": 0.2},
    "augmented": {"learning_rate": 0.2, "augment": "crop-flip", "label_smoothing": 0.1},
    "mixed": {"learning_rate": 0.2, "augment": "crop-flip", "mixup": 0.4},
    "batch norm": {"learning_rate": 0.05},
    "batch norm, controlled loss": {"learning_rate": 0.05, "remembers": "gradient-decay-pid"},
    "dropout": {"learning_rate": 0.05},
    "distilled": {"learning_rate": 0.2, "distill": 3},
    "found, told draws": {"learning_rate": 0.2, "followed": True, "distill": 2},
    "controlled": {"learning_rate": 0.2, "label_smoothing": 0.1, "controlled": True},
    "functions": {"learning_rate": 0.1, "functions": True},
    "ended": {"learning_rate": 0.2, "ended": 7},
}


def network(case: str) -> nn.Module:
    norm = nn.BatchNorm2d(4) if case.startswith("batch norm") else nn.Identity()
    drop = nn.Dropout(0.3) if case == "dropout" else nn.Identity()
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(144, 24), nn.Tanh(), drop, nn.Linear(24, 5)
    ).double()


def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 5, (EXAMPLES + 40,), generator=generator)
    centres = torch.randn(5, 1, 8, 8, generator=generator, dtype=torch.float64)
    x = centres[y] + torch.randn(len(y), 1, 8, 8, generator=generator, dtype=torch.float64)
    parts = [Split(x[:EXAMPLES], y[:EXAMPLES]), Split(x[EXAMPLES:], y[EXAMPLES:])]
    return Data("made", parts[0], parts[1], *[Split(x[:0], y[:0])] * 2, shape=(1, 8, 8), num_classes=5)


def trained(case: str, seed: int = 3, **changed: Any) -> Fit:
    """CigL in float64: 70 % sparse, one weight in five masked, nine moves."""
    options = {**CASES[case], **changed}
    rule, taught, followed = options.pop("rule", "rigl"), options.pop("distill", 0), options.pop("followed", False)
    last, controlled = options.pop("ended", 0), options.pop("controlled", False)
    functions, remembers = options.pop("functions", False), options.pop("remembers", "")
    training = Training(**{"epochs": EPOCHS, "batch_size": BATCH, "device": "cpu", "bn_batches": 2, **options})
    streams = Streams(seed, find_device("cpu"))
    model = BayesianNetwork(network(case), prior_scale=0.5, num_data=EXAMPLES, weight_decay=1e-3)
    if remembers:
        loss: Any = losses.named(remembers)
        loss.meet(model, data(), torch.device("cpu"))
        model.loss = losses.Loss(remembers, loss, training.steps(data()), EPOCHS)
    guide = MaskedGuide(model, initial(model.shapes, 0.7, generator=streams.topology), 0.8, generator=streams.mask)
    if functions:
        guide = GaussianGuide(model, guide.topology, noise_scale=0.1, kl_scale=0.0, generator=streams.mask)
    schedule = schedules.rule(rule, 3, 30, 0.4)
    followers = [Found(data(), 1280, 40, seed)] if followed else []  # every fourth step, as of large batches
    followers += [ControlVariate(data(), training, gamma=0.5, seed=seed)] if controlled else []
    followers += [FunctionSpaceKL(context_of("train", data()), 6, seed=seed)] if functions else []
    ending = Ending(last) if distributed.rank() == distributed.size() - 1 else None  # one process says it, all do it
    fit = train(model, guide, schedule, data(), training=training, streams=streams, average_from=0.8, followers=followers,
                watch=ending)  # fmt: skip
    if taught:
        distill(fit, data(), training=training, seed=seed, epochs=taught, learning_rate=0.05, masks=int(followed))
    return fit


def state(fit: Fit) -> Bundle:
    """All that a fit is, and its history."""
    tensors = {"positions": fit.topology.positions, "values": fit.pairs.values, "keep": fit.pairs.keep}
    tensors |= {f"state.{name}": tensor for name, tensor in fit.pairs.states.items()}
    tensors |= {f"buffer.{name}": tensor for name, tensor in fit.model.named_buffers() if name != "initial"}
    tensors |= {"student": fit.student[0]} if fit.student else {}
    return Bundle({name: tensor.detach() for name, tensor in tensors.items()}, {"history": fit.history})


def refusals() -> dict[str, str]:
    """The sentences of what several processes cannot do."""
    said = {}
    with pytest.raises(ValueError) as raised:
        trained("sgd", batch_size=31)
    said["uneven batch"] = str(raised.value)
    with pytest.raises(RuntimeError) as raised:
        trained("sgd", seed=distributed.rank())
    said["another seed"] = str(raised.value)
    with pytest.raises(ValueError) as raised:
        find_device("cuda:0")
    said["one GPU for all"] = str(raised.value)
    return said


def norms() -> dict[str, Any]:
    """Which batch norms stand in a network before, while and after it is trained on GPUs, and in training on the CPU."""
    net = network("batch norm")
    before = net[1]
    kinds: dict[str, Any] = {"before": type(net[1]).__name__}
    with distributed.synchronised(net, torch.device("cuda")):  # a name: no tensor is there
        kinds["while"] = type(net[1]).__name__
        assert net[1].weight is before.weight
        assert net[1].running_mean is before.running_mean
        net[1].running_mean.fill_(float(distributed.rank()))
    kinds["after"] = type(net[1]).__name__
    assert net[1] is before
    kinds["buffer after"] = float(before.running_mean[0])
    with distributed.synchronised(net, torch.device("cpu")):
        kinds["on the CPU"] = type(net[1]).__name__
    return kinds


def main(folder: Path, recipe: str) -> None:
    with distributed.joined() as first:
        own = folder / str(distributed.rank())
        for case in CASES:
            store.write_bundle(own / f"{case}.safetensors", state(trained(case)))
        streams = Streams(0, torch.device("cpu"))
        streams.seed_default()
        streams.part_ways(1)
        drawn = {"default": float(torch.rand(())), "Z": float(torch.rand((), generator=streams.mask))}
        seen = {"first": first, "size": distributed.size(), "drawn": drawn, "refused": refusals(), "norms": norms()}
        store.write_bytes(own / "seen.json", json.dumps(seen).encode())
        runs.start(resolve(["--config", recipe]), folder / "whole")
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    store.write_bytes(own / "threads.json", json.dumps(threads).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
