"""A fit that distillation teaches from, put together by hand, and its student in plain torch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.contracts import Data
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import Pair, Pairs
from espalier.topology.masks import initial
from espalier.training.distillation import distill
from espalier.training.options import Training
from toys import BATCH, P, net


def logits_of(dense: Tensor, b1: Tensor, b2: Tensor, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(F.linear(x, dense[:12].reshape(4, 3), b1)), dense[12:].reshape(3, 4), b2)


def masked_fit(sparsity: float = 0.5, mask: str = "weight", rescale: bool = False, keep_prob: float = P) -> Fit:
    """A fit of three pairs that differ in everything, put together here."""
    model = BayesianNetwork(net())
    stream = torch.Generator().manual_seed(7)
    topology = initial(model.shapes, sparsity, "uniform", generator=stream)
    pairs = []
    for _ in range(3):
        state = {n: t + 0.3 * torch.randn(t.shape, generator=stream) for n, t in model.state_dict().items()}
        values = torch.randn(topology.num_active, generator=stream)
        pairs.append(Pair(values, torch.rand(values.shape, generator=stream) < keep_prob, state))
    return Fit(
        model, topology, Pairs.of(pairs), keep_prob=keep_prob, rescale=rescale, mask=mask,
        record={"task": "classification"}, history=[{"epoch": 1, "step": 5}],
    )  # fmt: skip


class Replay:
    """The student and its teacher in plain torch. Z is handed over as a vector over all 24 weights."""

    def __init__(self, fit: Fit) -> None:
        self.positions, factor = fit.topology.positions, 1 / P if fit.rescale else 1.0
        pairs = [fit.pairs.pair(i) for i in range(3)]
        self.teacher = torch.zeros(24)
        self.teacher[self.positions] = sum(pair.values for pair in pairs) / 3 * factor
        self.teacher_biases = [sum(pair.state[f"net.{i}.bias"] for pair in pairs) / 3 for i in (0, 2)]
        start = P * self.teacher[self.positions]
        self.student = [start.clone(), *(bias.clone() for bias in self.teacher_biases)]
        for parameter in self.student:
            parameter.requires_grad_()

    def target(self, x: Tensor, z: Tensor) -> Tensor:
        return logits_of(self.teacher * z, *self.teacher_biases, x).softmax(-1)

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        dense = torch.zeros(24).index_put((self.positions,), self.student[0])
        logits = logits_of(dense, self.student[1], self.student[2], x)
        return -(target * (logits - logits.logsumexp(-1, keepdim=True))).sum() / len(x)


def student_of(fit: Fit) -> list[Tensor]:
    assert fit.student is not None
    values, state = fit.student
    return [values, state["net.0.bias"], state["net.2.bias"]]


def z_of(fit: Fit, stream: torch.Generator) -> Tensor:
    """Z over the 24 weights as the engine draws it: 16-bit words, a weight or a unit each."""
    count = fit.topology.num_active if fit.mask == "weight" else 3 + 4
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=stream)
    drawn = (words.view(torch.int16)[:count] < round(65536 * P) - 32768).double()
    if fit.mask == "unit":
        return torch.cat([drawn[:3].repeat(4), drawn[3:].repeat(3)])
    z = torch.zeros(24)
    z[fit.topology.positions] = drawn
    return z


def once(fit: Fit, data: Data, rate: float | None = 0.1, seed: int = 5, epochs: int = 1, masks: int = 1, **options: Any) -> Fit:
    training = Training(batch_size=BATCH, device="cpu")
    return distill(fit, data, training=training, seed=seed, epochs=epochs, learning_rate=rate, masks=masks, **options)
