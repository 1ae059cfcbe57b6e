"""The words that are plain data: what they derive from what they hold."""

from __future__ import annotations

import json

import pytest
import torch

from espalier.contracts import Data, Move, Split, Topology


def data(num_classes: int | None) -> Data:
    part = Split(torch.zeros(4, 3), torch.zeros(4))
    return Data(
        "made", part, part, part, part, (3,), num_classes, target_shift=5.0, target_scale=2.0, hashes={"train": "abc"}
    )  # fmt: skip


@pytest.mark.parametrize(("num_classes", "outputs", "task"), [(7, 7, "classification"), (None, 1, "regression")])
def test_a_network_for_data_has_an_output_a_class_or_one_mean(
    num_classes: int | None, outputs: int, task: str
) -> None:
    one = data(num_classes)
    assert one.num_outputs == outputs
    facts = one.facts()
    assert (facts["task"], facts["num_outputs"], facts["shape"]) == (task, outputs, [3])


def test_the_facts_of_data_survive_json_and_hold_no_rows() -> None:
    facts = data(3).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["target"] == [5.0, 2.0]
    assert facts["data"] == {"name": "made", "hashes": {"train": "abc"}}


def test_a_topology_counts_what_is_active_over_all_layers() -> None:
    topology = Topology(torch.tensor([0, 3, 11]), (2, 1), (10, 5))
    assert (topology.num_active, topology.num_weights, topology.density) == (3, 15, 0.2)


@pytest.mark.parametrize(("source", "grown"), [([0, 1, 2], 0), ([-1, 0, -1], 2), ([-1, -1, -1], 3)])
def test_what_a_move_has_grown_comes_from_nowhere(source: list[int], grown: int) -> None:
    topology = Topology(torch.tensor([0, 3, 11]), (2, 1), (10, 5))
    assert Move(topology, torch.tensor(source)).num_grown == grown
