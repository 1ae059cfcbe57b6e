"""Claims about the last look: it minimises what it says it does, by probabilities that `predict` gives, and leaves alone what it
cannot look at."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Data, Fit, Training
from espalier.inference import cigl
from espalier.prediction import equip
from espalier.training import last_look
from espalier.training.last_look import HIGHEST, LOWEST, POINTS, SPREAD, TURNS, WIDEST, log_probs, look, lowest, turned
from fitted import digits, regression, trained


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def angle(rate: float) -> float:
    return math.asin(math.sqrt(rate))


def of_classes() -> Fit:
    fit = copy.copy(trained("mlp")[0])
    fit.record, fit.statistics = dict(fit.record), dict(fit.statistics)
    equip(fit, digits())
    return fit


def test_log_probabilities_are_those_of_what_is_predicted() -> None:
    fit, x, y = of_classes(), digits().validation.x, digits().validation.y
    probs = fit.predict(x, "moments", num_samples=POINTS).mean(0)
    torch.testing.assert_close(log_probs(fit, x, y), probs[torch.arange(len(y)), y].log())


def test_of_a_regression_they_are_the_mixtures() -> None:
    data, fit = regression()
    x, y = data.validation.x, data.validation.y
    means, deviations = fit.predict(x, "moments", num_samples=POINTS).unbind(-1)  # in the units of the data
    scale = float(torch.as_tensor(data.target_scale))
    laws = torch.distributions.Normal(means.flatten(2)[..., 0] if means.dim() > 2 else means, deviations.view_as(means))
    each = laws.log_prob(data.in_units(y).view(1, *means.shape[1:]))
    expected = torch.logsumexp(each, 0) - math.log(len(means)) + math.log(scale)
    torch.testing.assert_close(log_probs(fit, x, y), expected.flatten(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [0.02, 0.2, 0.4])
def test_it_ends_where_validation_rows_are_predicted_best(start: float) -> None:
    """By a fine grid of its own over the same range, of what `predict` says."""
    fit, data = of_classes(), digits()
    x, y = data.validation.x, data.validation.y
    assert look(fit, data, [angle(start)], stream()) == (len(y), len(TURNS) * len(y) * 2)
    found = math.log(angle(1 - float(np.mean(fit.keep_prob))) / angle(start))

    def loss(turn: float) -> float:
        turned(fit, [angle(start) * math.exp(turn)])
        probs = fit.predict(x, "moments", num_samples=POINTS).mean(0)
        return float(-probs[torch.arange(len(y)), y].log().mean()) + turn**2 / (2 * SPREAD**2 * len(y))

    grid = np.linspace(-WIDEST, WIDEST, 81)
    best = grid[np.argmin([loss(turn) for turn in grid])]
    assert found == pytest.approx(best, abs=0.02)


def test_a_cubic_has_its_minimum_found_and_no_parabola_would() -> None:
    def function(turn: float) -> float:
        return 3.0 * (turn + 0.03) ** 2 + 6.0 * (turn + 0.03) ** 3

    assert lowest([function(turn) for turn in TURNS]) == pytest.approx(-0.03, abs=1e-3)
    parabola = np.polynomial.Polynomial.fit(TURNS, [function(turn) for turn in TURNS], 2).deriv().roots()
    assert abs(parabola[0] + 0.03) > 0.01
    assert lowest([1.0, 0.9, 0.5, 0.0]) == WIDEST
    assert lowest([1.0, math.nan, 0.5, 0.0]) == lowest([math.inf, 0.9, 0.5, 0.0]) == 0.0


def test_of_few_rows_the_rules_rate_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far off: nats per row that speak for other rates are set against one deviation of `SPREAD`."""
    slope, rows = 2.0, list[int]()

    def pretended(_: Fit, __: object, y: Tensor) -> Tensor:
        rows.append(len(y))
        return torch.full((len(y),), slope * TURNS[(len(rows) - 1) % len(TURNS)], dtype=torch.float64)

    monkeypatch.setattr(last_look, "log_probs", pretended)
    for count in (1, 4):
        fit, data = of_classes(), digits()
        few = data._replace(validation=data.validation._replace(x=data.validation.x[:count], y=data.validation.y[:count]))
        look(fit, few, [angle(0.1)], stream())
        found = math.log(angle(1 - float(np.mean(fit.keep_prob))) / angle(0.1))
        assert found == pytest.approx(slope * count * SPREAD**2, abs=2e-3)  # the posterior's mode, of a line


def test_layers_turn_together_and_stay_rates() -> None:
    fit = of_classes()
    before = [angle(0.3), angle(0.05)]
    look(fit, digits(), before, stream())
    assert isinstance(fit.keep_prob, tuple)
    turns = [math.log(angle(1 - p) / own) for p, own in zip(fit.keep_prob, before, strict=True)]
    assert turns[0] == pytest.approx(turns[1], abs=2e-3)  # of 16-bit draws
    assert fit.record["keep_prob"] == fit.keep_prob
    turned(fit, [angle(0.49) * 1.2, 1e-9])
    assert fit.keep_prob == (1 - HIGHEST, 1 - LOWEST)


def test_the_mean_network_of_a_convolution_has_its_statistics_anew() -> None:
    fit = copy.copy(trained("conv")[0])
    fit.record, fit.statistics = dict(fit.record), dict(fit.statistics)
    fit.look_at(digits())
    name = "net.1.running_var"
    before, others = fit.statistics["mean"][name].clone(), {how: fit.statistics[how] for how in ("ticket", "unmasked")}
    turned(fit, [angle(0.4)])
    assert not torch.allclose(fit.statistics["mean"][name], before, rtol=1e-3)
    assert all(fit.statistics[how] is own for how, own in others.items())
    turned(fit, [angle(0.2)])
    torch.testing.assert_close(fit.statistics["mean"][name], before, rtol=1e-3, atol=1e-5)


def test_a_network_without_moments_keeps_the_rules_rate() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.cell, self.last = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.cell(self.first(x.flatten(1).view(-1, 8, 8)))[0][:, -1])
            return found

    data: Data = digits()
    torch.manual_seed(0)
    training = Training(epochs=6, batch_size=64, device="cpu")
    fit = cigl.infer(BayesianNetwork(Recurrent()), data, sparsity=0.5, delta_t=20, training=training)
    own, rates = fit.record["drop_rate"], [row["drop_rate"] for row in fit.history]
    assert own["found"] == own["followed"] == rates[-1]
    assert "moments" not in fit.ways


def test_where_a_look_fails_the_rules_rate_stays() -> None:
    """The training is over: nothing that a network does with other rows than it had may cost it."""

    class Chunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 12), nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            parts = x.flatten(1).split(64) if len(x) > 128 else [x.flatten(1)]
            found: Tensor = self.last(torch.cat([self.first(part).relu() for part in parts]))
            return found

    torch.manual_seed(0)
    training = Training(epochs=20, batch_size=128, device="cpu")
    fit = cigl.infer(BayesianNetwork(Chunks()), digits(), sparsity=0.5, delta_t=20, training=training)
    assert len(digits().validation.y) > 128
    own = fit.record["drop_rate"]
    assert own["found"] == own["followed"] == fit.history[-1]["drop_rate"]


def test_a_training_that_was_stopped_before_the_first_look_has_none() -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    fit = cigl.infer(model, digits(), training=Training(epochs=1, batch_size=128, device="cpu"))
    assert fit.record["drop_rate"]["forward_examples"] == 0
    assert fit.record["drop_rate"]["found"] == fit.record["drop_rate"]["followed"]


def test_the_turns_are_even_about_the_rules_rate() -> None:
    turns: Sequence[float] = TURNS
    assert sum(turns) == pytest.approx(0)
    assert max(turns) < WIDEST
