"""The agent: it learns to keep to the budget and what is worth keeping, from its seed alone, and leaves the random streams."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from espalier.training.ratios import fitted
from espalier.training.walks import Layer, Multiplier, Walk, clip, scalarised

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed: pip install espalier[rl]")

from espalier.training.constrained import Ascent, Environment, search  # noqa: E402

LAYERS, SIZES, SPARSITY = [Layer(20, 20), Layer(30, 20)], (400, 600), 0.8


def worth(kept: tuple[int, ...]) -> float:
    """The first layer's weights are worth keeping, the second's are not: at best all that the clip allows goes from there."""
    return 100 * (1 - math.exp(-8 * kept[0] / SIZES[0]))


@functools.cache
def searched(steps: int, seed: int) -> tuple[list[tuple[int, ...]], list[dict[str, Any]]]:
    return search(worth, LAYERS, SIZES, SPARSITY, steps=steps, seed=seed)


def test_an_agent_keeps_to_the_budget_and_does_better_than_chance() -> None:
    """Against as many walks of random actions, each fitted to the same budget."""
    steps = 2560
    (policy, best), rows = searched(steps, 0)
    budget = 100 * (1 - SPARSITY)
    assert rows[0]["cost"] > 3 * budget  # as it starts
    assert np.mean([row["cost"] for row in rows[-3:]]) < 1.4 * budget
    assert sum(policy) < 1.2 * (1 - SPARSITY) * sum(SIZES)
    stream, total = np.random.default_rng(0), round((1 - SPARSITY) * sum(SIZES))
    chance = []
    for _ in range(steps // 2):
        walk = Walk(LAYERS, SIZES, worth)
        walk.reset()
        for action in stream.uniform(0, clip(SPARSITY, 1.0), 2):
            walk.step(action)
        chance.append(worth(fitted(walk.kept, SIZES, total, (1, 1))))
    found = worth(fitted(best, SIZES, total, (1, 1)))
    most = worth((total - round((1 - clip(SPARSITY, 1.0)) * SIZES[1]), 0))
    assert found > np.mean(chance) + (most - np.mean(chance)) / 2


def test_the_trace_is_the_multipliers_own_ascent_on_the_mean_cost_of_a_step() -> None:
    _, rows = searched(640, 0)
    multiplier = Multiplier(100 * (1 - SPARSITY))
    for row in rows:
        assert row["multiplier"] == pytest.approx(multiplier.value)
        multiplier.update(row["cost"])
    assert [row["step"] for row in rows] == [128, 256, 384, 512, 640]


def test_a_step_of_the_environment_is_the_walks_with_the_action_clipped_and_the_reward_scalarised() -> None:
    own = Environment(Walk(LAYERS, SIZES, worth), Multiplier(20.0), SPARSITY, 4)
    own.multiplier.update(50.0)
    observation, _ = own.reset()
    assert observation.tolist() == [0, 20, 20, 1, 1, 0, 0]
    _, reward, over, _, _ = own.step(np.array([0.99], dtype=np.float32))
    assert (reward, over, own.walk.kept) == (0.0, False, (80,))  # clip .8
    _, reward, over, _, _ = own.step(np.array([-3.0], dtype=np.float32))
    assert (over, own.walk.kept) == (True, (80, 600))
    assert reward == pytest.approx(scalarised(worth((80, 600)), 2 * 68.0, own.multiplier.value))
    assert own.ended == [((80, 600), worth((80, 600)), pytest.approx(136.0))]
    own.reset()
    own.step(np.array([1.0], dtype=np.float32))
    assert own.walk.kept == (70,)  # half of the steps are taken: clip .825
    ascent = Ascent(own)
    ascent._on_rollout_end()
    assert [row["cost"] for row in ascent.rows] == pytest.approx([68.0])  # of two steps


def test_an_agent_is_decided_by_its_seed_and_leaves_the_random_streams() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr] # noqa: NPY002
    one = search(worth, LAYERS, SIZES, SPARSITY, steps=384, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index, union-attr] # noqa: NPY002
    assert random.getstate() == before[2]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    assert search(worth, LAYERS, SIZES, SPARSITY, steps=384, seed=3) == one
    assert search(worth, LAYERS, SIZES, SPARSITY, steps=384, seed=4) != one


def test_a_network_of_more_layers_than_a_rollout_has_steps_is_walked() -> None:
    sizes = [10] * 150
    found, rows = search(lambda kept: 50.0, [Layer(5, 2)] * 150, sizes, 0.5, steps=300, seed=0)
    assert len(found[0]) == 150
    assert [row["step"] for row in rows] == [256, 384]
