"""Students of one training: told what all masks say together, or draws of them; how hot, and for how long. Prints markdown.

    python examples/benchmarks/lessons.py --data-dir DATA --out runs/lessons                               (it resumes)
    python examples/benchmarks/lessons.py --data cifar10 --model lenet --epochs 30 ...

A network is trained with its drop rate found; then every student is taught by it anew. Scores are of validation rows, which the
drop rate looks at too: this is for choosing. `time` is a student's CPU seconds over those of the training. Given several seeds, ±
is half the 95 % t interval.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from pathlib import Path

from label_noise import cell
from several_teachers import built, of_training, three

from espalier import Data, Training, load_data
from espalier.inference import cigl
from espalier.store import Ledger
from espalier.training import distill
from espalier.training.distillation import Lessons
from espalier.training.student import Refused

MASKS = 64
ARMS = {
    "by moments, 4 % of the steps at .1": Lessons(),
    **{f"by moments, 4 % at {rate:g}": Lessons(0, rate) for rate in (0.02, 0.05, 0.2)},
    **{f"by moments, {epochs} epochs at .1": Lessons(epochs) for epochs in (1, 3, 6)},
    "by a mask a step, 10 % of the steps at .02": Lessons(masks=1),
    "by a mask a step, 10 % at .05": Lessons(0, 0.05, 1),
    "by four masks a step, 10 % at .05": Lessons(0, 0.05, 4),
}


def world(given: argparse.Namespace, data: Data, seed: int) -> dict[str, list[float]]:
    training = Training(epochs=given.epochs, batch_size=128, learning_rate=given.learning_rate, device="cpu")
    model = built(given, data, seed, wide_resnet={"depth": 10, "widen": 1})
    start = time.process_time()
    fit = cigl.infer(model, data, sparsity=given.sparsity, training=training, seed=seed)
    whole = time.process_time() - start
    x, y = data.validation.x, data.validation.y.numpy()

    def row(way: str, spent: float = 0.0, num_samples: int = 32) -> list[float]:
        return [*three(fit.predict(x, way, num_samples=num_samples).mean(0).double().numpy(), y), spent / whole]

    rows = {f"{MASKS} masks": row("redraw", num_samples=MASKS), "ticket": row("ticket"), "moments": row("moments")}
    for name, lessons in ARMS.items():
        start = time.process_time()
        try:
            distill(fit, data, training=training, seed=seed, **lessons._asdict())
        except Refused as why:
            warnings.warn(f"{name}: {why}", stacklevel=1)
            continue
        rows[name] = row("distilled", time.process_time() - start)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_training(parser, data="fashion-mnist", model="mlp", epochs=60, learning_rate=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"))
    given = parser.parse_args()
    data = load_data(given.data, data_dir=given.data_dir, train_size=given.rows)
    book = Ledger(given.out / "results.jsonl")
    told = {name: value for name, value in vars(given).items() if name not in ("data_dir", "seeds", "out")}
    worlds = [book.of(f"{told} {seed} {ARMS}", functools.partial(world, given, data, seed)) for seed in given.seeds]
    print("| validation rows | accuracy | NLL | ECE | time | NLL above that of the masks, % |\n|---|---|---|---|---|---|")
    for name in worlds[0]:
        each = [one[name] for one in worlds if name in one]
        above = [100 * (one[name][1] / one[f"{MASKS} masks"][1] - 1) for one in worlds if name in one]
        print(f"| {name} | {' | '.join(cell(column, 4) for column in zip(*each, strict=True))} | {cell(above, 2)} |")


if __name__ == "__main__":
    main()
