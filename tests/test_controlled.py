"""The controller of the gradient decay (in losses): its arithmetic, what it looks at, and what it does to a training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from digits import digits, mlp
from espalier import losses, shelf
from espalier.contracts import Data
from espalier.losses import Controlled, Progress, gradient_decay
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Watches
from watches import killed_and_resumed


def test_the_controller_is_a_pid_that_does_not_wind_up() -> None:
    own = Controlled(4.0, 0.5, 2.0)
    own.step(0.1)
    assert own.memory == pytest.approx({"log_b": 4 * 0.1 + 0.5 * 0.1 + 2 * 0.1, "sum": 0.1, "last": 0.1})
    own.step(0.04)
    assert own.memory == pytest.approx({"log_b": 4 * 0.04 + 0.5 * 0.14 - 2 * 0.06, "sum": 0.14, "last": 0.04})
    own.step(-0.5)  # less sure than right: b is 1, and no debt is kept
    assert own.memory == pytest.approx({"log_b": 0.0, "sum": 0.14, "last": -0.5})
    own.step(3.0)
    assert own.memory == pytest.approx({"log_b": math.log(1000), "sum": 0.14, "last": 3.0})


def test_the_pull_on_the_labels_is_as_large_as_that_of_the_likelihood() -> None:
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    y = torch.arange(40) % 5
    own = Controlled()
    plain = own(z, y, Progress(0, 10, 1))
    assert torch.allclose(plain, F.cross_entropy(z, y, reduction="none"), rtol=1e-12)
    own.memory["log_b"] = math.log(7.0)
    found = own(z, y, Progress(0, 10, 1))
    pulls = [torch.autograd.grad(loss.sum(), z, retain_graph=True)[0].gather(1, y[:, None]) for loss in (plain, found)]
    assert float(pulls[1].sum()) == pytest.approx(float(pulls[0].sum()), rel=1e-9)
    share = found / gradient_decay(z, y, 7.0)
    assert torch.allclose(share, share[:1].expand(40), rtol=1e-10)


def trained(watch: Watches = None, loss: str = "gradient-decay-pid", data: Data | None = None, **options: Any) -> Fit:
    training = Training(epochs=8, batch_size=16, learning_rate=0.2, device="cpu", loss=loss, **options)
    infer = shelf.load("inference", "rigl")
    return infer(mlp(), data or digits(), sparsity=0.5, delta_t=9, training=training, seed=1, watch=watch)


def test_b_follows_how_much_surer_than_right_the_network_is() -> None:
    """By hand from the last row's network: what the controller saw at the end of training is what the posterior mean says."""
    fit, data = trained(loss="gradient-decay-pid:10:0:0"), digits()
    assert fit.record["loss"] == "gradient-decay-pid:10:0:0"
    p = fit.predict(data.validation.x, "mean")[0]
    accuracy = float((p.argmax(-1) == data.validation.y).double().mean())
    error = (float(p.max(-1).values.mean()) - accuracy) / accuracy
    assert fit.history[-1]["b"] == pytest.approx(math.exp(min(max(10 * error, 0), Controlled.MOST)), rel=1e-4)
    assert all(row["b"] >= 1 for row in fit.history)


def test_it_is_less_sure_than_without() -> None:
    strong, plain = trained(loss="gradient-decay-pid:200:20:0"), trained(loss="likelihood")
    assert max(row["b"] for row in strong.history) > 2
    confidence = [float(fit.predict(digits().test.x, "mean")[0].max(-1).values.mean()) for fit in (strong, plain)]
    assert confidence[0] < confidence[1]


@pytest.mark.parametrize("step", [33, 61])
def test_killed_and_resumed_b_is_the_same(step: int, tmp_path: Path) -> None:
    fit = trained()
    again = killed_and_resumed(trained, tmp_path, step)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_it_needs_gains_and_a_validation_split() -> None:
    with pytest.raises(ValueError, match="expected gains of 0 or more, not all 0, got -1, 2 and 0"):
        losses.named("gradient-decay-pid:-1")
    none = digits().validation._replace(x=digits().validation.x[:0], y=digits().validation.y[:0])
    with pytest.raises(ValueError, match="expected a validation split with one label per example for loss gradient-decay-pid"):
        trained(data=digits()._replace(validation=none))
