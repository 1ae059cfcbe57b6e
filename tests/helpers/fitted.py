"""Fits of handwritten digits by CigL and RigL, trained once, and the networks that they name by hand."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from espalier import shelf
from espalier.contracts import Data
from espalier.data.sets import load
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.store import Bundle
from espalier.training.options import Training
from espalier.training.watch import Watch

TOLERANCE = 2e-5  # float32, in another order
EPOCHS, BATCH, PAIRS = 8, 64, 4
OPTIONS = {"sparsity": 0.8, "drop_rate": 0.2, "delta_t": 10, "freeze": 0.5, "average_from": 0.5}


@functools.cache
def digits() -> Data:
    return load("digits")


def mlp_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


class Notes(Watch):
    """A watch that keeps the checkpoint of every epoch."""

    def __init__(self) -> None:
        self.checkpoints: list[Bundle] = []
        self.steps = 0

    def on_step(self, info: object) -> None:
        self.steps += 1

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        self.checkpoints.append(copy.deepcopy(checkpoint()))


@functools.cache
def trained(name: str, seed: int = 2) -> tuple[Fit, Notes]:
    """`mlp` or `conv`, with `-rescaled`, `-running` (batch-norm buffers as training left them) or `-rigl` behind it."""
    net = conv_net if name.startswith("conv") else mlp_net
    notes = Notes()
    training = Training(
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=0.2,
        device="cpu",
        batchnorm="running" if name.endswith("-running") else "re-estimate",
    )
    if name.endswith("-rigl"):
        options = {"sparsity": 0.8, "delta_t": 10, "freeze": 0.5}
        infer = shelf.load("inference", "rigl")
    else:
        options = {**OPTIONS, "rescale": name.endswith("-rescaled")}
        infer = shelf.load("inference", "cigl")
    return infer(BayesianNetwork(net()), digits(), training=training, seed=seed, watch=notes, **options), notes


CIGL = ["mlp", "mlp-rescaled", "conv", "conv-rescaled"]


def plain(name: str, dense: Tensor, state: Mapping[str, Tensor], *, normalise: bool) -> nn.Module:
    """An ordinary dense network with these weights and this other state, statistics re-estimated, for evaluation."""
    net, start = (conv_net if name.startswith("conv") else mlp_net)(), 0
    net.load_state_dict({key.removeprefix("net."): tensor for key, tensor in state.items()}, strict=False)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            size = module.weight.numel()
            module.weight.data = dense[start : start + size].reshape(module.weight.shape).clone()
            start += size
    assert start == len(dense)
    if normalise:
        update_bn([digits().train.x[i * BATCH : (i + 1) * BATCH] for i in range(16)], net)
    return net.eval()


def zeros_but(fit: Fit, values: Tensor) -> Tensor:
    dense = torch.zeros(fit.topology.num_weights)
    for position, value in zip(fit.topology.positions.tolist(), values.tolist(), strict=True):
        dense[position] = value
    return dense


def masks_by_hand(count: int, keep_prob: float, seed: int, samples: int) -> Iterator[Tensor]:
    """Z as documented: 64-bit words, viewed as 16-bit integers, kept below round(65536 p) - 32768."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        words = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        yield words.view(torch.int16)[:count] < round(65536 * keep_prob) - 32768


def networks_by_hand(name: str, how: str, samples: int, seed: int) -> list[nn.Module]:
    """The networks that a way to predict evaluates, from the pairs alone (method.md, section 6)."""
    fit, _ = trained(name)
    u, z, p = fit.pairs.values, fit.pairs.keep, fit.keep_prob
    factor = 1 / p if name.endswith("-rescaled") else 1.0
    states = [{key: tensor[i] for key, tensor in fit.pairs.states.items()} for i in range(len(u))]
    if how == "ticket":
        weights, state = torch.zeros(fit.topology.num_active), {k: torch.zeros(t.shape) for k, t in states[0].items()}
        for i in range(len(u)):  # the running mean
            weights += (z[i] * u[i] * factor - weights) / (i + 1)
            state = {key: tensor + (states[i][key] - tensor) / (i + 1) for key, tensor in state.items()}
        chosen = [(weights, state)]
    elif how == "pairs":
        chosen = [(z[i] * u[i] * factor, states[i]) for i in range(len(u))]
    elif how == "redraw":
        chosen = [(mask * u[-1] * factor, states[-1]) for mask in masks_by_hand(u.shape[1], p, seed, samples)]
    elif how == "mean":
        chosen = [(p * u[-1] * factor, states[-1])]
    else:
        chosen = [(u[-1], states[-1])]
    return [plain(name, zeros_but(fit, weights), state, normalise=True) for weights, state in chosen]


@functools.cache
def regression() -> tuple[Data, Fit]:
    """Targets around 70 with a spread of 20: far from standardised units."""
    import tempfile

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = 70 + 20 * (x[:, 0] - 0.5 * x[:, 1]) + 4 * rng.normal(size=300)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "tiny.npz", x=x, y=y)
        data = load(str(Path(folder) / "tiny.npz"))
    torch.manual_seed(0)
    model = shelf.load("models", "mlp")((4,), 1, hidden=(12,), likelihood="normal")
    training = Training(epochs=30, batch_size=16, learning_rate=0.02, device="cpu")
    options = {**OPTIONS, "sparsity": 0.3, "drop_rate": 0.05}
    return data, shelf.load("inference", "cigl")(model, data, training=training, seed=1, **options)
