"""Claims about the trial: networks that cannot be given unwritten weights get dense ones, and nothing is moved by asking."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import scatter
from espalier.sparse.layout import MIN_ROWS
from espalier.sparse.trial import evaluating, unmoved
from espalier.topology.masks import initial
from unwritten import counted, same

pytestmark = pytest.mark.usefixtures("own_store", "own_stream")


class Net(nn.Module):
    """160 -> 128 -> 3 with something done to the hidden units."""

    def __init__(self, then: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden, self.norm, self.top = nn.Linear(160, 128), nn.BatchNorm1d(128), nn.Linear(128, 3)
        self.then, self.calls = then, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.top(F.dropout(self.then(self, self.norm(self.hidden(x))), 0.5, self.training))


def pair(then: Callable[[nn.Module, Tensor], Tensor]) -> tuple[BayesianNetwork, MaskedGuide]:
    torch.manual_seed(0)
    model = BayesianNetwork(Net(then).double())
    return model, MaskedGuide(model, initial(model.shapes, 0.9, "uniform", generator=torch.Generator().manual_seed(0)))


def x_of(rows: int = 20) -> Tensor:
    return torch.randn(rows, 160, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def demanding(net: nn.Module, h: Tensor) -> Tensor:
    assert len(h) == 20, "expected whole batches"
    return h


def viewed(net: nn.Module, h: Tensor) -> Tensor:
    return h.view(-1).view(len(h), -1)


UNFIT = {
    "view": viewed,
    "view in training": lambda net, h: viewed(net, h) if net.training else h,
    "view in evaluation": lambda net, h: h if net.training else viewed(net, h),
    "as_strided": lambda net, h: h.as_strided((len(h), 128), (128, 1)),
    "memory": lambda net, h: torch.tensor([], dtype=h.dtype).set_(h.detach().untyped_storage())[: h.numel()].view(h.shape),
    "batches of 20 alone": demanding,
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("training", [True, False])
def test_what_cannot_be_given_unwritten_weights_gets_dense_ones(name: str, training: bool) -> None:
    model, guide = pair(UNFIT[name])
    model.train(training)
    twin, x = copy.deepcopy(model), x_of()
    for train in (training, not training, training):
        model.train(train)
        twin.train(train)
        torch.manual_seed(3)
        mine = model.evaluate(guide.draw(), x)
        torch.manual_seed(3)
        same(mine, twin.evaluate(scatter(guide.values, guide.positions, model.num_weights), x))
        same(list(model.buffers()), list(twin.buffers()))


@pytest.mark.parametrize("training", [True, False])
def test_what_can_is_told_so_once_for_each_mode(training: bool) -> None:
    def counting(net: nn.Module, h: Tensor) -> Tensor:
        net.calls += 1
        return h

    model, guide = pair(counting)
    model.train(training)
    calls = []
    for rows in (20, 20, 5, 100):
        before = model.net.calls
        with counted() as count:
            model.evaluate(guide.draw(), x_of(rows))
        calls.append(model.net.calls - before)
        assert (count() > 0) == (rows >= MIN_ROWS)
    assert calls == [4 if training else 3, 1, 1, 1]


def test_a_batch_too_small_for_products_decides_nothing() -> None:
    model, guide = pair(viewed)
    model.evaluate(guide.draw(), x_of(MIN_ROWS - 1))
    same(
        model.eval().evaluate(guide.draw(), x_of()),
        model.evaluate(scatter(guide.values, guide.positions, model.num_weights), x_of()),
    )


@pytest.mark.parametrize("training", [True, False])
def test_streams_and_buffers_are_as_they_would_be_without_it(training: bool) -> None:
    model, guide = pair(lambda net, h: h + torch.randn(1, dtype=h.dtype))
    model.train(training)
    twin = copy.deepcopy(model)
    torch.manual_seed(7)
    model.evaluate(guide.draw(), x_of())
    after = torch.get_rng_state()
    torch.manual_seed(7)
    twin.evaluate(scatter(guide.values, guide.positions, model.num_weights), x_of())
    assert torch.equal(torch.get_rng_state(), after)
    same(list(model.buffers()), list(twin.buffers()))
    assert all(part.training is training for part in model.modules())


def test_a_buffer_that_was_replaced_is_put_back() -> None:
    net = nn.BatchNorm1d(4)
    mean = net.running_mean
    with unmoved(net):
        net.running_mean = torch.ones(4)
        net.running_var.zero_()
    assert net.running_mean is mean
    assert (net.running_var == 1).all()


def test_evaluating_gives_every_part_its_mode_back() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert [part.training for part in net.modules()] == [True, True, False]


def test_a_part_that_was_put_in_place_of_another_is_the_one_that_gets_the_weights() -> None:
    model, guide = pair(lambda net, h: h)
    model.eval().net.hidden = nn.Linear(160, 128).double()
    with torch.no_grad():
        mine = model.evaluate(guide.draw(), x_of())
    same(mine, model.evaluate(scatter(guide.values, guide.positions, model.num_weights), x_of()).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo, of what it looks at
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_part_of_a_network_computes_the_same(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(160, 128), nn.Tanh(), nn.Linear(128, 3)).double()
    model = BayesianNetwork(inner)
    guide = MaskedGuide(model, initial(model.shapes, 0.9, "uniform", generator=torch.Generator().manual_seed(0)))
    plain = copy.deepcopy(model)
    model.net = nn.Sequential(*model.net)
    model.net.forward = torch.compile(model.net.forward, backend=backend)
    found = []
    for each, weights in ((model, guide.draw()), (plain, scatter(guide.values, guide.positions, model.num_weights))):
        guide.values.grad = None
        for _ in range(2):
            output = each.evaluate(weights, x_of())
        output.square().sum().backward()
        found.append((output, guide.values.grad))
    same(*found)
