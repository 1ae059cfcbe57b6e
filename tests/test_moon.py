"""MOON's loss (in losses): weights, gradient and alpha by hand; its unknown class; runs, scores and exports of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from digits import digits
from espalier import likelihoods, losses, prediction, runs, shelf
from espalier.cli.main import main
from espalier.losses import Moon, Progress, abstaining
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Watches
from watches import killed_and_resumed

LOGITS = [[1.2, -0.3, 0.4, 0.1], [0.2, 0.9, -1.0, 2.0], [0.0, 0.3, 0.5, -0.7]]
LABELS = torch.tensor([0, 1, 0])


def test_wrong_ones_weigh_more_the_less_they_say_unknown() -> None:
    """By hand: right, its label the largest of all four; wrong, for "unknown" is the largest; wrong by a class."""
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    alpha, expected = 0.4, []
    for row, y in zip(LOGITS, LABELS.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        weight = 1.0 if p.argmax() == y else 1 + alpha / (1 + alpha * p[-1])
        expected.append(-weight * np.log(p[y]))
    found = abstaining(z, LABELS, alpha)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert expected[1] / -np.log(np.exp(0.9) / np.exp(LOGITS[1]).sum()) < 1.4  # of .6 on "unknown"

    (gradient,) = torch.autograd.grad(found.sum(), z)
    step = 1e-6
    for place in np.ndindex(3, 4):
        moved = [torch.tensor(LOGITS, dtype=torch.float64) for _ in range(2)]
        for sign, own in zip((1, -1), moved, strict=True):
            own[place] += sign * step
        slope = (abstaining(moved[0], LABELS, alpha).sum() - abstaining(moved[1], LABELS, alpha).sum()) / (2 * step)
        assert float(gradient[place]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_alpha_begins_at_a_64th_of_the_first_epochs_mean_and_ends_at_one() -> None:
    """Two epochs of three steps without it; then of ten epochs alpha_0 in the third, 1 in the last, in equal steps between."""
    stream, moon, mean = torch.Generator().manual_seed(0), Moon(2), None
    nobody: Any = (None, None)  # whom it does not ask
    for taken in range(6):
        z, y = torch.randn(5, 4, generator=stream), torch.randint(3, (5,), generator=stream)
        with torch.no_grad():  # the loop looks at the program before its first step, and before that of a resume
            moon(z[:3], y[:3], Progress(taken, 30, 10))
        found = moon(z, y, Progress(taken, 30, 10))
        assert torch.equal(found, losses.cross_entropy(z, y))
        moon(z[:2], y[:2], Progress(taken, 30, 10))  # what is asked twice counts once, as the step asked it first
        moon.told(Progress(taken + 1, 30, 10), *nobody)
        moon.told(Progress(taken + 1, 30, 10), *nobody)
        p = z.double().softmax(1)
        new = float(((1 - p[:, -1]) * -p.gather(1, y[:, None])[:, 0].log()).mean())
        mean = new if mean is None else 0.95 * mean + 0.05 * new
    assert moon.memory["mean"] == pytest.approx(mean, rel=1e-5)
    start = moon.memory["mean"] / 64
    by_epoch = [moon.alpha(Progress(3 * (epoch - 1) + 2, 30, 10)) for epoch in range(3, 11)]
    assert by_epoch == pytest.approx([start + (1 - start) * k / 7 for k in range(8)])
    z, y = torch.randn(5, 4, generator=stream), torch.randint(3, (5,), generator=stream)
    assert torch.equal(moon(z, y, Progress(6, 30, 10)), abstaining(z, y, start))


def test_the_likelihood_renormalises_and_keeps_what_is_unknown() -> None:
    z = torch.tensor(LOGITS, dtype=torch.float64)
    outcome = likelihoods.WithUnknown()(z)
    p = z.softmax(-1)
    assert torch.allclose(outcome.unknown, p[:, -1], rtol=1e-12)
    assert torch.allclose(outcome.probs, p[:, :-1] / p[:, :-1].sum(-1, keepdim=True), rtol=1e-12)


def network() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 11)), likelihood="categorical-unknown"
    )


def trained(watch: Watches = None, model: BayesianNetwork | None = None, **options: Any) -> Fit:
    training = Training(epochs=4, batch_size=32, learning_rate=0.1, device="cpu", loss="moon:1", **options)
    infer = shelf.load("inference", "cigl")
    return infer(model or network(), digits(), drop_rate=0.1, delta_t=7, training=training, seed=1, watch=watch)


def test_scores_say_whether_they_are_renormalised() -> None:
    fit, x = trained(), digits().test.x[:40]
    assert fit.record["loss"] == "moon:1"
    found = prediction.uncertainties(fit, x, "pairs")
    renormalised = fit.predict(x, "pairs").mean(0)
    assert renormalised.shape == (40, 10)
    assert np.allclose(found["max_probability"], 1 - renormalised.max(-1).values.numpy())
    every = torch.stack([fit.model.evaluate(w, x, s).double().softmax(-1) for w, s in fit.weights("pairs")]).mean(0)
    assert np.allclose(found["unknown_probability"], every[:, -1].detach().numpy(), atol=1e-6)
    assert np.allclose(found["max_open_probability"], 1 - every[:, :-1].max(-1).values.detach().numpy(), atol=1e-6)
    fit.model.likelihood = likelihoods.Categorical()
    with pytest.raises(ValueError, match="expected uncertainties of predictive_entropy"):
        prediction.uncertainties(fit, x, "mean", names=["max_open_probability"])


@pytest.mark.parametrize("step", [5, 13])
def test_killed_before_or_after_alpha_begins_it_resumes_bit_for_bit(step: int, tmp_path: Path) -> None:
    fit = trained()
    again = killed_and_resumed(trained, tmp_path, step)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_by_command_line_the_program_gets_its_output_and_the_folder_all_that_follows(tmp_path: Path) -> None:
    run, folder = tmp_path / "run", tmp_path / "folder"
    arguments = "fit --model mlp --hidden 20 --inference rigl --data digits --epochs 3 --delta-t 5 --loss moon:1 --device cpu"
    main([*arguments.split(), "--out", str(run)])
    fit, data = espalier.load(run), runs.data_of(run)
    assert fit.model.shapes[-1] == (11, 20)
    assert fit.predict(data.test.x[:5]).shape == (1, 5, 10)
    main(["evaluate", str(run), "--num-samples", "2"])
    main(["export", str(run), "--to", str(folder)])
    net = espalier.from_pretrained(folder)
    assert torch.allclose(net.network(data.test.x[:5]), fit.ticket()(data.test.x[:5]), atol=1e-5)
    rows = data.test.x[:5].double() * 3
    assert torch.allclose(net(rows), fit.predict(data.inputs(rows), "ticket")[0], atol=1e-6)


def test_what_it_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a network with 10 outputs"):  # without the likelihood that has one more
        trained(model=BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 11))))
    with pytest.raises(ValueError, match="expected a whole number of epochs of plain cross-entropy, at least 1, got 0"):
        losses.named("moon:0")
    with pytest.raises(ValueError, match="expected a network with 10 outputs"):
        trained(model=BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), likelihood="categorical-unknown"))


def test_under_a_control_variate_it_is_told_the_steps_own_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot's, on the same batch, come afterwards."""
    asked: list[float] = []
    counted: list[float] = []
    real_call, real_told = Moon.__call__, Moon.told

    def call(moon: Moon, logits: Any, y: Any, progress: Progress) -> Any:
        if torch.is_grad_enabled():  # by the steps
            asked.append(float(((1 - logits.detach().softmax(-1)[..., -1]) * losses.cross_entropy(logits.detach(), y)).mean()))
        return real_call(moon, logits, y, progress)

    def told(moon: Moon, *rest: Any) -> None:
        counted.append(float(moon.seen) if moon.seen is not None else float("nan"))
        assert counted[-1] == asked[0] or np.isnan(counted[-1])
        asked.clear()
        real_told(moon, *rest)

    monkeypatch.setattr(Moon, "__call__", call)
    monkeypatch.setattr(Moon, "told", told)
    model = losses.built(shelf.load("models", "mlp"), (64,), 10, "moon:1", hidden=(8,))
    training = Training(epochs=2, batch_size=32, device="cpu", loss="moon:1")
    shelf.load("inference", "agent")(model, digits(), drop_rate=0.2, delta_t=3, training=training)
    assert sum(np.isfinite(counted)) >= 4
