"""One pass of means and variances beside draws, of runs that there are: scores, what its factors do, doubt, time.

    python examples/benchmarks/one_pass_moments.py RUN [RUN ...] [--draws 32] [--ood NAME] [--data-dir DATA]

Of every run, on its test split: its ticket, its distilled net where it has one, `--draws` masks, and `moments` as the product
has it, without the last factor, and without any. `KL`: from twice as many other masks, nats. `doubt`: the mean of the mutual
information and its correlation with that of those masks. `AUROC`: of the mutual information (of one network the predictive
entropy), the test split against NAME's. `time`: CPU seconds over the ticket's, medians of three by turns. A run without factors
is given them, in memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import calibration, runs
from espalier.calibration import UNCERTAINTIES
from espalier.data import load
from espalier.prediction import Fit, How, equip

Predict = Callable[[torch.Tensor], NDArray[np.float64]]
"""Draws `(S, n, C)` of rows."""


def arms(fit: Fit, draws: int) -> dict[str, Predict]:
    """By name."""

    def asked(how: How, seed: int = 0, factors: Sequence[float] | None = None) -> Predict:
        def predict(x: torch.Tensor) -> NDArray[np.float64]:
            own = fit.record["moments"]["factors"]
            fit.record["moments"]["factors"] = own if factors is None else list(factors)
            try:
                return fit.predict(x, how, num_samples=draws, seed=seed).double().numpy()
            finally:
                fit.record["moments"]["factors"] = own

        return predict

    factors = fit.record["moments"]["factors"]
    found = {"ticket": asked("ticket")} | ({"distilled": asked("distilled")} if "distilled" in fit.ways else {})
    found |= {f"{draws} masks": asked("redraw"), "moments": asked("moments")}
    found["without the last factor"] = asked("moments", factors=[*factors[:-1], 1.0])
    return found | {"without factors": asked("moments", factors=[1.0] * len(factors))}


def doubt(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats; of one network its predictive entropy."""
    score = UNCERTAINTIES["mutual_information" if len(draws) > 1 else "predictive_entropy"](draws)
    return np.asarray(score, np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--ood", metavar="NAME")
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        fit, data = runs.load(folder), runs.data_of(folder, arguments.data_dir)
        fit.look_at(data)
        if "moments" not in fit.ways:
            equip(fit, data)
        x, y = data.test.x, data.test.y.numpy()
        told = fit.predict(x, "redraw", num_samples=2 * arguments.draws, seed=99).double().numpy()
        mean, own = told.mean(0), doubt(told)
        elsewhere = load(arguments.ood, data_dir=arguments.data_dir).test.x if arguments.ood else None
        print(f"\n{folder}: keep_prob {fit.keep_prob}, factors {[round(one, 2) for one in fit.record['moments']['factors']]}\n")
        print("| arm | accuracy | NLL | ECE | KL | doubt, correlation | AUROC | time |\n|---|---|---|---|---|---|---|---|")
        seconds: dict[str, list[float]] = {}
        rows: dict[str, str] = {}
        for turn in range(3):
            for name, predict in arms(fit, arguments.draws).items():
                start = time.process_time()
                draws = predict(x)
                seconds.setdefault(name, []).append(time.process_time() - start)
                if turn:
                    continue
                p, unsure = draws.mean(0), doubt(draws)
                kl = float((mean * np.log(np.maximum(mean, 1e-30) / np.maximum(p, 1e-30))).sum(-1).mean())
                scores = calibration.accuracy(p, y), calibration.nll(p, y), calibration.ece(p, y)
                row = f"| {name} | {scores[0]:.4f} | {scores[1]:.4f} | {scores[2]:.4f} | {kl:.4f} "
                alike = f"{unsure.mean():.3f} of {own.mean():.3f}, {np.corrcoef(unsure, own)[0, 1]:.2f}"
                told_apart = f"{calibration.auroc(unsure, doubt(predict(elsewhere))):.4f}" if elsewhere is not None else ""
                rows[name] = row + f"| {alike if len(draws) > 1 else ''} | {told_apart} |"
        for name, row in rows.items():
            print(f"{row} {statistics.median(seconds[name]) / statistics.median(seconds['ticket']):.1f} |")


if __name__ == "__main__":
    main()
