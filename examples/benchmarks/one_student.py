"""What stands between one pass and its draws: students of one masked network, taught in several ways. Prints markdown.

    python examples/benchmarks/one_student.py --data-dir DATA --out runs/one-student                       (it resumes)

A network is trained with its drop rate found, and taught a student by moments; then others stand on its support and begin as its
ticket, told one mask a batch. Told the mean of 64 masks of every input, one has a teacher without noise; with
all weights free, one that is not sparse; of more inputs, all training rows of the set, without labels. Scores are of validation
rows, which the drop rate looks at too: this is for understanding, and for choosing. Given several seeds, ± is half the 95 % t
interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import pyro.distributions as dist
import torch
from label_noise import cell
from several_teachers import built, of_training, three
from torch import Tensor

from espalier import Data, Fit, Training, load_data
from espalier.contracts import Rows
from espalier.inference import distilled
from espalier.prediction.pairs import State
from espalier.prediction.predict import outcome_of
from espalier.store import Ledger
from espalier.training import rates
from espalier.training.student import Student
from espalier.training.teachers import Teachers

MASKS, BATCH = 64, 128


class Arm(NamedTuple):
    """rate: peak of the learning rate. passes: over the training inputs, or as many steps over more. decay: L2. told: the mean of
    many masks. free: all weights learn. more: all training rows of the set. adam: in place of Nesterov SGD."""

    rate: float = 0.02
    passes: int = 6
    decay: float = 0.0
    told: bool = False
    free: bool = False
    more: bool = False
    adam: bool = False


ARMS = {
    "a mask a batch, rate .1": Arm(0.1),
    "a mask a batch, rate .05": Arm(0.05),
    "a mask a batch, rate .02": Arm(),
    "a mask a batch, rate .005": Arm(0.005),
    "a mask a batch, 20 epochs": Arm(passes=20),
    "a mask a batch of more inputs, as many steps": Arm(passes=20, more=True),
    "told the mean": Arm(told=True),
    "told the mean, 20 epochs": Arm(told=True, passes=20),
    "told the mean, 20 epochs, all weights free": Arm(told=True, passes=20, free=True),
    "told the mean, 20 epochs, Adam at .001": Arm(0.001, told=True, passes=20, adam=True),
    "told the mean of more inputs, as many steps": Arm(told=True, passes=20, more=True),
    "told the mean of more inputs, as many steps, Adam at .001": Arm(0.001, told=True, passes=20, more=True, adam=True),
    "told the mean of more inputs, steps of 100 epochs, Adam at .001": Arm(0.001, told=True, passes=100, more=True, adam=True),
    "told the mean, rate .1, decay .002": Arm(0.1, told=True, decay=0.002),
    "told the mean, 20 epochs, rate .1, decay .002": Arm(0.1, told=True, passes=20, decay=0.002),
    "a mask a batch, rate .1, decay .002": Arm(0.1, decay=0.002),
}


def taught(fit: Fit, inputs: Tensor, told: Tensor, arm: Arm, steps: int, seed: int) -> tuple[Tensor, State]:
    """The student's weights, all of them, and its other state. told: `(n, C)` of the inputs."""
    teachers, stream = Teachers([fit]), torch.Generator().manual_seed(seed)
    values, state = teachers.first.ticket()
    student = Student(fit.model, fit.dense(values) if arm.free else values, state, rates.cosine(arm.rate, steps))
    if arm.adam:
        student.optimizer = torch.optim.Adam([student.values, *student.own.values()])
    student.optimizer.param_groups[0]["weight_decay"] = arm.decay

    def place(weights: Tensor) -> Tensor:
        return weights if arm.free else fit.dense(weights)

    whole = len(inputs) // BATCH
    with teachers.training():
        for step in range(steps):
            if not step % whole:
                order = torch.randperm(len(inputs), generator=stream)
            rows = order[step % whole * BATCH :][:BATCH]
            x = inputs[rows]
            student.learn(x, [dist.Categorical(told[rows]) if arm.told else teachers.says(x, stream)], place)
    values, state = student.network()
    return place(values), state


def world(given: argparse.Namespace, data: Data, more: Data, seed: int) -> dict[str, list[float]]:
    training = Training(epochs=given.epochs, batch_size=BATCH, learning_rate=given.learning_rate, device="cpu")
    fit = distilled.infer(built(given, data, seed), data, sparsity=given.sparsity, training=training, seed=seed)
    held, y = data.validation.x, data.validation.y.numpy()

    def scores(probs: Tensor) -> list[float]:
        return three(probs.double().numpy(), y)

    found = {"ticket": scores(fit.predict(held, "ticket")[0]), f"{MASKS} masks": scores(mean_of(fit, held))}
    found["the product's own"] = scores(fit.predict(held, "distilled")[0])
    own, every = (part.train.x[torch.arange(len(part.train.y))] for part in (data, more))
    told = {False: mean_of(fit, own), True: mean_of(fit, every)}
    for name, arm in ARMS.items():
        steps = max(1, arm.passes * given.share * len(own) // (100 * BATCH))
        weights, state = taught(fit, every if arm.more else own, told[arm.more], arm, steps, seed)
        found[name] = scores(outcome_of(fit.model, weights, held, state).probs)
    return found


def mean_of(fit: Fit, x: Rows | Tensor) -> Tensor:
    """Of `MASKS` draws, `(n, C)`: no more than eight at a time are held."""
    return torch.stack([fit.predict(x, "redraw", num_samples=8, seed=turn).mean(0) for turn in range(MASKS // 8)]).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_training(parser, data="cifar10", model="lenet", epochs=30, learning_rate=0.05)
    parser.add_argument("--share", type=int, default=100, help="per cent of the students' steps, for a try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--out", type=Path, default=Path("runs/one-student"))
    given = parser.parse_args()
    data, more = (load_data(given.data, data_dir=given.data_dir, train_size=rows) for rows in (given.rows, None))
    assert torch.equal(data.validation.y, more.validation.y), "the same rows are held out of both"
    book = Ledger(given.out / "results.jsonl")
    told = {name: value for name, value in vars(given).items() if name not in ("data_dir", "seeds", "out")}
    worlds = [book.of(f"{told} {seed} {ARMS}", lambda seed=seed: world(given, data, more, seed)) for seed in given.seeds]
    print("| validation rows | accuracy | NLL | ECE |\n|---|---|---|---|")
    for name in worlds[0]:
        print(f"| {name} | {' | '.join(cell(column, 4) for column in zip(*(one[name] for one in worlds), strict=True))} |")


if __name__ == "__main__":
    main()
