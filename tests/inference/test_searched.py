"""Searched layer ratios: what is pruned is the dense training's own, by magnitude, to the counts that the search gave."""

from typing import Any

import pytest
import torch
from torch import nn

from espalier import shelf
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.costs import costs, forward
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import magnitude_topology, uniform
from espalier.training.options import Training, prepare
from espalier.training.ratios import layer_ratios
from espalier.training.streams import Streams
from espalier.training.train import train
from toys import BATCH, CPU, DECAY, P, net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
TRAINING = Training(epochs=3, batch_size=BATCH, learning_rate=0.2, weight_decay=DECAY, device="cpu")


def searched(watch: Recorder | None = None, **options: Any) -> Fit:
    settings = {"sparsity": 0.7, "average_from": 1.0, "seed": 5, **options}
    return shelf.load("inference", "searched")(
        BayesianNetwork(net()), toy(5 * BATCH + 2), training=TRAINING, watch=watch, **settings
    )


@pytest.mark.parametrize("by", ["dual", "uniform", "ppo"])
def test_it_is_dense_training_then_a_search_then_training_of_what_is_left(by: str) -> None:
    if by == "ppo":
        pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed: pip install espalier[rl]")
    watch = Recorder()
    fit = searched(watch, by=by, search_steps=200, search_rows=60)
    assert watch.steps == 2 * 3 * 5
    dense = shelf.load("inference", "dense")(BayesianNetwork(net()), toy(5 * BATCH + 2), training=TRAINING, seed=5)
    found = layer_ratios(dense, toy(5 * BATCH + 2), sparsity=0.7, by=by, seed=5, rows=60, steps=200)  # type: ignore[arg-type]
    assert fit.record["search"] == found.facts()
    assert found.forward_examples % 60 == 0
    if by == "uniform":
        assert found.counts == uniform(fit.model.shapes, 0.3)
    weights = next(dense.weights("unmasked"))[0]
    expected = magnitude_topology(fit.model.shapes, found.counts, weights)
    assert torch.equal(fit.topology.positions, expected.positions)
    assert fit.topology.num_active == round(0.3 * 24)

    again, streams = BayesianNetwork(net()), Streams(5, CPU)  # from these weights, on the batches that follow
    again.start_from(dense.ticket().state_dict())
    for _ in range(3):
        torch.randperm(5 * BATCH + 2, generator=streams.order)
    guide = MaskedGuide(prepare(again, toy(5 * BATCH + 2), TRAINING), expected)
    last = train(
        prepare(again, toy(5 * BATCH + 2), TRAINING), guide, schedules.static(), toy(5 * BATCH + 2), training=TRAINING,
        streams=streams, average_from=1.0,
    )  # fmt: skip
    assert torch.equal(last.pairs.values, fit.pairs.values)


def test_masks_are_random_in_the_second_training_alone() -> None:
    plain, masked = searched(), searched(drop_rate=1 - P)
    assert (plain.keep_prob, masked.keep_prob) == (1.0, P)
    assert torch.equal(plain.topology.positions, masked.topology.positions)
    assert not torch.equal(plain.pairs.values, masked.pairs.values)
    assert not masked.pairs.keep.all()


def test_what_was_done_before_is_in_the_costs() -> None:
    """The dense training, and every candidate of the search as if it were dense."""
    fit = searched()
    looked = fit.record["search"]["forward_examples"]
    whole = costs(fit)["train_flops"]
    work = forward(fit.model, fit.record)
    del fit.record["search"]
    assert whole - costs(fit)["train_flops"] == pytest.approx(2 * work.dense * looked)
    without = costs(fit)["train_flops"]
    del fit.record["earlier"]
    assert without - costs(fit)["train_flops"] == pytest.approx(2 * BATCH * 3 * work.dense * 15)


@pytest.mark.parametrize("options", [{"by": "magic"}, {"search_rows": 0}, {"sparsity": 0.99}, {"search_on": "validation"}])
def test_what_cannot_be_searched_is_refused_before_any_work(options: dict[str, Any]) -> None:
    watch = Recorder()
    with pytest.raises(ValueError, match="^expected "):
        searched(watch, **options)
    assert watch.steps == 0


def test_a_model_of_another_kind_gets_the_sentence_of_every_inference() -> None:
    with pytest.raises(ValueError, match="^expected a BayesianNetwork, got Linear: wrap it"):
        shelf.load("inference", "searched")(nn.Linear(3, 3), toy())
