"""When the topology moves and on what evidence (schedules), and how large a step the optimiser takes (learning rates).

A topology rule is a drop score times a grow score; RigL is SET with one function replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from espalier.contracts import Evidence, Move, Schedule, Topology
from espalier.topology import drop_and_grow

DropScore = Callable[[Evidence], Tensor]
"""`(k,)`, one score per active weight: the smallest are dropped."""
GrowScore = Callable[[Evidence], Tensor]
"""`(num_weights,)`, one score per weight: the largest among the inactive grow."""


def magnitude(evidence: Evidence) -> Tensor:
    """|u|: ranked on the unmasked value, so that a weight is not dropped for having been masked at this step."""
    return evidence.values.abs()


def gradient(evidence: Evidence) -> Tensor:
    """|dL/dW| at Z * u, L the mean likelihood loss (RigL, Evci et al. 2020)."""
    return evidence.gradient.abs()


def at_random(evidence: Evidence) -> Tensor:
    """Uniform noise (SET, Mocanu et al. 2018)."""
    noise = torch.rand(evidence.gradient.shape, generator=evidence.generator, dtype=torch.float64)
    return noise.to(evidence.gradient.device)


def drop_and_grow_every(
    delta_t: int, last: int, drop_fraction: float, *, drop: DropScore = magnitude, grow: GrowScore
) -> Schedule:
    """Move at t = delta_t, 2 delta_t, ... < last (t counts from 1), exchanging the fraction
    f(t) = drop_fraction / 2 * (1 + cos(pi t / last)) of each layer's active weights (Evci et al. 2020, eq. for f_decay).

    Raises ValueError for a delta_t below 1 or a drop_fraction outside [0, 1].
    """
    if delta_t < 1:
        raise ValueError(f"expected delta_t of at least 1 step, got {delta_t}")
    if not 0 <= drop_fraction <= 1:
        raise ValueError(f"expected drop_fraction in [0, 1], got {drop_fraction}")

    def fraction(step: int) -> float:
        return drop_fraction / 2 * (1 + math.cos(math.pi * step / last))

    return Schedule(
        last=last,
        due=lambda step: step % delta_t == 0 and step < last,
        move=lambda topology, evidence: drop_and_grow(
            topology, drop(evidence), grow(evidence), fraction(evidence.step)
        ),
    )


def static() -> Schedule:
    """The topology never moves."""

    def stay(topology: Topology, evidence: Evidence) -> Move:
        return Move(topology, torch.arange(topology.num_active, device=topology.positions.device))

    return Schedule(last=0, due=lambda step: False, move=stay)


def rigl(delta_t: int, last: int, drop_fraction: float) -> Schedule:
    """RigL: drop the smallest |u|, grow the largest |gradient| (Evci et al. 2020)."""
    return drop_and_grow_every(delta_t, last, drop_fraction, grow=gradient)


def set_(delta_t: int, last: int, drop_fraction: float) -> Schedule:
    """SET: drop the smallest |u|, grow at random (Mocanu et al. 2018)."""
    return drop_and_grow_every(delta_t, last, drop_fraction, grow=at_random)


def rule(name: str, delta_t: int, last: int, drop_fraction: float) -> Schedule:
    """The schedule called `name`: 'rigl', 'set' or 'static'. Raises ValueError for another."""
    if name == "static":
        return static()
    if name not in ("rigl", "set"):
        raise ValueError(f"expected a rule of rigl, set, static, got {name!r}")
    return (rigl if name == "rigl" else set_)(delta_t, last, drop_fraction)


Rate = Callable[[int], float]
"""Learning rate of step t, counted from 1."""


def cosine(peak: float, steps: int, warmup: int = 0) -> Rate:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to 0 after `steps` (Loshchilov & Hutter 2017)."""

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        return peak / 2 * (1 + math.cos(math.pi * (step - 1 - warmup) / max(1, steps - warmup)))

    return rate


def stepwise(peak: float, every: int, factor: float = 0.5, warmup: int = 0) -> Rate:
    """Linear warm-up, then multiplied by `factor` every `every` steps (counted from the start of training)."""

    def rate(step: int) -> float:
        if step <= warmup:
            return peak * step / warmup
        return peak * factor ** ((step - 1) // every)

    return rate


def constant(peak: float, warmup: int = 0) -> Rate:
    """Linear warm-up, then `peak`."""
    return lambda step: peak * min(1.0, step / warmup) if warmup else peak
