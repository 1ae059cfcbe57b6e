"""Where the gradient of all weights, zeros among them, is added up while none of them is written out: a move of the topology
looks at it, and it is the one vector of that length that the step needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Tap:
    """total `(num_weights,)`, or one layer's part of it in its shape. told: by whom, so far; shared by the parts."""

    def __init__(self, total: Tensor, told: list[None] | None = None) -> None:
        self.total, self.told = total, [] if told is None else told

    def parts(self, shapes: Sequence[tuple[int, ...]]) -> list[Tap]:
        """Of the layers."""
        pieces = self.total.split([math.prod(shape) for shape in shapes])
        return [Tap(piece.view(shape), self.told) for piece, shape in zip(pieces, shapes, strict=True)]

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """A hook for a tensor that has been written out."""
        self.total += gradient.view_as(self.total)
        self.told.append(None)

    @torch.no_grad()
    def add_product(self, outputs: Tensor, inputs: Tensor) -> None:
        """outputs `(outputs, n)` @ inputs `(n, inputs)`, of a product with this layer."""
        self.total.addmm_(outputs, inputs)
        self.told.append(None)
