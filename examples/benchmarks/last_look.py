"""What the last look at the drop rate is worth: runs of `espalier compare` or `espalier fit` at the rate that the rule came to
and at the one after it. Test split, one pass of `moments`; also CPU seconds of the look. Prints markdown.

    python examples/benchmarks/last_look.py runs/GRID/runs/* [--data-dir DATA]

Runs of before the last look are given it here: their training would be the same to the last bit.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from espalier import Data, Fit, calibration, runs
from espalier.prediction import equip
from espalier.prediction.evaluation import predictions
from espalier.randomness import own_stream
from espalier.training import last_look
from espalier.training.drop_rates import CHOICE


def scores(fit: Fit, data: Data) -> list[float]:
    equip(fit, data)
    probs, labels = predictions(fit, data, "test", ways=["moments"], num_samples=32)["moments"], data.test.y.numpy()
    return [calibration.accuracy(probs, labels), calibration.nll(probs, labels), calibration.ece(probs, labels)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| run | rate | accuracy | NLL | ECE | seconds |\n|---|---|---|---|---|---|")
    for folder in given.runs:
        fit = runs.load(folder)
        found = fit.record.get("drop_rate")
        if found is None or isinstance(fit.keep_prob, tuple):
            continue
        data = runs.data_of(folder, given.data_dir)
        fit.look_at(data)
        phi = math.asin(math.sqrt(found.get("followed", found["found"])))
        last_look.turned(fit, [phi])
        before = [1 - fit.keep_prob, *scores(fit, data)]
        start = time.process_time()
        last_look.look(fit, data, [phi], own_stream(fit.record["recipe"].get("seed", 0), CHOICE))
        spent = time.process_time() - start
        assert isinstance(fit.keep_prob, float)
        pairs = zip(before, [1 - fit.keep_prob, *scores(fit, data)], strict=True)
        print(f"| {folder.name} | {' | '.join(f'{one:.4f} {other:.4f}' for one, other in pairs)} | {spent:.1f} |", flush=True)


if __name__ == "__main__":
    main()
