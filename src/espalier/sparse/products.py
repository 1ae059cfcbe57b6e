"""x W^T of a sparse matrix W `(outputs, inputs)` over its active weights alone, and its gradients.

Activations are kept features first, `(features, n)` in memory: each active weight then multiplies a row of n numbers, and
elementwise functions between two layers pass them on without a copy. kernels.py multiplies: by compressed rows forward, by
compressed columns for the gradient of x, and at the active weights alone for theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espalier.sparse import kernels
from espalier.sparse.layout import Layer
from espalier.sparse.tap import Tap


class Product(torch.autograd.Function):
    """`x (n, inputs), values (k_l,), bias (outputs,) or None -> (outputs, n)`. Not its transpose, `(n, outputs)`: autograd
    lets nobody write into a view that a function made (`relu(inplace=True)`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, tap: Tap | None) -> Tensor:
        assert layer.indices is not None
        _check(x, values, bias, layer)
        ctx.layer, ctx.tap, ctx.kernels = layer, tap, kernels.fit_for(x)
        across = ctx.kernels.across(x)
        ctx.save_for_backward(x, across, values)
        y: Tensor = ctx.kernels.multiply(layer.indices.row_starts, layer.indices.columns, values, across, bias)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, across, values = ctx.saved_tensors
        if ctx.tap is not None:
            ctx.tap.add_product(gradient, x)
        wants = ctx.needs_input_grad
        bias = gradient.sum(1) if wants[2] else None
        if torch.is_grad_enabled():  # someone will differentiate this once more: by what autograd knows
            outputs, inputs = ctx.layer.shape
            dense = values.new_zeros(outputs * inputs).index_copy(0, ctx.layer.positions, values).view(outputs, inputs)
            return gradient.t() @ dense, (gradient @ x).reshape(-1)[ctx.layer.positions], bias, None, None
        row_starts, columns, column_starts, rows, order = ctx.layer.indices
        down = gradient.contiguous()
        of_values = of_x = None
        if wants[1]:
            of_values = ctx.kernels.correlate(row_starts, columns, down, across)
        if wants[0]:
            of_x = ctx.kernels.multiply(column_starts, rows, values, down, order=order).t()
        return of_x, of_values, bias, None, None


def _check(x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer) -> None:
    """Raises RuntimeError for what kernels, which only see memory, would read wrongly or beyond its end."""
    outputs, inputs = layer.shape
    own = [values] if bias is None else [values, bias]
    fits = x.shape[1] == inputs and len(values) == len(layer.positions) and (bias is None or bias.shape == (outputs,))
    if not fits or any((one.dtype, one.device) != (x.dtype, x.device) for one in own):
        told = " and ".join(f"{tuple(one.shape)} in {one.dtype} on {one.device}" for one in (x, *own))
        raise RuntimeError(f"expected rows of {inputs} for {outputs} outputs, all of one type on one device, got {told}")


def product(x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, tap: Tap | None = None) -> Tensor:
    """x `(..., inputs)` -> `(..., outputs)`; of more than two dimensions, contiguous. tap: told the gradient of all of W."""
    if x.dim() == 2:
        return Product.apply(x, values, bias, layer, tap).t()  # type: ignore[no-any-return, no-untyped-call]
    flat = Product.apply(x.reshape(-1, x.shape[-1]), values, bias, layer, tap).t()  # type: ignore[no-untyped-call]
    return flat.contiguous().view(*x.shape[:-1], layer.shape[0])  # type: ignore[no-any-return]
