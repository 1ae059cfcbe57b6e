"""Losses that have to be numbers, looked at without a wait for the device that computes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Finite:
    """The losses of one training, step by step. failed: what to raise for the step whose loss is no number.

    On the CPU that is known at once. A GPU's is looked at when it has the next step to do: asked at once, the host would wait at
    every step until all is computed that it has asked for, and the device then for the host.
    """

    def __init__(self, failed: Callable[[int], Exception]) -> None:
        self.failed = failed
        self.last: tuple[int, Tensor, torch.cuda.Event] | None = None

    def see(self, step: int, loss: Tensor) -> None:
        """The loss of a step, `()`. Raises what `failed` says of it, or of the one before."""
        self.settle()
        if loss.is_cuda:
            copy = loss.detach().to("cpu", non_blocking=True)
            self.last = step, copy, torch.cuda.current_stream(loss.device).record_event()
        elif not torch.isfinite(loss):
            raise self.failed(step)

    def settle(self) -> None:
        """Look at the last one, too: before what was computed with it is kept or handed on. Raises what `failed` says."""
        last, self.last = self.last, None
        if last is not None:
            step, copy, copied = last
            copied.synchronize()
            if not torch.isfinite(copy):
                raise self.failed(step)
