"""The loop: what it collects, when, and what it refuses before any work."""

import pytest
import torch

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
