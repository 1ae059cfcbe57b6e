"""The loop: what it collects, when, and what it refuses before any work."""

import pytest
import torch
from torch import nn

from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.training.options import Training
from fitted import (
    BATCH,
    EPOCHS,
    OPTIONS,
    PAIRS,
    Notes,
    digits,
    mlp_net,
    trained,
)


def test_pairs_are_what_training_was_at_the_end_of_the_last_epochs() -> None:
    fit, notes = trained("mlp")
    assert len(notes.checkpoints) == EPOCHS
    assert fit.pairs.values.shape == fit.pairs.keep.shape == (PAIRS, fit.topology.num_active)
    for index, checkpoint in enumerate(notes.checkpoints[-PAIRS:]):
        assert torch.equal(fit.pairs.values[index], checkpoint.tensors["values"])
        assert torch.equal(fit.pairs.states["net.3.bias"][index], checkpoint.tensors["model.net.3.bias"])
    assert len({tuple(keep.tolist()) for keep in fit.pairs.keep}) == PAIRS


def test_averaging_before_the_freeze_is_refused_before_any_work() -> None:
    infer, notes = shelf.load("inference", "cigl"), Notes()
    options = {**OPTIONS, "freeze": 0.75, "average_from": 0.5}
    training = Training(epochs=EPOCHS, batch_size=BATCH, device="cpu")
    with pytest.raises(ValueError, match=r"expected averaging to start after the topology is frozen.*0\.5.*lower"):
        infer(BayesianNetwork(mlp_net()), digits(), training=training, watch=notes, **options)
    assert notes.steps == len(notes.checkpoints) == 0


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        ("mlp", {"microbatches": 17}, "expected microbatches of 1 rows or more, of a batch of 16, got 17 of them"),
        ("normed", {"microbatches": 9}, "expected microbatches of 2 rows or more, of a batch of 16, got 9 of them"),
        ("lossy", {"microbatches": 2}, "expected one microbatch with a loss other than the likelihood"),
        ("mlp", {"microbatches": 0}, "expected at least 1 of microbatches, parts of a batch, got 0"),
    ],
)
def test_parts_of_a_batch_that_cannot_be_are_refused_before_any_work(net: str, options: dict[str, int], sentence: str) -> None:
    infer, notes = shelf.load("inference", "cigl"), Notes()
    modules = {"normed": nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))}
    model = BayesianNetwork(modules.get(net) or mlp_net())
    training = Training(epochs=EPOCHS, batch_size=16, device="cpu", loss="dro:10" if net == "lossy" else "likelihood")
    with pytest.raises(ValueError, match=sentence):
        infer(model, digits(), training=training, watch=notes, **{**OPTIONS, **options})
    assert notes.steps == len(notes.checkpoints) == 0
