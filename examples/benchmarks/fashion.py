"""CigL against RigL on Fashion-MNIST with `lenet`, at 90 % and 99 % sparsity, in two regimes; same budget, same seeds.

    python examples/benchmarks/fashion.py --out runs/fashion          (about 90 minutes; skips finished runs)

interpolating: 10,000 training images, 60 epochs; under-trained: all 48,000 training images, 5 epochs. Both arms share every
setting but the inference's own; nothing is tuned here (drop_rate 0.1 is the paper's). The tables give the mean over seeds
and, in brackets, their standard deviation, then CigL minus RigL, paired by seed, with its 95 % t interval (2 degrees of
freedom); ece_15_floor is what a perfectly calibrated predictor of these confidences would score.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from scipy import stats

from espalier import runs
from espalier.cli.progress import Bar
from espalier.prediction.evaluation import evaluate
from espalier.prediction.fit import WAYS
from espalier.runs.recipes import resolve

REGIMES = {
    "interpolating": ["--train-size=10000", "--epochs=60"],
    "under-trained": ["--epochs=5"],
}
COMMON = ["--model=lenet", "--data=fashion-mnist", "--rate=cosine", "--learning-rate=0.05", "--batch-size=128"]
ARMS = {"rigl": ["--inference=rigl"], "cigl": ["--inference=cigl", "--drop-rate=0.1"]}
COLUMNS = ("accuracy", "nll", "brier", "ece_10", "ece_15", "ece_15_floor")


def result(folder: Path, words: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Train (or finish, or read) one run and score it on the training and the test split."""
    scores = folder / "scores.json"
    if not scores.exists():
        recipe = resolve(words)
        with Bar(str(folder), recipe.options["epochs"]) as bar:
            fit = runs.resume(folder, bar) if (folder / "config.yaml").exists() else runs.start(recipe, folder, bar)
        data = runs.data_of(folder)
        found = {split: evaluate(fit, data, split)["predict"] for split in ("train", "test")}
        scores.write_text(json.dumps(found))
    return json.loads(scores.read_text())


def cell(values: list[float]) -> str:
    spread = f" ({statistics.stdev(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def difference(after: list[float], before: list[float]) -> str:
    """Mean of the paired differences with its 95 % t interval."""
    gaps = [a - b for a, b in zip(after, before, strict=True)]
    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / len(gaps) ** 0.5
    mean = statistics.mean(gaps)
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.99])
    arguments = parser.parse_args()
    for regime in arguments.regimes:
        for sparsity in arguments.sparsities:
            print(f"\n{regime}, {sparsity:.0%} sparse, {arguments.seeds} seeds\n")
            print(f"| arm | way | training accuracy | {' | '.join(COLUMNS)} |")
            print("|---" * (len(COLUMNS) + 3) + "|")
            found = {}
            for arm, own in ARMS.items():
                words = [*COMMON, *REGIMES[regime], *own, f"--sparsity={sparsity}"]
                seeds = [
                    result(arguments.out / f"{regime}-{sparsity}-{arm}-{seed}", [*words, f"--seed={seed}"])
                    for seed in range(arguments.seeds)
                ]
                found[arm] = seeds
                for way in WAYS if arm == "cigl" else WAYS[:1]:
                    train = cell([seed["train"][way]["accuracy"] for seed in seeds])
                    test = [cell([seed["test"][way][name] for seed in seeds]) for name in COLUMNS]
                    print(f"| {arm} | {way} | {train} | {' | '.join(test)} |", flush=True)
            if arguments.seeds > 1:
                print(f"\n| CigL - RigL | {' | '.join(COLUMNS[:5])} |")
                print("|---" * 6 + "|")
            for way in WAYS if arguments.seeds > 1 else ():
                values = {
                    arm: {name: [seed["test"][way][name] for seed in seeds] for name in COLUMNS}
                    for arm, seeds in found.items()
                }
                gaps = [difference(values["cigl"][name], values["rigl"][name]) for name in COLUMNS[:5]]
                print(f"| {way} | {' | '.join(gaps)} |", flush=True)


if __name__ == "__main__":
    main()
