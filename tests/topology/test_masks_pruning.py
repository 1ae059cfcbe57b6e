"""`prune`: which weights of each layer stay."""

import numpy as np
import pytest
import torch

from espalier.topology.masks import initial, prune
from pruned import SHAPES

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_scores_of_each_layer_stay_and_ties_go_to_the_lower_position(seed: int) -> None:
    chance = np.random.default_rng(seed)
    shapes = [(int(chance.integers(2, 7)), int(chance.integers(2, 7))) for _ in range(3)]
    topology = initial(shapes, 0.3, "uniform", generator=torch.Generator().manual_seed(seed))
    score = torch.from_numpy(chance.integers(0, 4, topology.num_active)).double()  # many ties
    counts = [int(chance.integers(1, count + 3)) for count in topology.counts]
    move = prune(topology, score, counts)

    expected, start, places = [], 0, topology.positions.tolist()
    for have, wanted in zip(topology.counts, counts, strict=True):
        ranked = sorted(range(start, start + have), key=lambda i: (-float(score[i]), places[i]))
        expected += sorted(ranked[:wanted])
        start += have
    assert move.source.tolist() == expected
    assert move.topology.positions.tolist() == [places[i] for i in expected]
    assert move.topology.counts == tuple(min(pair) for pair in zip(topology.counts, counts, strict=True))
    assert (move.topology.sizes, move.num_grown) == (topology.sizes, 0)


def test_a_layer_with_no_more_than_it_may_keep_keeps_all() -> None:
    topology = initial(SHAPES, 0.8, generator=torch.Generator().manual_seed(0))
    move = prune(topology, torch.rand(topology.num_active), [10**6, 10**6])
    assert torch.equal(move.topology.positions, topology.positions)
    assert move.source.tolist() == list(range(topology.num_active))
