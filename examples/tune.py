"""Tuning with Optuna: sparsity and drop rate, on validation rows; trials that are not worth their time are pruned.

python examples/tune.py                   (half a minute; scikit-learn's digits; pip install 'espalier[optuna]')
"""

from __future__ import annotations

import optuna
import torch

from espalier import Training, load_data
from espalier.adapters import Pruner
from espalier.inference import cigl
from espalier.models import mlp


def main(trials: int = 20, epochs: int = 15, seed: int = 0) -> optuna.Study:
    data = load_data("digits", train_size=600)

    def objective(trial: optuna.Trial) -> float:
        torch.manual_seed(seed)
        model = mlp.model(data.shape, data.num_outputs, hidden=(64, 64))
        sparsity = trial.suggest_float("sparsity", 0.5, 0.99)
        drop_rate = trial.suggest_float("drop_rate", 0.01, 0.4, log=True)
        training = Training(epochs=epochs, batch_size=50)
        fit = cigl.infer(
            model, data, sparsity=sparsity, drop_rate=drop_rate, delta_t=10, training=training, seed=seed, watch=Pruner(trial)
        )
        return float(fit.history[-1]["validation_nll"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=4)
    )
    study.optimize(objective, n_trials=trials)
    print("trial  sparsity  drop rate  epochs  validation NLL")
    for trial in study.trials:
        values, how = trial.params, "" if trial.state.name == "COMPLETE" else trial.state.name.lower()
        row = f"{trial.number:5d}  {values['sparsity']:8.3f}  {values['drop_rate']:9.3f}  {len(trial.intermediate_values):6d}"
        print(f"{row}  {trial.value:14.3f}  {how}")
    best = study.best_trial
    print(f"best: trial {best.number}, NLL {best.value:.3f}, {100 * best.params['sparsity']:.0f} % sparse")
    return study


if __name__ == "__main__":
    main()
