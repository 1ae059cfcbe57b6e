"""Gradual and one-shot pruning: how many weights each move leaves (Zhu & Gupta 2018, eq. 1), and that nothing returns."""

import functools
import math
from typing import Any

import pytest
import torch

from espalier.contracts import Schedule, Topology
from espalier.topology import schedules
from espalier.topology.masks import erk, initial, uniform
from pruned import SHAPES, evidence_of

pytestmark = pytest.mark.usefixtures("float64")


def walk(schedule: Schedule, shapes: list[tuple[int, ...]], steps: int) -> dict[int, Topology]:
    """The topology after each of its moves, from a dense start."""
    topology, seen = initial(shapes, 0.0), {}
    for step in range(1, steps + 1):
        if schedule.due(step):
            topology = schedule.move(topology, evidence_of(topology, step)).topology
            seen[step] = topology
    return seen


@pytest.mark.parametrize(("delta_t", "last"), [(10, 100), (10, 101), (7, 50), (1, 30), (30, 31)])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97])
def test_gradual_pruning_follows_the_cubic_of_zhu_and_gupta(delta_t: int, last: int, sparsity: float) -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, s_i = 0 at t_0 = 0, n moves of which the last is before `last`."""
    shapes = [(30, 20), (10, 30), (40, 10)]
    counts = erk(shapes, 1 - sparsity)
    schedule, seen = schedules.gradual(counts, delta_t, last), {}
    seen = walk(schedule, shapes, 2 * last)
    moves = (last - 1) // delta_t
    assert list(seen) == [delta_t * i for i in range(1, moves + 1)]
    assert schedule.last == last
    assert max(seen) < last
    sizes = [math.prod(shape) for shape in shapes]
    for step, topology in seen.items():
        for count, size, final in zip(topology.counts, sizes, counts, strict=True):
            final_sparsity = 1 - final / size
            s_t = final_sparsity + (0 - final_sparsity) * (1 - (step - 0) / (moves * delta_t)) ** 3
            assert abs(count - (1 - s_t) * size) <= 0.5 + 1e-9  # to the nearest whole weight
    assert seen[moves * delta_t].counts == counts
    for before, after in zip(list(seen.values())[:-1], list(seen.values())[1:], strict=True):
        assert torch.isin(after.positions, before.positions).all()  # what is gone does not return


def test_a_gradual_schedule_keeps_no_state_of_its_own() -> None:
    """Resumed from any point, by a new object, it goes the same way."""
    make = functools.partial(schedules.gradual, uniform(SHAPES, 0.2), 5, 60)
    one, seen = make(), walk(make(), SHAPES, 60)
    for step in (25, 40):
        topology = make().move(seen[step - 5], evidence_of(seen[step - 5], step)).topology
        assert torch.equal(topology.positions, seen[step].positions)
        assert one.move(initial(SHAPES, 0.0), evidence_of(initial(SHAPES, 0.0), step)).topology.counts == seen[step].counts


@pytest.mark.parametrize(("delta_t", "last"), [(100, 100), (100, 50), (5, 1), (5, 0), (math.inf, 50)])
def test_gradual_pruning_without_a_move_is_refused(delta_t: int, last: int) -> None:
    with pytest.raises(ValueError, match=f"expected a delta_t below the freeze at step {last}, got {delta_t}: nothing"):
        schedules.gradual((5, 5), delta_t, last)


@pytest.mark.parametrize(("delta_t", "why"), [(0, "at least 1 step"), (-3, "at least 1 step"), (30.5, "whole steps")])
def test_gradual_pruning_is_by_whole_steps(delta_t: Any, why: str) -> None:
    """By others the last move would not be where the counts are reached."""
    with pytest.raises(ValueError, match=f"expected .*{why}, got {delta_t}"):
        schedules.gradual((5, 5), delta_t, 100)


@pytest.mark.parametrize("at", [1, 17])
def test_one_shot_pruning_is_one_move(at: int) -> None:
    counts = uniform(SHAPES, 0.3)
    schedule = schedules.one_shot(counts, at)
    assert [step for step in range(1, 100) if schedule.due(step)] == [at]
    assert schedule.last == at + 1
    topology = initial(SHAPES, 0.0)
    evidence = evidence_of(topology, at)
    move = schedule.move(topology, evidence)
    assert move.topology.counts == counts
    first = evidence.values[:54].abs()
    assert set(move.topology.positions[: counts[0]].tolist()) == set(first.topk(counts[0]).indices.tolist())


def test_a_rule_is_the_schedule_of_its_name() -> None:
    topology = initial(SHAPES, 0.6, generator=torch.Generator().manual_seed(0))
    by_name = {
        "rigl": schedules.rigl(5, 40, 0.3),
        "set": schedules.set_(5, 40, 0.3),
        "static": schedules.static(),
        "gradual": schedules.gradual((9, 9), 5, 40),
        "one-shot": schedules.one_shot((9, 9), 39),
    }
    assert set(schedules.RULES) == set(by_name)
    assert set(schedules.PRUNING) == {"gradual", "one-shot"}
    seen = set()
    for name, expected in by_name.items():
        schedule = schedules.rule(name, 5, 40, 0.3, (9, 9))
        assert schedule.last == expected.last
        assert [schedule.due(t) for t in range(1, 60)] == [expected.due(t) for t in range(1, 60)]
        moved, twin = (s.move(topology, evidence_of(topology, 20)) for s in (schedule, expected))
        assert torch.equal(moved.topology.positions, twin.topology.positions)
        seen.add(tuple(moved.topology.positions.tolist()))
    assert len(seen) == 5
    with pytest.raises(ValueError, match="expected a rule of rigl, set, static, gradual, one-shot, got 'gmp'"):
        schedules.rule("gmp", 5, 40, 0.3)
