"""Persistence of dense and sparse MLPs, and shift seen in their activation graphs (Girrbach et al. 2023). Prints markdown.

    python examples/benchmarks/persistence.py [--data fashion-mnist] [--data-dir DATA] [--rows 5000] [--seeds 3] [--batches 20]

Of an MLP 300-100, dense and sparse by RigL: neural persistence of its layers, what their largest weights alone say of it, deep
graph persistence, and units on no path. Then batches of 50 test rows, as they are and corrupted, are asked whether they could be
of the kind of the validation rows: Kolmogorov-Smirnov tests of every feature, Bonferroni at .05. Features: the activation graph's
(heaviest edge at every unit of the last layer), the last layer's inputs themselves, and the probabilities, as who has no graphs
would do. A right test raises .05 false alarms at most. Nothing is chosen.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from label_noise import cell
from numpy.typing import NDArray

from espalier import Data, Fit, Training, load_data
from espalier.data import shifted
from espalier.inference import dense, rigl
from espalier.models import mlp
from espalier.prediction import features_of
from espalier.topology import graphs

Features = NDArray[np.float64]
SPARSITIES = (0.0, 0.8, 0.95)
SHIFTS = ("gaussian noise", "gaussian blur", "contrast", "rotation")
SEVERITIES = (1, 3)
BATCH = 50


def trained(data: Data, sparsity: float, seed: int, epochs: int) -> Fit:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp.model(data.shape, data.num_outputs, hidden=(300, 100))
    training = Training(epochs=epochs, batch_size=128, learning_rate=0.1, device="cpu")
    if not sparsity:
        return dense.infer(model, data, training=training, seed=seed)
    return rigl.infer(model, data, sparsity=sparsity, delta_t=20, training=training, seed=seed)


def layers_of(fit: Fit) -> list[Features]:
    return [layer.detach().numpy().astype(np.float64) for layer in fit.ticket().parameters() if layer.dim() == 2]


def structure(fit: Fit) -> list[float]:
    """Mean neural persistence; how far from it, by layer, sqrt(mean (1 - w)^2) of the r + c - 1 largest |w| is, as many as a tree
    has edges; deep graph persistence; hidden units on no path."""
    layers = layers_of(fit)
    persistence = graphs.neural_persistence(layers)
    largest = [np.sort((np.abs(w) / np.abs(w).max()).reshape(-1))[-(sum(w.shape) - 1) :] for w in layers]
    by_size = [float(np.sqrt(np.mean((1 - own) ** 2))) for own in largest]
    off = sum(int((~units).sum()) for units in graphs.connected(layers).units)
    gap = statistics.fmean(abs(a - b) for a, b in zip(persistence, by_size, strict=True))
    return [statistics.fmean(persistence), gap, graphs.deep_graph_persistence(layers), float(off)]


def features(fit: Fit, last: Features, x: torch.Tensor) -> dict[str, Features]:
    """last: the weights of the last layer."""
    inputs = features_of(fit, x)
    return {
        "activation graph": graphs.activation_features(inputs, last), "last layer's inputs": inputs,
        "probabilities": fit.predict(x, "ticket").mean(0).double().numpy(),
    }  # fmt: skip


def alarms(fit: Fit, data: Data) -> dict[tuple[str, str], float]:
    """Of each shift and kind of features the share of batches that are told."""
    last, found = layers_of(fit)[-1], dict[tuple[str, str], float]()
    inside = features(fit, last, data.validation.x)
    worlds = {"none": data.test.x} | {f"{name}, {how}": shifted(data, name, how).x for name in SHIFTS for how in SEVERITIES}
    for world, x in worlds.items():
        for kind, values in features(fit, last, x).items():
            told = [graphs.shift(inside[kind], values[start : start + BATCH])[1] for start in range(0, len(values), BATCH)]
            found[world, kind] = statistics.fmean(told)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="a set, or an .npz file, of grey images")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    arguments = parser.parse_args()
    data = load_data(arguments.data, data_dir=arguments.data_dir, train_size=arguments.rows)
    test = data.test._replace(x=data.test.x[torch.arange(arguments.batches * BATCH)], y=data.test.y[: arguments.batches * BATCH])
    data, seeds = data._replace(test=test), range(arguments.seeds)
    fits = {sparsity: [trained(data, sparsity, seed, arguments.epochs) for seed in seeds] for sparsity in SPARSITIES}
    heads = ["neural persistence", "apart from its largest weights'", "deep graph persistence", "hidden units on no path"]
    print(f"| sparsity | {' | '.join(heads)} |\n|---|---|---|---|---|")
    for sparsity, own in fits.items():
        columns = zip(*map(structure, own), strict=True)
        print(f"| {sparsity:g} | {' | '.join(cell(column) for column in columns)} |")
    told = {sparsity: [alarms(fit, data) for fit in own] for sparsity, own in fits.items()}
    kinds = list(dict.fromkeys(kind for _, kind in told[0.0][0]))
    heads = [f"{kind}, {sparsity:g}" for kind in kinds for sparsity in SPARSITIES]
    print(f"\n| shift, severity | {' | '.join(heads)} |\n{'|---' * (1 + len(heads))}|")
    for world in dict.fromkeys(world for world, _ in told[0.0][0]):
        shares = [statistics.fmean(one[world, kind] for one in told[sparsity]) for kind in kinds for sparsity in SPARSITIES]
        print(f"| {world} | {' | '.join(f'{share:.2f}' for share in shares)} |")


if __name__ == "__main__":
    main()
