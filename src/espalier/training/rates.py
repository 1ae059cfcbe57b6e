"""How large a step the optimiser takes: learning rates by step."""

from __future__ import annotations

import math
from collections.abc import Callable

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


def swa(peak: float, steps: int, warmup: int = 0, floor: float = 0.05) -> Rate:
    """Izmailov et al. 2018, sec. 4: `peak` for half of training, linear to `floor * peak` at 75 %, then constant there, so
    that the averaged weights keep exploring."""

    def rate(step: int) -> float:
        done = (step - 1) / max(1, steps)
        fall = min(1.0, max(0.0, (done - 0.5) / 0.25))
        return peak * (1 - (1 - floor) * fall) * (min(1.0, step / warmup) if warmup else 1.0)

    return rate


def constant(peak: float, warmup: int = 0) -> Rate:
    """Linear warm-up, then `peak`."""
    return lambda step: peak * min(1.0, step / warmup) if warmup else peak
