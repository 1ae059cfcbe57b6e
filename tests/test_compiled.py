"""A compiled network is the network: same losses, masks, buffers and predictions, one program whatever the mask."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pyro.nn
import pytest
import torch
from torch import Tensor, nn

from digits import digits
from espalier import compiled
from espalier.guides.masked import MaskedGuide
from espalier.inference import cigl
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import random_topology
from espalier.training.options import Training, prepare
from espalier.training.watch import Watches
from watches import killed_and_resumed

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch, about what it traces and how it keeps it
]


class Exact(nn.Module):
    """Convolution, batch norm, dropout and a tied layer, in float64: rounding would move the topology."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.twice = self.again = nn.Linear(144, 144)
        self.last = nn.Linear(144, 10)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x.double())).relu()).flatten(1)
        found: Tensor = self.last(self.again(self.twice(x).relu()).relu())
        return found


@pytest.fixture(autouse=True)
def _none_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def programs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def model() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(Exact())


def trained(compile: bool, watch: Watches = None) -> Fit:
    training = Training(epochs=3, batch_size=32, learning_rate=0.05, device="cpu", compile=compile)
    options = {"sparsity": 0.9, "drop_rate": 0.2, "delta_t": 5, "freeze": 0.6, "average_from": 0.67}
    return cigl.infer(model(), digits(), training=training, seed=1, watch=watch, **options)


def test_a_compiled_training_is_the_training_and_one_program_through_masks_and_moves(tmp_path: Path) -> None:
    fit, eager = trained(True), trained(False)
    assert programs() == 1
    assert sum(row["moves"] for row in fit.history) >= 3
    for mine, theirs in zip(fit.history, eager.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert torch.equal(fit.topology.positions, eager.topology.positions)
    assert torch.equal(fit.pairs.keep, eager.pairs.keep)
    assert torch.allclose(fit.pairs.values, eager.pairs.values, rtol=1e-9, atol=1e-12)
    for name, state in fit.pairs.states.items():
        assert torch.allclose(state, eager.pairs.states[name], rtol=1e-9), name  # of batch norm, re-estimated

    again = killed_and_resumed(lambda watch: trained(True, watch), tmp_path, 25)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_compiled_predictions_are_the_predictions_and_one_program_for_every_mask() -> None:
    one = model()
    guide = MaskedGuide(one, random_topology(one.shapes, [size // 10 for size in one.sizes]), 0.8)
    x, state = digits().test.x[:64], {**one.state_dict(), "net.norm.running_mean": torch.full((4,), 0.1, dtype=torch.float64)}
    one.eval()
    drawn = [guide.draw().detach() for _ in range(3)]
    with torch.no_grad():
        eager = [one.evaluate(weights, x, state) for weights in drawn]
        one.compiled = "prediction"
        found = [one.evaluate(weights, x, state) for weights in drawn]
    assert programs() == 1
    for mine, theirs in zip(found, eager, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9)


def test_only_the_calls_that_are_meant_are_compiled() -> None:
    net = nn.Linear(2, 2)
    due = []
    for what, mode, grad in itertools.product(get_args(compiled.Compiled), (True, False), (True, False)):
        with torch.set_grad_enabled(grad):
            due += [(what, mode, grad)] if compiled.is_due(what, net.train(mode)) else []
    assert due == [
        ("training", True, True), ("training", False, True), ("prediction", False, True), ("prediction", False, False),
    ]  # fmt: skip


def test_what_cannot_be_compiled_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected a network of plain modules to compile"):
        compiled.check(pyro.nn.PyroModule[nn.Linear](2, 2))
    own = BayesianNetwork(pyro.nn.PyroModule[nn.Sequential](nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(ValueError, match="expected a network of plain modules to compile"):  # and before any work
        prepare(own, digits(), Training(compile=True))
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(RuntimeError, match=r"^expected a network and a machine that torch.compile can work with, but [^\n]*$"):
        compiled.call(nn.Sequential(nn.Linear(2, 2), nn.Softsign()), {}, (torch.ones(1, 2),), {})
