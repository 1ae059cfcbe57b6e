"""A fit is read with the network and the likelihood that it is of: others of the same names and shapes are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Fit, Training, shelf, store
from espalier.data import from_arrays
from zoo import Words


def network(activation: type[nn.Module] = nn.Tanh, scale: float = 1.0, *, heavy: bool = False) -> BayesianNetwork:
    net = nn.Sequential(nn.Linear(3, 8), activation(), nn.Linear(8, 1), nn.Flatten(0))
    says = (lambda o: dist.StudentT(4.0, o, 0.5)) if heavy else (lambda o: dist.Normal(scale * o, 0.5))
    return BayesianNetwork(net, likelihood=says)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    data = from_arrays(x, 50 + 20 * x[:, 0] - 9 * x[:, 1])
    torch.manual_seed(0)
    training = Training(epochs=8, batch_size=20, learning_rate=0.02, device="cpu")
    fit = shelf.load("inference", "cigl")(network(), data, sparsity=0.2, drop_rate=0.1, training=training)
    fit.save(path := tmp_path_factory.mktemp("told") / "fit")
    return path


def test_the_network_that_it_is_of_reads_it(folder: Path) -> None:
    fit = Fit.load(folder, network())
    assert len(store.read_json(folder / "record.json")["told"]) > 1
    assert "told" not in fit.record
    again = fit.save(folder.parent / "again")
    assert again
    assert store.read_json(folder.parent / "again" / "record.json") == store.read_json(folder / "record.json")


@pytest.mark.parametrize("other", [network(nn.ReLU), network(scale=0.9), network(heavy=True)], ids=["unit", "scale", "heavy"])
def test_another_one_of_the_same_shapes_is_refused(other: BayesianNetwork, folder: Path) -> None:
    with pytest.raises(ValueError, match="expected the network and the likelihood that this fit was trained with"):
        Fit.load(folder, other)


def test_what_says_nothing_of_made_up_rows_is_read_as_before(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, size=(100, 5))
    data = from_arrays(x, (x[:, 0] > 4).astype(int), standardise=False)
    training = Training(epochs=1, batch_size=20, device="cpu")
    shelf.load("inference", "static")(BayesianNetwork(Words()), data, sparsity=0.5, training=training).save(tmp_path / "fit")
    assert store.read_json(tmp_path / "fit" / "record.json")["told"] is None
    assert Fit.load(tmp_path / "fit", BayesianNetwork(Words())).ways


def test_a_network_that_draws_is_read_as_before(tmp_path: Path) -> None:
    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.two(nn.functional.dropout(self.one(x).relu(), 0.5))  # in evaluation, too
            return logits

    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    data = from_arrays(x, (x[:, 0] > 0).astype(int))
    training = Training(epochs=1, batch_size=20, device="cpu")
    fit = shelf.load("inference", "static")(BayesianNetwork(Draws()), data, sparsity=0.5, training=training)
    stream = torch.get_rng_state()
    fit.save(tmp_path / "fit")
    assert torch.equal(stream, torch.get_rng_state())
    assert Fit.load(tmp_path / "fit", BayesianNetwork(Draws())).ways
