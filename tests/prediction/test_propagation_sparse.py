"""Moments over active weights alone: the same numbers as over all, and nothing is written out on the way."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training, shelf
from espalier.prediction import Fit
from espalier.prediction.moments import Moments
from espalier.prediction.propagation import of_weights, propagate, scaled, trust
from espalier.sparse import Unwritten, unwritten
from fitted import digits, zeros_but

ROWS = 50


class Folded(nn.Module):
    """Calls `view`, which what a sparse product gives is not laid out for."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 30, 10).relu().flatten(1)


@functools.cache
def fitted(inference: str, drop_rate: Any) -> Fit:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), Folded(), nn.Linear(300, 60), nn.Tanh(), nn.Linear(60, 10))
    named = {} if drop_rate is None else {"drop_rate": drop_rate}
    training = Training(epochs=3, batch_size=32, learning_rate=0.1, device="cpu")
    model = BayesianNetwork(net)
    return shelf.load("inference", inference)(model, digits(), sparsity=0.9, training=training, seed=1, **named)


@pytest.mark.parametrize(("inference", "drop_rate"), [("cigl", 0.3), ("cigl", "auto-layer"), ("mean_field", None)])
def test_moments_over_active_weights_are_those_over_all(
    inference: str, drop_rate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, x = fitted(inference, drop_rate), digits().test.x[:ROWS]
    weights, state = of_weights(fit)
    assert isinstance(weights.loc, Unwritten)
    assert isinstance(weights.variance, Unwritten)
    written = Moments(*(zeros_but(fit, part.active) for part in (weights.loc, weights.variance)), weights.ratio)
    told = propagate(fit.model, written, x, state, scaled(lambda *_: 1.1))
    multiplied = []

    def product(x: Tensor, *rest: Any) -> Tensor:
        multiplied.append(tuple(rest[2].shape))
        return own(x, *rest)

    own = unwritten.product
    monkeypatch.setattr(unwritten, "product", product)
    found = propagate(fit.model, weights, x, state, scaled(lambda *_: 1.1))
    for one in ("loc", "variance"):
        torch.testing.assert_close(getattr(found, one), getattr(told, one), rtol=1e-4, atol=1e-6)
    times = 2 if inference == "cigl" else 3
    assert multiplied == [(300, 64)] * 2 + [(60, 300)] * times  # the last layer is too small to gain by it


def test_how_far_a_factor_is_believed_is_asked_of_active_weights_alone() -> None:
    fit = fitted("cigl", 0.3)
    weights, _ = of_weights(fit)
    written = Moments(zeros_but(fit, weights.loc.active), zeros_but(fit, weights.variance.active), weights.ratio[0])
    weights.ratio = weights.ratio[0]
    assert trust(weights) == pytest.approx(trust(written), rel=1e-9)
    assert weights.variance.written is None


def test_a_network_that_has_predicted_nothing_yet_has_moments() -> None:
    """Without a validation split nothing was: sparse products are first tried, on few rows, and that is no layer of a pass."""
    data = digits()
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    empty = data.validation._replace(x=data.validation.x[:0], y=data.validation.y[:0])
    training = Training(epochs=1, batch_size=64, learning_rate=0.1, device="cpu")
    fit = shelf.load("inference", "cigl")(
        BayesianNetwork(net), data._replace(validation=empty), sparsity=0.9, drop_rate=0.2, delta_t=5, training=training, seed=1
    )
    assert "moments" in fit.ways
