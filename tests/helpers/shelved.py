"""Fits of every program of the shelf, and of networks of one's own, untrained, on made-up rows that are not scaled."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from espalier import data, shelf
from espalier.contracts import Data
from espalier.network import BayesianNetwork, copied
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import Pair, Pairs
from espalier.topology.masks import initial

ROWS, KEEP, SEED = 80, 0.9, 3


class Two(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) + self.right(b)


class Case(NamedTuple):
    """program: of the shelf, or none; options: its own. shape: of a row. kind: of y."""

    program: str | None
    options: dict[str, Any]
    shape: tuple[int, ...]
    kind: str = "classes"


CASES = {
    "mlp": Case("mlp", {"hidden": (40, 20)}, (1, 6, 5)),
    "one logit": Case("mlp", {"hidden": (12,), "likelihood": "bernoulli"}, (7,), "two"),
    "regression": Case("mlp", {"hidden": (12,), "likelihood": "normal"}, (4,), "target"),
    "two targets": Case("mlp", {"hidden": (12,), "likelihood": "normal"}, (4,), "targets"),
    "linear": Case("linear", {}, (5,), "target"),
    "logistic": Case("logistic", {}, (6,)),
    "deep_gp": Case("deep_gp", {"widths": (30, 20), "noise_precision": 4.0}, (3,), "target"),
    "lenet": Case("lenet", {"channels": (3, 4), "hidden": 20}, (1, 16, 16)),
    "unet": Case("unet", {"channels": (4, 8)}, (3, 8, 8), "masks"),
    "unet of classes": Case("unet", {"channels": (4, 8)}, (1, 8, 8), "maps"),
    "wide_resnet": Case("wide_resnet", {"depth": 10, "widen": 1}, (3, 12, 12)),
    "own": Case(None, {}, (1, 6, 5)),
}


def own_net() -> nn.Module:
    """What is on no shelf."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 3)
    )


@functools.cache
def rows(name: str) -> tuple[Tensor, Data]:
    """Inputs as a user has them, bytes or columns far from 0, and the same as data."""
    _, _, shape, kind = CASES[name]
    rng = np.random.default_rng(SEED)
    images = len(shape) == 3
    x = rng.integers(0, 256, (ROWS, *shape), dtype=np.uint8) if images else 2000 + 30 * rng.normal(size=(ROWS, *shape))
    y: Any = {
        "classes": lambda: np.array(["ash", "elm", "oak"])[rng.integers(0, 3, ROWS)],
        "two": lambda: np.array(["no", "yes"])[rng.integers(0, 2, ROWS)],
        "target": lambda: 500 + 40 * rng.normal(size=ROWS),
        "targets": lambda: np.array([500, -3]) + np.array([40, 0.1]) * rng.normal(size=(ROWS, 2)),
        "masks": lambda: rng.integers(0, 2, (ROWS, *shape[1:])),
        "maps": lambda: rng.integers(0, 4, (ROWS, *shape[1:])),
    }[kind]()
    return torch.from_numpy(x), data.from_arrays(x, y, channels="first" if images else None)


@functools.cache
def made(name: str) -> Fit:
    """A fit with three pairs that differ, and a student."""
    program, options, shape, _ = CASES[name]
    _, loaded = rows(name)
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        model = (
            BayesianNetwork(own_net())
            if program is None
            else shelf.load("models", program)(shape, loaded.num_outputs, **options)
        )
        return untrained(model, loaded)


def untrained(model: BayesianNetwork, loaded: Data) -> Fit:
    """A fit of any model: weights around those it came with, other parameters and buffers as if they had been trained."""
    stream = torch.Generator().manual_seed(SEED)
    topology = initial(model.shapes, 0.8, generator=stream)
    model = copied(model)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=stream))
    start = model.initial[topology.positions]

    def pair() -> Pair:
        values = start + 0.1 * torch.randn(start.shape, generator=stream)
        keep = torch.rand(start.shape, generator=stream) < KEEP
        return Pair(values, keep, {name: tensor.clone() for name, tensor in model.state_dict().items()})

    pairs = [pair() for _ in range(3)]
    record = {
        **loaded.facts(), "batchnorm": "re-estimate", "bn_batches": 2, "batch_size": 16, "num_pairs": 3, "keep_prob": KEEP,
    }  # fmt: skip
    inputs = batchnorm.training_batches(loaded, 2, 16, torch.device("cpu")) if batchnorm.has_batchnorm(model) else None
    return Fit(
        model, topology, Pairs.of(pairs), keep_prob=KEEP, rescale=False, record=record, history=[], inputs=inputs,
        student=(pairs[0].values * 0.5, pairs[0].state),
    )  # fmt: skip


def words(name: str) -> dict[str, Any] | None:
    """How a recipe would name the program of a case."""
    program, options, _, _ = CASES[name]
    return None if program is None else {"model": program, **options}
