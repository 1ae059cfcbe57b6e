"""How biased is the slope that `drop_rate: auto` follows, of few masks a time? Prints markdown.

    python examples/benchmarks/rate_bias.py RUN ... --data-dir DATA

Of each run, at the rate that it found and its last weights: d loss / d phi on validation rows by the coupled difference of the
rule, by groups of 4, 8 and 16 of 128 masks, mean +- standard error over the groups: the loss with the bias of few draws taken
off by the jackknife (the rule's), by the delta method, and not at all; beside that of all 128 together.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from rate_trials import by_the_delta_method
from torch import Tensor

from espalier import runs
from espalier.prediction import batchnorm
from espalier.randomness import own_stream
from espalier.training.drop_rates import HALF_WIDTH, loss_of, sides

MASKS, ROWS = 128, 250


def plain(log_probs: Tensor) -> Tensor:
    return math.log(len(log_probs)) - torch.logsumexp(log_probs, 0)


LOSSES = {"jackknife": loss_of, "delta method": by_the_delta_method, "as it is": plain}


@torch.no_grad()
def log_probs(run: Path, data_dir: str | None) -> tuple[float, list[Tensor]]:
    """The rate, and of either side of it log p of every mask and row, `(MASKS, ROWS)`: one set of uniform numbers for both."""
    fit, data = runs.load(run), runs.data_of(run, data_dir, None)
    if isinstance(fit.keep_prob, tuple) or fit.mask != "weight" or batchnorm.has_batchnorm(fit.model):
        raise SystemExit(f"expected a run of one rate, masks of weights and no batch norm, got {run}")
    rows = torch.arange(min(ROWS, len(data.validation.y)))
    x, y, state = data.validation.x[rows], data.validation.y[rows], fit.pairs.state(-1)
    stream, found = own_stream(0, 0), list[list[Tensor]]([[], []])
    for _ in range(MASKS):
        uniform = torch.rand(fit.topology.num_active, generator=stream)
        for side, angle in zip(found, sides(math.asin(math.sqrt(1 - fit.keep_prob))), strict=True):
            weights = fit.dense(fit.pairs.values[-1] * (uniform >= math.sin(angle) ** 2))
            side.append(fit.model.eval().outcome(weights, x, state).log_prob(y).double())
    return 1 - fit.keep_prob, [torch.stack(side) for side in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data-dir")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"{name}, {size}" for size in (4, 8, 16) for name in LOSSES]
    print(f"| run | rate | all {MASKS} | {' | '.join(names)} |\n{'|---' * (3 + len(names))}|")
    for run in given.runs:
        rate, (below, above) = log_probs(run, given.data_dir)
        cells = [f"{float((plain(above) - plain(below)).mean()) / (2 * HALF_WIDTH):+.2f}"]
        for size in (4, 8, 16):
            for loss in LOSSES.values():
                pairs = zip(below.split(size), above.split(size), strict=True)
                slopes = torch.stack([(loss(b) - loss(a)).mean() for a, b in pairs]) / (2 * HALF_WIDTH)
                cells.append(f"{float(slopes.mean()):+.2f} ± {float(slopes.std() / len(slopes) ** 0.5):.2f}")
        print(f"| {run.name} | {rate:.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
