"""Is what is left of the ECE the method's or the published test split's? The MLP's cells on test rows like the others.

    python examples/benchmarks/exchangeable.py --data-dir DATA --out runs/exchangeable.jsonl      (minutes; it resumes)

Fashion-MNIST's published test images are harder than its training images, of which validation rows are cut: a rate, or a
temperature, that is right for the one is too low for the other. Here all 70,000 images are cut anew at random, another cut for
every seed, into as many test, validation and training rows as before; everything else is `examples/grids/fashion-mlp-auto.yaml`'s
(784-300-100-10, 10,000 images, 60 epochs), of which RigL fits all images but at 99 %. Accuracy / NLL / ECE
(15 bins), means over seeds.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espalier import Data, Training, calibration, load_data, shelf
from espalier.data import from_arrays
from espalier.prediction.evaluation import predictions
from espalier.store import Ledger

SPARSITIES = (0.8, 0.9, 0.95, 0.99)
ARMS: dict[str, tuple[float | str, str, bool]] = {
    "RigL": (0.0, "unmasked", False), "RigL + TS": (0.0, "unmasked", True),
    "32 masks": ("auto", "redraw", False), "moments": ("auto", "moments", False), "moments + TS": ("auto", "moments", True),
}  # fmt: skip
"""drop_rate, way to predict, and is a temperature fitted on the validation rows?"""


def cut(data_dir: str | None, seed: int) -> Data:
    """All images, those of the published test split among the others, cut at random: 10,000 for test, 6,000 for validation."""
    whole = load_data("fashion-mnist", data_dir=data_dir)
    parts = [getattr(whole, part) for part in ("train", "validation", "calibration", "test")]
    x, y = torch.cat([part.x[:] for part in parts]).numpy(), torch.cat([part.y[:] for part in parts]).numpy()
    order = np.random.default_rng(seed).permutation(len(y))
    test, rest = order[:10_000], order[10_000:]
    return from_arrays(
        x[rest], y[rest], x_test=x[test], y_test=y[test], name="exchanged", split_seed=seed, train_size=10_000, standardise=False,
        channels="first",
    )  # fmt: skip


def cells(data: Data, rate: float | str, sparsity: float, seed: int) -> dict[str, Any]:
    """One training, scored by every arm that shares it."""
    torch.manual_seed(seed)
    model = shelf.load("models", "mlp")(data.shape, data.num_outputs, hidden=(300, 100))
    training = Training(epochs=60, batch_size=128, learning_rate=0.1, device="cpu")
    fit = shelf.load("inference", "cigl")(model, data, sparsity=sparsity, drop_rate=rate, training=training, seed=seed)
    found: dict[str, Any] = {"drop_rate": 1 - fit.keep_prob}
    for arm, (own, way, tempered) in ARMS.items():
        if own == rate:
            split = functools.partial(predictions, fit, data, ways=[way], num_samples=32)
            p = split("test")[way]
            if tempered:
                temperature = calibration.fit_temperature(split("validation")[way], data.validation.y.numpy())
                p = calibration.apply_temperature(p, temperature)
            y = data.test.y.numpy()
            found[arm] = [calibration.accuracy(p, y), calibration.nll(p, y), calibration.ece(p, y), calibration.ece_floor(p)]
    return found


def rows(found: dict[tuple[float, int], dict[str, Any]], seeds: int) -> Iterator[str]:
    columns = [f"{sparsity:.0%}" for sparsity in SPARSITIES]
    yield f"| exchanged, {seeds} seeds | {' | '.join(columns)} | less ECE than RigL | of the first three | floor |"
    yield "|---|" + "---|" * (len(SPARSITIES) + 3)
    mean = {
        arm: [[statistics.fmean(found[s, seed][arm][k] for seed in range(seeds)) for k in range(4)] for s in SPARSITIES]
        for arm in ARMS
    }
    for arm, own in mean.items():
        less = [1 - cell[2] / other[2] for cell, other in zip(own, mean["RigL"], strict=True)]
        told = " | ".join(f"{acc:.4f} / {nll:.4f} / {ece:.4f}" for acc, nll, ece, _ in own)
        floor = statistics.fmean(cell[3] for cell in own)
        yield f"| {arm} | {told} | {statistics.fmean(less):.1%} | {statistics.fmean(less[:3]):.1%} | {floor:.4f} |"
    rates = " | ".join(f"{statistics.fmean(found[s, seed]['drop_rate'] for seed in range(seeds)):.3f}" for s in SPARSITIES)
    yield f"| rates found | {rates} | | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/exchangeable.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[float, int], dict[str, Any]] = {}
    book, rate_of = Ledger(arguments.out), {"RigL": 0.0, "CigL": "auto"}
    for seed in range(arguments.seeds):
        data = cut(arguments.data_dir, seed)
        for sparsity in SPARSITIES:
            found[sparsity, seed] = {}
            for name, rate in rate_of.items():
                own = book.of(f"{name} {sparsity} {seed}", functools.partial(cells, data, rate, sparsity, seed))
                found[sparsity, seed] |= own
                print(name, sparsity, seed, own, flush=True)
    print("\n".join(rows(found, arguments.seeds)))


if __name__ == "__main__":
    main()
