"""One sparse net that is trained as long as an ensemble of four in all, in one pass, beside that ensemble. Prints markdown.

    python examples/benchmarks/one_long.py --data-dir DATA --out runs/one-long          (it resumes)
    python examples/benchmarks/one_long.py --data cifar10 --model wide_resnet --epochs 30 ...

Of each seed: four dense networks, four by CigL (its drop rate found) at `--sparsity`, all of `--epochs`; one dense one, one by
RigL and one by CigL of four times as many, which together cost what four do; and, with `--longest`, four dense ones of as many
each. The data and their cut are the same. Temperatures (TS) are fitted on validation rows. Differences are paired by seed, with
t intervals. Seconds are the processor's, over those of the dense ensemble.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from label_noise import cell
from several_teachers import DRAWS, MEMBERS, Row, built, of_training, scored

from espalier import Data, Fit, Training, load_data
from espalier.inference import cigl, dense
from espalier.prediction import Ensemble
from espalier.store import Ledger

RESIDUAL = {"depth": 10, "widen": 1}


def trained(given: argparse.Namespace, data: Data, how: str, seed: int, times: int) -> tuple[Fit, float]:
    """With the processor's seconds."""
    model = built(given, data, seed, wide_resnet=RESIDUAL)
    training = Training(epochs=times * given.epochs, batch_size=128, learning_rate=given.learning_rate, device="cpu")
    begun = time.process_time()
    if how == "dense":
        fit = dense.infer(model, data, training=training, seed=seed)
    else:
        rate = 0.0 if how == "rigl" else "auto"
        fit = cigl.infer(model, data, sparsity=given.sparsity, drop_rate=rate, training=training, seed=seed)
    return fit, time.process_time() - begun


def world(given: argparse.Namespace, data: Data, seed: int, kept: Callable[[str, Callable[[], Row]], Row]) -> dict[str, Row]:
    """Every arm of a seed, each `kept` when it is done."""
    first, found = 10 * MEMBERS * seed, dict[str, Row]()

    def arm(name: str, how: str, place: int, times: int, members: int = 1) -> None:
        def scores() -> Row:
            fits, seconds = zip(*(trained(given, data, how, first + place + one, times) for one in range(members)), strict=True)
            who = fits[0] if members == 1 else Ensemble(fits)
            row = scored(who, data, "redraw" if how == "cigl" else "unmasked", DRAWS // members)
            if how == "cigl":
                row |= {f", moments{heat}": own for heat, own in scored(who, data, "moments").items()}
            return row | {"seconds": [sum(seconds)]}

        found[name] = kept(name, scores)

    long = MEMBERS * given.epochs
    arm(f"dense, {given.epochs} epochs", "dense", 0, 1)
    arm(f"CigL, {given.epochs} epochs", "cigl", MEMBERS, 1)
    arm(f"CigL, {long} epochs", "cigl", 2 * MEMBERS, MEMBERS)
    arm(f"dense ensemble of 4, {given.epochs} epochs", "dense", 0, 1, MEMBERS)
    arm(f"dense, {long} epochs", "dense", 3 * MEMBERS, MEMBERS)
    arm(f"RigL, {long} epochs", "rigl", 2 * MEMBERS, MEMBERS)
    arm(f"four of CigL, {given.epochs} epochs", "cigl", MEMBERS, 1, MEMBERS)
    if given.longest:
        arm(f"dense ensemble of 4, {long} epochs", "dense", 3 * MEMBERS, MEMBERS, MEMBERS)
    return found


def table(worlds: Sequence[dict[str, Row]], density: float) -> str:
    lines = ["| | passes | weights | training | accuracy | NLL | ECE |", "|---" * 7 + "|"]
    names = list(worlds[0])
    whole = next(name for name in names if name.startswith("dense ensemble"))
    for name in names:
        several = name.startswith("four") or "ensemble" in name
        weights = (MEMBERS if several else 1) * (1.0 if name.startswith("dense") else density)
        price = np.mean([found[name]["seconds"][0] / found[whole]["seconds"][0] for found in worlds])
        for heat in ("", ", moments") if "Cig" in name else ("", " + TS"):
            passes = (MEMBERS if several else 1) if "Cig" not in name or "moments" in heat else DRAWS
            columns = zip(*(found[name][heat] for found in worlds), strict=True)
            scores = " | ".join(cell(column, 4) for column in columns)
            lines.append(f"| {name}{heat} | {passes} | {weights:.0%} | {price:.2f} | {scores} |")
    mine = names[2]
    lines += ["", f"| {mine}, moments, less, paired by seed | accuracy | NLL | ECE |", "|---" * 4 + "|"]
    for name in names:
        heat = ", moments" if "Cig" in name else " + TS"
        for tail in ([heat] if name != mine else [""]) + ([""] if name.startswith("four") else []):
            gaps = [np.subtract(found[mine][", moments"], found[name][tail]) for found in worlds]
            lines.append(f"| {name}{tail} | {' | '.join(cell(column, 4) for column in zip(*gaps, strict=True))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_training(parser, data="fashion-mnist", model="mlp", epochs=60, learning_rate=0.1)
    parser.add_argument("--longest", action="store_true", help="also four dense nets of as many epochs each as the long one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/one-long"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, book = load_data(given.data, data_dir=given.data_dir, train_size=given.rows), Ledger(given.out / "results.jsonl")
    told = {name: value for name, value in vars(given).items() if name not in ("data_dir", "seeds", "out", "longest")}
    worlds = [
        world(given, data, seed, lambda name, scores, seed=seed: book.of(f"{told} {seed} {name}", scores)) for seed in given.seeds
    ]
    print(table(worlds, 1 - given.sparsity))


if __name__ == "__main__":
    main()
