"""What our loop and somebody else's are both given in tests/adapters: data in float64, options, batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import together
from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.training.options import Training

BATCH, EPOCHS, STEPS, SEED = 32, 8, 40, 3
DATA = together.data()
OPTIONS = {"sparsity": 0.7, "drop_rate": 0.2, "delta_t": 3, "drop_fraction": 0.4, "freeze": 0.7, "average_from": 0.75}
CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "rescaled": {"rescale": True},
    "random growth, a mask for each unit": {"rule": "set", "mask": "unit"},
    "pruned": {"rule": "gradual"},
    "batch norm": {"net": "batch norm", "learning_rate": 0.05},
    "no mask": {"drop_rate": 0.0},
}


def split(case: str) -> tuple[str, Training, dict[str, Any]]:
    options = {"net": "sgd", "optimizer": "sgd", "learning_rate": 0.2} | OPTIONS | CASES[case]
    net, optimizer, rate = (options.pop(name) for name in ("net", "optimizer", "learning_rate"))
    training = Training(epochs=EPOCHS, batch_size=BATCH, optimizer=optimizer, learning_rate=rate, weight_decay=1e-3, device="cpu")
    return net, training, options


def ours(case: str) -> Fit:
    net, training, options = split(case)
    return shelf.load("inference", "cigl")(
        BayesianNetwork(together.network(net)), DATA, training=training, seed=SEED, **options
    )


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
