"""How far a factor that few dropped weights have told is believed (propagation.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Training
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction import equip
from espalier.prediction.moments import Moments
from espalier.prediction.propagation import trust


def test_where_masks_seldom_drop_anything_a_measured_factor_is_hardly_believed() -> None:
    """v / (v + r) by hand; at the rates of most fits it is all believed, and at the least nothing."""
    u = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)

    def masked(p: float) -> Moments:
        return Moments(p * u, p * (1 - p) * u.square(), (1 - p) / p)

    count = float(u.square().sum() ** 2 / u.pow(4).sum())
    for p in (0.99, 0.9):
        noise = (1 / (p * (1 - p)) - 6) / (32 * count)
        assert trust(masked(p)) == pytest.approx(0.25 / (0.25 + noise))
    assert trust(masked(0.7)) == 1.0
    assert trust(masked(1 - 1 / 65536)) < 0.01
    assert trust(None) == 1.0


def test_the_doubt_at_a_small_rate_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where 32 masks drop nothing of a layer its variance was 0, in every run: they are the same masks."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    data = from_arrays(x, 20 * np.sin(x[:, 0]) + rng.normal(size=300))
    torch.manual_seed(3)
    model = BayesianNetwork(nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1)), likelihood="normal")
    training = Training(epochs=10, batch_size=32, device="cpu", optimizer="adam", learning_rate=0.01)
    fit = cigl.infer(model, data, sparsity=0.9, drop_rate=0.01, delta_t=10, training=training, seed=3)

    def variance(how: Any, count: int) -> float:
        return float(fit.predict(data.test.x, how, num_samples=count)[..., 0].var(0).mean())

    told = variance("redraw", 2000)
    assert fit.record["moments"]["factors"][0] > 0.5
    assert variance("moments", 32) > 0.2 * told
    monkeypatch.setattr("espalier.prediction.propagation.trust", lambda _: 1.0)
    equip(fit, data)
    assert variance("moments", 32) < 0.05 * told
