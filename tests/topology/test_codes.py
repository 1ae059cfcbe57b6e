"""Claims about a topology's bytes: they give it back, take little more than they must, and fail closed."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.contracts import Topology
from espalier.topology import codes, initial
from espalier.topology.masks import to_bits

SHAPES = ((512, 784), (512, 512), (10, 512))


def drawn(sparsity: float, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Topology:
    return initial(shapes, sparsity, generator=torch.Generator().manual_seed(0))


def same(one: Topology, other: Topology) -> bool:
    return torch.equal(one.positions, other.positions) and one[1:] == other[1:]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95, 0.999])
def test_gaps_give_the_topology_back(sparsity: float) -> None:
    topology = drawn(sparsity)
    assert same(codes.from_gaps(codes.to_gaps(topology), topology.sizes), topology)


@settings(max_examples=200)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.data())
def test_any_topology_comes_back(sizes: list[int], data: st.DataObject) -> None:
    """Gaps of 254, 255, 256, 510 among them."""
    parts = [sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=6))) for size in sizes]
    starts = np.cumsum([0, *sizes])
    positions = [start + place for start, part in zip(starts, parts, strict=False) for place in part]
    topology = Topology(torch.tensor(positions), tuple(map(len, parts)), tuple(sizes))
    assert same(codes.from_gaps(codes.to_gaps(topology), sizes), topology)


@pytest.mark.parametrize("gap", [0, 254, 255, 256, 509, 510, 511, 1020])
def test_a_gap_at_the_edge_of_a_byte_comes_back(gap: int) -> None:
    topology = Topology(torch.tensor([gap, gap + 1, 2 * gap + 2]), (3,), (3 * gap + 9,))
    assert same(codes.from_gaps(codes.to_gaps(topology), topology.sizes), topology)


@pytest.mark.parametrize(("sparsity", "of_ticket", "of_positions"), [(0.8, 1.05, 1.2), (0.9, 1.05, 1.2), (0.95, 1.05, 1.2),
                                                                     (0.99, 1.1, 1.3)])  # fmt: skip
def test_a_ticket_takes_little_more_than_its_information(sparsity: float, of_ticket: float, of_positions: float) -> None:
    """The bound: 32 bits a value, and n H2(k / n) for each layer's positions (Shannon 1948)."""
    topology = drawn(sparsity)
    bound = 0.0
    for count, size in zip(topology.counts, topology.sizes, strict=True):
        density = count / size
        if 0 < density < 1:
            bound -= size * (density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8
    code = len(codes.to_gaps(topology))
    assert code <= of_positions * bound
    assert code + 4 * topology.num_active <= of_ticket * (bound + 4 * topology.num_active)
    assert code < len(to_bits(topology))


def test_files_of_before_are_still_read() -> None:
    topology = drawn(0.9)
    assert same(codes.read({"topology": to_bits(topology)}, topology.sizes), topology)
    assert same(codes.read({codes.NAME: codes.to_gaps(topology)}, topology.sizes), topology)


def test_a_topology_of_no_weights_comes_back() -> None:
    none = Topology(torch.zeros(0, dtype=torch.int64), (0, 0), (8, 3))
    back = codes.from_gaps(codes.to_gaps(none), (8, 3))
    assert back.positions.dtype == torch.int64
    assert len(back.positions) == 0
    assert back.counts == (0, 0)


def test_bytes_that_are_no_topology_are_refused() -> None:
    topology = drawn(0.9, ((40, 40),))
    code = codes.to_gaps(topology)
    longer = Topology(topology.positions, topology.counts, (1700,))
    flipped = code.clone()
    flipped[len(code) // 2] ^= 1
    huge = codes.to_gaps(drawn(0.0, ((3000, 3000),)))  # what unpacks to more than there can be
    sentence = re.escape("expected the gaps of a topology")
    for wrong, sizes in ((code[:-4], (1600,)), (flipped, (1600,)), (code, (800,)), (code[:0], (1600,)), (huge, (1600,))):
        with pytest.raises(ValueError, match=sentence):
            codes.from_gaps(wrong, sizes)
    assert same(codes.from_gaps(code, (1700,)), longer)
