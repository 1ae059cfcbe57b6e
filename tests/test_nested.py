"""Claims about espalier.nested: tensors in tuples and dicts keep their structure, their types and their rows."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch

from espalier import nested


class Two(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Output(OrderedDict[str, torch.Tensor]):
    """As Hugging Face's: keys that are attributes too."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


A, B = torch.arange(6).view(2, 3), torch.ones(2)
TREES = [A, (A, B), [A, B], {"a": A, "b": B}, Two(A, B), {"x": (A, {"y": B})}, Output(a=A, b=B)]


@pytest.mark.parametrize("tree", TREES)
def test_batches_are_joined_row_by_row(tree):
    ones = nested.each(torch.ones_like, tree)
    found = nested.joined([tree, ones])
    assert type(found) is type(tree)
    for mine, first, second in zip(*map(nested.leaves, (found, tree, ones)), strict=True):
        assert torch.equal(mine, torch.cat([first, second]))
    assert nested.joined([tree]) is tree
    told = nested.joined([{"logits": A, "loss": A[0, 0], "name": "a"}] * 2)
    assert len(told["logits"]) == 4
    assert told["loss"] == A[0, 0]
    assert told["name"] == "a"


@pytest.mark.parametrize("tree", TREES)
def test_each_keeps_structure_and_types(tree):
    doubled = nested.each(lambda leaf: 2 * leaf, tree)
    assert type(doubled) is type(tree)
    for mine, leaf in zip(nested.leaves(doubled), nested.leaves(tree), strict=True):
        assert torch.equal(mine, 2 * leaf)
    assert nested.num_rows(tree) == 2
    back = nested.each(torch.sub, doubled, tree)
    assert all(map(torch.equal, nested.leaves(back), nested.leaves(tree)))
    assert torch.equal(nested.leaves(tree)[0], A)  # the original is left alone


def test_attributes_of_an_output_follow():
    assert torch.equal(nested.each(torch.neg, Output(a=A)).a, -A)


def test_structures_that_differ_are_an_error():
    with pytest.raises(ValueError):
        nested.each(torch.add, (A, B), (A,))
    with pytest.raises(KeyError):
        nested.each(torch.add, {"a": A}, {"b": A})


def test_shapes_are_json_and_shapes_are_walked():
    assert nested.shape_of(A) == [3]
    assert nested.shape_of({"x": (A, B)}) == {"x": [[3], []]}
    shapes = {"image": (3, 8, 8), "pair": ((2,), ())}
    assert nested.by_shape(len, shapes) == {"image": 3, "pair": (1, 0)}
    assert nested.by_shape(lambda shape, own: (*shape, own), ((2, 3), (4,)), (10, 20)) == ((2, 3, 10), (4, 20))


def test_arguments_are_those_of_a_call():
    def net(a, b=None):
        return a, b

    for x, found in ((A, (A, None)), ((A, B), (A, B)), ({"b": B, "a": A}, (A, B))):
        args, kwargs = nested.arguments(x)
        assert net(*args, **kwargs) == found


def test_rows_of_several_inputs_belong_together():
    rows = nested.rows_of({"a": A, "b": B})
    assert len(rows) == 2
    part = rows[torch.tensor([1])]
    assert torch.equal(part["a"], A[1:])
    assert torch.equal(part["b"], B[1:])
    assert nested.rows_of(A) is A
    with pytest.raises(ValueError, match=r"expected inputs of one length, got \[2, 3\] rows"):
        nested.rows_of((A, torch.ones(3)))
