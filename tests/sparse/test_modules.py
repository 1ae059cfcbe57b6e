"""Claims about networks without their zeros: they say what the dense ones say, and learn on their topology."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.sparse import SparseLinear, sparsified

ROWS = 16


def linear(inputs: int, outputs: int, density: float = 0.1, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    layer, stream = nn.Linear(inputs, outputs, bias=bias), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=stream))
        layer.weight.mul_(torch.rand(outputs, inputs, generator=stream) < density)
    return layer


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def net(density: float = 0.1) -> nn.Module:
    layers = linear(150, 200, density), linear(200, 130, density), linear(130, 5, 1.0)
    return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1], nn.ReLU(), layers[2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 150), (7, 150), (64, 150), (3, 4, 150)])
def test_a_sparse_layer_is_the_dense_one_and_so_are_its_gradients(shape: tuple[int, ...], bias: bool) -> None:
    dense = linear(150, 200, bias=bias).double()
    sparse, x, mine = SparseLinear(dense), rows(*shape).double().requires_grad_(), rows(*shape).double().requires_grad_()
    expected, found = dense(x), sparse(mine)
    assert torch.allclose(found, expected, atol=1e-12)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    found.backward(upstream)
    assert torch.allclose(mine.grad, x.grad, atol=1e-12)
    assert torch.allclose(sparse.values.grad, dense.weight.grad.reshape(-1)[sparse.positions], atol=1e-12)
    assert torch.equal(sparse.weight, dense.weight)
    assert sparse.bias is None or torch.allclose(sparse.bias.grad, dense.bias.grad)


def test_in_half_precision_its_weights_are_written_out() -> None:
    dense = linear(150, 200).bfloat16()
    sparse, x = SparseLinear(dense), rows(7, 150).bfloat16()
    assert torch.equal(sparse(x), dense(x))
    with pytest.raises(ValueError, match="but this machine has no kernels for it"):
        sparsified(net(0.01).bfloat16(), rows(16, 150).bfloat16(), sparse=True)


def test_it_holds_values_of_active_weights_only_and_says_so() -> None:
    dense = linear(150, 200)
    sparse = SparseLinear(dense)
    active = int(dense.weight.count_nonzero())
    assert sum(parameter.numel() for parameter in sparse.parameters()) == active + 200
    assert repr(sparse) == f"SparseLinear(in_features=150, out_features=200, active={active})"
    other = SparseLinear(linear(150, 200))
    other.load_state_dict({name: tensor.clone() for name, tensor in sparse.state_dict().items()})
    assert torch.equal(other.weight, dense.weight)


@pytest.mark.parametrize("sparse", [True, "auto"])
def test_layers_that_gain_are_replaced_in_a_copy(sparse) -> None:
    dense = net().eval()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    lean = sparsified(dense, rows(ROWS, 150), sparse)
    assert [type(part) for part in lean] == [SparseLinear, nn.ReLU, SparseLinear, nn.ReLU, nn.Linear]
    assert [type(part) for part in dense] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    x = rows(40, 150)
    assert torch.allclose(lean(x), dense(x), rtol=1e-5, atol=1e-3)
    with torch.no_grad():
        for parameter in lean.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert sparsified(dense, rows(ROWS, 150), False) is dense


def test_a_layer_in_two_places_stays_one() -> None:
    layer = linear(150, 150)
    lean = sparsified(nn.Sequential(layer, nn.Tanh(), layer), rows(ROWS, 150))
    assert lean[0] is lean[2]
    assert isinstance(lean[0], SparseLinear)


class Reader(nn.Module):
    """Reads a weight that it also calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a = linear(150, 200)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.a.weight) + self.a(x)


class Viewer(nn.Module):
    """Wants its activations row by row in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = linear(150, 200)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).view(-1)


class Typist(nn.Module):
    """Goes by the kind of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = linear(150, 200)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if type(self.a) is nn.Linear else 2 * self.a(x)


def test_who_reads_a_weight_gets_it_written_out() -> None:
    dense, x = Reader(), rows(ROWS, 150)
    lean = sparsified(dense, x)
    assert isinstance(lean.a, SparseLinear)
    assert torch.allclose(lean(x), dense(x), atol=1e-4)


@pytest.mark.parametrize("kind", [Viewer, Typist])
def test_a_network_that_would_break_or_say_something_else_stays_dense(kind: type[nn.Module]) -> None:
    dense, x = kind(), rows(ROWS, 150)
    assert sparsified(dense, x, "auto") is dense
    with pytest.raises(ValueError, match="but this one does something else with its layers than calling them"):
        sparsified(dense, x, True)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (lambda: nn.Sequential(linear(150, 200, 0.5)), "no Linear layer of this one would gain"),
        (lambda: nn.Sequential(linear(20, 20)), "no Linear layer of this one would gain"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), "no Linear layer of this one would gain"),
    ],
)
def test_where_nothing_is_gained_auto_stays_dense_and_true_says_why(module, why: str) -> None:
    dense = module()
    assert sparsified(dense, rows(ROWS, 150), "auto") is dense
    with pytest.raises(ValueError, match=why):
        sparsified(dense, rows(ROWS, 150), True)


def test_without_kernels_a_network_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    dense = net().eval()
    assert sparsified(dense, rows(ROWS, 150), "auto") is dense
    with pytest.raises(ValueError, match="but this machine has no kernels for it: leave it dense"):
        sparsified(dense, rows(ROWS, 150), True)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="expected sparse of True, False or 'auto', got 'csr'"):
        sparsified(net(), rows(ROWS, 150), "csr")  # type: ignore[arg-type]
