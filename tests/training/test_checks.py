"""What two examples tell before any work: a network that gives no logits of these classes, or nothing by its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training
from espalier.contracts import number
from espalier.training import prepare
from fitted import digits

TRAINING = Training(epochs=1, device="cpu")


class Kept(nn.Module):
    """Weights in a list of its own are not those that are handed in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.own = [self.layer.weight]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.own[0].t() + self.layer.bias


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.layer(x.flatten(1)).detach().numpy())


@pytest.mark.parametrize("net", [Kept, Detached])
def test_outputs_that_do_not_depend_on_the_weights_are_refused(net: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="expected outputs that depend on the maskable weights, but they do not"):
        prepare(BayesianNetwork(net()), digits(), TRAINING)


@pytest.mark.parametrize("outputs", [9, 11])
def test_there_is_an_output_for_each_class_and_no_other(outputs: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))
    with pytest.raises(ValueError, match=f"expected a network with 10 outputs for the classes of digits, got {outputs}"):
        prepare(BayesianNetwork(net), digits(), TRAINING)
    if outputs == 11:
        prepare(BayesianNetwork(net, likelihood="categorical-unknown"), digits(), TRAINING)


def test_a_softmax_at_the_end_is_noticed_and_its_log_is_logits() -> None:
    layers = nn.Flatten(), nn.Linear(64, 10)
    with pytest.warns(UserWarning, match="takes logits: leave its softmax out"):
        prepare(BayesianNetwork(nn.Sequential(*layers, nn.Softmax(-1))), digits(), TRAINING)
    prepare(BayesianNetwork(nn.Sequential(*layers, nn.LogSoftmax(-1))), digits(), TRAINING)


def test_a_network_of_other_precision_is_told_which_inputs_there_are() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with pytest.raises(ValueError, match=r"inputs are float32: give it net.float\(\)"):
        prepare(BayesianNetwork(net), digits(), TRAINING)


@pytest.mark.parametrize(
    ("given", "kind", "own"),
    [(2.0, int, 2), (np.int64(3), int, 3), (np.float32(0.5), float, 0.5), (torch.tensor(4), int, 4), (1, float, 1.0)],
)
def test_a_number_is_kept_as_pythons(given: Any, kind: Any, own: float) -> None:
    found = number(given, kind, "it")
    assert found == own
    assert type(found) is kind


@pytest.mark.parametrize(
    ("given", "kind"), [(2.5, int), ("2", int), (True, int), ([0.5], float), (None, float), (np.bool_(True), int)]
)
def test_what_is_no_number_is_refused(given: Any, kind: Any) -> None:
    with pytest.raises(ValueError, match="expected it as a (whole )?number, got"):
        number(given, kind, "it")


@pytest.mark.parametrize("norm", ["flat", "pixels"])
def test_batch_norm_of_one_value_is_refused(norm: str) -> None:
    """Of a batch of one image a convolution's has one a pixel."""
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    pixels = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 10))
    model, one = BayesianNetwork(flat if norm == "flat" else pixels), Training(epochs=1, batch_size=1, device="cpu")
    if norm == "pixels":
        prepare(model, digits(), one)
        return
    with pytest.raises(ValueError, match="expected batches of two examples or more for batch norm, got one: raise batch_size"):
        prepare(model, digits(), one)
