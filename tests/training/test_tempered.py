"""Claims about how sure a student may be: the temperature is the optimum, a layer takes it, and labels do not count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Data, Split, Training
from espalier.inference import distilled
from espalier.prediction.fit import Fit
from espalier.training.tempered import divided, temperature
from fitted import digits

pytestmark = pytest.mark.usefixtures("own_store")
TRAINING = Training(epochs=8, batch_size=32, learning_rate=0.1, device="cpu")
OPTIONS: dict[str, Any] = {"sparsity": 0.6, "drop_rate": 0.3, "delta_t": 10, "training": TRAINING}


class Scaled(nn.Module):
    """Two layers give the outputs together, so that none scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 24), nn.Linear(24, 10), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.b(torch.relu(self.a(x))) + self.c(x)


def net(kind: str = "plain") -> BayesianNetwork:
    torch.manual_seed(0)
    if kind == "two ends":
        return BayesianNetwork(Scaled())
    norm = [nn.BatchNorm1d(24)] if kind == "batch norm" else []
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *norm, nn.ReLU(), nn.Linear(24, 10))
    return BayesianNetwork(body, maskable=["1.weight"] if kind == "dense head" else None)


def fitted(kind: str = "plain", data: Data | None = None) -> Fit:
    return distilled.infer(net(kind), data or digits(), seed=0, **OPTIONS)


def test_the_temperature_has_the_least_cross_entropy_of_a_fine_grid() -> None:
    stream = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 5, generator=stream, dtype=torch.float64)
    said = (logits / 1.7 + 0.3 * torch.randn(200, 5, generator=stream, dtype=torch.float64)).softmax(-1)
    grid = np.exp(np.linspace(-1, 1, 4001))
    losses = [-float((said * (logits / t).log_softmax(-1)).sum(-1).mean()) for t in grid]
    assert temperature(said, logits.softmax(-1)) == pytest.approx(grid[int(np.argmin(losses))], rel=1e-3)
    assert temperature(logits.softmax(-1), logits.softmax(-1)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "batch norm", "dense head"])
def test_the_last_layer_takes_it_and_the_ticket_is_a_plain_network(kind: str) -> None:
    """Of masked weights, of a bias, of a layer that was left dense: every way to ask the student says it."""
    fit, x = fitted(kind), digits().test.x
    found = fit.record["distilled"]["temperature"]
    assert abs(math.log(found)) > 1e-3
    assert fit.student is not None
    values, state = fit.student
    hot = divided(fit, values, state, 1 / found, x[:20])
    assert hot is not None
    assert torch.equal(hot[1]["net.1.bias"], state["net.1.bias"])
    before = fit.model.outcome(fit.dense(hot[0]), x, {n: t.clone() for n, t in hot[1].items()}).logits.detach()
    expected = (before / found).softmax(-1)
    torch.testing.assert_close(fit.predict(x, "distilled")[0], expected.double(), rtol=0, atol=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(fit.ticket("distilled")(x).softmax(-1), expected, rtol=0, atol=2e-5)


def test_it_ends_no_surer_than_its_teacher_where_it_did_not_learn() -> None:
    """At its temperature no other is nearer to what the teacher says of validation inputs."""
    fit, x = fitted(), digits().validation.x
    said = fit.predict(x, "moments", num_samples=8).mean(0)
    assert temperature(said, fit.predict(x, "distilled")[0]) == pytest.approx(1.0, abs=2e-3)


def test_labels_are_not_looked_at() -> None:
    data = digits()
    other = data._replace(validation=Split(data.validation.x, (data.validation.y + 1) % 10))
    first, second = fitted().student, fitted(data=other).student
    assert first is not None
    assert second is not None
    assert torch.equal(first[0], second[0])


def test_without_validation_rows_or_a_layer_that_scales_it_is_one() -> None:
    data = digits()
    none = data._replace(validation=Split(data.validation.x[:0], data.validation.y[:0]))
    for fit in (fitted(data=none), fitted("two ends")):
        assert fit.record["distilled"]["temperature"] == 1.0
        assert "distilled" in fit.ways


def test_of_draws_it_is_by_the_draws() -> None:
    fit = distilled.infer(net(), digits(), seed=0, distill_masks=2, **OPTIONS)
    assert 0.8 < fit.record["distilled"]["temperature"] != 1.0
    assert math.isfinite(fit.record["distilled"]["loss"])
