"""Claims about taps: what they add up is the gradient of the weights written out, however these are used."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial

pytestmark = pytest.mark.usefixtures("float64")


class Twice(nn.Module):
    """One layer, used two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(160, 160), nn.Linear(160, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))
        return out


class Halved(Twice):
    """A layer that computes with its weights first, and with their product afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.linear(x, self.first.weight * 0.5, self.first.bias))
        out: Tensor = self.last(torch.tanh(self.first(x)))
        return out


class Foreign(torch.autograd.Function):
    """Knows nothing of weights that are not written out."""

    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        return torch.ones(160, 160)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


class Passed(Twice):
    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = Foreign.apply(self.first.weight)  # type: ignore[no-untyped-call]
        out: Tensor = self.last(torch.tanh(self.first(x) + F.linear(x, seen)))
        return out


def convolutional() -> nn.Module:
    first = nn.Conv1d(1, 2, 3, padding=1)
    return nn.Sequential(nn.Unflatten(1, (1, 160)), first, nn.Flatten(), nn.Linear(320, 64), nn.Linear(64, 3))


def deep() -> nn.Module:
    return nn.Sequential(nn.Linear(160, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3))


def tapped(net: nn.Module, *, unwritten: bool, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    model = BayesianNetwork(net)
    topology = initial(model.shapes, 0.9, "uniform", generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, 0.8, generator=torch.Generator().manual_seed(1))
    if not unwritten:
        monkeypatch.setattr(MaskedGuide, "layout", None)
    else:
        assert guide.layout is not None
    guide.tapped = True
    x = torch.randn(40, 160, generator=torch.Generator().manual_seed(2))
    loss = model.evaluate(guide.draw(), x).square().sum()
    with pytest.raises(RuntimeError, match="expected a tapped forward and a backward pass first"):
        guide.gradient()
    loss.backward()
    return guide.gradient()


@pytest.mark.parametrize("build", [deep, Twice, Halved, Passed, convolutional])
def test_it_is_the_gradient_of_the_weights_written_out(build: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = build()
    mine = tapped(net, unwritten=True, monkeypatch=monkeypatch)
    theirs = tapped(net, unwritten=False, monkeypatch=monkeypatch)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert (mine != 0).double().mean() > 0.2  # of inactive weights as well: a tenth is active


def test_a_second_forward_pass_begins_a_new_one() -> None:
    model = BayesianNetwork(deep())
    guide = MaskedGuide(model, initial(model.shapes, 0.9, "uniform"))
    x = torch.randn(40, 160)
    found = []
    for _ in range(2):
        guide.tapped = True
        model.evaluate(guide.draw(), x).square().sum().backward()
        found.append(guide.gradient())
    torch.testing.assert_close(*found)


STEP = """
import sys, torch
from torch import nn
torch.set_num_threads(1)
from espalier import BayesianNetwork, MaskedGuide
from espalier.topology import initial, schedules
from espalier.training.loop import Loop

net = nn.Sequential(nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4032), nn.ReLU(), nn.Linear(4032, 10))
x, y = torch.randn(128, 784), torch.randint(0, 10, (128,))
if sys.argv[1] == "dense":
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
else:
    model = BayesianNetwork(net, num_data=1000, prior_scale=0.1)
    del net
    guide = MaskedGuide(model, initial(model.shapes, 0.99, "uniform"), 0.9)
    loop = Loop(model, guide, schedules.rigl(2, 10**7, 0.3), lambda step: 0.1)
    def step():
        moved = [loop.step(x, y).moved, loop.step(x, y).moved]
        assert any(moved)
step(), step()
open("/proc/self/clear_refs", "w").write("5")
step()
print(open("/proc/self/status").read())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
def test_a_move_of_the_topology_takes_less_memory_than_a_dense_step() -> None:
    """C23: everything included, libraries too. What glibc has been given back and keeps for later is not counted: it differs by
    tens of MiB between two runs of the same code."""
    peaks, environment = {}, {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    for kind in ("dense", "sparse"):
        command = [sys.executable, "-c", STEP, kind]
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        peaks[kind] = int(re.search(r"VmHWM:\s+(\d+)", told)[1]) / 1024  # type: ignore[index]
    assert peaks["sparse"] < peaks["dense"], peaks
