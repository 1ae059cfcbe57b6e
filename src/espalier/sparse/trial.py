"""Can a network be given weights that are not written out? It is tried, with nothing moved.

Not if it calls `view` where only `reshape` would do, or reads memory as it lies (`as_strided`): products over active weights
lie in memory feature by feature.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier import nested
from espalier.randomness import forked
from espalier.sparse.layout import MIN_ROWS, least_rows
from espalier.sparse.unwritten import Unwritten, unwritten

CLOSE = 1e-3
"""How far two ways to sum may be apart, of the largest output: above any rounding of a deep network, below any mistake."""


@contextmanager
def unmoved(*modules: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Without gradients; torch's random streams, on the CPU and on the device, and the modules' buffers are afterwards as they
    were: others stand in for them, so that a loss whose backward pass is to come keeps those that it saw."""
    parts = [part for module in modules for part in module.modules()]
    slots = [(part._buffers, name, buffer) for part in parts for name, buffer in part._buffers.items()]
    stand_ins = {id(buffer): buffer.clone() for _, _, buffer in slots if buffer is not None}
    with torch.no_grad(), forked(device or "cpu"):
        try:
            for buffers, name, buffer in slots:
                buffers[name] = None if buffer is None else stand_ins[id(buffer)]
            yield
        finally:
            for buffers, name, buffer in slots:
                buffers[name] = buffer


_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_LOCKS.clear)  # whoever held one is not there


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """One thread at a time: whoever evaluates a module at weights of its own puts them into it for the while, as its mode."""
    with _LOCKS.setdefault(module, threading.RLock()):
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while, and no other thread: prediction in train mode would overwrite batch-norm buffers."""
    with alone(module):
        training = {part: part.training for part in module.modules()}
        module.eval()
        try:
            yield
        finally:
            for part, mode in training.items():
                part.training = mode


def in_order(leaf: Any) -> Any:
    """A tensor as it is, where it lies row by row in memory or channels last; else a copy that does."""
    if not isinstance(leaf, Tensor) or torch._C._are_functorch_transforms_active() or leaf.is_contiguous():
        return leaf
    return leaf if leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last) else leaf.contiguous()


def is_right(
    computed: Callable[[Tensor, Any], Any], weights: Unwritten, x: Any, module: nn.Module, known: dict[tuple[bool, bool], bool]
) -> bool:
    """Is `computed` of such weights and x right? Tried on a few rows, once in training and once in evaluation mode, and once more
    where x lies in memory feature by feature (`known`)."""
    if weights.written is not None:
        return True
    case = module.training, all(in_order(leaf) is leaf for leaf in nested.leaves(x))
    if case in known:
        return known[case]
    rows = nested.each(lambda leaf: leaf[:MIN_ROWS], x)
    found = _is_right(lambda drawn: computed(drawn, rows), weights, module)
    if nested.num_rows(rows) == MIN_ROWS:
        known[case] = found
    return found


def _is_right(computed: Callable[[Tensor], Any], weights: Unwritten, module: nn.Module) -> bool:
    """Does `computed` of the weights run in the module's mode and, in evaluation mode, give what it gives of the weights written
    out? In training, noise (dropout) lies in memory as its activations do, and so differs."""
    few = least_rows.set(1)  # a layer may see fewer rows now than later
    active, of = weights.active.detach(), weights.of  # what is tried is not the draw itself: it would count as used
    try:
        if module.training:
            grad = torch.is_grad_enabled()
            with unmoved(module), torch.set_grad_enabled(grad):
                computed(unwritten(active.clone().requires_grad_(grad), of))
        with evaluating(module), unmoved(module):
            mine = nested.leaves(computed(unwritten(active, of)))
        with evaluating(module), unmoved(module):
            theirs = nested.leaves(computed(Unwritten(active, of).dense()))
    except Exception:  # of whatever kind: the weights written out have the say
        return False
    finally:
        least_rows.reset(few)
    return len(mine) == len(theirs) and all(_is_close(*pair) for pair in zip(mine, theirs, strict=True))


def agree(one: nn.Module, other: nn.Module, x: Any) -> bool:
    """Does one network run on inputs x, and say what the other says, up to rounding, in evaluation mode?"""
    arguments, keywords = nested.arguments(x)
    said = []
    for net in (other, one):
        try:
            with evaluating(net), unmoved(net):
                said.append(nested.leaves(net(*arguments, **keywords)))
        except Exception:
            if net is other:
                raise
            return False
    return len(said[0]) == len(said[1]) and all(_is_close(*pair) for pair in zip(said[1], said[0], strict=True))


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
