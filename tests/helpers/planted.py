"""Collected pairs (Z, u) of which u depends on Z by as much as was planted."""

from typing import Any

import numpy as np
import torch


def collected(rng: np.random.Generator, planted: float, pairs: int = 30, weights: int = 40) -> tuple[Any, Any, Any]:
    """u a random walk, so strongly correlated over pairs, that moves by `planted` (Z - p) with its own Z."""
    keep = rng.random((pairs, weights)) < 0.8
    walk = 3 + np.cumsum(rng.standard_normal((pairs, weights)) + planted * (keep - 0.8), axis=0)
    return torch.from_numpy(keep), torch.from_numpy(walk), torch.ones(weights).double()
