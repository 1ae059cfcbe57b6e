"""What programs are told that cannot be is refused in a sentence, before the first step; and what ends them early is borne."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Data, Fit, Split, Training, shelf
from espalier.training.watch import Watch
from fitted import digits


class Untouched(Watch):
    """Nobody may take a step."""

    def on_step(self, info: Any) -> None:
        pytest.fail("it has begun")


def run(
    inference: str, watch: Any = None, epochs: int = 3, patience: int = 0, warmup: int = 0, data: Data | None = None,
    **options: Any,
) -> Fit:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    words = {"epochs": epochs, "patience": patience, "warmup": warmup}
    training = Training(batch_size=64, device="cpu", learning_rate=0.3, **words)
    return shelf.load("inference", inference)(BayesianNetwork(net), data or digits(), training=training, watch=watch, **options)


@pytest.mark.parametrize(("inference", "options", "said"), [
    ("lottery", {"average_from": 1.5}, r"expected average_from in \[0, 1\], got 1.5"),
    ("searched", {"average_from": -0.5}, r"expected average_from in \[0, 1\], got -0.5"),
    ("lottery", {"rounds": 1.5}, "expected rounds of 1 to 100"),
    ("lottery", {"allocation": "foo"}, "expected an allocation of erk, uniform, got 'foo'"),
    ("edge_popup", {"allocation": "foo"}, "expected an allocation of erk, uniform, got 'foo'"),
    ("mean_field", {"drop_score": "foo"}, "expected a drop_score of magnitude, .* got 'foo'"),
    ("mean_field", {"accept": "foo"}, "expected accept of all, bayes-factor, joint-density, got 'foo'"),
    ("fsvi", {"drop_score": "foo"}, "expected a drop_score of magnitude, .* got 'foo'"),
    ("agent", {"rule": "gradual"}, "expected a rule of rigl, set, static here, got 'gradual'"),
    ("distilled", {"rule": "one-shot", "drop_rate": 0.1}, "expected a rule of rigl, set, static here, got 'one-shot'"),
    ("cigl", {"delta_t": 2.5, "drop_rate": 0.1}, "expected a delta_t of whole steps, got 2.5"),
    ("mean_field", {"delta_t": 2.5}, "expected a delta_t of whole steps, got 2.5"),
    *((name, {"drop_rate": "auto"}, "a number for this inference, got 'auto'") for name in ("lottery", "agent", "searched")),
    ("espn", {"drop_rate": "auto"}, "a number for this inference, got 'auto'"),
])  # fmt: skip
def test_it_is_refused_before_any_step(inference: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(inference, Untouched(), **options)


@pytest.mark.parametrize("inference", ["sghmc", "lottery", "espn", "rigl"])
def test_patience_with_nothing_to_look_at_is_refused_before_any_step(inference: str) -> None:
    blind = digits()._replace(validation=Split(digits().test.x[:0], digits().test.y[:0]))
    options = {"rewind_epochs": 2} if inference == "lottery" else {}
    with pytest.raises(ValueError, match="expected a validation split for patience"):
        run(inference, Untouched(), patience=1, data=blind, **options)


def test_patience_does_not_end_the_stages_of_an_annealed_prior() -> None:
    fit = run("sghmc", epochs=6, patience=1, refit_epochs=2, sparsity=0.5)
    assert fit.record["earlier"][0]["steps"] == 6 * (len(digits().train.y) // 64)
    with pytest.raises(ValueError, match="expected a training that reaches its mixture prior, but it was ended at step"):
        run("sghmc", Ended(), epochs=6, sparsity=0.5)


class Ended(Watch):
    def on_epoch(self, row: Any) -> str:
        return "enough"


def test_patience_does_not_end_the_training_that_weights_are_rewound_to() -> None:
    fit = run("lottery", patience=1, rounds=1, rewind_epochs=5, epochs=8)
    assert fit.record["earlier"][0]["steps"] == 5 * (len(digits().train.y) // 64)


def test_what_a_subnetwork_has_explored_is_all_that_was_ever_in_it() -> None:
    seen: list[torch.Tensor] = []

    class Looks(Watch):
        def keep(self, checkpoint: Any) -> None:
            seen.append(checkpoint().tensors["explored"])

    fit = run("edge_popup", Looks(), sparsity=0.5)
    explored = [row["explored"] for row in fit.history]
    assert 0.5 < explored[0] < explored[-1] <= 1
    assert len({tensor.numpy().tobytes() for tensor in seen}) == len(seen)


def test_a_fraction_of_training_is_the_step_that_it_says() -> None:
    training, data = Training(epochs=100, batch_size=10**6, device="cpu"), digits()
    assert [training.step_at(fraction, data) for fraction in (0.29, 0.57, 0.58, 0.995)] == [29, 57, 58, 99]


@pytest.mark.parametrize(("inference", "options"), [
    ("lottery", {"rounds": 1, "rewind_epochs": 2}),
    ("espn", {"rewind_epochs": 2, "mask_epochs": 2}),
    ("sghmc", {"refit_epochs": 3, "sparsity": 0.5, "prior_from": 0.5}),
])  # fmt: skip
def test_a_warm_up_is_of_the_training_and_not_of_what_has_a_rate_of_its_own(inference: str, options: dict[str, Any]) -> None:
    rates: list[list[float]] = []

    class Looks(Watch):
        def on_begin(self, history: Any) -> None:
            rates.append([])

        def on_epoch(self, row: Any) -> None:
            rates[-1].append(row["learning_rate"])

    steps = len(digits().train.y) // 64
    run(inference, Looks(), epochs=6, warmup=2 * steps, **options)
    warm = {"lottery": [1, 2], "espn": [0, 2], "sghmc": [0]}[inference]
    assert [phase for phase, epochs in enumerate(rates) if max(epochs) > epochs[0]] == warm
    with pytest.raises(ValueError, match="expected a warmup of fewer steps than the .* of this training, got 100000: lower it"):
        run(inference, Untouched(), warmup=10**5, **options)
