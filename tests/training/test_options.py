"""Options of a training: the prior that a weight decay is, filled in; what cannot be meant."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from by_hand import CASES, DECAY, batch_of, mlp
from espalier.contracts import Data, Split
from espalier.data import from_arrays
from espalier.network import BayesianNetwork
from espalier.training.options import DEFAULT_WEIGHT_DECAY, Training, prepare

pytestmark = pytest.mark.usefixtures("float64")


def tiny_data() -> Data:
    x, y = batch_of(CASES["mlp"], size=50)
    part = Split(x, y)
    return Data("tiny", part, part, part, part, (6,), 5)


@pytest.mark.parametrize("rescale", [False, True])
def test_preparing_a_model_fills_in_the_half_that_was_not_given(rescale: bool) -> None:
    plain, believed = BayesianNetwork(mlp()), BayesianNetwork(mlp(), prior_scale=0.3)
    p = 0.75
    decayed = prepare(plain, tiny_data(), Training(weight_decay=DECAY, device="cpu"), keep_prob=p, rescale=rescale)
    v = 1 / (p * 50 * DECAY) if rescale else p / (50 * DECAY)
    assert (decayed.num_data, decayed.weight_decay) == (50, DECAY)
    assert decayed.prior_scale == pytest.approx(math.sqrt(v), rel=1e-14)

    implied = prepare(believed, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    expected = 1 / (p * 50 * 0.3**2) if rescale else p / (50 * 0.3**2)
    assert (implied.num_data, implied.prior_scale) == (50, 0.3)
    assert implied.weight_decay == pytest.approx(expected, rel=1e-14)

    default = prepare(plain, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    assert default.weight_decay == DEFAULT_WEIGHT_DECAY
    assert plain.prior_scale is None  # a copy was prepared
    assert plain.num_data is None


def test_prior_scale_and_weight_decay_together_are_refused() -> None:
    believed = BayesianNetwork(mlp(), prior_scale=0.3)
    with pytest.raises(ValueError, match="expected a prior_scale or a weight_decay, got both"):
        prepare(believed, tiny_data(), Training(weight_decay=DECAY, device="cpu"))
    with pytest.raises(ValueError, match="expected a prior_scale or a weight_decay, got both"):
        prepare(BayesianNetwork(mlp(), prior_scale=0.3, weight_decay=DECAY), tiny_data(), Training(device="cpu"))
    again = prepare(believed, tiny_data(), Training(device="cpu"))  # which then has both
    assert prepare(again, tiny_data(), Training(device="cpu"), keep_prob=0.5).prior_scale == 0.3


@pytest.mark.parametrize("name", ["epochs", "batch_size", "bn_batches"])
def test_counts_are_whole_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} as a whole number, got 2.5"):
        Training(**{name: 2.5})  # type: ignore[arg-type]


def test_the_models_own_weight_decay_is_kept() -> None:
    model = BayesianNetwork(mlp(), weight_decay=0.5)
    assert prepare(model, tiny_data(), Training()).weight_decay == 0.5
    with pytest.raises(ValueError, match="expected one weight_decay, got 0.5 of the model and 0.1 of the training"):
        prepare(model, tiny_data(), Training(weight_decay=0.1))


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(x.mul_(0.5))


def test_a_network_that_writes_into_its_inputs_is_refused_before_any_work() -> None:
    data = tiny_data()
    before = data.train.x.clone()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="expected a network that leaves its inputs as they are"):
        prepare(BayesianNetwork(Writing()), data, Training())
    assert torch.equal(data.train.x, before)  # type: ignore[arg-type]


def test_a_view_of_images_is_told_what_to_do() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.top = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.top(self.first(x).view(len(x), -1))

    data = from_arrays(np.random.default_rng(0).normal(size=(40, 3, 8, 8)), np.arange(40) % 3, channels="first")
    with pytest.raises(ValueError, match=r"channels last in memory: reshape in place of view\)$"):
        prepare(BayesianNetwork(Viewing().float()), data, Training())


def test_sparse_gradients_are_refused_before_any_work() -> None:
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    part = Split(torch.arange(32).reshape(16, 2) % 9, torch.arange(16) % 3)
    data = Data("words", part, part, part, part, (2,), 3)
    with pytest.raises(ValueError, match="expected a network of dense gradients, but 0 gives sparse ones: build it with sparse="):
        prepare(BayesianNetwork(net), data, Training(device="cpu"))
    net[0].sparse = False
    assert prepare(BayesianNetwork(net), data, Training(device="cpu")).num_data == 16
