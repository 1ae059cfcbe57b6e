"""Laws of the deterministic mask: shares, exact counts, exchanges, bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budget import assert_rate
from espalier import shelf
from espalier.contracts import Topology
from espalier.topology import masks

laws = settings(max_examples=60)


# -------------------------------------------------------------------------------------------------------- random inputs


@st.composite
def shapes_and_density(draw):
    shape = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
    shapes = draw(st.lists(shape, min_size=1, max_size=6))
    return shapes, draw(st.floats(0.02, 1.0, allow_nan=False))


@st.composite
def nets(draw):
    """A topology over one to four layers, and scores with many ties for it."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    active = [draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any)) for size in sizes]
    mask = torch.tensor([on for layer in active for on in layer])
    topo = Topology(mask.nonzero().squeeze(1), tuple(sum(layer) for layer in active), tuple(sizes))
    score = st.integers(0, 3).map(float)
    drop = draw(st.lists(score, min_size=topo.num_active, max_size=topo.num_active))
    grow = draw(st.lists(score, min_size=topo.num_weights, max_size=topo.num_weights))
    return topo, torch.tensor(drop), torch.tensor(grow), draw(st.floats(0.0, 1.0, allow_nan=False))


def check_is_a_topology(topo: Topology) -> None:
    """Sorted, without repetition, and with the declared count in every layer."""
    positions = topo.positions.tolist()
    assert positions == sorted(set(positions))
    assert topo.positions.dtype == torch.int64
    bounds = [0, *np.cumsum(topo.sizes).tolist()]
    inside = [sum(low <= p < high for p in positions) for low, high in zip(bounds, bounds[1:], strict=False)]
    assert tuple(inside) == topo.counts


# ----------------------------------------------------------------------------------------------------------- allocation


def water_fill(shapes, density):
    """ERK shares by another road than the code's: bisection on the one factor eps of min(size, eps * sum(shape))."""
    sizes = [math.prod(shape) for shape in shapes]
    low, high = 0.0, float(max(sizes))
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(size, middle * sum(shape)) for size, shape in zip(sizes, shapes, strict=True))
        low, high = (middle, high) if total < density * sum(sizes) else (low, middle)
    return [min(size, high * sum(shape)) for size, shape in zip(sizes, shapes, strict=True)]


def flat_shares(shapes, density):
    return [density * math.prod(shape) for shape in shapes]


SHARES = {"erk": water_fill, "uniform": flat_shares}


def test_every_allocation_has_an_oracle_here():
    assert set(masks.ALLOCATIONS) == set(SHARES)


@pytest.mark.parametrize("allocation", sorted(masks.ALLOCATIONS))
@laws
@given(case=shapes_and_density())
def test_counts_add_up_exactly_and_each_is_within_one_weight_of_its_share(allocation, case):
    shapes, density = case
    sizes = [math.prod(shape) for shape in shapes]
    shares = SHARES[allocation](shapes, density)
    try:
        counts = masks.ALLOCATIONS[allocation](shapes, density)
    except ValueError:
        counts = ()
    assert counts or min(shares) < 1  # a layer left without weights is the only reason to refuse
    assume(counts)
    assert sum(counts) == round(density * sum(sizes))
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert all(abs(count - share) < 1 + 1e-6 for count, share in zip(counts, shares, strict=True))


def test_uniform_rounds_by_largest_remainder_on_a_case_by_hand():
    # sizes 200, 180, 6 at density 0.3: shares 60, 54, 1.8; floors 115, round(115.8) = 116: the layer with .8 gets one
    assert masks.uniform([(10, 20), (4, 5, 3, 3), (2, 3)], 0.3) == (60, 54, 2)


def test_erk_caps_a_full_layer_and_shares_its_surplus_again_on_a_case_by_hand():
    # sizes 200, 180, 6; sums of dimensions 30, 15, 5; density 0.3 of 386 is a budget of 115.8.
    # First round: 115.8 / 50 = 2.316 per unit of dimension, so the last layer would get 11.58 of its 6: it is dense.
    # Second round: (115.8 - 6) / 45 = 2.44: 73.2 and 36.6. Floors 73 + 36 + 6 = 115, total 116: the .6 gets one.
    assert masks.erk([(10, 20), (4, 5, 3, 3), (2, 3)], 0.3) == (73, 37, 6)


def test_erk_proportions_are_dimensions_over_weights_where_nothing_is_capped():
    shapes = [(30, 40), (20, 50), (25, 10, 3, 3)]
    counts = masks.erk(shapes, 0.1)  # 445 weights for dimensions 70, 70, 41: 172.1, 172.1, 100.8
    assert counts == (172, 172, 101)


def multiply_adds(net, shape):
    """Multiply-adds of one example per weight: for every conv and linear weight, how often it is used."""
    uses, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):

            def count(module, inputs, output, name=name):
                uses[f"{name}.weight"] = output[0, 0].numel()

            hooks.append(module.register_forward_hook(count))
    with torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return uses


def test_erk_costs_a_wide_resnet_the_multiply_adds_that_were_published():
    model = shelf.load("models", "wide_resnet")((3, 32, 32), 10)
    uses = multiply_adds(model.network(model.initial), (3, 32, 32))
    per_weight = np.array([uses[weight.name] for weight in model.weights])
    dense = (per_weight * np.array(model.sizes)).sum()
    assert dense == pytest.approx(157.7e6, rel=1e-3)
    for sparsity, published in [(0.80, 0.352), (0.90, 0.174), (0.95, 0.088), (0.99, 0.018)]:
        cost = (per_weight * np.array(masks.erk(model.shapes, 1 - sparsity))).sum() / dense
        assert cost == pytest.approx(published, abs=0.003)


@pytest.mark.parametrize("allocation", sorted(masks.ALLOCATIONS))
@pytest.mark.parametrize("density", [0.0, -0.1, 1.2, math.nan])
def test_a_density_that_is_none_is_refused(allocation, density):
    with pytest.raises(ValueError, match=r"^expected a sparsity in \[0, 1\), got .*fraction of weights at zero$"):
        masks.ALLOCATIONS[allocation]([(3, 4)], density)


def test_a_layer_left_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"layer 1 of 2 weights gets none at sparsity 0.9: lower the sparsity"):
        masks.uniform([(40, 40), (1, 2)], 0.1)


# ------------------------------------------------------------------------------------------------------------- keep_top


@laws
@given(scores=st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=40), data=st.data())
def test_keep_top_is_the_head_of_a_stable_sort(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    best = sorted(range(len(scores)), key=lambda place: -scores[place])[:count]  # Python's sort is stable
    kept = masks.keep_top(torch.tensor(scores), count)
    assert kept.nonzero().squeeze(1).tolist() == sorted(best)


@pytest.mark.parametrize("piece", [1, 3, 8, 1000])
def test_keep_top_is_the_same_whatever_the_pieces(piece, monkeypatch):
    generator = np.random.default_rng(piece)
    monkeypatch.setattr(masks, "PIECE", piece)
    for _ in range(60):
        size = int(generator.integers(1, 60))
        scores = generator.integers(0, 5, size).astype(np.float32)  # ties
        among = generator.random(size) < generator.choice([0.3, 1.0])
        count = int(generator.integers(0, among.sum() + 1))
        order = [i for i in np.argsort(-scores, kind="stable") if among[i]][:count]
        kept = masks.keep_top(torch.from_numpy(scores), count, torch.from_numpy(among))
        assert kept.nonzero().squeeze(1).tolist() == sorted(order)


def test_keep_top_gives_ties_to_the_lower_position():
    #                                             _     0     1     _
    kept = masks.keep_top(torch.tensor([0.0, -1.0, 0.0, 7.0, 0.0, 0.0]), 3)
    assert kept.nonzero().squeeze(1).tolist() == [0, 2, 3]


def test_keep_top_keeps_the_exact_count_among_a_million_zeros():
    score = torch.zeros(1_000_000)
    score[::1000] = 1.0
    kept = masks.keep_top(score, 123_456)
    assert int(kept.sum()) == 123_456
    assert bool(kept[::1000].all())


# --------------------------------------------------------------------------------------------------------- start points


def test_a_random_topology_has_its_counts_and_is_decided_by_its_generator():
    shapes, counts = [(10, 20), (6, 5, 3, 3), (7, 2)], (31, 200, 14)
    draw = [masks.random_topology(shapes, counts, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    for topo in draw:
        check_is_a_topology(topo)
        assert (topo.counts, topo.sizes) == (counts, (200, 270, 14))
    assert torch.equal(draw[0].positions, draw[1].positions)
    assert not torch.equal(draw[0].positions, draw[2].positions)


def test_a_random_topology_visits_every_position_equally_often():
    generator, trials = torch.Generator().manual_seed(5), 1500
    visits = torch.zeros(12)
    for _ in range(trials):
        visits[masks.random_topology([(3, 4)], (5,), generator).positions] += 1
    for visited in visits.tolist():
        assert_rate(visited, trials, 5 / 12, looks=12)


@given(nets())
@laws
def test_a_global_topology_holds_the_largest_weights_and_one_of_each_layer(net):
    topo, _, weights, fraction = net
    shapes = [(size,) for size in topo.sizes]
    count = len(shapes) + round(fraction * (topo.num_weights - len(shapes)))
    found = masks.global_topology(shapes, count, -weights)
    check_is_a_topology(found)
    assert found.num_active == count
    assert min(found.counts) >= 1
    left = sorted(set(range(topo.num_weights)) - set(found.positions.tolist()))
    starts = np.cumsum([0, *topo.sizes[:-1]])
    first = {int(s + part.argmax()) for s, part in zip(starts, weights.split(topo.sizes), strict=True)}
    chosen = [p for p in found.positions.tolist() if p not in first]
    order = sorted((p for p in range(topo.num_weights) if p not in first), key=lambda p: (-float(weights[p]), p))
    assert sorted(order[: len(chosen)]) == chosen
    assert len(left) == topo.num_weights - count


@given(nets(), nets())
@laws
def test_sources_are_the_places_among_the_old(one, other):
    old, new = one[0].positions, other[0].positions
    known = old.tolist()
    assert masks.sources(old, new).tolist() == [known.index(p) if p in known else -1 for p in new.tolist()]
    assert masks.sources(old[:0], new).tolist() == [-1] * len(new)


def test_a_magnitude_topology_holds_the_largest_weights_of_each_layer():
    weights = torch.tensor([0.1, -0.9, 0.5, 0.0, 9.0, -8.0, 7.0, 10.0])
    topo = masks.magnitude_topology([(2, 2), (4,)], (2, 1), weights)
    assert topo.positions.tolist() == [1, 2, 7]
    assert topo.counts == (2, 1)


@pytest.mark.parametrize("allocation", sorted(masks.ALLOCATIONS))
@pytest.mark.parametrize("start", ["random", "magnitude"])
def test_an_initial_topology_is_exact_in_total(allocation, start):
    shapes = [(17, 23), (8, 17, 3, 3), (5, 8)]
    total = 17 * 23 + 8 * 17 * 9 + 40
    topo = masks.initial(shapes, 0.87, allocation, start, torch.randn(total), torch.Generator().manual_seed(0))
    check_is_a_topology(topo)
    assert topo.num_active == round((1 - 0.87) * total)
    assert topo.density == topo.num_active / total


# -------------------------------------------------------------------------------------------------------- drop and grow


def test_drop_and_grow_on_a_case_by_hand():
    # Two layers, of 8 and 4 weights. a is active, . is not; below, the score that counts there.
    #   position   0  1  2  3  4  5  6  7 |  8  9 10 11
    #              a  .  a  a  .  a  .  . |  a  a  a  .
    #   drop       3     1  1     2       |  5  0  4
    #   grow          2        9     7  9 |           1
    # Half of each layer's goes: 2 of 4 and 1 of 3. Layer 1 drops 2 and 3 and grows 4 and 7, layer 2 drops 9 and grows
    # 11. The gradient is largest (99) at the places just dropped, and none of them comes back.
    #   after      a  .  .  .  a  a  .  a |  a  .  a  a
    topo = Topology(torch.tensor([0, 2, 3, 5, 8, 9, 10]), (4, 3), (8, 4))
    drop = torch.tensor([3.0, 1, 1, 2, 5, 0, 4])
    grow = torch.tensor([0.0, 2, 99, 99, 9, 0, 7, 9, 0, 99, 0, 1])
    move = masks.drop_and_grow(topo, drop, grow, 0.5)
    assert move.topology.positions.tolist() == [0, 4, 5, 7, 8, 10, 11]
    assert move.source.tolist() == [0, -1, 3, -1, 4, 6, -1]
    assert move.topology.counts == (4, 3)
    assert move.num_grown == 3


def test_ties_keep_and_grow_the_lower_position():
    # a a a . . .   all scores equal, one of three is exchanged: the highest active goes, the lowest inactive comes
    topo = Topology(torch.tensor([0, 1, 2]), (3,), (6,))
    move = masks.drop_and_grow(topo, torch.zeros(3), torch.zeros(6), 0.34)
    assert move.topology.positions.tolist() == [0, 1, 3]


def naive_move(topo, drop, grow, fraction):
    """Drop and grow, one layer and one weight at a time."""
    after, source, start, first = [], [], 0, 0
    for size, count in zip(topo.sizes, topo.counts, strict=True):
        active = topo.positions[first : first + count].tolist()
        inactive = [place for place in range(start, start + size) if place not in active]
        exchanged = min(math.floor(fraction * count), size - count)
        by_drop = sorted(range(count), key=lambda place: (-drop[first + place].item(), place))
        kept = {active[place]: first + place for place in by_drop[: count - exchanged]}
        grown = dict.fromkeys(sorted(inactive, key=lambda place: (-grow[place].item(), place))[:exchanged], -1)
        layer = kept | grown
        after += sorted(layer)
        source += [layer[place] for place in sorted(layer)]
        start, first = start + size, first + count
    return after, source


@laws
@given(case=nets())
def test_drop_and_grow_is_the_naive_exchange_layer_by_layer(case):
    topo, drop, grow, fraction = case
    move = masks.drop_and_grow(topo, drop, grow, fraction)
    after, source = naive_move(topo, drop, grow, fraction)
    assert move.topology.positions.tolist() == after
    assert move.source.tolist() == source


@laws
@given(case=nets())
def test_a_move_exchanges_the_exact_number_and_nothing_dropped_returns(case):
    topo, drop, grow, fraction = case
    move = masks.drop_and_grow(topo, drop, grow, fraction)
    check_is_a_topology(move.topology)
    assert (move.topology.counts, move.topology.sizes) == (topo.counts, topo.sizes)
    before, after = set(topo.positions.tolist()), set(move.topology.positions.tolist())
    start = 0
    for size, count in zip(topo.sizes, topo.counts, strict=True):
        here = set(range(start, start + size))
        due = min(math.floor(fraction * count), size - count)
        assert len((after - before) & here) == due  # grown weights were inactive before
        assert len((before - after) & here) == due  # so none that was dropped came back
        start += size
    stayed = move.source >= 0
    assert torch.equal(topo.positions[move.source[stayed]], move.topology.positions[stayed])
    assert set(move.topology.positions[~stayed].tolist()) == after - before


@laws
@given(case=nets(), seed=st.integers(0, 2**31))
def test_density_is_exact_to_the_weight_over_ten_moves(case, seed):
    topo, _, _, fraction = case
    generator = torch.Generator().manual_seed(seed)
    for _ in range(10):
        drop = torch.rand(topo.num_active, generator=generator)
        moved = masks.drop_and_grow(topo, drop, torch.rand(topo.num_weights, generator=generator), fraction).topology
        check_is_a_topology(moved)
        assert (moved.counts, moved.density) == (topo.counts, topo.density)
        topo = moved


def test_relocated_values_travel_with_their_weight_and_grown_ones_are_zero():
    old = torch.tensor([10.0, 11, 12])
    assert masks.relocate(old, torch.tensor([2, -1, 0])).tolist() == [12, 0, 10]
    assert old.tolist() == [10, 11, 12]  # the old ones stay as they were
    rows = torch.arange(6.0).view(3, 2)
    assert masks.relocate(rows, torch.tensor([-1, 1])).tolist() == [[0, 0], [2, 3]]


def test_scores_that_are_no_numbers_are_refused_and_short_ones_are_ranked():
    """Of a NaN no count can be kept; bfloat16 is what NumPy does not know."""
    with pytest.raises(ValueError, match="expected scores that are numbers, of which 3 are to be the largest, got NaN among 8"):
        masks.keep_top(torch.full((8,), math.nan), 3)
    score = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(masks.keep_top(score, 20), masks.keep_top(score.double(), 20))


# ----------------------------------------------------------------------------------------------------------------- bits


@laws
@given(case=nets())
def test_a_topology_survives_as_bits(case):
    topo = case[0]
    bits = masks.to_bits(topo)
    assert bits.dtype == torch.uint8
    assert len(bits) == math.ceil(topo.num_weights / 8)
    back = masks.from_bits(bits, topo.sizes)
    assert torch.equal(back.positions, topo.positions)
    assert (back.counts, back.sizes) == (topo.counts, topo.sizes)


@laws
@given(rows=st.integers(1, 3), columns=st.integers(1, 30), seed=st.integers(0, 1000))
def test_packed_bits_are_numpys(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = masks.pack_bits(mask)
    assert np.array_equal(packed.numpy(), np.packbits(mask.numpy(), axis=-1))
    assert torch.equal(masks.unpack_bits(packed, columns), mask)
