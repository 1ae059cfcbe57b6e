"""Layer ratios by constrained reinforcement learning (Malik et al. 2021): PPO on the walks of `walks.py`, and a multiplier.

The agent is stable-baselines3's PPO (Schulman et al. 2017) with the released settings: two hidden layers of 32, rollouts of 128
steps, 10 epochs of mini-batches of 64, rate 3e-4, clip range .2, target KL .1, 40,000 steps, observations and rewards normalised
by running moments. Three things differ from the released code. It has two critics, and a policy's loss of
(-PPO + nu * cost advantage) / (1 + nu); here one critic learns the scalarised reward (reward - nu * cost) / (1 + nu), and nu is
updated at the end of a rollout, for the next. It trains a pruned network for 0, 32 or 128 steps before a reward; here none.
It prunes convolutions alone; here every masked tensor.

Needs gymnasium and stable-baselines3: `pip install "espalier[rl]"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from espalier.data.streamed import seeded
from espalier.training.walks import Layer, Multiplier, Walk, clip, scalarised

STREAM = 13
"""Of random numbers, apart from those of training."""
ROLLOUT = 128
SETTINGS: dict[str, Any] = {
    "n_steps": ROLLOUT, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4, "clip_range": 0.2, "target_kl": 0.1,
    "gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5,
    "policy_kwargs": {"net_arch": {"pi": [32, 32], "vf": [32, 32]}},
}  # fmt: skip


class Environment(gymnasium.Env):
    """The walk as gymnasium has it, its reward scalarised by the multiplier. ended: (kept, reward, cost) of every walk's end."""

    def __init__(self, walk: Walk, multiplier: Multiplier, sparsity: float, steps: int) -> None:
        self.walk, self.multiplier, self.sparsity, self.steps, self.taken = walk, multiplier, sparsity, steps, 0
        self.observation_space = gymnasium.spaces.Box(0.0, np.inf, (len(walk.reset()),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.ended: list[tuple[tuple[int, ...], float, float]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        return self.walk.reset(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        found = self.walk.step(self.clipped(action))
        self.taken += 1
        if found.over:
            self.ended.append((self.walk.kept, found.reward, found.cost))
        return found.observation, scalarised(found.reward, found.cost, self.multiplier.value), found.over, False, {}

    def clipped(self, action: NDArray[np.float32]) -> float:
        return float(np.clip(action[0], 0.0, clip(self.sparsity, min(1.0, self.taken / self.steps))))


class Ascent(BaseCallback):
    """Updates the multiplier at the end of a rollout by the mean cost of its walks, and keeps a row of it."""

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self.environment, self.seen = environment, 0
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        own, ended = self.environment, self.environment.ended[self.seen :]
        if not ended:  # more layers than a rollout has steps
            return
        self.seen += len(ended)
        cost = float(np.mean([cost for _, _, cost in ended])) / len(own.walk.sizes)
        multiplier = own.multiplier.value
        own.multiplier.update(cost)
        reward = float(np.mean([reward for _, reward, _ in ended]))
        self.rows.append({"step": own.taken, "reward": reward, "cost": cost, "multiplier": multiplier})


def search(
    reward: Callable[[tuple[int, ...]], float],
    layers: Sequence[Layer],
    sizes: Sequence[int],
    sparsity: float,
    *,
    steps: int,
    seed: int,
) -> tuple[list[tuple[int, ...]], list[dict[str, Any]]]:
    """What the trained policy keeps of every layer when it acts without noise; then, where there was any, the best of all walks
    that met the budget on the way. And the trace: reward, cost and multiplier by rollout.

    reward: in percent, of the weights kept by layer. The default random streams are left as they were.
    """
    walk, multiplier = Walk(layers, sizes, reward), Multiplier(100 * (1 - sparsity))
    environment = Environment(walk, multiplier, sparsity, steps)
    with seeded(seed, STREAM):
        own = int(torch.randint(2**31 - 1, ()))
        several = VecNormalize(DummyVecEnv([lambda: environment]))
        agent, ascent = PPO("MlpPolicy", several, seed=own, device="cpu", **SETTINGS), Ascent(environment)
        agent.learn(steps, callback=ascent)
        several.training, over, observation = False, False, walk.reset()
        while not over:
            action, _ = agent.predict(several.normalize_obs(observation), deterministic=True)
            observation, _, _, over = walk.step(environment.clipped(action))
    met = [(reward, kept) for kept, reward, _ in environment.ended if sum(kept) <= (1 - sparsity) * sum(sizes)]
    return [walk.kept, *(kept for _, kept in sorted(met, reverse=True)[:1])], ascent.rows
