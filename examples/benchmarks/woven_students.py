"""Students that learn on the way, several of one training: how hot, told how many masks a step, from when on, on mixed inputs.

    python examples/benchmarks/woven_students.py --data-dir DATA --out runs/woven-students        (it resumes; prints markdown)
    python examples/benchmarks/woven_students.py --data cifar10 --model lenet --epochs 30 ...

A network is trained with its drop rate found, and every student follows that training: what differs between them is theirs alone,
and the training does not notice. Scores are of validation rows, which the drop rate looks at too: this is for choosing. `time` is
a student's CPU seconds over those of the training without any. Given several seeds, ± is half the 95 % t interval.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from label_noise import cell
from one_student import MASKS, mean_of
from several_teachers import built, of_training, three
from torch import Tensor

from espalier import BayesianNetwork, Data, Fit, Training, load_data
from espalier.guides import MaskedGuide
from espalier.store import Bundle, Ledger
from espalier.topology import initial, schedules
from espalier.training import Streams, find_device, prepare
from espalier.training.distillation import Lessons
from espalier.training.drop_rates import begin
from espalier.training.train import train
from espalier.training.woven import BEGINS, Woven

ARMS = [Lessons(0, rate, masks) for rate, masks in [(0.02, 1), (0.05, 1), (0.02, 2), (0.05, 2), (0.02, 4), (0.05, 4), (0.1, 4)]]
MIXED = [Lessons(0, rate, masks) for rate, masks in [(0.02, 1), (0.05, 2), (0.02, 4), (0.05, 4), (0.1, 4)]]
"""Those on mixed inputs, of which the training's own masks have said nothing."""
BEGUN = [0.8, 0.85, 0.95]
"""Of those that begin at another fraction of training than `BEGINS`: one mask a step, rate .02."""


class Timed(Woven):
    """One of several: it says nothing of its own, and keeps the fit as it leaves it."""

    spent = 0.0
    handed: Any = None

    def after(self, taken: int, x: Any, outputs: Sequence[Any], model: BayesianNetwork, guide: MaskedGuide) -> None:
        start = time.process_time()
        super().after(taken, x, outputs, model, guide)
        self.spent += time.process_time() - start

    def row(self) -> dict[str, float]:
        return {}

    def bundle(self) -> Bundle:
        return Bundle({}, {})

    def end(self, fit: Fit, data: Data) -> None:
        super().end(fit, data)
        self.handed, fit.student = fit.student, None


class Mixed(Timed):
    """It learns on every row of a batch mixed with another by a weight of its own, w x + (1 - w) x', w ~ U(0, 1)."""

    def after(self, taken: int, x: Any, outputs: Sequence[Any], model: BayesianNetwork, guide: MaskedGuide) -> None:
        if self.hears(taken):
            weight = torch.rand(len(x), *[1] * (x.dim() - 1), generator=self.stream)
            x = weight * x + (1 - weight) * x[torch.randperm(len(x), generator=self.stream)]
            super().after(taken, x, (), model, guide)


def world(given: argparse.Namespace, data: Data, seed: int) -> dict[str, list[float]]:
    training = Training(epochs=given.epochs, batch_size=128, learning_rate=given.learning_rate, device="cpu")
    model = built(given, data, seed, wide_resnet={"depth": 10, "widen": 1})
    streams = Streams(seed, find_device("cpu"))
    keep_prob, found = begin("auto", model, data, training, seed=seed)
    model = prepare(model, data, training, keep_prob=keep_prob)
    topology = initial(model.shapes, given.sparsity, "erk", "random", model.initial, streams.topology)
    guide = MaskedGuide(model, topology, keep_prob, generator=streams.mask)
    schedule = schedules.rule("rigl", 100, training.step_at(0.75, data), 0.3)
    arms = [
        *((Timed, "", lessons, BEGINS) for lessons in ARMS),
        *((Mixed, ", mixed inputs", lessons, BEGINS) for lessons in MIXED),
        *((Timed, f", from {begins:g} on", ARMS[0], begins) for begins in BEGUN),
    ]
    steps = training.steps(data)
    students = [kind(round(begins * steps), steps, lessons, seed=seed) for kind, _, lessons, begins in arms]
    start = time.process_time()
    fit = train(
        model, guide, schedule, data, training=training, streams=streams, average_from=0.8, followers=[*found, *students]
    )  # fmt: skip
    alone = time.process_time() - start - sum(student.spent for student in students)
    held, y = data.validation.x, data.validation.y.numpy()

    def scores(probs: Tensor) -> list[float]:
        return three(probs.double().numpy(), y)

    rows = {f"{MASKS} masks": [*scores(mean_of(fit, held)), 0.0], "ticket": [*scores(fit.predict(held, "ticket")[0]), 0.0]}
    for (_, what, lessons, _), student in zip(arms, students, strict=True):
        fit.student = student.handed  # none, where it ended farther from its teacher than the ticket
        found = scores(fit.predict(held, "distilled")[0]) if fit.student is not None else [math.nan] * 3
        name = f"{lessons.masks} a step, rate {lessons.learning_rate:g}{what}"
        rows[name] = [*found, student.spent / alone]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_training(parser, data="fashion-mnist", model="mlp", epochs=60, learning_rate=0.05)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--out", type=Path, default=Path("runs/woven-students"))
    given = parser.parse_args()
    data = load_data(given.data, data_dir=given.data_dir, train_size=given.rows)
    book = Ledger(given.out / "results.jsonl")
    told = {name: value for name, value in vars(given).items() if name not in ("data_dir", "seeds", "out")}
    arms = f"{ARMS} {MIXED} {BEGUN}"
    worlds = [book.of(f"{told} {seed} {arms}", lambda seed=seed: world(given, data, seed)) for seed in given.seeds]
    print("| validation rows | accuracy | NLL | ECE | time | NLL above that of the masks, % |\n|---|---|---|---|---|---|")
    for name in worlds[0]:
        each = [one[name] for one in worlds]
        above = [100 * (one[name][1] / one[f"{MASKS} masks"][1] - 1) for one in worlds]
        print(f"| {name} | {' | '.join(cell(column, 4) for column in zip(*each, strict=True))} | {cell(above, 2)} |")


if __name__ == "__main__":
    main()
