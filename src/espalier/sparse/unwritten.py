"""A tensor that stands for scatter(values, positions) and has not been written out.

Pyro traces it, `BayesianNetwork.unflatten` cuts it into layers, `F.linear` multiplies by its active weights alone; whatever
else is done with it writes it out, once, under ordinary autograd, and it is an ordinary tensor from then on. It is only ever
seen above autograd: `__torch_function__` replaces it before a kernel runs, `__torch_dispatch__` refuses should one get through,
and a gradient that reaches it in spite of all (a custom `autograd.Function` was given it) goes on to the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map_only

from espalier.sparse.layout import Layer, Layout, least_rows
from espalier.sparse.products import product
from espalier.sparse.tap import Tap


def scatter(values: Tensor, positions: Tensor, num_weights: int, layout: Layout | None = None) -> Tensor:
    """Dense `(*batch, num_weights)` vector with `values (*batch, k)` at `positions (k,)` and zeros elsewhere.

    The buffer is fresh: a persistent one would alias draws. Its backward pass is one gather. Given the layout of the positions,
    one vector is not written out.
    """
    if layout is not None and values.dim() == 1:
        return unwritten(values, layout)
    dense = values.new_zeros(*values.shape[:-1], num_weights)
    return dense.index_copy_(-1, positions, values)


def unwritten(values: Tensor, of: Layout | Layer, tap: Tap | None = None) -> Tensor:
    """values `(k,)` of a whole layout, as a tensor `(num_weights,)`; or of one layer, in its shape. tap: told its gradient."""
    return _Stands.apply(values, of, tap)  # type: ignore[no-any-return, no-untyped-call]


class Unwritten(Tensor):
    """See above. active: the values `(k,)`; of: the layout of all layers, or one of them; written: what it was written out as;
    cut: were its layers handed out before that? used: did autograd see a product with it, or its layers, before that?
    altered: holds a True once it was written into where autograd saw it. taps: holds what is told the gradient of all of it, put
    there before it is used, or nothing."""

    active: Tensor
    of: Layout | Layer
    written: Tensor | None
    cut: bool
    used: bool
    altered: list[bool]
    taps: list[Tap]

    @staticmethod
    def __new__(cls, active: Tensor, of: Layout | Layer, tap: Tap | None = None) -> Unwritten:
        shape = of.shape if isinstance(of, Layer) else (sum(of.sizes),)
        self: Unwritten = Tensor._make_wrapper_subclass(cls, shape, dtype=active.dtype, device=active.device)
        self.active, self.of, self.written = active, of, None
        self.cut, self.used, self.altered, self.taps = False, False, [], [] if tap is None else [tap]
        return self

    def dense(self) -> Tensor:
        """Written out, once; in a buffer of its own, as whoever writes into it expects."""
        if self.written is None:
            # Also for who looks without gradients: the next one may want them.
            with torch.inference_mode(False), torch.enable_grad():
                self.written = _heard(_written(self.active, self.of, self.shape), *self.taps)
        return self.written

    def own(self) -> None:
        """Written out for who writes into it. Raises RuntimeError where others hold the layers already."""
        if self.cut and self.written is None:
            raise RuntimeError("expected weights whose layers are not in use yet, but they are: write into a .clone() instead")
        if torch.is_grad_enabled() and self.dense().requires_grad:
            self.altered.append(True)

    def layers(self) -> list[Tensor]:
        """Of the whole vector, every layer in its shape: matrices unwritten, anything else written out."""
        assert isinstance(self.of, Layout)
        if self.written is not None:  # and someone may hold on to it, with a hook
            parts = self.written.split(self.of.sizes)
            return [part.view(layer.shape) for part, layer in zip(parts, self.of.layers, strict=True)]
        self.cut, self.used = True, self.used or torch.is_grad_enabled()
        shapes = [layer.shape for layer in self.of.layers]
        taps: list[list[Tap]] = [[part] for tap in self.taps for part in tap.parts(shapes)] or [[] for _ in shapes]
        return [
            unwritten(values, layer, *tap)
            if len(layer.shape) == 2 and not torch._C._are_functorch_transforms_active()
            else _heard(_written(values, layer, layer.shape), *tap)
            for values, layer, tap in zip(self.active.split(self.of.counts), self.of.layers, taps, strict=True)
        ]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and type(args[0]) is Unwritten else None
        if func is F.linear:
            found = _linear(*args, **kwargs)
            if found is not None:
                return found
        elif func is Tensor.new_tensor and first is not None:
            return first.active.new_tensor(*args[1:], **kwargs)
        elif func is Tensor.__hash__ or (func in _OUTSIDE and first is not None and first.written is None):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        elif first is not None and (func in _SETTERS or func.__name__ in _IN_PLACE):
            first.own()
        elif func in _TAPS or func is torch.autograd.grad:
            _refuse_late(args[1:2] if func is torch.autograd.grad else args[:1], kwargs.get("inputs"))
        args, kwargs = tree_map_only(Unwritten, Unwritten.dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(
            f"expected {func} to come through __torch_function__, but it went past it, and the weights are not written out: give "
            "it their .clone()"
        )


class _Stands(torch.autograd.Function):
    """Makes the tensor; its gradient, which nothing that went through `__torch_function__` has, is gathered."""

    @staticmethod
    def forward(ctx: Any, active: Tensor, of: Layout | Layer, tap: Tap | None) -> Tensor:
        stands = Unwritten(active, of, tap)
        ctx.positions, ctx.altered, ctx.taps = of.positions, stands.altered, stands.taps
        return stands

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.altered:
            raise RuntimeError(
                "expected weights as they were drawn in a custom autograd.Function, but they were written into: give it their "
                ".clone()"
            )
        for tap in ctx.taps:
            tap.add(gradient)
        return gradient.reshape(-1)[ctx.positions], None, None


class _Writes(torch.autograd.Function):
    """`scatter`, of which hooks on saved tensors see nothing: what is checkpointed may write out at first, and not again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, positions: Tensor, size: int) -> Tensor:
        ctx.positions = positions
        return scatter(values, positions, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.index_select(0, ctx.positions), None, None


def _written(values: Tensor, of: Layout | Layer, shape: Sequence[int]) -> Tensor:
    """values `(k,)` at their positions, in a buffer of their own."""
    size = math.prod(shape)
    if len(values) == size:
        return values.clone().view(shape)
    if torch._C._are_functorch_transforms_active():
        return scatter(values, of.positions, size).view(shape)
    return _Writes.apply(values, of.positions, size).view(shape)  # type: ignore[no-any-return, no-untyped-call]


def _heard(written: Tensor, tap: Tap | None = None) -> Tensor:
    """The same, its gradient told to the tap."""
    if tap is not None and written.requires_grad:
        written.register_hook(tap.add)
    return written


def _linear(input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """`F.linear` by the active weights; None where that is not to be."""
    x = input
    if type(weight) is not Unwritten or not _is_plain(x) or not (bias is None or _is_plain(bias)):
        return None
    layer = weight.of
    if weight.written is not None or isinstance(layer, Layout) or x.dim() < 2 or x.shape[-1] != layer.shape[1]:
        return None
    if bias is not None and (bias.shape != layer.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        return None
    if x.dtype != weight.active.dtype or x.device != weight.active.device or _is_transformed():
        return None
    if layer.indices is None:  # dense; behind a sparse one, in the same memory order, or autograd mixes the two at each step
        if x.dim() == 2 and x.stride(0) == 1 and x.stride(1) == len(x) > 1:
            own = weight.dense()
            return (own @ x.t() if bias is None else torch.addmm(bias.unsqueeze(1), own, x.t())).t()
        return None
    if x.numel() < least_rows.get() * x.shape[-1] or x.dtype not in (torch.float32, torch.float64):
        return None
    weight.used = weight.used or torch.is_grad_enabled()
    return product(x, weight.active, bias, layer, *weight.taps)


def _is_plain(x: Any) -> bool:
    """An ordinary tensor, that nobody else has an eye on?"""
    return type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided


def _refuse_late(*asked: Any) -> None:
    """Raises RuntimeError where a gradient is asked of a tensor that has been computed with already."""
    for one in tree_leaves(asked):
        if type(one) is Unwritten and one.used:
            raise RuntimeError(
                "expected a gradient of these weights to be asked for before they were computed with, as they were not written "
                "out: ask first (retain_grad, register_hook), or compute with their .clone()"
            )


def _is_transformed() -> bool:
    """Is anything at work that a custom function would not know: autocast, `torch.func`, forward mode, the compiler?"""
    return (
        torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
    )


def _getters(*names: str) -> set[Callable[..., Any]]:
    return {getattr(Tensor, name).__get__ for name in names}


_OUTSIDE = {
    *_getters("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "is_sparse"),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__,
    Tensor.__hash__,
}  # fmt: skip
"""What a tensor says without its numbers."""
_IN_PLACE = {name for name in dir(Tensor) if name.endswith("_") and not name.startswith("_")} | {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__",
}  # fmt: skip
"""What writes into a tensor."""
_SETTERS = {getattr(Tensor, name).__set__ for name in ("data", "requires_grad")}
_TAPS = {Tensor.register_hook, Tensor.retain_grad, Tensor.register_post_accumulate_grad_hook}
"""What asks for its gradient."""
