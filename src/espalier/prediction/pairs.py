"""Collected draws of the variational posterior: what an average is taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from espalier.network import under
from espalier.prediction.predict import sent
from espalier.topology.masks import pack_bits, unpack_bits

State = dict[str, Tensor]
"""Of a network what is not masked, by name: parameters and buffers."""


class Pair(NamedTuple):
    """One draw of the variational posterior: (Z, u) of the active weights `(k,)` each, and what else the network has.

    values: u. keep: Z, bool. state: the model's other parameters and buffers by name, with batch-norm statistics
    re-estimated for this pair. scales: of a Gaussian guide, sigma; Z is all True then.
    """

    values: Tensor
    keep: Tensor
    state: State
    scales: Tensor | None = None

    def tensors(self) -> State:
        """By the names that files have: the mask bit-packed, and left out where it keeps everything."""
        found = {"values": self.values, **{f"state.{name}": tensor for name, tensor in self.state.items()}}
        found |= {} if self.keep.all() else {"keep": pack_bits(self.keep)}
        return found if self.scales is None else {**found, "scales": self.scales}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Pair:
        """The other way round."""
        values = tensors["values"]
        keep = unpack_bits(tensors["keep"], len(values)) if "keep" in tensors else torch.ones_like(values, dtype=torch.bool)
        return cls(values, keep, under("state.", tensors), tensors.get("scales"))

    def draw(self, index: int) -> Tensor:
        """The active weights `(k,)`: Z * u, or the draw of N(u, sigma^2) that `index` decides."""
        if self.scales is None:
            return self.values * self.keep
        return gaussian(self.values, self.scales, torch.Generator().manual_seed(index))


class Pairs(NamedTuple):
    """All collected pairs, stacked: values and keep `(P, k)`, states `(P, ...)`, scales `(P, k)` or None; see `Pair`."""

    values: Tensor
    keep: Tensor
    states: State
    scales: Tensor | None = None

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Pairs:
        states = {name: torch.stack([pair.state[name] for pair in pairs]) for name in pairs[0].state}
        scales = [pair.scales for pair in pairs if pair.scales is not None]
        values, keep = torch.stack([pair.values for pair in pairs]), torch.stack([pair.keep for pair in pairs])
        return cls(values, keep, states, torch.stack(scales) if scales else None)

    def pair(self, index: int) -> Pair:
        scales = None if self.scales is None else self.scales[index]
        return Pair(self.values[index], self.keep[index], self.state(index), scales)

    def state(self, index: int) -> State:
        return {name: tensor[index] for name, tensor in self.states.items()}

    @property
    def equal(self) -> bool:
        """Are all of them the same draw, bit for bit?"""
        parts = (self.values, self.keep, *self.states.values())
        return self.scales is None and all(torch.equal(part, part[:1].expand_as(part)) for part in parts)

    def mean_state(self) -> State:
        """Averages of the floating-point states; counters as they were last."""
        return {n: t.mean(0) if t.is_floating_point() else t[-1] for n, t in self.states.items()}


def gaussian(mean: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
    """A draw of N(mean, scale^2) `(k,)`, its noise drawn on the CPU: the same wherever the fit is."""
    return mean + scale * sent(torch.randn(mean.shape, generator=generator, dtype=mean.dtype), mean.device)
