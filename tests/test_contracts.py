"""The words that are plain data: what they derive from what they hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Training
from espalier.contracts import PARTS, Data, Move, Split, Topology, dtype_of, stand_ins
from espalier.data import from_arrays
from espalier.inference import dense
from espalier.nested import Together


def data(num_classes: int | None) -> Data:
    part = Split(torch.zeros(4, 3), torch.zeros(4))
    return Data(
        "made", part, part, part, part, (3,), num_classes, target_shift=5.0, target_scale=2.0, hashes={"train": "abc"}
    )  # fmt: skip


@pytest.mark.parametrize(("num_classes", "outputs", "task"), [(7, 7, "classification"), (None, 1, "regression")])
def test_a_network_for_data_has_an_output_a_class_or_one_mean(num_classes: int | None, outputs: int, task: str) -> None:
    one = data(num_classes)
    assert one.num_outputs == outputs
    facts = one.facts()
    assert (facts["task"], facts["num_outputs"], facts["shape"]) == (task, outputs, [3])


def test_the_facts_of_data_survive_json_and_hold_no_rows() -> None:
    facts = data(3).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["target"] == [5.0, 2.0]
    assert facts["data"] == {"name": "made", "rows": dict.fromkeys(PARTS, 4), "hashes": {"train": "abc"}}


def test_a_topology_counts_what_is_active_over_all_layers() -> None:
    topology = Topology(torch.tensor([0, 3, 11]), (2, 1), (10, 5))
    assert (topology.num_active, topology.num_weights, topology.density) == (3, 15, 0.2)


@pytest.mark.parametrize(("source", "grown"), [([0, 1, 2], 0), ([-1, 0, -1], 2), ([-1, -1, -1], 3)])
def test_what_a_move_has_grown_comes_from_nowhere(source: list[int], grown: int) -> None:
    topology = Topology(torch.tensor([0, 3, 11]), (2, 1), (10, 5))
    assert Move(topology, torch.tensor(source)).num_grown == grown


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1])
WRONG = {
    "arrays": (
        X.numpy(),
        Y.numpy(),
        "expected tensors x and y in the test split of made, got ndarray and ndarray: use",
    ),
    "lists": (X.tolist(), Y, "expected tensors x and y in the test split of made, got list and Tensor: use"),
    "a list of labels": (X, Y.tolist(), "expected tensors x and y in the test split of made, got Tensor and list: use"),
    "other lengths": (X, Y[:3], "expected one y for every x in the test split of made, got 4 x and 3 y"),
    "floats": (X, Y.float(), "expected whole numbers as labels in the test split of made, got torch.float32: y.long()"),
    "bools": (X, Y > 1, "expected whole numbers as labels in the test split of made, got torch.bool: y.long()"),
    "a label too many": (X, Y + 1, "expected labels 0 to 2 in the test split of made, got 1 to 3"),
    "none as -1": (X, Y - 1, "expected labels 0 to 2 in the test split of made, got -1 to 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_are_none_are_refused_before_training(name: str) -> None:
    x, y, says = WRONG[name]
    right = Split(X, Y)
    wrong = Data("made", right, right, right, Split(x, y), (3,), 3)
    net = BayesianNetwork(nn.Linear(3, 3))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - says is compared below, as it stands
        dense.infer(net, wrong, training=Training(epochs=1, batch_size=2))
    assert says in str(caught.value)


def test_parts_that_are_right_pass() -> None:
    empty = Split(X[:0], Y[:0])
    for classes, x, y in (
        (3, X, Y),
        (None, X, X[:, 0]),
        (2, torch.zeros(4, 3, 2, 2), torch.ones(4, 2, 2)),
        (3, X, Y.byte()),
    ):
        Data("made", Split(x, y), empty, empty, Split(x, y), tuple(x.shape[1:]), classes).check()


def test_new_inputs_of_any_size_are_scaled() -> None:
    part = Split(X, X[:, 0])
    mean, sd = torch.tensor([[1.5e308, -1e-300, 0.0], [1.6e308, 2e-300, 2.0]], dtype=torch.float64)
    made = Data("made", part, part, part, part, (3,), None, input_scale=(mean, sd))
    x = torch.tensor([[-1.7e308, 1e-300, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(made.inputs(x), torch.tensor([[-2.0, 1.0, 2.5]]))


def test_facts_say_how_inputs_are_scaled_and_in_what_dtype_the_network_takes_them() -> None:
    x, by = torch.zeros(4, 2), (torch.tensor([1.5, -2.0]).double(), torch.tensor([0.25, 3.0]).double())
    part = Split(x, torch.zeros(4))
    made = Data("made", part, part, part, part, (2,), None, input_scale=by)
    assert made.facts()["inputs"] == {"dtype": "float32", "mean": [1.5, -2.0], "sd": [0.25, 3.0]}
    whole = Split(torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4))
    assert Data("made", whole, whole, whole, whole, (2,), None).facts()["inputs"] == {"dtype": "int64"}
    both = Split(Together({"a": x, "b": whole.x}), torch.zeros(4))
    scales = {"a": by, "b": None}
    of_two = Data("made", both, both, both, both, {"a": (2,), "b": (2,)}, None, input_scale=scales).facts()
    assert of_two["inputs"] == {"a": {"dtype": "float32", "mean": [1.5, -2.0], "sd": [0.25, 3.0]}, "b": {"dtype": "int64"}}
    assert json.loads(json.dumps(of_two)) == of_two
    made_up = stand_ins(of_two, 5)
    assert made_up["a"].shape == made_up["b"].shape == (5, 2)
    assert (made_up["a"].dtype, made_up["b"].dtype) == (torch.float32, torch.int64)
    assert made_up["a"].std() > 0.1
    assert torch.equal(stand_ins(of_two, 5)["a"], made_up["a"])
    assert stand_ins({"shape": [3]}, 2).shape == (2, 3)  # of an older record
    with pytest.raises(ValueError, match="expected the name of a dtype, got 'load'"):
        dtype_of("load")


@pytest.mark.parametrize("wrong", [[["1", "2"]], [[1 + 2j, 0j]], np.array([[object(), None]])])
def test_inputs_that_are_no_real_numbers_are_refused(wrong: Any) -> None:
    data = from_arrays(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2)
    with pytest.raises(ValueError, match="expected inputs that are real numbers, got"):
        data.inputs(np.asarray(wrong))


def test_real_numbers_of_any_dtype_are_inputs() -> None:
    data = from_arrays(np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2)
    plain = data.inputs(np.array([[1.0, 0.0], [2.5, 1.0]]))
    for given in (np.array([[1.0, False], [2.5, True]], dtype=object), [[1, 0], [2.5, 1]], np.array([[1, 0], [2.5, 1]], ">f4")):
        assert torch.equal(data.inputs(given), plain)
