"""Function-space variational inference from end to end: what its fits are, record and cost, and that they resume."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from digits import digits, mlp
from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.prediction import costs
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Watches
from watches import killed_and_resumed


def run(
    watch: Watches = None, model: BayesianNetwork | None = None, inference: str = "fsvi", rate: float = 0.1, **options: Any
) -> Fit:
    training = Training(epochs=5, batch_size=32, learning_rate=rate, device="cpu")
    options = {"sparsity": 0.7, "delta_t": 7, "freeze": 0.5, "noise_scale": 0.05, **options}
    return shelf.load("inference", inference)(model or mlp(), digits(), training=training, seed=1, watch=watch, **options)


@functools.cache
def trained(context: str = "train") -> Fit:
    return run(context=context)


def test_the_history_has_the_kl_of_functions_and_none_of_the_weights() -> None:
    fit = trained()
    assert [row["kl"] for row in fit.history] == [0.0] * 5
    kls = [row["function_space_kl"] for row in fit.history]
    assert all(kl > 0 for kl in kls)
    assert fit.record["kl_scale"] == 0.0
    assert fit.record["function_space"] == {
        "context": "train", "context_rows": 320, "context_points": 32, "linearised": "last-layer", "kl_scale": 1.0, "kl": kls[-1],
        "forward_examples": 3 * 47 * 32,  # of 50 steps three are moves
        "multiply_adds": 3 * 47 * 32**2 * (2 * fit.topology.counts[-1] + 10 * 32),
    }  # fmt: skip
    assert sum(row["moves"] for row in fit.history) == 3


def test_it_costs_what_mean_field_does_and_its_context_points() -> None:
    fit, plain = trained(), run(inference="mean_field")
    own, theirs = costs.costs(fit), costs.costs(plain)
    layers = {"1.weight": 30 * 64, "3.weight": 10 * 30}
    counts = dict(zip(layers, fit.topology.counts, strict=True))
    more = fit.record["function_space"]["forward_examples"] * sum(counts.values()) + fit.record["function_space"]["multiply_adds"]
    assert own["train_flops"] - theirs["train_flops"] == pytest.approx(2 * more)
    assert own["inference_flops"] == theirs["inference_flops"]


@pytest.mark.parametrize("linearised", ["last-layer", "all"])
def test_a_strong_prior_over_functions_is_followed(linearised: str) -> None:
    """At a tempering of 30 the means of the last layer go to the prior's, and so do its deviations."""

    def last(scale: float) -> tuple[float, float]:
        model = mlp()
        model.prior_scale = 0.1
        fit = run(model=model, kl_scale=scale, linearised=linearised, context_points=40, rate=0.01)
        first = fit.topology.num_active - fit.topology.counts[-1]
        assert fit.pairs.scales is not None
        return float(fit.pairs.values[-1, first:].abs().mean()), float(fit.pairs.scales[-1, first:].mean())

    (weak, near), (strong, far) = last(0.01), last(30.0)
    assert strong < 0.6 * weak
    assert 0.0499 < near < far - 0.001 < 0.1


@pytest.mark.parametrize(("context", "step"), [("train", 7), ("train", 33), ("corrupted", 25)])
def test_killed_and_resumed_it_is_the_same_fit(context: str, step: int, tmp_path: Path) -> None:
    fit = trained(context)
    again = killed_and_resumed(lambda watch: run(watch, context=context), tmp_path, step)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)
    assert torch.equal(again.pairs.scales, fit.pairs.scales)
    assert again.record == fit.record


def test_the_context_is_part_of_what_is_learned() -> None:
    own = run(context=digits().validation.x)
    assert own.record["function_space"]["context"] == "own"
    fits = [trained(), trained("corrupted"), own]
    assert len({float(fit.pairs.values.sum()) for fit in fits}) == 3


def test_what_cannot_be_done_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="^expected another world than the run's own, got digits, which it was trained on"):
        run(context="digits")
    with pytest.raises(ValueError, match="^expected 1 to 1,000 context_points, got 0"):
        run(context_points=0)
    images = shelf.load("models", "mlp")((1, 8, 8), 10, hidden=(400,))
    with pytest.raises(ValueError, match="^expected a network of at most 10,000 weights and without batch norm"):
        run(model=images, linearised="all")
