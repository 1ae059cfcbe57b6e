"""Are sparse networks more robust, and easier to certify, than dense ones?

    python examples/benchmarks/robustness.py --data-dir DIR --out robustness.jsonl     (minutes of one thread; it resumes)

Fashion-MNIST, 10,000 training rows, an MLP; for every seed a dense network, and for every sparsity RigL, both also with the loss
`nrs` (at the paper's rho of .01 and at 1); the CigL ticket, and the net that CigL's draws are distilled to (one run gives both).
Inputs move within eps, a share of white: accuracy under noise, under PGD (an upper bound of the robust accuracy) and certified by
interval bounds (a lower one), on the first test rows. Prints a markdown table: means over seeds, and each seed's certified share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from espalier import Data, Training, load_data, load_program
from espalier.models import lenet, mlp
from espalier.prediction import evaluate, robustness_of
from espalier.store import Ledger


def arms(sparsities: Sequence[float], eps: float) -> Iterator[tuple[str, str, float, str, str]]:
    """Name, inference, sparsity, loss, way to predict."""
    losses = {"": "likelihood"} | {f" + NRS, rho {rho}": f"nrs:{eps:.6g}:{rho}" for rho in ("0.01", "1")}
    for what, loss in losses.items():
        yield f"dense{what}", "dense", 0.0, loss, "ticket"
    for sparsity in sparsities:
        for what, loss in losses.items():
            yield f"RigL{what}", "rigl", sparsity, loss, "ticket"
        yield "CigL ticket", "distilled", sparsity, "likelihood", "ticket"
        yield "CigL distilled", "distilled", sparsity, "likelihood", "distilled"


def trained(inference: str, sparsity: float, loss: str, data: Data, seed: int, given: argparse.Namespace) -> Any:
    torch.manual_seed(seed)
    model = (
        lenet.model(data.shape, 10, hidden=given.hidden) if given.model == "lenet"
        else mlp.model(data.shape, 10, hidden=(given.hidden, given.hidden))
    )  # fmt: skip
    training = Training(epochs=given.epochs, batch_size=128, learning_rate=0.1, loss=loss, device="cpu")
    options = {} if inference == "dense" else {"sparsity": sparsity, "delta_t": 50}
    return load_program("inference", inference)(model, data, training=training, seed=seed, **options)


def work(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Whatever is not in the ledger yet; all that is asked for."""
    book, rows = Ledger(given.out), []
    size = f"{given.model} {given.hidden} {given.epochs} {given.train_size} {given.rows} {given.eps} {given.train_eps}"
    for seed in given.seeds:
        data = load_data("fashion-mnist", data_dir=given.data_dir, train_size=given.train_size, split_seed=seed)
        last: tuple[Any, ...] = ()
        for arm, inference, sparsity, loss, way in arms(given.sparsities, given.train_eps):
            key = f"{size} {seed} {sparsity} {arm}"
            if key in book:
                rows.append(book.known[key])
                continue
            start = time.perf_counter()
            if last[:-1] != (inference, sparsity, loss):
                last = (inference, sparsity, loss, trained(inference, sparsity, loss, data, seed, given))
            fit, spent = last[-1], time.perf_counter() - start
            row = {"seed": seed, "sparsity": sparsity, "arm": arm, "seconds": spent}
            scores = evaluate(fit, data, num_samples=1)["predict"][way]
            row |= {name: scores[name] for name in ("accuracy", "ece_15")}
            row["robust"] = robustness_of(fit, data, given.eps, how=way, rows=given.rows)
            rows.append(book.of(key, partial(dict, row)))
            print(f"seed {seed}, {sparsity:.0%} sparse, {arm}: accuracy {row['accuracy']:.4f}, certified",
                  *(f"{one['certified']:.3f}" for one in row["robust"]), flush=True)  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault((row["sparsity"], row["arm"]), []).append(row)
    eps = [one["eps"] for one in rows[0]["robust"]]
    heads = [f"{what}, {255 * one:.3g}/255" for one in eps for what in ("noise", "PGD", "certified (each seed)", "unstable")]
    lines = ["| sparsity | net | accuracy | ECE | " + " | ".join(heads) + " |", "|---" * (4 + len(heads)) + "|"]
    for (sparsity, arm), own in groups.items():
        cells = [f"{100 * sparsity:.0f} %", arm, f"{mean(own, 'accuracy'):.4f}", f"{mean(own, 'ece_15'):.4f}"]
        for place in range(len(eps)):
            robust = [row["robust"][place] for row in own]
            each = ", ".join(f"{one['certified']:.3f}" for one in robust)
            cells += [f"{mean(robust, 'noise'):.3f}", f"{mean(robust, 'pgd'):.3f}", f"{mean(robust, 'certified'):.3f} ({each})",
                      f"{mean(robust, 'unstable'):.3f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON for each network; what is there is not repeated")
    parser.add_argument("--model", choices=["mlp", "lenet"], default="mlp")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=10_000)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--eps", type=float, nargs="+", default=[1 / 255, 4 / 255])
    parser.add_argument("--train-eps", type=float, default=4 / 255, help="of the loss nrs")
    parser.add_argument("--rows", type=int, default=1000, help="test rows that are moved")
    given = parser.parse_args(words)
    rows = work(given)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
