"""x W^T of a sparse matrix W `(outputs, inputs)` over its active weights alone, and its gradients.

Activations are kept features first, `(features, n)` in memory: each active weight then multiplies a row of n numbers, and
elementwise functions between two layers pass them on without a copy. Kernels are torch's own (MKL): a CSR product forward
and for the gradient of x, a sampled dense product for the gradient of the active weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espalier.sparse.layout import Layer, compressed
from espalier.sparse.tap import Tap


def features_first(rows: Tensor) -> Tensor:
    """`(n, features)` as `(features, n)`, contiguous; no copy where it is so already."""
    return rows.t().contiguous()


class Product(torch.autograd.Function):
    """`x (n, inputs), values (k_l,), bias (outputs,) or None -> (outputs, n)`. Not its transpose, `(n, outputs)`: autograd
    lets nobody write into a view that a function made (`relu(inplace=True)`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, tap: Tap | None) -> Tensor:
        assert layer.indices is not None
        across = features_first(x)
        outputs, inputs = layer.shape
        matrix = compressed(layer.indices.row_starts, layer.indices.columns, values, (outputs, inputs))
        y = _added(bias, matrix, across)
        ctx.save_for_backward(x, across, values)
        ctx.layer, ctx.tap = layer, tap
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, across, values = ctx.saved_tensors
        if ctx.tap is not None:
            ctx.tap.add_product(gradient, x)
        outputs, inputs = ctx.layer.shape
        wants = ctx.needs_input_grad
        bias = gradient.sum(1) if wants[2] else None
        if torch.is_grad_enabled():  # someone will differentiate this once more: by what autograd knows
            dense = values.new_zeros(outputs * inputs).index_copy(0, ctx.layer.positions, values).view(outputs, inputs)
            return gradient.t() @ dense, (gradient @ x).reshape(-1)[ctx.layer.positions], bias, None, None
        row_starts, columns, column_starts, rows, order = ctx.layer.indices
        down = gradient.contiguous()
        of_values = of_x = None
        if wants[1]:
            zeros = compressed(row_starts, columns, torch.zeros_like(values), (outputs, inputs))
            of_values = torch.sparse.sampled_addmm(zeros, down, across.t(), beta=0.0).values()
        if wants[0]:
            matrix = compressed(column_starts, rows, values.index_select(0, order), (inputs, outputs))
            of_x = _added(None, matrix, down).t()
        return of_x, of_values, bias, None, None


def _added(bias: Tensor | None, matrix: Tensor, across: Tensor) -> Tensor:
    """`matrix @ across + bias`: torch's `@` of a sparse matrix fills and copies zeros of the result's size on the way."""
    start = across.new_zeros(1, 1) if bias is None else bias.unsqueeze(1)
    return torch.addmm(start, matrix, across)


def product(x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer, tap: Tap | None = None) -> Tensor:
    """x `(..., inputs)` -> `(..., outputs)`; of more than two dimensions, contiguous. tap: told the gradient of all of W."""
    if x.dim() == 2:
        return Product.apply(x, values, bias, layer, tap).t()  # type: ignore[no-any-return, no-untyped-call]
    flat = Product.apply(x.reshape(-1, x.shape[-1]), values, bias, layer, tap).t()  # type: ignore[no-untyped-call]
    return flat.contiguous().view(*x.shape[:-1], -1)  # type: ignore[no-any-return]
