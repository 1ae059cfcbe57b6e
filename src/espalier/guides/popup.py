"""Edge-popup: a guide that chooses a subnetwork of weights that it never changes (Ramanujan et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from espalier.distributions.popup import PopupWeights
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.store import Bundle
from espalier.topology.masks import magnitude_topology, pack_bits, unpack_bits

Frozen = Literal["signed", "kaiming"]
"""What the weights are, with s = sqrt(2 / (fan_in * density)) of their layer: s times the sign of the initial ones, or N(0, s^2)
(He et al. 2015). By the density a layer that is thinned keeps the size of its activations."""


class PopupGuide(MaskedGuide):
    """A score for every weight; in every layer the `counts[l]` of largest |score| are in, with their frozen values.

    Same site and loop as `MaskedGuide`, and no Z. The topology is chosen anew after each step of an optimiser: `Chosen` goes
    along with the training and does so. frozen: see `Frozen`. generator: where the first scores are drawn from, uniform within
    1 / sqrt(fan_in). (The paper's own layers are without biases and affine normalisation; what the network has of them is
    trained, as point estimates.)

    scores: parameter `(num_weights,)`. values `(k,)`: the frozen values at the positions; they have no gradient.
    """

    frozen: Tensor

    def __init__(
        self,
        model: BayesianNetwork,
        counts: Sequence[int],
        *,
        frozen: Frozen = "signed",
        generator: torch.Generator | None = None,
    ) -> None:
        if frozen not in get_args(Frozen):
            raise ValueError(f"expected frozen weights of {', '.join(get_args(Frozen))}, got {frozen!r}")
        fans = [math.prod(shape[1:]) for shape in model.shapes]
        repeats = torch.tensor(model.sizes)
        bound = torch.repeat_interleave(torch.tensor([fan**-0.5 for fan in fans]), repeats)
        scores = (bound * (2 * torch.rand(len(bound), generator=generator) - 1)).to(model.initial)
        super().__init__(model, magnitude_topology(model.shapes, counts, scores))
        scale = [math.sqrt(2 * size / (fan * count)) for size, fan, count in zip(model.sizes, fans, counts, strict=True)]
        signs = model.initial.sign() if frozen == "signed" else torch.randn(len(bound), generator=generator).to(model.initial)
        self.register_buffer("frozen", signs * torch.repeat_interleave(torch.tensor(scale), repeats).to(model.initial))
        self.scores, self.kind = nn.Parameter(scores), frozen
        self.values.requires_grad_(False)
        self.settle()

    def asked(self) -> dict[str, Any]:
        return {**super().asked(), "frozen": self.kind}

    def settle(self) -> None:
        """Stand on the weights whose scores are largest now."""
        topology = magnitude_topology(self.shapes, self.counts, self.scores.detach())
        self.positions = topology.positions.to(self.frozen.device)
        self.values.data = self.frozen[self.positions]

    def distribution(self) -> PopupWeights:
        return PopupWeights(self.scores, self.frozen, self.positions)


class Chosen(Follower):
    """The subnetwork of a `PopupGuide`, chosen anew after every step; and which weights were in one at one time."""

    seen: Tensor | None = None

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        assert isinstance(guide, PopupGuide)
        self.guide = guide
        if self.seen is None:
            self.seen = torch.zeros(model.num_weights, dtype=torch.bool, device=guide.positions.device)
            self.seen[guide.positions] = True

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.guide.settle()
        assert self.seen is not None
        self.seen[guide.positions] = True

    def row(self) -> dict[str, float]:
        assert self.seen is not None
        return {"explored": float(self.seen.double().mean())}

    def bundle(self) -> Bundle:
        assert self.seen is not None
        return Bundle({"explored": pack_bits(self.seen), "frozen": self.guide.frozen}, {})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        if "explored" in saved.tensors:  # which older checkpoints have not
            self.seen = unpack_bits(saved.tensors["explored"].to(guide.positions.device), model.num_weights)
        if "frozen" in saved.tensors:  # those of the network as it was then, whatever it was built with now
            self.guide.frozen.copy_(saved.tensors["frozen"])
            self.guide.settle()

    def end(self, fit: Any, data: Any) -> None:
        fit.record |= {"gradients": "dense", "prior_of": "scores"}  # of scores, at every step
