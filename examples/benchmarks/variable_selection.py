"""Which inputs matter? Five true variables among many (Sun, Xiong & Liang 2021), by `sghmc` and by pruning. Prints markdown.

    python examples/benchmarks/variable_selection.py [--inputs 100] [--rows 10000] [--steps 16000] [--seeds 0 1 2]

y = 5 x1 / (1 + x0^2) + 5 sin(x2 x3) + 2 x4 + N(0, 1), inputs N(0, 1) within [-10, 10] with correlation 1/2. An input is selected
where a path of weights that are left leads from it to the output. `--inputs 2000 --hidden 10000,100,10` is the paper's own size.
SGD + pruning keeps as many weights, by magnitude in one move, and is trained as long. Coverage is that of central 95 % intervals
of the mixture of draws, on 1,000 test rows. Nothing is chosen here: the prior is the paper's (its variances), the rate ours.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from espalier import BayesianNetwork, Training
from espalier.calibration import regression_summary
from espalier.contracts import Data
from espalier.data import from_arrays
from espalier.inference import cigl, sghmc
from espalier.prediction import Fit

TRUE = 5
TEST = 1000


class Result(NamedTuple):
    """selected: inputs; found: true ones of these. coverage: of 95 % intervals. rmse: in the data's units, whose noise is 1."""

    weights: int
    selected: int
    found: int
    coverage: float
    rmse: float
    seconds: float


def made(inputs: int, rows: int, seed: int) -> Data:
    """x_j = (e + z_j) / sqrt 2, e shared by all, both normal (cut at 10 sd, which none reaches)."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows + TEST, 1)) + rng.normal(size=(rows + TEST, inputs))) / math.sqrt(2)
    y = 5 * x[:, 1] / (1 + x[:, 0] ** 2) + 5 * np.sin(x[:, 2] * x[:, 3]) + 2 * x[:, 4] + rng.normal(size=rows + TEST)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return from_arrays(x[:rows], y[:rows], x_test=x[rows:], y_test=y[rows:], validation=0.1, calibration=0.0, name="five of many")


def selected(fit: Fit) -> NDArray[np.bool_]:
    """Inputs `(p,)` from which a path of active weights leads to the output."""
    reached: torch.Tensor | None = None
    active = torch.zeros(fit.topology.num_weights)
    active[fit.topology.positions] = 1
    for own in reversed(list(fit.model.unflatten(active).values())):  # from the output on
        reached = (own if reached is None else (reached @ own > 0).float()).clamp(max=1)
    assert reached is not None
    return np.asarray(reached.sum(0).numpy() > 0)


def result(fit: Fit, data: Data, seconds: float) -> Result:
    inputs, draws = selected(fit), fit.predict(data.test.x, "pairs").numpy()
    scores = regression_summary(draws[..., 0], draws[..., 1], data.in_units(data.test.y).numpy())
    return Result(
        fit.topology.num_active, int(inputs.sum()), int(inputs[:TRUE].sum()), scores["coverage_95"], scores["rmse"], seconds
    )


def network(inputs: int, hidden: tuple[int, ...], seed: int) -> BayesianNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((inputs, *hidden)):
            layers += [nn.Linear(narrow, wide), nn.Tanh()]
        return BayesianNetwork(nn.Sequential(*layers, nn.Linear(hidden[-1], 1)), likelihood="normal")


def both(inputs: int, rows: int, hidden: tuple[int, ...], steps: int, seed: int) -> dict[str, Result]:
    data = made(inputs, rows, seed)
    epochs = max(8, steps * 500 // len(data.train.y))
    training = Training(epochs=epochs, batch_size=500, learning_rate=0.004, rate="constant", device="cpu")

    began = time.perf_counter()
    fit = sghmc.infer(
        network(inputs, hidden, seed), data, slab_probability=1e-7, slab_scale=0.01**0.5, spike_from=5e-5**0.5,
        spike_to=1e-6**0.5, temperature=0.1, prior_from=1 / 16, prior_whole=1 / 4, spike_final=3 / 4,
        refit_epochs=max(4, epochs // 2), refit_rate=0.004, refit_temperature=1.0, training=training, seed=seed,
    )  # fmt: skip
    found = {"sghmc": result(fit, data, time.perf_counter() - began)}
    began = time.perf_counter()
    sparsity = 1 - fit.topology.num_active / fit.topology.num_weights
    pruned = cigl.infer(
        network(inputs, hidden, seed), data, sparsity=sparsity, drop_rate=0.0, rule="one-shot", freeze=2 / 3, average_from=0.8,
        training=replace(training, epochs=epochs * 3 // 2), seed=seed,
    )  # fmt: skip
    return found | {"SGD + pruning": result(pruned, data, time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--hidden", default="500,100,10")
    parser.add_argument("--steps", type=int, default=16_000, help="of the first training; the paper has 80,000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    hidden = tuple(map(int, given.hidden.split(",")))
    print("| method | seed | weights left | inputs selected | true ones of 5 | coverage of 95 % | RMSE (noise 1) | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in given.seeds:
        for method, own in both(given.inputs, given.rows, hidden, given.steps, seed).items():
            print(
                f"| {method} | {seed} | {own.weights:,} | {own.selected} | {own.found} | {own.coverage:.3f} | {own.rmse:.3f} | "
                f"{own.seconds:.0f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
