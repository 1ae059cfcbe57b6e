"""How much further can a dense net, RigL and CigL be pruned at the same alpha and delta? On MNIST and Fashion-MNIST.

    python examples/benchmarks/prune_further.py --data-dir DATA          (ten minutes on one thread)

A 784-300-100-10 MLP, 10,000 training images, 30 epochs, where sparse training interpolates; RigL and CigL at 90 % sparsity,
drop_rate 0.2, nothing tuned. 6,000 calibration images, delta 0.05. Two questions to each: error at most alpha (0.05 on MNIST,
0.17 on Fashion-MNIST: round numbers above the validation error), and error at most 0.01 above the arm's own unpruned (gap).
The calibration split answers many questions here, so each certificate stands for itself, and the table is a comparison of
methods. Weights left: geometric mean over seeds, and its ratio to RigL's paired by seed with a 95 % t interval of the log.
"""

from __future__ import annotations

import argparse
import math
import statistics
from typing import Any

import numpy as np
from scipy import stats

from espalier import Data, Fit, Training, load_data, load_program
from espalier.certificates.certify import Settings, certify_fit
from espalier.certificates.risks import named
from espalier.models import mlp

ALPHA = {"mnist": 0.05, "fashion-mnist": 0.17}
# arm -> which fit, how it predicts, what it is pruned by
ARMS: dict[str, tuple[str, str, str]] = {
    "dense": ("dense", "unmasked", "magnitude"),
    "dense, per layer": ("dense", "unmasked", "layer-magnitude"),
    "RigL": ("rigl", "unmasked", "magnitude"),
    "RigL, per layer": ("rigl", "unmasked", "layer-magnitude"),
    "CigL ticket": ("cigl", "ticket", "magnitude"),
    "CigL ticket, per layer": ("cigl", "ticket", "layer-magnitude"),
    "CigL ticket, by SNR": ("cigl", "ticket", "snr"),
    "CigL ticket, by inclusion": ("cigl", "ticket", "inclusion"),
    "CigL, 16 frozen draws": ("cigl", "redraw", "magnitude"),
}


def trained(data: Data, kind: str, seed: int, epochs: int) -> Fit:
    model = mlp.model(data.shape, data.num_outputs, hidden=(300, 100))
    options: dict[str, Any] = {"training": Training(epochs=epochs), "seed": seed}
    if kind != "dense":
        options |= {"sparsity": 0.9, "drop_rate": 0.2 if kind == "cigl" else 0.0}
    fit: Fit = load_program("inference", "dense" if kind == "dense" else "cigl")(model, data, **options)
    return fit


def answers(data: Data, fits: dict[str, Fit], seed: int, alpha: float) -> dict[tuple[str, str], dict[str, float]]:
    """(question, arm) -> lambda-hat, weights left and what the certified predictor does on the test split."""
    found = {}
    for arm, (kind, predict, by) in ARMS.items():
        for question, level in (("error", alpha), ("gap", 0.01)):
            settings = Settings((question,), (level,), predict=predict, by=by, seed=seed)  # type: ignore[arg-type]
            facts, chosen = certify_fit(fits[kind], data.calibration, settings)
            row = {"unpruned": facts["observed"][0][0]}
            if chosen is not None:
                probs, labels = chosen.predict(data.test.x), data.test.y.numpy()
                row |= {"lambda": facts["lambda"], "left": facts["chosen"]["num_active"],
                        "test": named("error").value(named("error").losses(probs, labels, probs))}  # fmt: skip
            found[question, arm] = row
    return found


def ratio(own: list[dict[str, float]], base: list[dict[str, float]]) -> str:
    both = [math.log(a["left"] / b["left"]) for a, b in zip(own, base, strict=True) if "left" in a and "left" in b]
    if len(both) < 2:
        return ""
    half = stats.t.ppf(0.975, len(both) - 1) * stats.sem(both)
    low, middle, high = (math.exp(statistics.fmean(both) + end) for end in (-half, 0, half))
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--train-size", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for name, alpha in ALPHA.items():
        data = load_data(name, data_dir=arguments.data_dir, train_size=arguments.train_size)
        rows = []
        for seed in range(arguments.seeds):
            fits = {kind: trained(data, kind, seed, arguments.epochs) for kind in ("dense", "rigl", "cigl")}
            rows.append(answers(data, fits, seed, alpha))
        for question, level in (("error", alpha), ("gap", 0.01)):
            print(f"\n{name}: {question} at most {level}, delta 0.05, {len(data.calibration.y):,} calibration images\n")
            print(
                "| arm | certified | lambda-hat | weights left | / RigL's | test error there |\n|---|---|---|---|---|---|"
            )
            for arm in ARMS:
                own, base = ([row[question, which] for row in rows] for which in (arm, "RigL"))
                some = [row for row in own if "left" in row]
                if not some:
                    print(f"| {arm} | 0 of {len(own)} | - | - | | |")
                    continue
                left = math.exp(statistics.fmean(math.log(row["left"]) for row in some))
                where = ", ".join(f"{row['lambda']:.2f}" for row in some)
                error = np.mean([row["test"] for row in some])
                print(
                    f"| {arm} | {len(some)} of {len(own)} | {where} | {left:,.0f} | {ratio(own, base)} | {error:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
