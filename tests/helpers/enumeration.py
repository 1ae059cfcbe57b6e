"""Every subset of a size and its probability, one after the other."""

from __future__ import annotations

import itertools

import torch


def normal(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def enumerated(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All subsets, their log probabilities and log Z, for one row of logits, from the definition."""
    items = itertools.combinations(range(len(logits)), k)
    values = torch.tensor([[float(i in chosen) for i in range(len(logits))] for chosen in items], dtype=torch.float64)
    energy = (values * logits).sum(-1)
    return values, energy - energy.logsumexp(0), energy.logsumexp(0)
