"""Claims about the trial: networks that cannot be given unwritten weights get dense ones, and nothing is moved by asking."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import Training
from espalier.guides.masked import MaskedGuide
from espalier.inference import cigl
from espalier.network import BayesianNetwork
from espalier.sparse import scatter, trial
from espalier.sparse.layout import MIN_ROWS
from espalier.sparse.trial import evaluating, unmoved
from espalier.topology.masks import initial
from fitted import digits
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


class Experts(nn.Module):
    """Two of them, each in rows of its own: in the 16 that are tried, fewer than a sparse product asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(64, 2), nn.ModuleList([nn.Linear(64, 256) for _ in range(2)])
        self.top = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        pick, out = self.gate(x).argmax(-1), torch.zeros(len(x), 256, dtype=x.dtype)
        for index, expert in enumerate(self.experts):
            rows = (pick == index).nonzero().squeeze(1)
            out = out.index_add(0, rows, expert(x[rows]).view(-1, 64).softmax(-1).view(len(rows), 256))
        return self.top(out)


@pytest.mark.parametrize("rows", [20, 80])
def test_layers_that_see_few_of_the_rows_are_tried_too(rows: int) -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(Experts().double())
    guide = MaskedGuide(model, initial(model.shapes, 0.95, "uniform", generator=torch.Generator().manual_seed(0)))
    x = torch.randn(rows, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = guide.draw()
    torch.testing.assert_close(model.evaluate(drawn, x), model.evaluate(drawn.clone(), x))


def test_a_network_that_views_its_inputs_is_predicted_with(tmp_path: object) -> None:
    """Who predicts hands inputs out feature by feature, where weights need not be written out: not to such a one."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(512, 256)
            self.top = nn.Linear(256, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(self.b(self.a(x.view(-1, 8)).relu().reshape(len(x), 512)).relu())

    torch.manual_seed(0)
    fit = cigl.infer(BayesianNetwork(Rows()), digits(), sparsity=0.95, drop_rate=0.1, training=Training(epochs=1, batch_size=64))
    assert fit.layout is not None
    assert fit.predict(digits().test.x).shape == (1, 359, 10)


def test_draws_go_through_torch_func_before_and_after_an_ordinary_call() -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 4)).double()).eval()
    guide = MaskedGuide(model, initial(model.shapes, 0.9, "uniform", generator=torch.Generator().manual_seed(0)))
    drawn, x = guide.draw().detach(), torch.randn(20, 128, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda z: model.evaluate(drawn.clone(), z).sum(0), x)
    for _ in range(2):
        torch.testing.assert_close(torch.func.jacrev(lambda z: model.evaluate(drawn, z).sum(0))(x), expected)
        one_by_one = torch.func.vmap(lambda z: model.evaluate(drawn, z.unsqueeze(0)).squeeze(0))(x)
        torch.testing.assert_close(one_by_one, model.evaluate(drawn, x))


def test_a_child_process_holds_no_lock_of_a_thread_that_is_not_there() -> None:
    module = nn.Linear(2, 2)
    with evaluating(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads about: that is the point
        if (child := os.fork()) == 0:
            os._exit(len(trial._LOCKS))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_images_channels_last_go_through_vmap() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 160), nn.Linear(160, 128))
    model = BayesianNetwork(net.double()).eval()
    guide = MaskedGuide(model, initial(model.shapes, 0.9, "uniform", generator=torch.Generator().manual_seed(0)))
    x, drawn = torch.randn(20, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last), guide.draw().detach()
    one_by_one = torch.func.vmap(lambda z: model.evaluate(drawn, z.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(one_by_one, model.evaluate(drawn, x))
