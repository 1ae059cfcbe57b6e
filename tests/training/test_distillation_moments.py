"""Claims about what a student is told by default, and for how long: what all masks say together, a share of the training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F

from espalier.inference import distilled
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.prediction.propagation import equip, normals
from espalier.training.distillation import STREAM, Lessons, distill
from espalier.training.options import Training
from espalier.training.streams import Streams
from espalier.training.teachers import POINTS, Teacher, Teachers, cross_entropy, even
from fitted import digits
from rounding import close
from taught import Replay, masked_fit, once, student_of
from toys import BATCH, CPU, P, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


@pytest.mark.usefixtures("float64")
def test_by_moments_it_is_told_what_all_masks_say_together() -> None:
    """Of one step, the mean softmax over outputs laid out by their means and variances: here written out in plain torch."""
    fit = masked_fit()
    data, x = toy(), toy().train.x
    fit.record |= {"shape": [3], "num_outputs": 3, "target": (0.0, 1.0), "batchnorm": "running"}
    equip(fit, data)
    *factors, last = fit.record["moments"]["factors"]
    replay, positions, values = Replay(fit), fit.topology.positions, fit.pairs.values[-1]
    loc, var = torch.zeros(24), torch.zeros(24)
    loc[positions], var[positions] = P * values, P * (1 - P) * values**2
    b1, b2 = fit.pairs.state(-1)["net.0.bias"], fit.pairs.state(-1)["net.2.bias"]
    h, h_var = F.linear(x, loc[:12].reshape(4, 3), b1), F.linear(x**2, var[:12].reshape(4, 3)) * factors[0]
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    at = torch.tanh(h.unsqueeze(-1) + h_var.sqrt().unsqueeze(-1) * nodes)
    mean = (at * weights).sum(-1)
    mean_var = (at.square() * weights).sum(-1) - mean**2
    w, v = loc[12:].reshape(3, 4), var[12:].reshape(3, 4)
    out, out_var = F.linear(mean, w, b2), (F.linear(mean_var, w**2) + F.linear(mean**2 + mean_var, v)) * factors[1] * last
    wanted = torch.stack([(out + out_var.sqrt() * point).softmax(-1) for point in normals(POINTS, 3, seed=0)]).mean(0)
    (told,) = Teacher(fit).together([x])
    torch.testing.assert_close(told.probs, wanted, rtol=0, atol=2e-3)  # tanh is by a rule of few nodes
    order = torch.randperm(BATCH, generator=Streams([5, STREAM], CPU).order)
    loss = replay.loss(x[order], Teacher(fit).together([x[order]])[0].probs)
    gradients = torch.autograd.grad(loss, replay.student)
    once(fit, data, masks=0)
    for after, before, gradient in zip(student_of(fit), replay.student, gradients, strict=True):
        assert gradient.abs().max() > 1e-4
        close(after, before - 0.1 * 1.9 * gradient)
    assert fit.record["distilled"]["masks"] == 0


def test_a_share_of_training_is_taken_where_no_epochs_are_said() -> None:
    """By moments a twenty-fifth, of draws a tenth; forty steps at least, but no more than a fifth."""
    for trained, by_moments, by_draws in (
        (20000, 800, 2000), (2000, 80, 200), (900, 40, 90), (300, 40, 40), (150, 30, 30), (3, 1, 1)
    ):  # fmt: skip
        assert Lessons().steps(7, trained) == by_moments
        assert Lessons(masks=2).steps(7, trained) == by_draws
        assert Lessons(epochs=3, masks=2).steps(7, trained) == 21
    fit = masked_fit()  # without factors of moments: one draw a step, at the rate for that
    fit.history = [{"epoch": 1, "step": 35}]
    once(fit, toy(5 * BATCH), rate=None, epochs=0, masks=0)
    told = fit.record["distilled"]
    assert {name: told[name] for name in ("steps", "epochs", "masks", "learning_rate")} == {
        "steps": 7, "epochs": 2, "masks": 1, "learning_rate": 0.02,
    }  # fmt: skip
    assert [row["step"] for row in fit.history] == [35, 40, 42]  # an epoch, and a part of one


def test_within_an_epoch_that_is_cut_short_it_resumes_bit_for_bit() -> None:
    def taught(watch: Recorder) -> Fit:
        fit = masked_fit()
        fit.history = [{"epoch": 1, "step": 60}]
        return once(fit, toy(5 * BATCH), rate=None, epochs=0, masks=2, watch=watch)

    whole = taught(first := Recorder())
    assert len(first.checkpoints) == 4
    for saved in first.checkpoints[1:]:
        again = taught(watch := Recorder(saved))
        assert watch.steps == 12 - saved.facts["step"]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(student_of(again), student_of(whole), strict=True))
        assert again.history == whole.history


class InParts(torch.nn.Module):
    """A network that goes by the number of rows: more than 128 are asked for in parts."""

    def __init__(self, rows: int = 128) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = rows
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.net(part) for part in x.split(self.rows)])


def test_moments_that_fail_at_a_batch_cost_no_training() -> None:
    training = Training(epochs=3, batch_size=100, device="cpu")
    options: dict[str, Any] = {"drop_rate": 0.2, "delta_t": 5, "training": training}
    with pytest.warns(UserWarning, match="the fit has no distilled net: moments of a batch failed .*: say how many draws"):
        fit = distilled.infer(BayesianNetwork(InParts()), digits(), **options)
    assert "moments" in fit.ways
    assert "distilled" not in fit.ways
    assert not fit.model.training
    with pytest.raises(ValueError, match="expected one of .*, got 'distilled': moments of a batch failed .*: say how many draws"):
        fit.predict(digits().test.x, "distilled")
    assert "distilled" in distill(fit, digits(), training=training, seed=0, masks=1).ways
    assert "refused" not in fit.record


def test_moments_that_fail_at_the_end_cost_none_either() -> None:
    """In batches of 400 rows they are right, and of the 512 by which the end is compared they are not."""
    training = Training(epochs=3, batch_size=200, device="cpu")
    with pytest.warns(UserWarning, match="the fit has no distilled net: moments of a batch failed .*: say how many draws"):
        fit = distilled.infer(BayesianNetwork(InParts(450)), digits(), drop_rate=0.2, delta_t=5, training=training)
    assert "moments" in fit.ways
    assert not fit.model.training


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_a_step_an_epoch_that_runs_away_costs_none_either(rate: float) -> None:
    """What is not finite is seen when it is validated."""
    training = Training(epochs=6, batch_size=2000, device="cpu")
    model = BayesianNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    with pytest.warns(UserWarning, match="the fit has no distilled net: .*lower the distill_rate"):
        fit = distilled.infer(model, digits(), drop_rate=0.2, delta_t=2, training=training, distill_rate=rate)
    assert not fit.model.training


def test_a_class_that_is_ruled_out_stays_so() -> None:
    """Of the mean over points its chance is 0 and not almost."""
    chances = [torch.tensor([[0.0, 0.25, 0.75]]), torch.tensor([[0.0, 0.5, 0.5]])]
    (told,) = even([dist.Categorical(logits=each.log()) for each in chances])
    assert torch.equal(told.probs, torch.tensor([[0.0, 0.375, 0.625]]))
    own = dist.Categorical(logits=torch.tensor([[-math.inf, 0.3, 0.1]]))
    expected = -(0.375 * own.logits[0, 1] + 0.625 * own.logits[0, 2])
    torch.testing.assert_close(cross_entropy(told, own), expected.reshape(1))


def test_what_is_told_of_several_batches_is_what_is_told_of_each() -> None:
    fit, data = masked_fit(), toy(3 * BATCH)
    fit.record |= {"shape": [3], "num_outputs": 3, "target": (0.0, 1.0), "batchnorm": "running"}
    equip(fit, data)
    teachers, batches = Teachers([fit, fit], masks=0), [*data.train.x.split([BATCH, BATCH - 2, 2 + BATCH])]
    told = teachers.tell(batches, torch.Generator(), 5)
    assert [len(one) for one in told] == [2, 2, 2]  # a teacher each
    for x, one in zip(batches, told, strict=True):
        for own in one:
            torch.testing.assert_close(own.probs, Teacher(fit).together([x], 5)[0].probs)
