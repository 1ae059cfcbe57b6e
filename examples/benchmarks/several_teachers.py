"""One sparse pass taught by one posterior, and by four, against a dense ensemble of 4. Prints markdown.

    python examples/benchmarks/several_teachers.py --data-dir DATA --out runs/several-teachers      (it resumes)
    python examples/benchmarks/several_teachers.py --data cifar10 --model lenet --epochs 30 --learning-rate 0.05 ...

Of each seed four networks are trained by CigL (its drop rate found) at `--sparsity`, and four dense ones, from eight initial
weights; the data and their cut are the same. A student stands on the first CigL network's support and learns what its masks
predict, or what those of all four do: a member and a mask for every part of a batch, on the training inputs, without labels.
Temperatures are fitted on validation rows. Differences are paired by seed, with t intervals; nothing is chosen on test rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_noise import cell
from numpy.typing import NDArray

from espalier import Data, Fit, Training, load_data, shelf
from espalier.calibration import accuracy, apply_temperature, ece, fit_temperature, nll
from espalier.inference import cigl, dense
from espalier.network import BayesianNetwork
from espalier.prediction import Ensemble
from espalier.prediction.evaluation import predictions
from espalier.prediction.fit import How
from espalier.prediction.predictor import Predictor
from espalier.store import Ledger
from espalier.training import distill

MEMBERS, DRAWS = 4, 32
Row = dict[str, list[float]]


def of_training(parser: argparse.ArgumentParser, *, data: str, model: str, epochs: int, learning_rate: float) -> None:
    """What is trained, on what and how long."""
    parser.add_argument("--data", default=data, help="images of classes, by name, or an .npz file")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--model", default=model)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)


def built(given: argparse.Namespace, data: Data, seed: int, **sizes: dict[str, Any]) -> BayesianNetwork:
    """sizes: of other models than an MLP, by their names; else their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"mlp": {"hidden": (300, 100)}, **sizes}.get(given.model, {})
        model: BayesianNetwork = shelf.load("models", given.model)(data.shape, data.num_outputs, **options)
    return model


def trained(given: argparse.Namespace, data: Data, training: Training, seed: int, masked: bool) -> Fit:
    model = built(given, data, seed)
    if not masked:
        return dense.infer(model, data, training=training, seed=seed)
    parts = given.microbatches
    return cigl.infer(model, data, sparsity=given.sparsity, microbatches=parts, training=training, seed=seed)


def three(p: NDArray[np.float64], y: NDArray[np.int64]) -> list[float]:
    return [score(p, y) for score in (accuracy, nll, ece)]


def scored(who: Predictor, data: Data, way: How, draws: int = DRAWS) -> Row:
    """Accuracy, NLL and ECE of the test split, as it predicts and with a temperature."""
    test, held = (predictions(who, data, split, ways=[way], num_samples=draws)[way] for split in ("test", "validation"))
    heated = apply_temperature(test, fit_temperature(held, data.validation.y.numpy()))
    y = data.test.y.numpy()
    return {"": three(test, y), " + TS": three(heated, y)}


def world(given: argparse.Namespace, data: Data, seed: int) -> dict[str, Row]:
    training = Training(epochs=given.epochs, batch_size=128, learning_rate=given.learning_rate, device="cpu")
    first = 2 * MEMBERS * seed
    plain = [trained(given, data, training, first + member, masked=False) for member in range(MEMBERS)]
    found = {"dense net": scored(plain[0], data, "unmasked"), "dense ensemble of 4": scored(Ensemble(plain), data, "unmasked")}
    fits = [trained(given, data, training, first + MEMBERS + member, masked=True) for member in range(MEMBERS)]
    found["CigL, 32 masks"] = scored(fits[0], data, "redraw")
    found["four CigL posteriors, 8 masks each"] = scored(Ensemble(fits), data, "redraw", DRAWS // MEMBERS)
    for name, others in {"student of its own": [], "student of all four": fits[1:]}.items():
        taught = distill(
            fits[0], data, training=training, seed=seed, epochs=given.taught, learning_rate=given.rate, masks=given.masks,
            microbatches=given.parts, others=others,
        )  # fmt: skip
        found[name] = scored(taught, data, "distilled")
    return found


PASSES = {
    "dense net": (1, 1.0), "dense ensemble of 4": (4, 4.0), "CigL, 32 masks": (32, 0.0),
    "four CigL posteriors, 8 masks each": (32, 0.0), "student of its own": (1, 0.0), "student of all four": (1, 0.0),
}  # fmt: skip
"""And weights, in dense nets; of a sparse net's 0 it is its density."""


def table(worlds: Sequence[dict[str, Row]], density: float) -> str:
    lines = ["| | passes | weights | accuracy | NLL | ECE |", "|---" * 6 + "|"]
    for name, (passes, weights) in PASSES.items():
        share = weights or density * (MEMBERS if name.startswith("four") else 1)
        for heat in ("", " + TS"):
            columns = zip(*(found[name][heat] for found in worlds), strict=True)
            lines.append(f"| {name}{heat} | {passes} | {share:.0%} | {' | '.join(cell(column, 4) for column in columns)} |")
    pairs = [
        ("student of all four", "student of its own"), ("student of all four", "dense ensemble of 4 + TS"),
        ("student of all four", "CigL, 32 masks"), ("student of all four", "four CigL posteriors, 8 masks each"),
    ]  # fmt: skip
    lines += ["", "| paired by seed | accuracy | NLL | ECE |", "|---" * 4 + "|"]
    for mine, theirs in pairs:
        heat = " + TS" if theirs.endswith(" + TS") else ""
        gaps = [np.subtract(found[mine][""], found[theirs.removesuffix(" + TS")][heat]) for found in worlds]
        lines.append(f"| {mine}, less {theirs} | {' | '.join(cell(column, 4) for column in zip(*gaps, strict=True))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_training(parser, data="fashion-mnist", model="mlp", epochs=60, learning_rate=0.1)
    parser.add_argument("--microbatches", type=int, default=1, help="of the training by CigL")
    parser.add_argument("--taught", type=int, default=30, help="epochs of a student")
    parser.add_argument("--rate", type=float, default=0.05, help="peak of its learning rate")
    parser.add_argument("--masks", type=int, default=1, help="draws whose mean it is told at a step; 0: by moments")
    parser.add_argument("--parts", type=int, default=4, help="of its batches, a teacher and a mask each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/several-teachers"))
    given = parser.parse_args()
    data, book = load_data(given.data, data_dir=given.data_dir, train_size=given.rows), Ledger(given.out / "results.jsonl")
    told = {name: value for name, value in vars(given).items() if name not in ("data_dir", "seeds", "out")}
    worlds = [book.of(f"{told} {seed}", lambda seed=seed: world(given, data, seed)) for seed in given.seeds]
    print(table(worlds, 1 - given.sparsity))


if __name__ == "__main__":
    main()
