"""Features of a fit's network by any layer's name, and the doubts of single networks that are made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from digits import digits
from espalier import Training, calibration, shelf
from espalier.calibration.features import DensityScore, LaplaceScore, NeighbourScore
from espalier.network import BayesianNetwork
from espalier.prediction import OnePass, energy, features_of
from espalier.prediction.features import gives_logits
from espalier.prediction.fit import Fit
from fitted import regression, trained


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))


def fitted(**options: Any) -> Fit:
    training = Training(epochs=6, batch_size=32, learning_rate=0.1, device="cpu", **options)
    infer = shelf.load("inference", "distilled")
    return infer(BayesianNetwork(net()), digits(), drop_rate=0.1, delta_t=9, training=training, seed=1)


@pytest.mark.parametrize("way", ["ticket", "unmasked", "distilled"])
def test_features_are_what_the_layer_of_the_plain_network_is_given(way: Any) -> None:
    fit, x = fitted(), digits().test.x[:70]
    plain = fit.ticket(way)
    with torch.no_grad():
        hidden = plain[2](plain[1](x.flatten(1)))  # type: ignore[index]
        expected = {"3": hidden, None: hidden.relu(), "1": x.flatten(1)}
    for layer, tensor in expected.items():
        assert np.allclose(features_of(fit, x, way, layer), tensor.double().numpy(), atol=1e-5)


def test_scores_are_fitted_on_training_rows_of_the_same_network() -> None:
    fit, data = fitted(), digits()
    found = OnePass(fit, data, "distilled").uncertainties(data.test.x)
    known, new = features_of(fit, data.train.x, "distilled"), features_of(fit, data.test.x, "distilled")
    labels, plain = data.train.y.numpy(), fit.ticket("distilled")
    matrix, bias = plain[4].weight.detach().numpy(), plain[4].bias.detach().numpy()  # type: ignore[index]
    expected = NeighbourScore.fit(known, labels).uncertainties(new) | DensityScore.fit(known, labels).uncertainties(new)
    expected |= LaplaceScore.fit(known, matrix, bias, prior_scale=fit.record["prior_scale"]).uncertainties(new)
    expected |= {"energy": energy(fit, data.test.x, "distilled")}
    expected |= {"max_probability": 1 - fit.predict(data.test.x, "distilled")[0].max(-1).values.numpy()}
    assert set(found) == set(expected)
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name], scores, rtol=1e-4, atol=1e-6, err_msg=name)
    noise = torch.randn(200, *data.shape, generator=torch.Generator().manual_seed(0)) * 3
    outside = OnePass(fit, data, "ticket").uncertainties(noise)
    inside = OnePass(fit, data, "ticket").uncertainties(data.test.x)
    assert calibration.auroc(inside["nuq_epistemic"], outside["nuq_epistemic"]) > 0.9
    assert calibration.auroc(inside["density"], outside["density"]) > 0.9


def test_what_has_no_such_features_is_refused() -> None:
    fit, data = fitted(), digits()
    with pytest.raises(ValueError, match="expected features of one network, ticket, mean, unmasked, distilled, got 'redraw'"):
        features_of(fit, data.test.x, "redraw")
    with pytest.raises(ValueError, match="expected a layer of 0, 1, 2, 3, 4, got 'head'"):
        features_of(fit, data.test.x, "ticket", "head")
    of_targets, own = regression()
    with pytest.raises(ValueError, match="expected one label per example for scores of features"):
        OnePass(own, of_targets)


class Heads(nn.Module):
    """A head that is defined before its body, or one whose outputs are scaled after it; or used twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {"head": nn.Linear(16, 10), "body": nn.Linear(64, 16)}
        for name in layers if kind == "first" else reversed(layers):
            self.add_module(name, layers[name])
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.relu(self.body(x.flatten(1))))
        if self.kind == "twice":
            logits = logits + self.head(torch.tanh(self.body(x.flatten(1))))
        return 5 * logits if self.kind == "scaled" else logits


@pytest.mark.parametrize("kind", ["first", "scaled", "twice", "last"])
def test_a_last_layer_that_does_not_give_the_logits_is_told_by_what_it_gives(kind: str) -> None:
    data = digits()
    training = Training(epochs=2, batch_size=32, learning_rate=0.1, device="cpu")
    fit = shelf.load("inference", "rigl")(BayesianNetwork(Heads(kind)), data, delta_t=9, training=training)
    x = data.test.x[:40]
    if kind == "last":
        found = OnePass(fit, data).uncertainties(x)["max_probability"]
        np.testing.assert_allclose(found, 1 - fit.predict(x, "ticket")[0].max(-1).values.numpy(), atol=1e-6)
        return
    assert not gives_logits(fit, x)
    with pytest.raises(ValueError, match="expected a network whose last layer is Linear and gives logits"):
        OnePass(fit, data)


def test_only_a_last_linear_layer_gives_logits() -> None:
    assert gives_logits(trained("mlp")[0], digits().test.x[:8])
    training = Training(epochs=1, batch_size=32, device="cpu")
    soft = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(-1)))
    with pytest.warns(UserWarning, match="takes logits: leave its softmax out"):
        other = shelf.load("inference", "static")(soft, digits(), training=training)
    assert not gives_logits(other, digits().test.x[:8])
    data, targets = regression()
    assert not gives_logits(targets, data.test.x[:8])
