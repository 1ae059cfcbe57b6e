"""When the topology moves and on what evidence (schedules), and how large a step the optimiser takes (learning rates).

A topology rule is a drop score times a grow score; RigL is SET with one function replaced.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from espalier.contracts import Evidence, Move, Schedule, Topology
from espalier.topology.evidence import log_bayes_factor, normal_at_zero
from espalier.topology.masks import candidates, drop_and_grow, prune
from espalier.topology.scores import DropScore, magnitude, scales_of

GrowScore = Callable[[Evidence], Tensor]
"""`(num_weights,)`, one score per weight: the largest among the inactive grow."""


Accept = Callable[[Evidence, Tensor], Tensor]
"""Of the weights that would be dropped, `(k,)` bool among the active ones, those that may be."""


def favoured(prior_scale: float, log_threshold: float = 0.0) -> Accept:
    """Those whose log Bayes factor for w = 0 is above the threshold (`evidence.log_bayes_factor`); 0 is indifferent."""
    return partial(_favoured, prior_scale, _number(log_threshold))


def _favoured(prior_scale: float, log_threshold: float, evidence: Evidence, dropped: Tensor) -> Tensor:
    factors = log_bayes_factor(evidence.values.double(), scales_of(evidence).double(), normal_at_zero(prior_scale))
    return dropped & (factors > log_threshold)


def _number(log_threshold: float) -> float:
    if math.isnan(log_threshold):
        raise ValueError(f"expected a log_threshold in nats, got {log_threshold}: 0 is indifferent")
    return log_threshold


def likelier(prior_scale: float, num_data: int, log_threshold: float = 0.0) -> Accept:
    """All of them or none: all where log p(data, w without them) - log p(data, w) is above the threshold, the data's part by the
    move's batch, a stand-in for all N (Mathew & Rowe 2023, as their abstract reads).

    It compares joint densities at two points, no evidences: the prior's part, sum w^2 / 2s^2, is for every pruning.
    """
    return partial(_likelier, prior_scale, num_data, _number(log_threshold))


def _likelier(prior_scale: float, num_data: int, log_threshold: float, evidence: Evidence, dropped: Tensor) -> Tensor:
    assert evidence.loss_with is not None
    lost = num_data * (evidence.loss_with(~dropped) - evidence.loss_with(torch.ones_like(dropped)))
    gained = float(evidence.values.double()[dropped].square().sum()) / (2 * prior_scale**2)
    return dropped if gained - lost > log_threshold else torch.zeros_like(dropped)


def gradient(evidence: Evidence) -> Tensor:
    """|dL/dW| at Z * u, L the mean likelihood loss (RigL, Evci et al. 2020)."""
    return evidence.gradient.abs_()  # in place: of a large network a copy would be as much as all else


def at_random(evidence: Evidence) -> Tensor:
    """Uniform noise (SET, Mocanu et al. 2018)."""
    noise = torch.rand(evidence.gradient.shape, generator=evidence.generator, dtype=torch.float64)
    return noise.to(evidence.gradient.device)


def drop_and_grow_every(
    delta_t: int, last: int, drop_fraction: float, *, drop: DropScore = magnitude, grow: GrowScore, accept: Accept | None = None
) -> Schedule:
    """Move at t = delta_t, 2 delta_t, ... < last (t counts from 1), exchanging the fraction
    f(t) = drop_fraction / 2 * (1 + cos(pi t / last)) of each layer's active weights (Evci et al. 2020, eq. for f_decay); less
    where not all of these are accepted.

    Raises ValueError for a delta_t below 1 or a drop_fraction outside [0, 1]; warns where there is no such t.
    """
    delta_t = _whole(delta_t)
    if not 0 <= drop_fraction <= 1:
        raise ValueError(f"expected drop_fraction in [0, 1], got {drop_fraction}")
    if 0 < last <= delta_t < math.inf:
        warnings.warn(
            f"the topology never moves: its first move would be at step {delta_t}, and it stands still from step {last} on. "
            "Lower delta_t, or train longer",
            stacklevel=4,
        )

    def fraction(step: int) -> float:
        return drop_fraction / 2 * (1 + math.cos(math.pi * step / last))

    def move(topology: Topology, evidence: Evidence) -> Move:
        share, score = fraction(evidence.step), drop(evidence)
        droppable = None if accept is None else accept(evidence, candidates(topology, score, share))
        return drop_and_grow(topology, score, grow(evidence), share, droppable)

    often = delta_t if math.isfinite(delta_t) else "never"
    asked = {"delta_t": often, "drop_fraction": drop_fraction, "drop": named(drop), "grow": named(grow), "accept": named(accept)}
    return Schedule(last=last, due=lambda step: step % delta_t == 0 and step < last, move=move, asked=asked)


def _whole(delta_t: float) -> Any:
    """As an int, or infinity. A number of NumPy's is none that JSON has."""
    if not delta_t >= 1:
        raise ValueError(f"expected delta_t of at least 1 step, got {delta_t}")
    if math.isfinite(delta_t) and delta_t % 1:
        raise ValueError(f"expected a delta_t of whole steps, got {delta_t}")
    return int(delta_t) if math.isfinite(delta_t) else delta_t


def named(score: Callable[..., Any] | None) -> str:
    """What a score, or what accepts, is called, with the numbers that it was given."""
    if isinstance(score, partial):
        return f"{named(score.func)}({', '.join(str(own) for own in score.args if isinstance(own, int | float | str))})"
    return "none" if score is None else str(getattr(score, "__qualname__", type(score).__qualname__))


def static() -> Schedule:
    """The topology never moves."""

    def stay(topology: Topology, evidence: Evidence) -> Move:
        return Move(topology, torch.arange(topology.num_active, device=topology.positions.device))

    return Schedule(last=0, due=lambda step: False, move=stay)


def rigl(
    delta_t: int, last: int, drop_fraction: float, drop: DropScore = magnitude, accept: Accept | None = None
) -> Schedule:
    """RigL: drop the smallest |u|, grow the largest |gradient| (Evci et al. 2020)."""
    return drop_and_grow_every(delta_t, last, drop_fraction, drop=drop, grow=gradient, accept=accept)


def set_(delta_t: int, last: int, drop_fraction: float) -> Schedule:
    """SET: drop the smallest |u|, grow at random (Mocanu et al. 2018)."""
    return drop_and_grow_every(delta_t, last, drop_fraction, grow=at_random)


def gradual(counts: Sequence[int], delta_t: int, last: int, *, drop: DropScore = magnitude) -> Schedule:
    """Gradual magnitude pruning (Zhu & Gupta 2018, eq. 1), from a dense start: at every delta_t-th step t < last a layer of
    n weights keeps k + (n - k) (1 - t / t_end)^3 of them, k = counts[l] at the last of these steps, t_end.

    Raises ValueError where there is no such step.
    """
    delta_t = _whole(delta_t)
    end = (last - 1) // delta_t * delta_t if math.isfinite(delta_t) else 0
    if end < 1:
        raise ValueError(f"expected a delta_t below the freeze at step {last}, got {delta_t}: nothing would be pruned")

    def move(topology: Topology, evidence: Evidence) -> Move:
        rest = max(0.0, 1 - evidence.step / end) ** 3
        left = [k + round((size - k) * rest) for k, size in zip(counts, topology.sizes, strict=True)]
        return prune(topology, drop(evidence), left)

    return Schedule(last=last, due=lambda step: step % delta_t == 0 and step <= end, move=move, reached=end,
                    asked={"delta_t": delta_t, "drop": named(drop), "grow": "gradual"})  # fmt: skip


def one_shot(counts: Sequence[int], at: int, *, drop: DropScore = magnitude) -> Schedule:
    """Magnitude pruning in one move at step `at`, from a dense start; what follows is fine-tuning (Han et al. 2015)."""
    at = max(1, at)
    return Schedule(
        last=at + 1, due=lambda step: step == at, move=lambda topology, e: prune(topology, drop(e), counts), reached=at,
        asked={"drop": named(drop), "grow": "one-shot"},
    )  # fmt: skip


RULES = ("rigl", "set", "static", "gradual", "one-shot")
PRUNING = ("gradual", "one-shot")
"""Rules that start dense."""


def rule(name: str, delta_t: int, last: int, drop_fraction: float, counts: Sequence[int] = ()) -> Schedule:
    """The schedule called `name`, one of `RULES`. counts: where the pruning ones end. Raises ValueError for another."""
    if name not in RULES:
        raise ValueError(f"expected a rule of {', '.join(RULES)}, got {name!r}")
    if name in PRUNING and not counts:
        raise ValueError(f"expected a rule of {', '.join(one for one in RULES if one not in PRUNING)} here, got {name!r}")
    if name in PRUNING:
        return gradual(counts, delta_t, last) if name == "gradual" else one_shot(counts, last - 1)
    return static() if name == "static" else (rigl if name == "rigl" else set_)(delta_t, last, drop_fraction)
