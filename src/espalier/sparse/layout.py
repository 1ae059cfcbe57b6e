"""The structure of a topology: of every layer the indices of its active weights, as the kernels want them.

It is built once for a topology, at a move, and shared by all draws on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.sparse import kernels

MIN_SIZE = 1 << 14
MAX_DENSITY = 0.25
MIN_ROWS = 16
"""Where the product over the active weights beats the dense one: measured for 64 to 2048 wide layers and 16 to 512 rows, the
two break even at a density of 0.3, and below 128 x 128 neither is ahead (whole steps: `examples/benchmarks/step_time.py`)."""
least_rows = ContextVar("least_rows", default=MIN_ROWS)
"""As many: or fewer, where a product is only tried."""


class Indices(NamedTuple):
    """A sparse matrix by rows, and by columns: int32, as torch's kernels on the CPU are fastest.

    row_starts `(rows + 1,)`, columns `(k,)`: compressed rows. column_starts `(columns + 1,)`, rows `(k,)`: compressed columns,
    whose t-th entry is entry `order[t]` `(k,)` of the rows.
    """

    row_starts: Tensor
    columns: Tensor
    column_starts: Tensor
    rows: Tensor
    order: Tensor


class Layer(NamedTuple):
    """One layer: its shape, and the local positions `(k_l,)` of its active weights, sorted; indices where it is worth them."""

    shape: tuple[int, ...]
    positions: Tensor
    indices: Indices | None


class Layout:
    """All layers of a topology. positions: `(k,)`, sorted, in the flat vector; counts: of each layer; shapes: of its tensor."""

    def __init__(self, positions: Tensor, counts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> None:
        self.positions, self.counts = positions, tuple(counts)
        self.sizes = tuple(math.prod(shape) for shape in shapes)
        layers, start = [], 0
        for own, size, shape in zip(positions.split(list(counts)), self.sizes, shapes, strict=True):
            local = own - start
            layers.append(Layer(shape, local, indices_of(local, shape) if is_worthwhile(shape, len(own)) else None))
            start += size
        self.layers = tuple(layers)

    @classmethod
    def where_worthwhile(
        cls, positions: Tensor, counts: Sequence[int], shapes: Sequence[tuple[int, ...]]
    ) -> Layout | None:
        """Its layout, or None where no layer would gain by it, or there are no kernels for them."""
        known = positions.device.type == "cpu" and kernels.there()
        gains = known and any(is_worthwhile(shape, count) for shape, count in zip(shapes, counts, strict=True))
        return cls(positions, counts, shapes) if gains else None


def is_worthwhile(shape: tuple[int, ...], count: int) -> bool:
    """Is a layer of this shape with `count` active weights multiplied faster without its zeros?"""
    size = math.prod(shape)
    return len(shape) == 2 and size >= MIN_SIZE and count <= MAX_DENSITY * size


def indices_of(positions: Tensor, shape: tuple[int, ...]) -> Indices:
    """The indices of the sorted positions `(k_l,)` in a matrix of this shape."""
    rows, columns = positions // shape[1], positions % shape[1]
    order = torch.argsort(columns, stable=True)

    def starts(places: Tensor, count: int) -> Tensor:
        return F.pad(torch.bincount(places, minlength=count).cumsum(0), (1, 0)).int()

    return Indices(
        starts(rows, shape[0]), columns.int(), starts(columns, shape[1]), rows[order].int(), order.int()
    )  # fmt: skip
