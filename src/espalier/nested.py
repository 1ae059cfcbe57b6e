"""Tensors in tuples and dicts: what a network takes, or gives, where one tensor is not enough."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def each(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of every leaf of a tensor, tuple, list or dict, and of its counterparts in the others: in the structure and
    the types of the first. A dict of one's own class (a Hugging Face output, say) keeps it."""
    if isinstance(tree, Mapping):
        found = {key: each(function, value, *[other[key] for other in others]) for key, value in tree.items()}
        if type(tree) is dict:
            return found
        same = copy.copy(tree)
        for key, value in found.items():
            same[key] = value  # type: ignore[index]
        return same
    if isinstance(tree, (tuple, list)):
        values = [each(function, *leaves) for leaves in zip(tree, *others, strict=True)]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return function(tree, *others)


def leaves(tree: Any) -> list[Any]:
    """All of them, in order."""
    found: list[Any] = []
    each(found.append, tree)
    return found


def joined(trees: Sequence[Any]) -> Any:
    """The rows of several batches in one, in the structure of the first, whose leaves without rows are kept."""
    return trees[0] if len(trees) == 1 else each(_one_behind_another, *trees)


def _one_behind_another(*parts: Any) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) and parts[0].dim() else parts[0]


def num_rows(tree: Any) -> int:
    """Rows of a batch: the length of its first tensor."""
    return len(leaves(tree)[0])


def shape_of(tree: Any) -> Any:
    """Shapes `(*shape)` of one row, without n, JSON-able: a list, or a dict or list of such."""
    return plain(each(lambda tensor: tensor.shape[1:], tree))


def plain(value: Any) -> Any:
    """Only what YAML and JSON can say: mappings as dicts, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def by_shape(function: Callable[..., Any], shape: Any, *others: Any) -> Any:
    """`each` over shapes, which are tuples or lists of numbers themselves."""
    if isinstance(shape, Mapping):
        for other in others:
            if not isinstance(other, Mapping) or other.keys() != shape.keys():
                got = ", ".join(map(str, other)) if isinstance(other, Mapping) else type(other).__name__
                raise ValueError(f"expected inputs by the names {', '.join(map(str, shape))}, got {got}")
        return {key: by_shape(function, own, *[other[key] for other in others]) for key, own in shape.items()}
    if shape and not isinstance(shape[0], int):
        return tuple(by_shape(function, *own) for own in zip(shape, *others, strict=True))
    return function(shape, *others)


def arguments(tree: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called on inputs: a tensor as `net(x)`, a tuple as `net(*x)`, a dict as `net(**x)`."""
    if isinstance(tree, Mapping):
        return (), dict(tree)
    # Not `tuple | list`, here as in all that a network's forward calls: torch.export of 2.6 cannot trace a union.
    return (tuple(tree), {}) if isinstance(tree, (tuple, list)) else ((tree,), {})


class Together:
    """The rows of several inputs, a tuple or dict of tensors or of other `Rows`, as one `Rows`.

    Raises ValueError where they are not of one length.
    """

    def __init__(self, parts: Any) -> None:
        self.parts = parts
        if odd := [leaf for leaf in leaves(parts) if not hasattr(leaf, "__len__")]:
            raise ValueError(f"expected tensors or arrays of rows, got a {type(odd[0]).__name__} among them: torch.tensor(x)")
        lengths = {len(rows) for rows in leaves(parts)}
        if len(lengths) != 1:
            raise ValueError(
                f"expected inputs of one length, got {sorted(lengths)} rows: they belong together row by row"
            )

    def __len__(self) -> int:
        return num_rows(self.parts)

    def __getitem__(self, index: Any, /) -> Any:
        return each(lambda rows: rows[index], self.parts)


def rows_of(x: Any) -> Any:
    """Inputs as `Rows`: a tuple or dict of them put together, an array of numbers as a tensor, anything else as it is."""
    return Together(each(_as_tensor, x)) if isinstance(x, Mapping | tuple | list) else _as_tensor(x)


def _as_tensor(x: Any) -> Any:
    if hasattr(x, "iloc"):
        raise ValueError("expected inputs as the network takes them, got a pandas frame: data.inputs(frame) makes them of it")
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
        return x
    native = np.float64 if x.dtype.kind == "f" and x.dtype.itemsize > 8 else x.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(x, native, ["C", "W"]))  # as it is, or a copy of what torch does not take
