"""Confident magnitude-based pruning of a dense MNIST classifier (Alvarez 2024), and does the certificate cover?

    python examples/benchmarks/confident_mnist.py --data-dir DATA          (five minutes on one thread)

The published settings: 784-128-128-10, dropout 0.25 before the last layer, Adam, batches of 512, 10 epochs on 60,000 images
in [0, 1]; one global threshold, biases included; lambda 0.00, 0.01, ... 0.99; alpha 0.03, delta 0.05. First the paper's own
judgement, 9,000 test images to calibrate and 1,000 to validate, drawn anew for each seed. Then a sharper one: calibration sets
drawn *with replacement* from the 10,000, whose mean loss then is the true risk, so that a certificate is right or wrong and not
merely unlucky on 1,000 images. Intervals are Clopper-Pearson, 95 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta
from torch import nn

from espalier import BayesianNetwork, Data, Training, load_data
from espalier.certificates import pvalues, selection
from espalier.certificates.pruning import Family, Frozen, family
from espalier.inference import dense

GRID = [round(0.01 * i, 2) for i in range(100)]
Bits = NDArray[np.bool_]
Losses = NDArray[Any]
Tests = dict[str, tuple[Callable[[Losses], NDArray[np.float64]], str]]
"""test -> p-values of losses `(m, n)`, and the procedure."""


def images_in_unit_interval(data: Data) -> Data:
    """The paper divides by 255; our loader standardises, which is undone here: black is 0 and white 1 in every part."""
    low, high = data.train.x[:].min(), data.train.x[:].max()
    parts = {name: getattr(data, name) for name in ("train", "test")}
    return data._replace(**{name: part._replace(x=(part.x - low) / (high - low)) for name, part in parts.items()})


def pruned_versions(data: Data, seed: int, epochs: int) -> Family:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.25),
                        nn.Linear(128, 10))  # fmt: skip
    training = Training(
        epochs=epochs, batch_size=512, optimizer="adam", learning_rate=0.001, rate="constant", weight_decay=1e-12
    )
    fit = dense.infer(BayesianNetwork(net), data, training=training, seed=seed)
    return family(fit, Frozen.of(fit, "unmasked"), biases=True)


def loss_matrices(versions: Family, data: Data) -> dict[str, Bits]:
    """Of every pruned version on every test image, `(100, 10000)`: wrong, and other than the unpruned."""
    answers = np.stack([versions.at(level).predict(data.test.x).argmax(1) for level in GRID])
    return {"error": answers != data.test.y.numpy(), "disagreement": answers != answers[0]}


def by_count(test: str, n: int, alpha: float) -> NDArray[np.float64]:
    """p-value of every error count 0..n."""
    counts = np.arange(n + 1)
    return pvalues.binomial(counts, n, alpha) if test == "binomial" else pvalues.OF_SUMS[test](counts, n, alpha)


def chosen(
    losses: Losses,
    rows: NDArray[np.int64],
    p_value: Callable[[Losses], NDArray[np.float64]],
    delta: float,
    procedure: str,
) -> int:
    """Place of lambda-hat in the grid, -1 where nothing is certified."""
    return max(selection.rejected(p_value(losses[:, rows]), delta, procedure), default=-1)


def arms(n: int, alpha: float, delta: float) -> Tests:
    tables = {test: by_count(test, n, alpha) for test in ("binomial", "hinge", "hb")}
    found = {test: (lambda own, table=table: table[own.sum(1)], "fixed-sequence") for test, table in tables.items()}
    found["wsr"] = (lambda own: pvalues.wsr(own, alpha, delta), "fixed-sequence")
    found["Bonferroni, binomial"] = (lambda own: tables["binomial"][own.sum(1)], "bonferroni")
    return found


def interval(hits: int, of: int) -> str:
    if not of:
        return "-"
    low = beta.ppf(0.025, hits, of - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, of - hits) if hits < of else 1.0
    return f"{hits / of:.3f} [{low:.3f}, {high:.3f}]"


def papers_table(losses: Bits, seeds: int, alpha: float, delta: float) -> None:
    table, lambdas, errors = by_count("binomial", 9000, alpha), [], []
    for seed in range(seeds):
        order = np.random.default_rng([1, seed]).permutation(10_000)
        place = chosen(losses, order[:9000], lambda own: table[own.sum(1)], delta, "fixed-sequence")
        if place >= 0:
            lambdas.append(GRID[place])
            errors.append(losses[place, order[9000:]].mean())
    print(f"\n{seeds} draws of 9,000 + 1,000 test images, alpha {alpha}, delta {delta}: certified in {len(lambdas)}; lambda-hat "
          f"{np.mean(lambdas):.3f} (sd {np.std(lambdas):.3f}); error on the 1,000 {np.mean(errors):.4f}; above alpha in "
          f"{interval(int((np.array(errors) > alpha).sum()), len(errors))} of the draws. The last is no miss of the guarantee: "
          "1,000 images of a risk just below alpha exceed it often.")  # fmt: skip


def coverage_table(
    losses: Losses,
    grid: Sequence[float],
    alpha: float,
    draws: int,
    tests: Mapping[int, Tests],
    delta: float,
    stream: int,
) -> None:
    """A row for each n and test: what `draws` calibration sets, drawn with replacement from all columns of `losses`, come to."""
    risk, pool = losses.mean(1), losses.shape[1]
    print("| n | test | certified | lambda-hat, mean (sd) | true risk there | right (or nothing certified) |")
    print("|---|---|---|---|---|---|")
    for n, arms in tests.items():
        for test, (p_value, procedure) in arms.items():
            rng = np.random.default_rng([stream, n])  # the same draws for every test
            places = [chosen(losses, rng.integers(pool, size=n), p_value, delta, procedure) for _ in range(draws)]
            some = np.array([place for place in places if place >= 0], dtype=int)
            right = sum(place < 0 or risk[place] <= alpha for place in places)
            where = np.array(grid)[some]
            told = f"{where.mean():.3f} ({where.std():.3f}) | {risk[some].mean():.4f}" if len(some) else "- | -"
            print(f"| {n} | {test} | {len(some) / draws:.3f} | {told} | {interval(right, draws)} |", flush=True)


def coverage(name: str, losses: Losses, sizes: list[int], draws: int, alpha: float, delta: float) -> None:
    print(f"\n{name}, alpha {alpha}, delta {delta}; {draws} calibration sets of n drawn with replacement:\n")
    coverage_table(losses, GRID, alpha, draws, {n: arms(n, alpha, delta) for n in sizes}, delta, stream=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = images_in_unit_interval(load_data("mnist", data_dir=arguments.data_dir, validation=0.0, calibration=0.0))
    versions = pruned_versions(data, arguments.seed, arguments.epochs)
    matrices = loss_matrices(versions, data)
    total = len(versions.score)
    print(f"{total:,} parameters; error of the dense network on 10,000 test images {matrices['error'][0].mean():.4f}\n")
    print("| lambda | parameters left | error | disagreement |\n|---|---|---|---|")
    for place in range(0, 100, 10):
        left = total - round(GRID[place] * total)
        print(
            f"| {GRID[place]} | {left:,} | {matrices['error'][place].mean():.4f} | {matrices['disagreement'][place].mean():.4f} |"
        )
    steps = np.diff(matrices["error"].mean(1))
    print(
        f"\nThe error is {'not ' if (steps < 0).any() else ''}monotone in lambda: it falls at {(steps < 0).sum()} of 99 steps."
    )
    papers_table(matrices["error"], arguments.draws, 0.03, 0.05)
    coverage("Classification error", matrices["error"], [500, 1000, 2000], arguments.draws, 0.03, 0.05)
    coverage("Classification error", matrices["error"], [500, 1000, 2000], arguments.draws, 0.05, 0.05)
    name = "Disagreement with the dense network (no labels)"
    coverage(name, matrices["disagreement"], [500, 2000], arguments.draws, 0.03, 0.05)


if __name__ == "__main__":
    main()
