"""Optuna's own pruners end trainings, at the epoch and on the scores that the history says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

from digits import digits, mlp
from espalier import shelf
from espalier.adapters.tuning import Pruner
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Checkpoints, Watches
from watches import Killed

optuna.logging.set_verbosity(optuna.logging.ERROR)
EPOCHS = 5


def trained(watch: Watches, rate: float = 0.1, **options: Any) -> Fit:
    training = Training(epochs=EPOCHS, batch_size=32, learning_rate=rate, device="cpu")
    settings = {"sparsity": 0.7, "drop_rate": 0.2, "delta_t": 7, "freeze": 0.5, "average_from": 0.5, **options}
    return shelf.load("inference", "cigl")(mlp(), digits(), training=training, seed=1, watch=watch, **settings)


def study(pruner: optuna.pruners.BasePruner) -> optuna.Study:
    return optuna.create_study(direction="minimize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))


def test_what_is_reported_is_the_history_and_a_bad_trial_is_pruned() -> None:
    tried = study(optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2))
    fits: list[Fit] = []

    def objective(trial: optuna.Trial) -> float:
        fits.append(trained(Pruner(trial), rate=0.1 if trial.number == 0 else 1e-5))
        return float(fits[-1].history[-1]["validation_nll"])

    mlp()  # which seeds torch
    before = torch.get_rng_state()
    tried.optimize(objective, n_trials=2)
    first, second = tried.trials
    assert first.state.name == "COMPLETE"
    assert second.state.name == "PRUNED"
    assert first.intermediate_values == {row["epoch"]: row["validation_nll"] for row in fits[0].history}
    assert list(second.intermediate_values) == [1, 2]
    assert second.intermediate_values[2] > first.intermediate_values[2]
    assert len(fits) == 1
    assert torch.equal(before, torch.get_rng_state()), "a pruned training leaves no trace"


def test_another_column_and_direction() -> None:
    tried = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=1.1))  # beyond accuracy
    tried.optimize(lambda trial: len(trained(Pruner(trial, of="validation_accuracy")).history), n_trials=1)
    assert tried.trials[0].state.name == "PRUNED"
    assert list(tried.trials[0].intermediate_values) == [1]


def test_a_trial_that_goes_on_from_a_checkpoint_has_reported_every_epoch_once(tmp_path: Path) -> None:
    tried, kept = study(optuna.pruners.NopPruner()), tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(kept, [Pruner(tried.ask()), Killed(step=35)], every=0))
    trial = tried.ask()
    fit = trained(Checkpoints(kept, Pruner(trial), every=0))
    tried.tell(trial, fit.history[-1]["validation_nll"])
    assert tried.trials[-1].intermediate_values == {row["epoch"]: row["validation_nll"] for row in fit.history}


def test_a_column_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected validation_auc in the history to report, got epoch, step"):
        trained(Pruner(study(optuna.pruners.NopPruner()).ask(), of="validation_auc"))
