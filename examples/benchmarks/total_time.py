"""What a whole training costs with the drop rate found on the way and a student taught after it, over RigL's. CPU seconds.

    python examples/benchmarks/total_time.py [CELL ...] [--rounds 3] [--epochs 12]

All arms train on the same rows with the same options, with collection, validation and all that `espalier fit` does but writing,
in turns, in this process on one thread; what is shown is the median of the ratios within a turn, and the quartiles. The first arm
stands there twice: its second line is the floor. Noise for data: time does not depend on them, but for the rates found.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import torch
from draws import synthetic

from espalier import shelf
from espalier.contracts import Data
from espalier.training import Training

CELLS: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "mlp-300-100": ("mlp", (1, 28, 28), {"hidden": (300, 100)}),
    "mlp-512": ("mlp", (1, 28, 28), {"hidden": (512, 512)}),
    "lenet": ("lenet", (3, 32, 32), {}),
    "wide_resnet-10-1": ("wide_resnet", (3, 32, 32), {"depth": 10, "widen": 1}),
}
ARMS: dict[str, tuple[str, dict[str, object]]] = {
    "RigL": ("cigl", {"drop_rate": 0.0}),
    "RigL, again": ("cigl", {"drop_rate": 0.0}),
    "CigL at .1": ("cigl", {"drop_rate": 0.1}),
    "rate found": ("cigl", {"drop_rate": "auto"}),
    "rate found, distilled": ("distilled", {"drop_rate": "auto"}),
    "a rate a layer, distilled": ("distilled", {"drop_rate": "auto-layer"}),
}
ROWS, VALIDATION = 9_000, 1_000


def spent(
    build: Callable[[], object], data: Data, training: Training, sparsity: float, inference: str, options: dict[str, object]
) -> float:
    torch.manual_seed(0)
    infer, model = shelf.load("inference", inference), build()
    start = time.process_time()
    infer(model, data, sparsity=sparsity, training=training, **options)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", default=list(CELLS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--sparsity", type=float, default=0.9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| net, {arguments.sparsity:.0%} sparse | arm | CPU seconds | ÷ RigL | quartiles |\n|---|---|---|---|---|")
    for cell in arguments.cells:
        name, shape, options = CELLS[cell]
        data = synthetic(shape, 64, train=ROWS, validation=VALIDATION)
        training = Training(epochs=arguments.epochs, batch_size=128, learning_rate=0.05)
        build = functools.partial(shelf.load("models", name), shape, 10, **options)
        turns = []
        for number in range(arguments.rounds + 1):  # the first warms up
            last = training if number else dataclasses.replace(training, epochs=1)
            turns.append({arm: spent(build, data, last, arguments.sparsity, *ARMS[arm]) for arm in ARMS})
        turns = turns[1:]
        for arm in ARMS:
            ratios = [turn[arm] / turn["RigL"] for turn in turns]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
            seconds = statistics.median(turn[arm] for turn in turns)
            print(f"| {cell} | {arm} | {seconds:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
