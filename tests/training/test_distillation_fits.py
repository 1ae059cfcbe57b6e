"""What distillation makes of a trained fit: near to its predictive, its own statistics, saved and shared modules."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from espalier import shelf
from espalier.contracts import Data
from espalier.data import from_arrays, load
from espalier.likelihoods import Normal
from espalier.network import BayesianNetwork
from espalier.prediction import evaluate
from espalier.prediction.fit import Fit
from espalier.training.distillation import distill
from espalier.training.options import Training
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


# Distillation through its program


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def plain_net(norm: bool) -> BayesianNetwork:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(30)] if norm else []
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 30), *middle, nn.ReLU(), nn.Linear(30, 10)))


@functools.cache
def distilled(norm: bool) -> Fit:
    return shelf.load("inference", "distilled")(
        plain_net(norm), digits(), sparsity=0.8, drop_rate=0.4, delta_t=10, distill_epochs=20, distill_rate=0.1, seed=1,
        training=Training(epochs=15, batch_size=32, learning_rate=0.2, device="cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("norm", [False, True])
def test_the_distilled_net_is_nearer_to_the_predictive_than_the_ticket(norm: bool) -> None:
    fit, x = distilled(norm), digits().train.x
    target = fit.predict(x, "redraw", num_samples=100).mean(0)

    def divergence(how: str) -> float:
        return float(F.kl_div(fit.predict(x, how)[0].log(), target, reduction="batchmean"))

    assert divergence("distilled") < 0.5 * min(divergence(how) for how in ("ticket", "mean", "unmasked"))
    assert [row["epoch"] for row in fit.history] == list(range(1, 36))
    assert {"validation_accuracy", "validation_nll", "validation_ece"} <= set(fit.history[-1])


def test_statistics_of_the_distilled_net_are_its_own() -> None:
    fit, x = distilled(True), digits().test.x[:50]
    weights, state = next(fit.weights("distilled"))
    by_hand = fit.model.network(weights, state)
    update_bn([[batch] for batch in digits().train.x[:320].split(32)], by_hand)
    with torch.no_grad():
        expected = by_hand.eval()(x).softmax(-1)
        torch.testing.assert_close(fit.predict(x, "distilled")[0], expected.double(), rtol=0, atol=2e-5)
        torch.testing.assert_close(fit.ticket("distilled")(x).softmax(-1), expected, rtol=0, atol=2e-5)


WRONG = {"drop_rate": 0.0, "distill_epochs": -1, "distill_rate": 0.0, "distill_masks": -1}


@pytest.mark.parametrize("option", WRONG)
def test_a_distillation_that_cannot_be_is_refused_before_any_work(option: str) -> None:
    watch = Recorder()
    training = Training(epochs=1, batch_size=32, device="cpu")
    with pytest.raises(ValueError, match="expected"):
        shelf.load("inference", "distilled")(
            plain_net(False), digits(), training=training, delta_t=5, watch=watch, **{option: WRONG[option]}
        )
    assert watch.steps == 0


def test_a_loaded_fit_is_distilled_like_the_one_that_was_saved(tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=32, device="cpu")
    fit = shelf.load("inference", "cigl")(plain_net(True), digits(), delta_t=5, training=training, drop_rate=0.3)
    fit.save(tmp_path / "fit")
    loaded, x = Fit.load(tmp_path / "fit", plain_net(True)), digits().test.x[:50]
    for one in (fit, loaded):
        distill(one, digits(), training=training, seed=5, epochs=1, learning_rate=0.1)
    assert torch.equal(loaded.predict(x, "distilled"), fit.predict(x, "distilled"))


class Twice(nn.Module):
    """One normalisation in two places: its tensors have two names."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)
        self.norm = norm(12)
        self.same = self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.same(self.again(torch.tanh(self.norm(self.first(x.flatten(1))))))))


@pytest.mark.parametrize(("norm", "how"), [(nn.LayerNorm, "distilled"), (nn.BatchNorm1d, "ticket")])
def test_the_plain_network_of_a_shared_module_predicts_what_the_fit_does(norm: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    fit = shelf.load("inference", "distilled")(
        BayesianNetwork(Twice(norm)), digits(), sparsity=0.5, drop_rate=0.3, delta_t=5, distill_epochs=2,
        distill_rate=0.2, training=Training(epochs=4, batch_size=32, device="cpu"),
    )  # fmt: skip
    x = digits().test.x[:50]
    with torch.no_grad():
        torch.testing.assert_close(fit.ticket(how)(x).softmax(-1).double(), fit.predict(x, how)[0], rtol=0, atol=2e-5)


def test_a_regression_with_a_precision_of_thousands_is_distilled_without_running_away() -> None:
    """Case A10b: plain SGD's step grows with the precision, and the student of a good fit diverged in silence."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 3))
    y = 50 * np.sin(x[:, 0]) + 20 * x[:, 1] + 0.1 * rng.normal(size=200)
    data = from_arrays(x, y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 1))
    model = BayesianNetwork(net, likelihood=Normal(4000.0))
    training = Training(epochs=80, batch_size=20, learning_rate=0.01, optimizer="adam", device="cpu")
    fit = shelf.load("inference", "distilled")(model, data, sparsity=0.3, drop_rate=0.02, delta_t=50, training=training, seed=0)
    found = evaluate(fit, data)["predict"]
    assert found["distilled"]["rmse"] < 1.2 * found["ticket"]["rmse"]


@pytest.mark.parametrize(("rate", "why"), [(30.0, "ended farther from its teacher"), (1e38, "stopped being finite")])
def test_a_student_that_runs_away_costs_no_training(rate: float, why: str) -> None:
    data = from_arrays(np.random.default_rng(4).normal(size=(200, 3)), np.arange(200) % 3)
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 3)))
    training = Training(epochs=20, batch_size=20, device="cpu")
    options = {"sparsity": 0.3, "drop_rate": 0.1, "delta_t": 50, "training": training}
    with pytest.warns(UserWarning, match=f"the fit has no distilled net: .*{why}.*lower the distill_rate"):
        fit = shelf.load("inference", "distilled")(model, data, distill_rate=rate, distill_epochs=3, **options)
    assert "distilled" not in fit.ways
    alone = shelf.load("inference", "cigl")(model, data, **options)
    assert torch.equal(fit.pairs.values, alone.pairs.values)
    with pytest.raises(RuntimeError, match="lower the distill_rate"):
        distill(fit, data, training=training, seed=0, epochs=3, learning_rate=rate)
