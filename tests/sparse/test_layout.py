"""Claims about layouts: SciPy's indices, the rule of which layers are worth them, and that a topology has just one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from espalier.contracts import Evidence, Topology, counts_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import Layout, layout, scatter
from espalier.sparse.layout import indices_of, is_worthwhile
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from unwritten import SHAPES, layout_of

SIZE = layout.MIN_SIZE


def guide_of(sparsity: float = 0.9, seed: int = 0, width: int = 128, allocation: str = "erk") -> MaskedGuide:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(160, width), nn.ReLU(), nn.Linear(width, 10)))
    topology = initial(model.shapes, sparsity, allocation, generator=torch.Generator().manual_seed(seed))
    return MaskedGuide(model, topology)


# ------------------------------------------------------------------------------------------------------------- indices


@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(7, 5), (1, 9), (9, 1), (64, 300)])
def test_indices_are_those_of_scipy_by_rows_and_by_columns(shape: tuple[int, int], density: float) -> None:
    dense = np.random.default_rng(0).random(shape) * (np.random.default_rng(1).random(shape) < density)
    positions = torch.from_numpy(np.flatnonzero(dense))
    values = dense.reshape(-1)[positions.numpy()]
    found = indices_of(positions, shape)
    rows, columns = scipy.sparse.csr_array(dense), scipy.sparse.csc_array(dense)
    assert np.array_equal(found.row_starts, rows.indptr)
    assert np.array_equal(found.columns, rows.indices)
    assert np.array_equal(found.column_starts, columns.indptr)
    assert np.array_equal(found.rows, columns.indices)
    assert np.array_equal(values[found.order.numpy()], columns.data)
    assert {tensor.dtype for tensor in found} == {torch.int32}


def test_a_layout_is_its_layers_one_after_the_other() -> None:
    shapes = ((128, 160), (4, 3, 3, 3), (5,), (10, 128), (200, 100))
    made = layout_of(shapes, density=0.2)
    assert [layer.shape for layer in made.layers] == list(shapes)
    starts = np.cumsum([0, *made.sizes])
    again = torch.cat([layer.positions + int(start) for layer, start in zip(made.layers, starts, strict=False)])
    assert torch.equal(again, made.positions)
    assert [len(layer.positions) for layer in made.layers] == list(made.counts)
    assert [layer.indices is not None for layer in made.layers] == [True, False, False, False, True]


def test_layers_are_counted_by_their_positions_whether_empty_first_or_last() -> None:
    assert counts_of(torch.tensor([4, 5, 9]), (4, 2, 4, 3)) == (0, 2, 1, 0)
    assert counts_of(torch.tensor([], dtype=torch.int64), (4, 2)) == (0, 0)
    assert counts_of(torch.arange(6), (1, 5)) == (1, 5)


# ------------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("shape", "count", "worth"),
    [
        ((128, 128), SIZE // 4, True),
        ((128, 128), SIZE // 4 + 1, False),
        ((128, 127), 0, False),
        ((1, SIZE), 1, True),
        ((SIZE,), 1, False),
        ((64, 32, 3, 3), 1, False),
        ((128, 128), 0, True),
    ],
)
def test_large_sparse_matrices_are_worth_it(shape: tuple[int, ...], count: int, worth: bool) -> None:
    assert is_worthwhile(shape, count) is worth
    made = Layout.where_worthwhile(torch.arange(count), (count,), (shape,))
    assert (made is not None) is worth


def test_the_rule_is_the_one_of_the_issue() -> None:
    assert (layout.MIN_SIZE, layout.MAX_DENSITY, layout.MIN_ROWS) == (2**14, 0.25, 16)


def test_there_is_no_layout_where_torch_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout_of()
    arguments = made.positions, made.counts, SHAPES
    assert Layout.where_worthwhile(*arguments) is not None
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert Layout.where_worthwhile(*arguments) is None


# --------------------------------------------------------------------------------------------------- one for a topology


def test_draws_on_one_topology_share_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    guide, made = guide_of(), []
    monkeypatch.setattr(layout, "indices_of", lambda *arguments: made.append(1) or indices_of(*arguments))
    for _ in range(3):
        guide.draw()
        guide.distribution()
    assert len(made) == 1  # one layer of the two is worth it


def follows(guide: MaskedGuide) -> None:
    """The layout is that of the guide's positions, and so are its draws, layer by layer."""
    assert guide.layout is not None
    fresh = Layout(guide.positions.clone(), counts_of(guide.positions, guide.sizes), guide.shapes)
    for mine, theirs in zip(guide.layout.layers, fresh.layers, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        assert (mine.indices is None) == (theirs.indices is None)
        assert mine.indices is None or all(map(torch.equal, mine.indices, theirs.indices))
    pieces = guide.draw().layers()
    dense = scatter(guide.values, guide.positions, sum(guide.sizes))
    assert torch.equal(torch.cat([piece.reshape(-1) for piece in pieces]), dense)


def test_a_move_makes_another() -> None:
    guide = guide_of()
    before = guide.layout
    evidence = Evidence(1, guide.values.data, torch.randn(sum(guide.sizes)), torch.Generator(), None)
    schedule = schedules.rigl(delta_t=1, last=10, drop_fraction=0.3)
    guide.move(schedule.move(guide.topology, evidence))
    assert guide.layout is not before
    follows(guide)


def test_a_restored_run_stands_on_the_restored_layout() -> None:
    guide, other = guide_of(), guide_of(seed=1)
    torch.manual_seed(0)
    loops = []
    for each in (guide, other):
        model = BayesianNetwork(nn.Sequential(nn.Linear(160, 128), nn.ReLU(), nn.Linear(128, 10)))
        loops.append(Loop(model, each, schedules.static(), rates.constant(0.1)))
    guide.draw()
    loops[0].restore(loops[1].state())
    assert torch.equal(guide.positions, other.positions)
    follows(guide)


@pytest.mark.parametrize("allocation", ["erk", "uniform"])
def test_a_loaded_state_dict_brings_its_layout(allocation: str) -> None:
    guide, other = guide_of(), guide_of(seed=1, allocation=allocation)
    guide.draw()
    guide.load_state_dict(other.state_dict())  # writes into the positions that there are
    assert torch.equal(guide.positions, other.positions)
    follows(guide)


def test_a_copy_of_a_guide_draws_as_it_does() -> None:
    guide = guide_of()
    guide.draw()
    twin = copy.deepcopy(guide)
    follows(twin)
    assert torch.equal(twin.draw().clone(), guide.draw().clone())


def test_there_is_none_for_a_network_of_small_or_dense_layers() -> None:
    assert guide_of(width=64).layout is None
    assert guide_of(sparsity=0.5).layout is None
    assert isinstance(guide_of().topology, Topology)
