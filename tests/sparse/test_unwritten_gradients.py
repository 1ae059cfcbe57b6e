"""Claims about gradients through a draw that is not written out: all that autograd, its transforms and its users may ask."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from espalier.sparse import Unwritten, scatter
from espalier.sparse.layout import MIN_ROWS
from unwritten import SHAPES, counted, drawn, layout_of, same, twin

LAYOUT = layout_of()
SIZE = sum(LAYOUT.sizes)
torch.manual_seed(0)
X = torch.randn(20, 160, dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, MIN_ROWS - 1, MIN_ROWS, 20])
def test_a_product_is_sparse_from_its_smallest_batch_on(rows: int) -> None:
    values, weights = drawn(LAYOUT)
    with counted() as count:
        output = F.linear(X[:1].expand(rows, -1), weights.layers()[0])
    assert count() == (rows >= MIN_ROWS)
    dense = twin(LAYOUT, values)[1][: 128 * 160].view(128, 160)
    same(output, F.linear(X[:1].expand(rows, -1), dense))


def layers() -> tuple[Tensor, Tensor, Tensor]:
    values, weights = drawn(LAYOUT)
    return values, *weights.layers()


def test_hooks_and_kept_gradients_of_a_layer_see_its_dense_gradient() -> None:
    values, first, second = layers()
    seen = []
    first.register_hook(seen.append)
    second.retain_grad()
    F.linear(F.linear(X, first).relu(), second).square().sum().backward()
    own, weights = twin(LAYOUT, values)
    one, two = (part.view(shape) for part, shape in zip(weights.split(LAYOUT.sizes), SHAPES, strict=True))
    one.retain_grad()
    two.retain_grad()
    F.linear(F.linear(X, one).relu(), two).square().sum().backward()
    same([seen[0], second.grad, values.grad], [one.grad, two.grad, own.grad])
    assert torch.equal(torch.autograd.grad(first.sum(), first)[0], torch.ones(128, 160, dtype=torch.float64))


@pytest.mark.parametrize("whole", [True, False])
def test_a_gradient_is_asked_for_before_the_use_or_refused(whole: bool) -> None:
    _, weights = drawn(LAYOUT)
    with torch.no_grad():
        F.linear(X, weights.layers()[0])
    weights.register_hook(lambda gradient: None)  # nothing was remembered yet
    _, weights = drawn(LAYOUT)
    first = weights.layers()[0]
    loss = F.linear(X, first).sum()
    asked = weights if whole else first
    asked.sum()  # nor does it help that it is written out by now
    for ask in (
        lambda: asked.register_hook(print),
        lambda: asked.retain_grad(),
        lambda: torch.autograd.grad(loss, asked),
        lambda: torch.autograd.grad(loss, [asked], allow_unused=True),
        lambda: torch.autograd.grad(outputs=loss, inputs=[asked], allow_unused=True),
    ):
        with pytest.raises(RuntimeError, match="before they were computed with"):
            ask()


class Custom(torch.autograd.Function):
    """x W^T, as a user writes it."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


def test_a_users_autograd_function_gets_the_right_numbers_and_gives_the_right_gradient() -> None:
    values, first, _ = layers()
    x = X.clone().requires_grad_()
    Custom.apply(x, first).square().sum().backward()
    own, weights = twin(LAYOUT, values)
    other = X.clone().requires_grad_()
    (other @ weights[: 128 * 160].view(128, 160).t()).square().sum().backward()
    same([values.grad, x.grad], [own.grad, other.grad])
    _, first, _ = layers()
    first.mul_(2)
    with pytest.raises(RuntimeError, match=r"as they were drawn.*\.clone\(\)"):
        Custom.apply(x, first).sum().backward()


def test_a_tied_weight_that_is_used_both_ways_sums_its_gradients() -> None:
    values, first, _ = layers()
    (F.linear(X, first) @ first).square().sum().backward()
    own, weights = twin(LAYOUT, values)
    one = weights[: 128 * 160].view(128, 160)
    (F.linear(X, one) @ one).square().sum().backward()
    assert torch.allclose(values.grad, own.grad, rtol=1e-12)


def test_a_second_derivative_is_the_dense_one() -> None:
    found = []
    for make in (drawn, lambda layout: twin(layout, drawn(layout)[0])):
        values, weights = make(LAYOUT)
        one = weights.layers()[0] if isinstance(weights, Unwritten) else weights.split(LAYOUT.sizes)[0].view(SHAPES[0])
        loss = F.linear(X, one).tanh().square().sum()
        (gradient,) = torch.autograd.grad(loss, values, create_graph=True)
        found.append((gradient, torch.autograd.grad(gradient.square().sum(), values)[0]))
    same(*found)


def dense_of(values: Tensor) -> Tensor:
    return scatter(values, LAYOUT.positions, SIZE)[: 128 * 160].view(128, 160)


TRANSFORMS = {
    "grad": lambda w: torch.func.grad(lambda x: F.linear(x, w).square().sum())(X),
    "vmap": lambda w: torch.func.vmap(lambda x: F.linear(x, w))(X.expand(3, 20, 160)),
    "vmap of rows": lambda w: torch.func.vmap(lambda x: F.linear(x, w))(X),
    "jacrev": lambda w: torch.func.jacrev(lambda x: F.linear(x, w).sum(0))(X[:, :]).sum(0),
    "jvp": lambda w: torch.func.jvp(lambda x: F.linear(x, w), (X,), (X.flip(0),))[1],
    "hessian": lambda w: torch.func.hessian(lambda s: F.linear(X * s, w).square().sum())(torch.tensor(1.0, dtype=X.dtype)),
    "functional_call": lambda w: torch.func.functional_call(nn.Linear(160, 128, False), {"weight": w}, (X,)),
    "grad in itself": lambda w: torch.func.grad(lambda v: F.linear(X, v).square().sum())(w),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_under_transforms_it_is_dense_and_afterwards_still_right(name: str) -> None:
    if name == "grad in itself":  # goes past torch functions
        with pytest.raises(RuntimeError, match=r"give it their \.clone\(\)"):
            TRANSFORMS[name](layers()[1])
        return
    values, first, _ = layers()
    own = values.detach().clone().requires_grad_()
    dense = dense_of(own)
    for result in (lambda w: TRANSFORMS[name](w), lambda w: F.linear(X, w)):
        mine, theirs = result(first), result(dense)
        same(mine, theirs)
        assert mine.requires_grad == theirs.requires_grad
    mine.square().sum().backward()
    theirs.square().sum().backward()
    same(values.grad, own.grad)


def test_forward_mode_is_dense() -> None:
    values, first, _ = layers()
    with forward_ad.dual_level():
        output = F.linear(forward_ad.make_dual(X, X.flip(0)), first)
        same(forward_ad.unpack_dual(output).tangent, F.linear(X.flip(0), dense_of(values)))


def test_autocast_computes_in_the_dense_paths_precision() -> None:
    values, weights = drawn(LAYOUT, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = (F.linear(X.float(), w) for w in (weights.layers()[0], dense_of(values)))
    assert mine.dtype == torch.bfloat16
    assert torch.equal(mine, theirs)


MISFITS = {
    "bias of one": lambda w: F.linear(X, w, torch.ones(1, dtype=X.dtype)),
    "bias of rows": lambda w: F.linear(X, w, torch.ones(20, 128, dtype=X.dtype)),
    "bias narrower": lambda w: F.linear(X, w, torch.ones(128)),
    "bias too long": lambda w: F.linear(X, w, torch.ones(127, dtype=X.dtype)),
    "one row": lambda w: F.linear(X[0], w),
    "no rows": lambda w: F.linear(X[:0], w),
    "too narrow": lambda w: F.linear(X[:, :100], w),
    "other dtype": lambda w: F.linear(X.float(), w),
    "integers": lambda w: F.linear(X.long(), w),
    "sparse": lambda w: F.linear(X.to_sparse(), w),
    "by keyword": lambda w: F.linear(input=X, weight=w, bias=None),
    "weight for x": lambda w: F.linear(w, X[:5]),
    "weight for both": lambda w: F.linear(w, w),
    "bilinear": lambda w: F.bilinear(X, X, w.expand(2, 128, 160)[:, :1].repeat(1, 160, 1)),
    "embedding": lambda w: F.embedding(torch.tensor([1, 5]), w),
    "conv": lambda w: F.conv1d(X.t()[None], w[:, :, None]),
}


def outcome_of(function: Callable[[Tensor], Tensor], weight: Tensor) -> object:
    try:
        return function(weight)
    except (RuntimeError, ValueError) as error:
        return type(error)


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_a_product_is_what_it_is_in_dense(name: str) -> None:
    values, first, _ = layers()
    same(outcome_of(MISFITS[name], first), outcome_of(MISFITS[name], dense_of(values)))


def test_several_threads_may_use_one_draw() -> None:
    values, first, second = layers()
    expected, found = F.linear(F.linear(X, dense_of(values)), twin(LAYOUT, values)[1][128 * 160 :].view(10, 128)), []
    threads = [threading.Thread(target=lambda: found.append(F.linear(F.linear(X, first), second))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for each in found:
        same(each, expected)
    sum(each.sum() for each in found).backward()
    own = values.detach().clone().requires_grad_()
    dense = scatter(own, LAYOUT.positions, SIZE)
    (4 * F.linear(F.linear(X, dense[: 128 * 160].view(128, 160)), dense[128 * 160 :].view(10, 128))).sum().backward()
    assert torch.allclose(values.grad, own.grad, rtol=1e-10)
