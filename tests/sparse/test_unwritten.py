"""Claims about a draw that is not written out: whatever is done with it, it is the dense vector, or says why it cannot be."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espalier.sparse import Unwritten
from unwritten import SHAPES, drawn, layout_of, same, twin

LAYOUT = layout_of()
torch.manual_seed(0)
X = torch.randn(20, 160, dtype=torch.float64)


def both(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A function of the whole vector, or of its first layer, gives the same of both kinds, and the same gradient."""
    for piece in (False, True):
        found = []
        for make in (drawn, lambda layout: twin(layout, drawn(layout)[0])):
            values, weights = make(LAYOUT)
            result = function(weights.layers()[0] if piece and isinstance(weights, Unwritten) else
                              weights.split(LAYOUT.sizes)[0].view(SHAPES[0]) if piece else weights)  # fmt: skip
            result.square().sum().backward()
            found.append((result, values.grad))
        same(*found)


# -------------------------------------------------------------------------------------------- what it says of itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
def test_it_speaks_for_the_dense_one_without_being_written_out(dtype: torch.dtype, grad: bool) -> None:
    values, weights = drawn(LAYOUT, dtype, grad=grad)
    _, dense = twin(LAYOUT, values)
    for mine, theirs in [(weights, dense), *zip(weights.layers(), map(torch.zeros, SHAPES), strict=True)]:
        assert type(mine) is Unwritten
        assert (mine.shape, mine.size(), mine.dim(), mine.ndim) == (theirs.shape, theirs.shape, theirs.dim(), theirs.dim())
        assert (mine.numel(), mine.nelement(), len(mine)) == (theirs.numel(), theirs.numel(), len(theirs))
        assert (mine.dtype, mine.device, mine.layout) == (dtype, values.device, torch.strided)
        assert (mine.requires_grad, mine.is_leaf) == (grad, not grad)
        assert mine.is_floating_point()
        assert (mine.is_complex(), mine.is_sparse) == (False, False)
        assert torch.is_tensor(mine)
        assert hash(mine) == id(mine)
        assert torch.equal(mine.new_tensor(3), torch.tensor(3, dtype=dtype))
        assert mine.written is None


def test_it_is_written_out_once() -> None:
    _, weights = drawn(LAYOUT)
    assert weights.data_ptr() == weights.data_ptr() == weights.dense().data_ptr()
    piece = weights.layers()[0]
    assert piece.data_ptr() == piece.data_ptr()


def test_its_dense_form_is_nobody_elses() -> None:
    layout = layout_of(((4, 5), (3, 2, 3, 3)), density=1.0)
    values, weights = drawn(layout, grad=False)
    before = values.clone()
    linear, conv = weights.layers()
    linear.data.mul_(2)
    linear.view(-1)[0] = 7
    linear.numpy()[:] = 0
    conv.zero_()
    drawn(layout, grad=False)[1].data.zero_()
    assert torch.equal(values, before)


@pytest.mark.parametrize(
    "looked",
    [torch.no_grad, torch.inference_mode, lambda: torch.autograd.set_grad_enabled(False)],
    ids=["no_grad", "inference_mode", "set_grad_enabled"],
)
def test_who_looks_without_gradients_takes_none_away(looked: Callable[[], object]) -> None:
    values, weights = drawn(LAYOUT)
    with looked():
        assert float(weights.sum()) == pytest.approx(float(values.detach().sum()))
        piece = weights.layers()[0]
        assert piece.abs().sum() > 0
    weights.square().sum().backward()
    same(values.grad, 2 * values.detach())


# ------------------------------------------------------------------------------------------------ whatever is done with it

OPS = {
    "sum": lambda w: w.sum(),
    "arithmetic": lambda w: 2 * w + w / 3 - (1 - w) ** 2,
    "matmul": lambda w: w @ w.t() if w.dim() > 1 else w @ w,
    "rows": lambda w: w[3:7],
    "picked": lambda w: w[torch.tensor([0, 5, 5, 2])],
    "masked": lambda w: w[w > 0],
    "einsum": lambda w: torch.einsum("...j,...j->...", w, w),
    "cat": lambda w: torch.cat([w, 2 * w]),
    "stack": lambda w: torch.stack([w, w]),
    "flatten": lambda w: w.flatten().view(-1, 10),
    "norm": lambda w: torch.linalg.vector_norm(w, dim=-1),
    "softmax": lambda w: F.softmax(w, -1),
    "where": lambda w: torch.where(w == 0, 1.0, w),
    "clone": lambda w: w.clone(),
    "like": lambda w: torch.ones_like(w) * w,
    "split": lambda w: w.split(7)[1],
    "dropout": lambda w: F.dropout(w, 0.0),
    "foreach": lambda w: torch._foreach_mul([w, w], 2.0)[1],
    "vector": lambda w: nn.utils.parameters_to_vector([w, w]),
    "as_tensor": lambda w: torch.as_tensor(w) * 2,
    "clamp": lambda w: torch.clamp(input=w, min=0.1),
    "copy": lambda w: copy.copy(w) * 1,
    "to": lambda w: w.to(torch.float32).to(torch.float64),
    "in place of a clone": lambda w: w.clone().mul_(w),
    "in place of another": lambda w: torch.zeros(w.shape, dtype=w.dtype).add_(w),
    "into another": lambda w: torch.zeros(2, *w.shape, dtype=w.dtype).index_put_((torch.tensor(1),), w),
    "checkpoint": lambda w: checkpoint(lambda v: v.sin() * v, w, use_reentrant=False),
    "checkpoint, reentrant": lambda w: checkpoint(lambda v: v.sin() * v, w, use_reentrant=True),
}


@pytest.mark.parametrize("name", OPS)
def test_any_operation_is_the_dense_one_with_its_gradient(name: str) -> None:
    both(OPS[name])


def test_a_whole_may_be_written_into_before_it_is_cut() -> None:
    both(lambda w: w.mul_(2) if w.dim() == 1 else w * 2)
    _, weights = drawn(LAYOUT)
    with torch.no_grad():
        weights[:3] = 5.0
        weights.add_(1)
    assert (weights[:3] == 6).all()
    assert (weights.layers()[0].view(-1)[:3] == 6).all()
    added = weights
    added += 1  # a name is bound anew: it is the dense tensor
    assert type(added) is Tensor
    assert added.data_ptr() == weights.data_ptr()


def test_a_whole_that_was_cut_is_not_written_into() -> None:
    _, weights = drawn(LAYOUT)
    weights.layers()
    for write in (lambda: weights.mul_(2), lambda: weights.__setitem__(0, 1.0), lambda: setattr(weights, "data", X[0])):
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"layers are not in use yet.*\.clone\(\)"):
            write()


WRITES = {
    "clamp_": lambda w: w.clamp_(-0.1, 0.1),
    "setitem": lambda w: w.__setitem__(slice(0, 3), 4.0),
    "data": lambda w: w.data.mul_(0.5),
    "set data": lambda w: setattr(w, "data", torch.ones_like(w)),
    "detach": lambda w: w.detach().zero_(),
    "view": lambda w: w.view(-1)[5:50].fill_(1.0),
    "init": lambda w: nn.init.constant_(w, 0.25),
    "out": lambda w: torch.mul(w.clone(), 3, out=w),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "renorm": lambda w: torch.embedding_renorm_(w, torch.arange(9), 0.1, 2.0),
    "copy_": lambda w: w.copy_(torch.full_like(w, 0.3)),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_into_a_layer_is_in_its_next_product(name: str) -> None:
    found = []
    for make in (drawn, lambda layout: twin(layout, drawn(layout)[0])):
        values, weights = make(LAYOUT)
        piece = weights.layers()[0] if isinstance(weights, Unwritten) else weights[: 128 * 160].view(SHAPES[0]).clone()
        with torch.no_grad():
            WRITES[name](piece)
        output = F.linear(X, piece)
        output.square().sum().backward()
        found.append((output, values.grad))
    same(*found)


def test_a_tensor_that_changed_its_shape_says_so() -> None:
    _, weights = drawn(LAYOUT, grad=False)
    piece = weights.layers()[0]
    piece.t_()
    assert piece.shape == (160, 128)
    _, other = drawn(LAYOUT, grad=False)
    other.requires_grad_()
    assert other.requires_grad
    other.layers()[0].sum().backward()
    assert (other.grad[: 128 * 160] == 1).all()


# ------------------------------------------------------------------------------------------------------------ to and fro


@pytest.mark.parametrize("piece", [False, True])
def test_it_is_kept_and_shown_as_the_dense_one(piece: bool, tmp_path) -> None:
    values, weights = drawn(LAYOUT, grad=False)
    dense = twin(LAYOUT, values)[1]
    if piece:
        weights, dense = weights.layers()[0], dense[: 128 * 160].view(128, 160)
    assert repr(weights) == repr(dense)
    assert weights.tolist() == dense.tolist()
    assert np.array_equal(weights.numpy(), dense.numpy())
    assert np.array_equal(np.asarray(weights), dense.numpy())
    assert torch.equal(torch.from_dlpack(weights), dense)
    for copied in (pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights)):
        assert type(copied) is Tensor
        assert torch.equal(copied, dense)
    torch.save({"w": weights}, tmp_path / "w.pt")
    assert torch.equal(torch.load(tmp_path / "w.pt", weights_only=True)["w"], dense)
    assert torch.equal(safetensors.torch.load(safetensors.torch.save({"w": weights}))["w"], dense)


def test_with_a_graph_it_is_pickled_as_the_dense_one_and_copied_as_little() -> None:
    values, weights = drawn(LAYOUT)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer), weights.detach())
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(weights)
    with pytest.raises(RuntimeError, match="requires grad"):
        weights.numpy()


@pytest.mark.parametrize("past", [lambda w: torch.tensor(w), nn.Parameter])
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_what_would_go_past_torch_functions_is_refused(past: Callable[[Tensor], Tensor]) -> None:
    _, weights = drawn(LAYOUT)
    with pytest.raises(RuntimeError, match=r"give it their \.clone\(\)|instance of type Unwritten"):
        past(weights)
    assert past(weights.clone().detach()).shape == weights.shape


def test_a_kernel_that_it_reaches_unwritten_says_what_to_do() -> None:
    _, weights = drawn(LAYOUT)
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(RuntimeError, match=r"went past.*give it their \.clone\(\)"):
        weights + 1
