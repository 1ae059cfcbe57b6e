"""A subnetwork of frozen weights, as a point: what is trained is a score for every weight, and the largest are in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import register_kl

from espalier.distributions.masked import Scattered
from espalier.distributions.priors import FlatNormal


class _StraightThrough(torch.autograd.Function):
    """`written`, with the gradient as if it were frozen * |scores| (Ramanujan et al. 2020, sec. 3.2; Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, frozen: Tensor, written: Tensor) -> Tensor:
        ctx.save_for_backward(scores, frozen)
        return written.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        scores, frozen = ctx.saved_tensors
        return gradients[0] * frozen * scores.sign(), None, None


class PopupWeights(Scattered):
    """`w = scatter(frozen at positions)`, with a gradient for the scores of all weights.

    scores, frozen: `(num_weights,)`; positions: `(k,)`. `keep` is all True, `(*sample_shape, k)`.
    """

    def __init__(self, scores: Tensor, frozen: Tensor, positions: Tensor) -> None:
        self.scores, self.frozen, self.positions = scores, frozen, positions
        self.keep: Tensor | None = None
        super().__init__(event_shape=scores.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.placed(self.frozen[self.positions])

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.frozen)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        self.keep = torch.ones((), dtype=torch.bool, device=self.positions.device).expand(*sample_shape, len(self.positions))
        written: Tensor = _StraightThrough.apply(self.scores, self.frozen, self.mean)  # type: ignore[no-untyped-call]
        return written.expand(*sample_shape, *written.shape) if sample_shape else written


@register_kl(PopupWeights, FlatNormal)
def _kl_popup_flat(q: PopupWeights, p: FlatNormal) -> Tensor:
    """The weights do not move; the prior's weight decay is that of the scores: sum of s^2 / 2v, nats."""
    return 0.5 * torch.dot(q.scores, q.scores) / p.scale**2
