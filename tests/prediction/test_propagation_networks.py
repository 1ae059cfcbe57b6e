"""Networks of a user's own on which moments are right, or are not handed out; and what they leave behind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction import Fit, evaluate
from fitted import digits


class Keeps(nn.Module):
    """Its last activations, in one attribute that was there, and in one that was not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.seen = nn.Linear(64, 24), nn.Linear(24, 10), None

    def forward(self, x: Tensor) -> Tensor:
        self.seen: Any = self.first(x.flatten(1)).relu()
        self.also = self.seen
        return self.second(self.seen)


class Pooled(nn.Module):
    """Generalised means (Radenovic et al. 2018), whose root has nodes below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 32), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).clamp(min=1e-6).pow(3.0).view(-1, 8, 4).mean(-1)
        return self.second(h.pow(1 / 3.0))


class Cut(nn.Module):
    """One matrix for three layers, cut by `split`."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.last = nn.Linear(64, 384), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.three.weight.split(128, 0)
        x = x.flatten(1)
        return self.last(torch.relu(x @ a.t()) + torch.tanh(x @ b.t()) + x @ c.t())


def fitted(net: nn.Module, data: Any, **options: Any) -> Fit:
    training = Training(epochs=3, batch_size=32, learning_rate=0.02, device="cpu")
    return cigl.infer(BayesianNetwork(net, **options), data, sparsity=0.5, drop_rate=0.3, delta_t=10, training=training, seed=1)


def test_a_network_that_keeps_its_activations_keeps_no_moments() -> None:
    """They could not be copied: no ticket could be taken of it."""
    fit = fitted(Keeps(), digits())
    for _ in range(2):
        net: Any = fit.model.net
        assert "moments" in fit.ways
        assert type(net.seen) is Tensor
        assert type(net.also) is Tensor
        copy.deepcopy(fit.model)
        assert isinstance(fit.ticket(), nn.Module)
        fit.predict(digits().test.x[:20], "moments")


def test_where_moments_are_no_numbers_the_fit_has_none_and_all_else() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3))
    data = from_arrays(x, x.sum(1))
    fit = fitted(Pooled(), data, likelihood="normal")
    assert "moments" not in fit.ways
    assert fit.record["moments"] == {"unknown": "a power that is not 0, 1, 2, ..."}
    assert "redraw" in evaluate(fit, data)["predict"]


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_matrix_that_is_cut_has_moments_however_sparse_it_is(sparsity: float) -> None:
    training = Training(epochs=3, batch_size=32, learning_rate=0.05, device="cpu")
    options: dict[str, Any] = {"sparsity": sparsity, "drop_rate": 0.2, "delta_t": 10, "training": training, "seed": 1}
    fit = cigl.infer(BayesianNetwork(Cut()), digits(), **options)
    x = digits().test.x[:100]
    many, one = (fit.predict(x, how, num_samples=200).mean(0) for how in ("redraw", "moments"))
    assert float((many * (many / one.clamp_min(1e-30)).clamp_min(1e-30).log()).sum(-1).mean()) < 0.02
