"""When the topology moves and on what evidence: RigL, SET, static."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from budget import assert_rate
from espalier.contracts import Evidence, Topology
from espalier.topology import masks, schedules


def evidence(topo, step=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(topo.num_active, generator=generator)
    return Evidence(step, values, torch.randn(topo.num_weights, generator=generator), generator)


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_moves_are_due_at_multiples_of_delta_t_before_the_last_step(name):
    schedule = schedules.rule(name, 100, 400, 0.3)
    assert schedule.last == 400
    assert [step for step in range(1, 1000) if schedule.due(step)] == [100, 200, 300]
    assert not any(schedules.rule(name, 100, 0, 0.3).due(step) for step in range(1, 500))


def test_a_static_topology_is_never_due_and_a_move_of_it_changes_nothing():
    schedule = schedules.rule("static", 100, 400, 0.3)
    assert schedule.last == 0
    assert not any(schedule.due(step) for step in range(1, 1000))
    topo = masks.random_topology([(5, 6)], (11,), torch.Generator().manual_seed(0))
    move = schedule.move(topo, evidence(topo))
    assert move.topology == topo
    assert move.source.tolist() == list(range(11))
    assert move.num_grown == 0


# drop_fraction .3, last 250, 10,000 active: f(t) = .15 (1 + cos(pi t / 250)), so f(100) = .15 x 1.309017 = .19635,
# f(125) = .15, f(200) = .15 x .190983 = .02865, f(249) = .15 x .000079 = .00001
@pytest.mark.parametrize(("step", "exchanged"), [(100, 1963), (125, 1500), (200, 286), (249, 0)])
@pytest.mark.parametrize("name", ["rigl", "set"])
def test_the_exchanged_fraction_decays_as_a_cosine(name, step, exchanged):
    topo = masks.random_topology([(300, 100)], (10_000,), torch.Generator().manual_seed(0))
    move = schedules.rule(name, 1, 250, 0.3).move(topo, evidence(topo, step))
    assert move.num_grown == exchanged


def test_rigl_drops_small_values_and_grows_large_gradients_whatever_their_sign():
    # six active of twelve; f = .5 / 2 (1 + cos(pi 2 / 4)) = .25 of 6 is 1
    topo = Topology(torch.arange(6), (6,), (12,))
    seen = Evidence(
        2, torch.tensor([-5.0, 4, -1, 2, 3, -6]), torch.tensor([99.0] * 6 + [1, 2, -8, 4, 5, 6]), torch.Generator()
    )
    move = schedules.rigl(1, 4, 0.5).move(topo, seen)
    assert move.topology.positions.tolist() == [0, 1, 3, 4, 5, 8]


def test_set_grows_every_inactive_position_equally_often_and_ignores_the_gradient():
    topo = Topology(torch.arange(0, 20, 2), (10,), (20,))  # the even ones; f(1) of 10 weights is 5.99
    schedule, generator, trials = schedules.set_(1, 1000, 0.6), torch.Generator().manual_seed(11), 2000
    values, slope = torch.arange(1.0, 11), torch.arange(20.0).square()
    grown = torch.zeros(20)
    for _ in range(trials):
        move = schedule.move(topo, Evidence(1, values, slope, generator))
        grown[move.topology.positions[move.source < 0]] += 1
    assert grown[::2].eq(0).all()
    for count in grown[1::2].tolist():
        assert_rate(count, trials, 5 / 10, looks=10)


def test_set_repeats_itself_with_its_generator():
    topo = masks.random_topology([(30, 30)], (300,), torch.Generator().manual_seed(0))
    moves = [schedules.set_(1, 100, 0.5).move(topo, evidence(topo, 1, seed)) for seed in (1, 1, 2)]
    assert torch.equal(moves[0].topology.positions, moves[1].topology.positions)
    assert not torch.equal(moves[0].topology.positions, moves[2].topology.positions)


def test_another_rule_is_another_drop_or_grow_score():
    topo = Topology(torch.tensor([0, 1]), (2,), (4,))
    schedule = schedules.drop_and_grow_every(
        1, 10, 1.0, drop=lambda seen: -seen.values.abs(), grow=lambda seen: -seen.gradient.abs()
    )
    seen = Evidence(5, torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.Generator())
    assert schedule.move(topo, seen).topology.positions.tolist() == [1, 3]  # f(5) = .5: one of two


def test_impossible_schedules_are_refused():
    with pytest.raises(ValueError, match="^expected delta_t of at least 1 step, got 0$"):
        schedules.rigl(0, 100, 0.3)
    with pytest.raises(ValueError, match=r"^expected drop_fraction in \[0, 1\], got 1.5$"):
        schedules.set_(10, 100, 1.5)


def test_a_schedule_without_a_move_says_so() -> None:
    with pytest.warns(UserWarning, match="the topology never moves: its first move would be at step 100, and it stands"):
        schedules.rigl(100, 67, 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedules.rigl(66, 67, 0.3)
        schedules.rigl(100, 0, 0.3)  # frozen from the start, by choice
        schedules.rigl(math.inf, 67, 0.3)  # type: ignore[arg-type]
