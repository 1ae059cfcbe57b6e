"""Claims about the mask's section: densities, churn, what was ever tried, agreement."""

from __future__ import annotations

import numpy as np

from espalier.pages import Figure, Table, Text
from espalier.reports import topology
from espalier.reports.look import Look
from espalier.topology import graphs


def test_layers_have_their_counts_and_what_the_masks_kept(looks: list[Look]) -> None:
    table = next(block for block in topology.topology(looks).blocks if isinstance(block, Table))
    fit = looks[0].fit
    row = table.rows[0]
    assert row[2] == f"{fit.topology.counts[0]:,}"
    assert float(str(row[3])) == round(fit.topology.counts[0] / fit.topology.sizes[0], 4)
    assert float(str(row[4])) == round(float(fit.pairs.keep[:, : fit.topology.counts[0]].float().mean()), 3)


def test_what_is_connected_is_the_tickets(looks: list[Look]) -> None:
    table = next(block for block in topology.topology(looks).blocks if isinstance(block, Table) and "connected" in block.caption)
    for look, row in zip(looks, table.rows, strict=True):
        ticket = [own.detach().double().numpy() for own in look.fit.ticket().parameters() if own.dim() == 2]
        found, active = graphs.connected(ticket), sum(int((own != 0).sum()) for own in ticket)
        assert row[1] == f"{found.inputs.mean():.1%}"
        assert row[3] == f"{active - sum(found.weights):,} of {active:,}"
        assert row[5] == f"{graphs.deep_graph_persistence(ticket):.3f}"


def test_what_was_ever_active_grows_from_the_density(looks: list[Look]) -> None:
    explored = [row["explored"] for row in looks[1].fit.history]
    assert explored == sorted(explored)
    assert explored[0] >= looks[1].fit.topology.density
    assert explored[-1] > looks[1].fit.topology.density
    found = next(
        block for block in topology.topology(looks).blocks if isinstance(block, Figure) and block.title == "Ever active"
    )
    assert f"rigl has tried {explored[-1]:.1%}" in found.says


def test_agreement_is_the_jaccard_index(looks: list[Look]) -> None:
    blocks = topology.topology(looks).blocks
    table = next(block for block in blocks if isinstance(block, Table) and block.caption.startswith("Agreement"))
    one, other = (set(look.fit.topology.positions.tolist()) for look in looks)
    assert table.rows[0][1] == "1.000"
    assert table.rows[0][2] == f"{len(one & other) / len(one | other):.3f}"
    assert any(isinstance(block, Text) and "would have" in block.text for block in blocks)


def test_input_pixels_count_the_weights_that_leave_them(looks: list[Look]) -> None:
    found = next(
        block
        for block in topology.topology(looks).blocks
        if isinstance(block, Figure) and "Input pixels" in block.title
    )
    assert found.data is not None
    counts = np.array([row[1:] for row in found.data[1]], dtype=int)
    assert counts.shape == (8, 8)
    assert counts.sum() == looks[0].fit.topology.counts[0]


def test_training_shows_every_curve_that_the_history_has(looks: list[Look]) -> None:
    titles = [block.title for block in topology.training(looks).blocks if isinstance(block, Figure)]
    assert titles == ["loss, nats", "validation NLL", "validation accuracy", "validation ECE"]
