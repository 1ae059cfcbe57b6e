"""The deterministic mask M as sorted positions: how many weights each layer may keep, which, and how they are exchanged.

Pure functions. Counts are exact: nothing here draws a density, it only shares a budget (Evci et al. 2020, RigL).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.contracts import Move, Topology, counts_of, number

Shapes = Sequence[tuple[int, ...]]
PIECE = 1 << 20
"""Scores that are looked at together, at least."""


def uniform(shapes: Shapes, density: float) -> tuple[int, ...]:
    """Active weights per layer, each layer at the same density.

    The counts add up to `round(density * num_weights)` and each is within one weight of its share (largest remainder).
    Raises ValueError for a density outside (0, 1] or a layer left without weights.
    """
    sizes = [math.prod(shape) for shape in shapes]
    return _apportion([density * size for size in sizes], sizes, density)


def erk(shapes: Shapes, density: float) -> tuple[int, ...]:
    """Active weights per layer by Erdos-Renyi kernel: a layer's density is proportional to sum(shape) / prod(shape).

    Layers that would be more than dense are capped at dense and the rest is shared again (Evci et al. 2020, sec. 3).
    Exact in total, and within one weight of the share, as `uniform`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    budget = density * sum(sizes)
    shapes = [shape or (1,) for shape in shapes]  # of a single number the sum of the dimensions is one
    dense: set[int] = set()
    while True:
        rest = [layer for layer in range(len(sizes)) if layer not in dense]
        left = budget - sum(sizes[layer] for layer in dense)
        weight = sum(sum(shapes[layer]) for layer in rest)  # raw density * size is the sum of the dimensions
        full = {layer for layer in rest if left * sum(shapes[layer]) / weight >= sizes[layer]}
        if not full:
            break
        dense |= full
    shares = [float(size) if layer in dense else left * sum(shapes[layer]) / weight for layer, size in enumerate(sizes)]
    return _apportion(shares, sizes, density)


ALLOCATIONS: dict[str, Callable[[Shapes, float], tuple[int, ...]]] = {"erk": erk, "uniform": uniform}


def allocated(shapes: Shapes, density: float, allocation: str) -> tuple[int, ...]:
    """Active weights per layer by the rule of that name. Raises ValueError for another."""
    if allocation not in ALLOCATIONS:
        raise ValueError(f"expected an allocation of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    return ALLOCATIONS[allocation](shapes, density)


def _apportion(shares: Sequence[float], sizes: Sequence[int], density: float) -> tuple[int, ...]:
    """Whole numbers next to `shares` that add up to round(density * total): the largest remainders are rounded up."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"expected a sparsity in [0, 1), got {1 - density:g}: it is the fraction of weights at zero")
    counts = [min(size, math.floor(share)) for share, size in zip(shares, sizes, strict=True)]
    missing = round(density * sum(sizes)) - sum(counts)
    order = sorted(range(len(sizes)), key=lambda layer: (counts[layer] - shares[layer], layer))
    for layer in [layer for layer in order if counts[layer] < sizes[layer]][:missing]:
        counts[layer] += 1
    for layer, count in enumerate(counts):
        if count == 0:
            raise ValueError(
                f"expected at least one active weight in every layer, but layer {layer} of {sizes[layer]} weights gets "
                f"none at sparsity {1 - density:g}: lower the sparsity or leave that tensor dense"
            )
    return tuple(counts)


def random_topology(shapes: Shapes, counts: Sequence[int], generator: torch.Generator | None = None) -> Topology:
    """`counts[l]` positions of layer `l`, drawn uniformly without replacement. Raises ValueError for more than it has."""
    sizes = [math.prod(shape) for shape in shapes]
    if not all(0 <= count <= size for count, size in zip(counts, sizes, strict=True)):
        raise ValueError(f"expected counts of 0 to {sizes} active weights, layer by layer, got {list(counts)}")
    return _assemble(shapes, counts, lambda size: torch.rand(size, dtype=torch.float64, generator=generator))


def magnitude_topology(shapes: Shapes, counts: Sequence[int], weights: Tensor) -> Topology:
    """The `counts[l]` largest |weight| of each layer: where pretrained weights start. weights: `(num_weights,)`."""
    parts = iter(weights.detach().cpu().abs().split([math.prod(shape) for shape in shapes]))
    return _assemble(shapes, counts, lambda size: next(parts))


def global_topology(shapes: Shapes, count: int, weights: Tensor) -> Topology:
    """The `count` largest |weight| of the whole network, at equal ones the lower position, among them each layer's largest: no
    layer is left without. weights: `(num_weights,)`. Raises ValueError for a count that cannot be."""
    sizes = tuple(math.prod(shape) for shape in shapes)
    check_count(shapes, count)
    scores = weights.detach().cpu().abs()
    first = torch.stack([part.argmax() for part in scores.split(sizes)])
    scores[first + torch.tensor((0, *sizes[:-1])).cumsum(0)] = math.inf
    positions = keep_top(scores, count).nonzero().squeeze(1)
    return Topology(positions, counts_of(positions, sizes), sizes)


def check_count(shapes: Shapes, count: int) -> None:
    """Raises ValueError where so many active weights are not one for every layer, or more than there are."""
    total = sum(math.prod(shape) for shape in shapes)
    if not len(shapes) <= count <= total:
        raise ValueError(
            f"expected a sparsity that leaves one of {total} weights at least to each of {len(shapes)} layers, but {count} are "
            "left: lower the sparsity"
        )


def initial(
    shapes: Shapes,
    sparsity: float,
    allocation: str = "erk",
    start: str = "random",
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Topology:
    """The topology that training begins with: round((1 - sparsity) * num_weights) active weights.

    allocation: 'erk' or 'uniform'; start: 'random', or 'magnitude' of `weights` `(num_weights,)`.
    """
    sparsity = number(sparsity, float, "sparsity")
    if start not in ("random", "magnitude"):
        raise ValueError(f"expected a start of random, magnitude, got {start!r}")
    counts = allocated(shapes, 1 - sparsity, allocation)
    if start == "magnitude" and weights is not None:
        return magnitude_topology(shapes, counts, weights)
    return random_topology(shapes, counts, generator)


def _assemble(shapes: Shapes, counts: Sequence[int], score: Callable[[int], Tensor]) -> Topology:
    sizes = tuple(math.prod(shape) for shape in shapes)
    parts, start = [], 0
    for size, count in zip(sizes, counts, strict=True):
        parts.append(keep_top(score(size), count).nonzero().squeeze(1) + start)
        start += size
    return Topology(torch.cat(parts), tuple(counts), sizes)


def keep_top(score: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Mask `(n,)` of exactly `count` entries: the largest scores, ties to the lower position. among: which may be chosen,
    `(n,)` bool, at least `count`; None is all.

    `topk` breaks ties in no stated order, and exact zeros are common, so: everything above the threshold, then the first
    ones at it.
    """
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = _kth_largest(score.detach(), count, among)
    kept = score > threshold
    if among is not None:
        kept &= among
    missing = count - int(kept.count_nonzero())  # `sum` would make integers of them all
    for start in range(0, len(score), PIECE):
        at = score[start : start + PIECE] == threshold
        if among is not None:
            at &= among[start : start + PIECE]
        first = at.nonzero()[:missing, 0]
        kept[first + start] = True
        missing -= len(first)
        if not missing:
            return kept
    raise ValueError(f"expected scores that are numbers, of which {count} are to be the largest, got NaN among {len(score)}")


def _kth_largest(scores: Tensor, count: int, among: Tensor | None) -> Tensor:
    """The smallest of the `count` largest scores. On the CPU by NumPy, piece by piece: what is held beside the scores is `count`
    of them and a piece."""
    if scores.device.type != "cpu":
        pool = scores if among is None else scores[among]
        return pool.kthvalue(len(pool) - count + 1).values
    size = max(count, PIECE)
    allowed = None if among is None else among.numpy()
    best = _numbers(scores[:0])
    for start in range(0, len(scores), size):
        piece = _numbers(scores[start : start + size])
        if allowed is not None:
            piece = piece[allowed[start : start + size]]
        if len(best) == count:
            piece = piece[piece > best[0]]  # the others change nothing
        best = np.concatenate([best, piece])
        if len(best) > count:
            best.partition(len(best) - count)
            best = best[len(best) - count :].copy()
        if len(best) == count:
            best.partition(0)
    return torch.as_tensor(best[0])


def _numbers(scores: Tensor) -> NDArray[Any]:
    """As NumPy has them, which knows no bfloat16: their order is that of floats."""
    return (scores.float() if scores.dtype == torch.bfloat16 else scores).numpy()


def candidates(topology: Topology, drop_score: Tensor, fraction: float) -> Tensor:
    """Which weights `(k,)` bool `drop_and_grow` would drop."""
    parts = zip(drop_score.split(list(topology.counts)), topology.counts, topology.sizes, strict=True)
    return torch.cat([~keep_top(score, count - min(math.floor(fraction * count), size - count)) for score, count, size in parts])


def drop_and_grow(
    topology: Topology, drop_score: Tensor, grow_score: Tensor, fraction: float, droppable: Tensor | None = None
) -> Move:
    """Exchange, in every layer, floor(fraction * k_l) active weights for as many that were inactive before.

    drop_score: `(k,)`, the smallest go (at equal scores the lower position is kept); grow_score: `(num_weights,)`, the
    largest come (at equal scores the lower position). At most n_l - k_l are exchanged; what was just dropped does not
    return. droppable: `(k,)` bool, which may go, where not all may; where they are fewer, fewer are exchanged. Density is
    constant to the weight.
    """
    if droppable is not None:
        drop_score = torch.where(droppable, drop_score, math.inf)
    device = topology.positions.device
    olds = torch.arange(topology.num_active, device=device).split(list(topology.counts))
    positions, sources, start = [], [], 0
    for old, score, size in zip(olds, drop_score.split(list(topology.counts)), topology.sizes, strict=True):
        count = len(old)
        free = torch.ones(size, dtype=torch.bool, device=device)
        free[topology.positions[old] - start] = False
        most = count if droppable is None else int(droppable[old].sum())
        exchanged = min(math.floor(fraction * count), size - count, most)
        kept = old[keep_top(score, count - exchanged)]
        grown = keep_top(grow_score[start : start + size], exchanged, free).nonzero().squeeze(1) + start
        place, order = torch.cat([topology.positions[kept], grown]).sort()
        positions.append(place)
        sources.append(torch.cat([kept, torch.full_like(grown, -1)])[order])
        start += size
    return Move(topology._replace(positions=torch.cat(positions)), torch.cat(sources))


def prune(topology: Topology, score: Tensor, counts: Sequence[int]) -> Move:
    """Keep, in every layer, the `counts[l]` active weights of largest score `(k,)`; at equal scores the lower position.

    A layer that has no more than that keeps all it has.
    """
    olds = torch.arange(topology.num_active, device=topology.positions.device).split(list(topology.counts))
    left = tuple(min(count, old) for count, old in zip(counts, topology.counts, strict=True))
    parts = zip(olds, score.split(list(topology.counts)), left, strict=True)
    source = torch.cat([old[keep_top(part, count)] for old, part, count in parts])
    return Move(Topology(topology.positions[source], left, topology.sizes), source)


def restricted(topology: Topology, kept: Tensor) -> Topology:
    """Those active weights that are kept, `(k,)` bool. Raises ValueError where a layer is left without any."""
    positions = topology.positions[kept]
    counts = counts_of(positions, topology.sizes)
    if 0 in counts:
        raise ValueError(f"expected weights in every layer, but of layer {counts.index(0)} none is left, of all {len(positions)}")
    return Topology(positions, counts, topology.sizes)


def united(one: Topology, other: Topology) -> Topology:
    """The weights that are active in either of two topologies over the same layers."""
    positions = torch.cat([one.positions, other.positions.to(one.positions.device)]).unique(sorted=True)
    return Topology(positions, counts_of(positions, one.sizes), one.sizes)


def relocate(old: Tensor, source: Tensor) -> Tensor:
    """What belonged to the old active weights, `(k, ...)`, at their new places; zero where a weight has just grown."""
    moved = old[source.clamp(min=0)]
    moved[source < 0] = 0
    return moved


def sources(old: Tensor, new: Tensor) -> Tensor:
    """Of each of the sorted positions `new` its place among the sorted `old` ones, or -1: what `relocate` takes."""
    if not len(old):
        return torch.full_like(new, -1)
    place = torch.searchsorted(old, new).clamp(max=len(old) - 1)
    return torch.where(old[place] == new, place, -1)


def pack_bits(mask: Tensor) -> Tensor:
    """`(..., n)` bool -> `(..., ceil(n / 8))` uint8, first entry in the highest bit (NumPy's packbits)."""
    padded = torch.nn.functional.pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=mask.device)
    return (padded.view(*mask.shape[:-1], -1, 8) * weights).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, count: int) -> Tensor:
    """The inverse of `pack_bits`: `(..., ceil(count / 8))` uint8 -> `(..., count)` bool."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) & weights).ne(0).flatten(-2)[..., :count]


def to_bits(topology: Topology) -> Tensor:
    """M as `ceil(num_weights / 8)` bytes: how a topology is stored."""
    mask = torch.zeros(topology.num_weights, dtype=torch.bool, device=topology.positions.device)
    mask[topology.positions] = True
    return pack_bits(mask)


def from_bits(bits: Tensor, sizes: Sequence[int]) -> Topology:
    """The inverse of `to_bits`."""
    positions = unpack_bits(bits, sum(sizes)).nonzero().squeeze(1)
    return Topology(positions, counts_of(positions, sizes), tuple(sizes))
