"""Can a network be given weights that are not written out? It is tried, with nothing moved.

Not if it calls `view` where only `reshape` would do, or reads memory as it lies (`as_strided`): products over active weights
lie in memory feature by feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier import nested
from espalier.sparse.unwritten import Unwritten, unwritten

CLOSE = 1e-3
"""How far two ways to sum may be apart, of the largest output: above any rounding of a deep network, below any mistake."""


@contextmanager
def unmoved(*modules: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Without gradients; torch's random streams, on the CPU and on the device, and the modules' buffers are afterwards as they
    were."""
    parts = [part for module in modules for part in module.modules()]
    slots = [(part._buffers, name, buffer) for part in parts for name, buffer in part._buffers.items()]
    before = [None if buffer is None else buffer.clone() for _, _, buffer in slots]
    with torch.no_grad(), torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        try:
            yield
        finally:
            for (buffers, name, buffer), values in zip(slots, before, strict=True):
                if buffer is not None and values is not None and not torch.equal(buffer, values):
                    buffer.copy_(values)
                buffers[name] = buffer


def is_right(computed: Callable[[Tensor], Any], weights: Unwritten, module: nn.Module) -> bool:
    """Does `computed` of the weights run and, in evaluation mode, give what it gives of the weights written out?"""
    try:
        active, of = weights.active.detach(), weights.of  # what is tried is not the draw itself: it would count as used
        with unmoved(module):
            mine = nested.leaves(computed(unwritten(active, of)))
        if module.training:  # where noise (dropout) lies in memory as its activations do, and so differs
            return True
        with unmoved(module):
            theirs = nested.leaves(computed(Unwritten(active, of).dense()))
    except Exception:  # of whatever kind: the weights written out have the say
        return False
    return len(mine) == len(theirs) and all(_is_close(*pair) for pair in zip(mine, theirs, strict=True))


def _is_close(mine: Any, theirs: Any) -> bool:
    """Up to rounding, of tensors; of what else a network may say, nothing is known."""
    if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
        return type(mine) is type(theirs)
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return False
    if not theirs.is_floating_point():
        return torch.equal(mine, theirs)
    finite = theirs[theirs.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(mine, theirs, rtol=0.0, atol=CLOSE * scale, equal_nan=True)
