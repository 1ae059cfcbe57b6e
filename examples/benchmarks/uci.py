"""Finite deep GP by CigL beside its infinite width and a variational deep GP, on UCI regression; one path to the scores.

    python examples/benchmarks/uci.py --data-dir DATA          (about 10 minutes on one thread)

Exact GP: the arc-cosine kernel of depth 2, hyperparameters by marginal likelihood. Deep GP: GPyTorch's, doubly stochastic,
one hidden layer of 3 units. Finite: `models/deep_gp` of two hidden layers by `inference/cigl`, dense without mask, then
masked at 0, 50 and 80 % sparsity. All are fitted to the published training rows of each split and scored by
`evaluation.score` on its test rows, in the data's units. Nothing is tuned but the deep GP's
rate and steps: five settings, by the ELBO of the training rows of two sets' first split. A cell is the mean over splits with its
95 % t interval, then the difference to the exact GP, paired by split; splits share rows, so that the intervals are of the
splits, not of new data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from scipy import stats

from espalier import Data, Training, load_data, references
from espalier.inference import cigl
from espalier.models import deep_gp
from espalier.prediction.evaluation import Predictions, predictions, score

SCORES = ("rmse", "nll", "crps", "coverage_95")
WAYS = ("ticket", "redraw")
# sparsity, drop_rate
ARMS = {
    "dense net": (0.0, 0.0),
    "CigL, dense": (0.0, 0.05),
    "CigL, 50 % sparse": (0.5, 0.05),
    "CigL, 80 % sparse": (0.8, 0.05),
}


def finite(data: Data, sparsity: float, drop_rate: float, epochs: int, seed: int) -> dict[str, Predictions]:
    """Test predictions of one trained network, by way to predict; without a mask they are one."""
    torch.manual_seed(seed)  # a model draws its initial weights from torch's own stream
    model = deep_gp.model(data.shape, 1, widths=(100, 100), noise_precision=10.0)
    training = Training(epochs=epochs, batch_size=64, learning_rate=0.01, optimizer="adam")
    options = {"sparsity": sparsity, "drop_rate": drop_rate, "training": training, "seed": seed}
    fit = cigl.infer(model, data, **options)
    return predictions(fit, data, ways=WAYS if drop_rate else WAYS[:1], num_samples=32)


def split_scores(data: Data, epochs: int, steps: int, seed: int) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Scores and CPU seconds of every arm on one split."""
    found: dict[str, Predictions] = {}
    seconds: dict[str, float] = {}
    start = time.process_time()
    found["exact GP"] = references.exact_gp(data)
    seconds["exact GP"] = time.process_time() - start
    start = time.process_time()
    found["variational deep GP"] = references.deep_gp(data, steps=steps, seed=seed)
    seconds["variational deep GP"] = time.process_time() - start
    for arm, (sparsity, drop_rate) in ARMS.items():
        start = time.process_time()
        own = finite(data, sparsity, drop_rate, epochs, seed)
        for way, predicted in own.items():
            name = f"{arm}: {way}" if drop_rate else arm
            found[name], seconds[name] = predicted, time.process_time() - start
    return score(found, data), seconds


def cell(values: list[float], sign: str = "") -> str:
    """Mean and 95 % t interval."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:{sign}.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:{sign}.3f} [{mean - half:{sign}.3f}, {mean + half:{sign}.3f}]"


def table(splits: list[Mapping[str, Mapping[str, Any]]], seconds: list[Mapping[str, float]]) -> str:
    rows = [f"| arm | {' | '.join(SCORES)} | CPU s |", "|---" * (len(SCORES) + 2) + "|"]
    for arm in splits[0]:
        cells = [cell([split[arm][name] for split in splits]) for name in SCORES]
        rows.append(f"| {arm} | {' | '.join(cells)} | {statistics.mean(each[arm] for each in seconds):.1f} |")
    return "\n".join(rows)


def differences(splits: list[Mapping[str, Mapping[str, Any]]], baseline: str = "exact GP") -> str:
    rows = [f"| minus {baseline} | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 1) + "|"]
    for arm in splits[0]:
        if arm != baseline:
            cells = [cell([split[arm][name] - split[baseline][name] for split in splits], "+") for name in SCORES]
            rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["boston", "concrete", "energy"])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=300, help="of the finite networks")
    parser.add_argument("--steps", type=int, default=2000, help="of the variational deep GP")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    arguments = parser.parse_args()
    for name in arguments.sets:
        results = []
        for fold in range(arguments.splits):
            data = load_data(name, data_dir=arguments.data_dir, fold=fold, validation=0.0, calibration=0.0)
            results.append(split_scores(data, arguments.epochs, arguments.steps, seed=fold))
        scores, seconds = zip(*results, strict=True)
        print(f"\n### {name}: {len(data.train.y)} training rows, {data.shape[0]} features, {len(results)} splits\n")
        print(table(list(scores), list(seconds)))
        print(f"\n{differences(list(scores))}", flush=True)


if __name__ == "__main__":
    main()
