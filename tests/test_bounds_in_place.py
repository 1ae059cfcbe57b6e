"""Bounds of functions that write into what they are given: they count, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from espalier.bounds import bounds


class InPlace(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.how, self.act = nn.Linear(3, 8), nn.Linear(8, 2), how, nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.a(x)
        if self.how == "module":
            self.act(h)
        elif self.how == "function":
            torch.nn.functional.relu(h, inplace=True)
        elif self.how == "method":
            h.relu_()
        elif self.how == "torch":
            torch.relu_(h)
        else:
            h.mul_(-2.0)
        return self.b(h)


@pytest.mark.parametrize("how", ["module", "function", "method", "torch", "scaled"])
def test_what_is_written_in_place_counts(how: str) -> None:
    net = InPlace(how).eval()
    lower = torch.randn(4, 3)
    upper = lower + 0.5
    found = bounds(net, lower, upper)
    with torch.no_grad():
        for _ in range(200):
            said = net(lower + torch.rand(4, 3) * 0.5)
            assert ((found.lower - 1e-5 <= said) & (said <= found.upper + 1e-5)).all()
    assert len(found.relus) == (how != "scaled")


@pytest.mark.parametrize("how", ["a part", "a view", "what the view is of"])
def test_what_is_written_into_through_a_view_is_refused(how: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 1.0
            if how == "a part":
                h[:, :2].relu_()
                return h + 1.0
            flat = h.flatten(1)
            (flat if how == "a view" else h).relu_()
            return (h if how == "a view" else flat) + 1.0

    with pytest.raises(ValueError, match="may have been written into through a view"):
        bounds(Net(), -torch.ones(2, 3), torch.ones(2, 3))


def test_a_view_that_is_written_into_and_gone_on_with_is_as_it_was() -> None:
    shaped = nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.ReLU(inplace=True), nn.Dropout()
    net = nn.Sequential(nn.Linear(3, 4), *shaped, nn.Linear(4, 2)).eval()
    plain = nn.Sequential(net[0], nn.ReLU(), net[-1])
    found, expected = (bounds(each, -torch.ones(2, 3), torch.ones(2, 3)) for each in (net, plain))
    torch.testing.assert_close(found.lower, expected.lower)
    torch.testing.assert_close(found.upper, expected.upper)


def test_dropout_in_place_writes_nothing_in_evaluation_mode() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(3, 4), nn.Dropout(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return self.drop(h.flatten(1)) + h

    net = Net().eval()
    found = bounds(net, -torch.ones(2, 3), torch.ones(2, 3))
    assert (found.lower <= net(torch.zeros(2, 3))).all()
