"""Lottery tickets under label noise (Arora et al. 2023): is what is pruned after training nearer to the truth, and what is
trained sparse over-confident (CigL's complaint), in one set-up? Prints markdown.

    python examples/benchmarks/label_noise.py --out runs/label-noise                     (mixtures: the truth is known)
    python examples/benchmarks/label_noise.py --data fashion-mnist --widths 300 --levels 0 4 8 12 16 --out runs/label-noise
    python examples/benchmarks/label_noise.py --data cifar10 --noise cifar10n_train.npz:worse_label --model lenet ...

Iterative magnitude pruning: train, drop the smallest fifth of the weights of the whole network, rewind to the initial ones, and
again; level L has 0.8^L of the weights and costs L + 1 trainings. At some levels, at as many weights and one training: RigL,
CigL (its drop rate found, 32 masks), and the same sparsity at random (`static`), which tells a good ticket from a small net.
Training labels are wrong at the rate `--noise`; validation and test labels are the source's. The best ticket is that of the best
NLL on validation rows. KL is of p(y | x), with the noise that the training labels have, to the prediction, in nats. It resumes.
Nothing is chosen on test rows.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import Data, Training, load_data, shelf
from espalier.calibration import accuracy, divergence, ece, nll, t_interval
from espalier.data import mixture, noisy, with_label_noise
from espalier.guides import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.prediction.evaluation import predictions
from espalier.prediction.fit import How
from espalier.store import Ledger
from espalier.topology import initial, schedules
from espalier.topology.masks import global_topology
from espalier.training import Streams, find_device, prepare
from espalier.training.train import train

KEPT = 0.8
MIXTURE = mixture(num_classes=5, parts=3, features=10, scale=1.2, seed=0)
COLUMNS = {"kl": "KL to the truth", "accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "over": "confidence - accuracy"}
RIVALS: dict[str, tuple[str, dict[str, Any], How]] = {
    "RigL": ("rigl", {}, "unmasked"),
    "static": ("static", {}, "unmasked"),
    "CigL": ("cigl", {"drop_rate": "auto"}, "redraw"),
}
Row = Mapping[str, Any]


def tickets(model: BayesianNetwork, data: Data, training: Training, seed: int, most: int) -> Iterator[tuple[int, Fit]]:
    """Level and fit: dense first, then what the prunings leave, each trained from the initial weights."""
    topology = initial(model.shapes, 0.0)
    for level in range(most + 1):
        streams = Streams(seed, find_device(training.device))
        ready = prepare(copy.deepcopy(model), data, training)
        guide = MaskedGuide(ready, topology, generator=streams.mask)
        fit = train(ready, guide, schedules.static(), data, training=training, streams=streams, average_from=1.0)
        yield level, fit
        topology = global_topology(model.shapes, count(model, level + 1), next(fit.weights("unmasked"))[0])


def count(model: BayesianNetwork, level: int) -> int:
    return round(model.num_weights * KEPT**level)


def scored(fit: Fit, data: Data, way: How, truth: NDArray[np.float64] | None) -> dict[str, float]:
    """Scores on test rows, NLL on validation rows, and the divergence from the truth `(n, C)` where it is known."""
    probs = predictions(fit, data, ways=[way], num_samples=32)[way]
    held = predictions(fit, data, "validation", ways=[way], num_samples=32)[way]
    y = data.test.y.numpy()
    right = accuracy(probs, y)
    found = {"accuracy": right, "nll": nll(probs, y), "ece": ece(probs, y), "over": float(probs.max(1).mean()) - right}
    known = {} if truth is None else {"kl": divergence(truth, probs)}
    return found | known | {"validation": nll(held, data.validation.y.numpy())}


def work(given: argparse.Namespace, book: Ledger) -> list[Row]:
    """Whatever is not in the ledger yet; all that is asked for."""
    names = []
    for seed in given.seeds:
        data, truth = set_of(given, seed)
        training = Training(epochs=given.epochs, batch_size=given.batch_size, learning_rate=given.learning_rate, device="cpu")
        for width in given.widths:
            where = f"{given.data} {given.noise} {given.rows} {training} {given.model} {width} {seed}"
            model = network(given.model, data, width, seed)
            trace = [f"{where} IMP {level}" for level in range(max(given.levels) + 1)]
            missing = any(name not in book for name in trace)
            for level, fit in tickets(model, data, training, seed, max(given.levels)) if missing else []:
                book.of(trace[level], partial(row_of, "IMP", width, level, seed, fit, data, "unmasked", truth))
            names += trace
            for arm, level in product(RIVALS if width in given.rivals else (), filter(None, given.levels)):
                names.append(f"{where} {arm} {level}")
                book.of(names[-1], partial(rival, arm, model, width, level, seed, data, training, truth))
    return [book.known[name] for name in names]


def rival(
    arm: str, model: BayesianNetwork, width: int, level: int, seed: int, data: Data, training: Training,
    truth: NDArray[np.float64] | None,
) -> Row:  # fmt: skip
    """At as many weights as IMP leaves, by one training."""
    program, options, way = RIVALS[arm]
    sparsity = 1 - count(model, level) / model.num_weights
    infer = shelf.load("inference", program)
    fit = infer(copy.deepcopy(model), data, sparsity=sparsity, training=training, seed=seed, **options)
    return row_of(arm, width, level, seed, fit, data, way, truth)


def set_of(given: argparse.Namespace, seed: int) -> tuple[Data, NDArray[np.float64] | None]:
    """Training labels with noise, and p(y | x) of such labels at the test rows."""
    noise = given.noise if ":" in given.noise else float(given.noise)
    if given.data == "mixture":
        data = MIXTURE.data(given.rows, 5000, seed)
        return with_label_noise(data, noise, seed), noisy(MIXTURE.truth(data), float(noise))
    return load_data(given.data, data_dir=given.data_dir, train_size=given.rows, split_seed=seed, label_noise=noise), None


def network(name: str, data: Data, width: int, seed: int) -> BayesianNetwork:
    options = {"hidden": (width, width)} if name == "mlp" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built: BayesianNetwork = shelf.load("models", name)(data.shape, data.num_outputs, **options)
        return built


def row_of(
    arm: str, width: int, level: int, seed: int, fit: Fit, data: Data, way: How, truth: NDArray[np.float64] | None
) -> Row:
    place = {"arm": arm, "width": width, "level": level, "seed": seed, "weights": fit.topology.num_active}
    return place | scored(fit, data, way, truth)


# --- Tables -------------------------------------------------------------------------------------------------------
def cell(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and half the width of the 95 % t interval over seeds."""
    interval = t_interval(values)
    half = "" if interval is None else f" ± {(interval[1] - interval[0]) / 2:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f}{half}"


def trace(rows: Sequence[Row], width: int) -> str:
    """Scores against the number of weights, IMP first."""
    own = [row for row in rows if row["width"] == width]
    names = [name for name in COLUMNS if name in own[0]]
    lines = [f"| width {width}, arm | weights | {' | '.join(COLUMNS[name] for name in names)} |", "|---" * (2 + len(names)) + "|"]
    shown = {row["level"] for row in own if row["arm"] != "IMP"} | {0}
    for level in sorted({row["level"] for row in own if not shown - {0} or row["level"] in shown}):
        for arm in dict.fromkeys(row["arm"] for row in own):
            if here := [row for row in own if row["level"] == level and row["arm"] == arm]:
                cells = [cell([row[name] for row in here]) for name in names]
                lines.append(f"| {arm if level else 'dense'} | {here[0]['weights']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best(rows: Sequence[Row]) -> str:
    """The ticket of the best validation NLL of each trace, against its dense net."""
    key = "kl" if "kl" in rows[0] else "nll"
    heads = ["width", "seed", "dense weights", "best ticket", f"{COLUMNS[key]}: dense", "best", "RigL nearest in size"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for width, seed in sorted({(row["width"], row["seed"]) for row in rows}):
        own = [row for row in rows if row["width"] == width and row["seed"] == seed]
        prunings = sorted((row for row in own if row["arm"] == "IMP"), key=lambda row: row["level"])
        found = min(prunings, key=lambda row: row["validation"])
        rivals = [row for row in own if row["arm"] == "RigL"]
        near = min(rivals, key=lambda row: abs(row["level"] - found["level"]), default=None)
        beside = f"{near[key]:.3f} of {near['weights']:,}" if near else ""
        dense = prunings[0]
        lines.append(
            f"| {width} | {seed} | {dense['weights']:,} | {found['weights']:,} | {dense[key]:.3f} | {found[key]:.3f} | {beside} |"
        )
    return "\n".join(lines)


def pairs(rows: Sequence[Row]) -> str:
    """Each arm minus IMP at as many weights, paired by seed, width and level."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    tickets_of = {(row["width"], row["level"], row["seed"]): row for row in rows if row["arm"] == "IMP"}
    names = [name for name in COLUMNS if name in rows[0]]
    for row in rows:
        other = tickets_of.get((row["width"], row["level"], row["seed"]))
        if row["arm"] != "IMP" and other:
            for name in names:
                found[row["arm"], name].append((row["seed"], row[name] - other[name]))
    lines = [f"| minus IMP, mean over levels | {' | '.join(COLUMNS[name] for name in names)} |", "|---" * (1 + len(names)) + "|"]
    for arm in dict.fromkeys(arm for arm, _ in found):
        cells = []
        for name in names:
            own = found[arm, name]
            cells.append(cell([statistics.fmean(gap for at, gap in own if at == seed) for seed in {seed for seed, _ in own}], 4))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mixture", help="mixture, or a set of images by name")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--noise", default="0.2", help="as --label-noise of `espalier fit`")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="of an mlp's two hidden layers")
    parser.add_argument("--rivals", type=int, nargs="*", default=[128], help="widths at which the others are trained too")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 4, 8, 12, 16, 20])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/label-noise"))
    given = parser.parse_args()
    rows = work(given, Ledger(given.out / "results.jsonl"))
    print("\n\n".join([*(trace(rows, width) for width in given.widths), best(rows), pairs(rows)]))


if __name__ == "__main__":
    main()
