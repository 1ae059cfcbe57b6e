"""Draws that are not written out, beside the same written out; and a guide whose draws always are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from espalier.contracts import counts_of
from espalier.guides.masked import MaskedGuide
from espalier.sparse import Layout, products, scatter, unwritten

SHAPES = ((128, 160), (10, 128))
"""A layer that is multiplied by its active weights, and one that is too small for it."""


def layout_of(shapes: Sequence[tuple[int, ...]] = SHAPES, density: float = 0.1, seed: int = 1) -> Layout:
    """Each weight is active with probability `density`."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    positions = (torch.rand(sum(sizes), generator=torch.Generator().manual_seed(seed)) < density).nonzero()[:, 0]
    return Layout(positions, counts_of(positions, sizes), shapes)


def drawn(
    layout: Layout, dtype: torch.dtype = torch.float64, *, grad: bool = True, seed: int = 2
) -> tuple[Tensor, Tensor]:
    """Values of the active weights, a leaf, and the draw that stands for them."""
    values = torch.randn(len(layout.positions), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    values.requires_grad_(grad)
    return values, scatter(values, layout.positions, sum(layout.sizes), layout)


def twin(layout: Layout, values: Tensor) -> tuple[Tensor, Tensor]:
    """The same, written out, of a leaf of its own."""
    own = values.detach().clone().requires_grad_(values.requires_grad)
    return own, scatter(own, layout.positions, sum(layout.sizes))


@contextmanager
def written_out() -> Iterator[None]:
    """Guides draw dense vectors for the while."""
    with mock.patch.object(MaskedGuide, "layout", property(lambda guide: None)):
        yield


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """How many products over active weights have run."""
    with mock.patch.object(unwritten, "product", wraps=products.product) as calls:
        yield lambda: calls.call_count


def same(mine: object, theirs: object) -> None:
    """Numbers, or tuples of them, up to rounding in double precision."""
    if isinstance(theirs, tuple | list):
        assert len(mine) == len(theirs)
        for pair in zip(mine, theirs, strict=True):
            same(*pair)
    elif isinstance(theirs, Tensor):
        assert mine.dtype == theirs.dtype
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)
    else:
        assert mine == theirs
