"""Claims about products over active weights: they are `F.linear` of the dense matrix, and so are all their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.sparse.layout import MIN_ROWS, Layer, indices_of
from espalier.sparse.products import product

EPS = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def by_either(request: pytest.FixtureRequest) -> None:
    """Every claim of this file, by both sets of kernels."""
    if request.param == "compiled":
        request.getfixturevalue("by_compiled")


dtypes = pytest.mark.parametrize("dtype", EPS)


def layer_of(shape: tuple[int, int] = (23, 31), density: float = 0.2, holes: bool = False) -> Layer:
    """holes: with rows and columns that have no active weight."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    if holes:
        mask[[0, 5, -1]] = mask[:, [0, 3, -1]] = False
    positions = mask.reshape(-1).nonzero()[:, 0]
    return Layer(shape, positions, indices_of(positions, shape))


def case(layer: Layer, rows: tuple[int, ...], dtype: torch.dtype, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(1)
    x = torch.randn(*rows, layer.shape[1], dtype=dtype, requires_grad=True)
    values = torch.randn(len(layer.positions), dtype=dtype, requires_grad=True)
    return x, values, torch.randn(layer.shape[0], dtype=dtype, requires_grad=True) if bias else None


def dense(x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    matrix = values.new_zeros(math.prod(layer.shape)).index_copy(0, layer.positions, values)
    return F.linear(x, matrix.view(layer.shape), bias)


def same(mine: Tensor, theirs: Tensor) -> None:
    assert mine.shape == theirs.shape
    assert mine.dtype == theirs.dtype
    scale = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
    assert torch.allclose(mine, theirs, rtol=0, atol=EPS[mine.dtype] * (1 + scale))


def same_gradients(x: Tensor, values: Tensor, bias: Tensor | None, layer: Layer) -> None:
    leaves = [tensor for tensor in (x, values, bias) if tensor is not None and tensor.requires_grad]
    outputs = [linear(x, values, bias, layer) for linear in (product, dense)]
    same(*outputs)
    upstream = torch.randn_like(outputs[1].contiguous())
    gradients = [torch.autograd.grad(output, leaves, upstream) for output in outputs]
    for mine, theirs in zip(*gradients, strict=True):
        same(mine, theirs)


@dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (MIN_ROWS - 1,), (MIN_ROWS,), (40,), (3, 7), (2, 1, 5, 4)])
def test_a_product_and_its_gradients_are_the_dense_ones(rows: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    layer = layer_of()
    same_gradients(*case(layer, rows, dtype, bias=bias), layer)


@dtypes
@pytest.mark.parametrize("shape", [(23, 31), (1, 40), (40, 1), (200, 7)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_at_any_density_even_with_nothing_active(shape: tuple[int, int], density: float, dtype: torch.dtype) -> None:
    layer = layer_of(shape, density)
    same_gradients(*case(layer, (20,), dtype), layer)


@dtypes
def test_rows_and_columns_may_be_empty(dtype: torch.dtype) -> None:
    layer = layer_of(holes=True)
    same_gradients(*case(layer, (20,), dtype), layer)
    x, values, _ = case(layer, (20,), dtype)
    output = product(x, values, None, layer)
    assert (output[:, [0, 5, -1]] == 0).all()


STRIDES = {
    "features first": lambda x: x.t().contiguous().t(),
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "flipped": lambda x: x.flip(0).flip(1),
    "one row, expanded": lambda x: x[:1].expand(len(x), -1),
    "one column, expanded": lambda x: x[:, :1].expand(-1, x.shape[1]),
    "one number, expanded": lambda x: x[:1, :1].expand(x.shape),
}


@dtypes
@pytest.mark.parametrize("how", STRIDES)
def test_inputs_lie_in_memory_as_they_like(how: str, dtype: torch.dtype) -> None:
    layer = layer_of()
    x, values, bias = case(layer, (20,), dtype)
    outputs, gradients = [], []
    for linear in (product, dense):
        output = linear(STRIDES[how](x), values, bias, layer)
        outputs.append(output)
        # The gradient that comes back is expanded, too.
        gradients.append(torch.autograd.grad((output * output.detach()[:1]).sum() + output.sum(), [x, values, bias]))
    same(*outputs)
    for mine, theirs in zip(*gradients, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("wanted", [wanted for wanted in itertools.product([False, True], repeat=3) if any(wanted)])
def test_gradients_of_some_inputs_alone(wanted: tuple[bool, ...]) -> None:
    layer = layer_of()
    leaves = case(layer, (20,), torch.float64)
    for leaf, wants in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(wants)
    same_gradients(*leaves, layer)


def test_without_gradients_nothing_is_remembered() -> None:
    layer = layer_of()
    leaves = case(layer, (20,), torch.float64)
    with torch.no_grad():
        assert not product(*leaves, layer).requires_grad
    with torch.inference_mode():
        same(product(*leaves, layer).clone(), dense(*leaves, layer).clone())


@pytest.mark.parametrize("rows", [(4,), (2, 3)])
def test_finite_differences_agree_once_and_twice(rows: tuple[int, ...]) -> None:
    layer = layer_of((5, 6), 0.4)
    leaves = case(layer, rows, torch.float64)
    assert torch.autograd.gradcheck(lambda *each: product(*each, layer), leaves)
    assert torch.autograd.gradgradcheck(lambda *each: product(*each, layer), leaves)


def test_gradients_of_gradients_are_the_dense_ones() -> None:
    layer = layer_of()
    leaves = case(layer, (20,), torch.float64)
    found = []
    for linear in (product, dense):
        first = torch.autograd.grad(linear(*leaves, layer).tanh().square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum(g.sin().sum() for g in second), leaves)
        found.append([*first, *second, *third])
    for mine, theirs in zip(*found, strict=True):
        same(mine, theirs)


@pytest.mark.parametrize("wrong", ["one column less", "another type", "a short bias", "a value more"])
def test_what_does_not_fit_is_refused_before_memory_is_read(wrong: str) -> None:
    layer = layer_of()
    x, values, bias = (None if one is None else one.detach() for one in case(layer, (20,), torch.float64))
    assert x is not None
    assert values is not None
    assert bias is not None
    changed = {
        "one column less": (x[:, 1:], values, bias), "another type": (x.float(), values, bias),
        "a short bias": (x, values, bias[1:]), "a value more": (x, torch.cat([values, values[:1]]), bias),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="expected rows of 31 for 23 outputs, all of one type on one device, got"):
        product(*changed[wrong], layer)


def test_a_graph_may_be_walked_twice() -> None:
    layer = layer_of()
    x, values, bias = case(layer, (20,), torch.float64)
    loss = product(x, values, bias, layer).square().sum()
    loss.backward(retain_graph=True)
    once = values.grad.clone()
    loss.backward()
    same(values.grad, 2 * once)


def test_values_that_change_before_the_backward_pass_are_an_error() -> None:
    layer = layer_of()
    x, values, bias = case(layer, (20,), torch.float64)
    loss = product(x, values, bias, layer).square().sum()
    with torch.no_grad():
        values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spreads_along_active_weights(bad: float) -> None:
    """Where a dense matrix would say 0 * inf = nan, an inactive weight is not there."""
    layer = layer_of(holes=True)
    x, values, bias = case(layer, (20,), torch.float64)
    with torch.no_grad():
        x[2, 7] = bad
        output = product(x, values, bias, layer)
        finite = x.clone()
        finite[2, 7] = 0
        reached = torch.zeros(math.prod(layer.shape)).index_fill_(0, layer.positions, 1).view(layer.shape)[:, 7] > 0
        assert reached.any()
        assert not reached.all()
        assert not output[2, reached].isfinite().any()
        same(output[2, ~reached], dense(finite, values, bias, layer)[2, ~reached])
        values[0] = bad
        row = int(layer.positions[0]) // layer.shape[1]
        assert not product(finite, values, bias, layer)[:, row].isfinite().any()
        values[0] = 1.0
        bias[1] = bad
        assert not product(finite, values, bias, layer)[:, 1].isfinite().any()


def test_an_infinite_gradient_reaches_its_values() -> None:
    layer = layer_of()
    x, values, bias = case(layer, (20,), torch.float64)
    upstream = torch.zeros(20, layer.shape[0], dtype=torch.float64)
    upstream[3, 4] = math.inf
    product(x, values, bias, layer).backward(upstream)
    own = layer.positions // layer.shape[1] == 4
    assert not values.grad[own].isfinite().any()
    assert bias.grad[4] == math.inf


def test_who_writes_into_the_output_gets_the_dense_gradients() -> None:
    layer = layer_of()
    x, values, bias = case(layer, (20,), torch.float64)
    found = []
    for linear in (product, dense):
        output = linear(x, values, bias, layer)
        output[:, 3] = 1.0
        output[2].mul_(3)
        F.relu(output, inplace=True)
        found.append(torch.autograd.grad(output.square().sum(), [x, values, bias]))
    for mine, theirs in zip(*found, strict=True):
        same(mine, theirs)


def test_the_output_lies_by_features_and_a_stack_of_layers_copies_none() -> None:
    layer = layer_of((31, 31))
    x, values, bias = case(layer, (20,), torch.float64)
    output = product(x, values, bias, layer)
    assert output.t().is_contiguous()
    assert output.relu().t().is_contiguous()
    assert product(torch.randn(2, 10, 31, dtype=torch.float64), values, bias, layer).is_contiguous()
