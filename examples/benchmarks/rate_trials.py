"""Where could `drop_rate: auto` go wrong, and which of its settings matter? Beside every rate of a grid, each trained in full.

    python examples/benchmarks/rate_trials.py --out runs/rates                  (about an hour of one thread; it resumes)
    python examples/benchmarks/rate_trials.py --out runs/rates --table FILE.md  (of what is there)

Scikit-learn's digits and diabetes, small networks, 90 % sparse (the regression 50). A case is one way in which the rule could
fail: few validation rows, wrong labels, classes of unequal size, a small regression, layers with attention; and `plain` none.
Every run predicts by 32 masks of the last weights (`redraw`; RigL by its one net), scored on test rows by NLL. `best of the
grid` is the rate with the lowest *test* NLL of a seed: no method could choose it, so that what the rule loses to it is an upper
bound. Ablations change one constant of the rule, in the plain case.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from espalier import Data, Training, load_data
from espalier.contracts import Split
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.models import mlp
from espalier.network import BayesianNetwork
from espalier.prediction import evaluate
from espalier.store import Ledger
from espalier.training import drop_rates

GRID = (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3)
SEEDS = (0, 1, 2)


def by_the_delta_method(log_probs: Tensor) -> Tensor:
    """`drop_rates.loss_of` with half the relative variance over the number of draws taken off, as the rule had it at first."""
    mean = torch.logsumexp(log_probs, 0) - math.log(len(log_probs))
    return -mean - (log_probs - mean).exp().var(0) / (2 * len(log_probs))


ABLATIONS: dict[str, dict[str, Any]] = {
    "bias by the delta method": {"loss_of": by_the_delta_method},
    "start .2": {"START": 0.2},
    "half the step": {"STEP": 0.015, "LAST_STEP": 0.00375},
    "twice the step": {"STEP": 0.06, "LAST_STEP": 0.015},
    "pool of 64": {"POOL": 64},
    "2 draws": {"DRAWS": 2},
    "8 draws": {"DRAWS": 8},
    "half-width .03": {"HALF_WIDTH": 0.03},
    "half-width .12": {"HALF_WIDTH": 0.12},
}
Case = Callable[[int], tuple[BayesianNetwork, Data, Training, float]]
"""From a seed to a model, its data, its training and its sparsity."""


class Attentive(nn.Module):
    """An image's rows as a sequence of eight tokens: one block of attention and one of a perceptron, with norms and residuals."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift, self.first, self.second = nn.Linear(8, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.place, self.out = nn.Parameter(0.1 * torch.randn(8, width)), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.view(-1, 8, 8)) + self.place
        seen = self.first(h)
        h = h + nn.functional.scaled_dot_product_attention(self.query(seen), self.key(seen), self.value(seen))
        return self.out((h + self.mix(self.second(h))).mean(1))


def perceptron(seed: int, data: Data) -> BayesianNetwork:
    torch.manual_seed(seed)
    return mlp.model(data.shape, data.num_outputs, hidden=(128, 128))


def digits(seed: int, rows: Tensor | None = None, labels: Tensor | None = None) -> tuple[BayesianNetwork, Data, Training, float]:
    """The cut is always the same; `rows` of the training split, or other `labels` for them."""
    data = load_data("digits", validation=0.15, calibration=0.0)
    x, y = data.train
    if labels is not None:
        data = data._replace(train=Split(x, labels))
    if rows is not None:
        data = data._replace(train=Split(x[rows], y[rows]))
    return perceptron(seed, data), data, Training(epochs=60, batch_size=64, learning_rate=0.1, device="cpu"), 0.9


def few_validation_rows(seed: int) -> tuple[BayesianNetwork, Data, Training, float]:
    model, data, training, sparsity = digits(seed)
    return model, data._replace(validation=Split(data.validation.x[:20], data.validation.y[:20])), training, sparsity


def wrong_labels(seed: int) -> tuple[BayesianNetwork, Data, Training, float]:
    """A fifth of the training and of the validation labels are drawn anew from all classes."""
    stream, data = torch.Generator().manual_seed(seed), digits(seed)[1]

    def noisy(y: Tensor) -> Tensor:
        drawn = torch.randint(10, y.shape, generator=stream)
        return torch.where(torch.rand(y.shape, generator=stream) < 0.2, drawn, y)

    model, changed, training, sparsity = digits(seed, labels=noisy(data.train.y))
    return model, changed._replace(validation=Split(data.validation.x, noisy(data.validation.y))), training, sparsity


def unequal_classes(seed: int) -> tuple[BayesianNetwork, Data, Training, float]:
    """Of classes 5 to 9 one training row in ten is left."""
    y, stream = digits(seed)[1].train.y, torch.Generator().manual_seed(seed)
    return digits(seed, rows=torch.nonzero((y < 5) | (torch.rand(y.shape, generator=stream) < 0.1)).flatten())


def regression(seed: int) -> tuple[BayesianNetwork, Data, Training, float]:
    x, y = load_diabetes(return_X_y=True)
    data = from_arrays(x, y, name="diabetes", validation=0.15, calibration=0.0)
    torch.manual_seed(seed)
    model = mlp.model(data.shape, 1, hidden=(50, 50), likelihood="normal")
    return model, data, Training(epochs=100, batch_size=32, optimizer="adam", learning_rate=0.01, device="cpu"), 0.5


def attention(seed: int) -> tuple[BayesianNetwork, Data, Training, float]:
    _, data, _, sparsity = digits(seed)
    torch.manual_seed(seed)
    training = Training(epochs=60, batch_size=64, optimizer="adam", learning_rate=0.003, device="cpu")
    return BayesianNetwork(Attentive()), data, training, sparsity


CASES: dict[str, Case] = {
    "plain": digits,
    "20 validation rows": few_validation_rows,
    "a fifth of the labels wrong": wrong_labels,
    "classes of unequal size": unequal_classes,
    "a small regression": regression,
    "attention": attention,
}


@contextmanager
def changed(constants: Mapping[str, Any]) -> Iterator[None]:
    """The rule with other constants, for as long as it lasts."""
    before = {name: getattr(drop_rates, name) for name in constants}
    try:
        vars(drop_rates).update(constants)
        yield
    finally:
        vars(drop_rates).update(before)


def scored(case: Case, rate: drop_rates.DropRate, seed: int) -> dict[str, float]:
    model, data, training, sparsity = case(seed)
    fit = cigl.infer(model, data, sparsity=sparsity, drop_rate=rate, delta_t=20, training=training, seed=seed)
    scores = evaluate(fit, data, num_samples=32)["predict"]["redraw"]
    return {"rate": 1 - fit.keep_prob, "nll": scores["nll"], "ece": scores.get("ece_15", float("nan"))}


def jobs(seeds: Sequence[int]) -> Iterator[tuple[str, str, int, Callable[[], dict[str, float]]]]:
    """Case, arm, seed and the work. The arms `auto` and a number; of the plain case the ablations too."""
    for seed in seeds:
        for name, case in CASES.items():
            for rate in ("auto", *GRID):
                yield name, str(rate), seed, lambda case=case, rate=rate, seed=seed: scored(case, rate, seed)
        for name, constants in ABLATIONS.items():

            def ablated(constants: Mapping[str, Any] = constants, seed: int = seed) -> dict[str, float]:
                with changed(constants):
                    return scored(digits, "auto", seed)

            yield "plain", name, seed, ablated


def work(book: Ledger, seeds: Sequence[int], cases: Sequence[str]) -> None:
    """Whatever is not in the ledger yet."""
    for case, arm, seed, run in jobs(seeds):
        if case in cases and (key := f"{case} {arm} {seed}") not in book:
            row = book.of(key, lambda case=case, arm=arm, seed=seed, run=run: {"case": case, "arm": arm, "seed": seed, **run()})
            print(f"{case}, {arm}, seed {seed}: rate {row['rate']:.4g}, NLL {row['nll']:.4f}", flush=True)


def said(values: Sequence[float]) -> str:
    """Mean and standard error over seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cases whose whole grid is there, by the seeds for which it is; then the ablations."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["case"], row["arm"]), {})[row["seed"]] = row
    lines = [
        "| case | seeds | rates found | NLL: auto | best of the grid (rate) | 0.1 | RigL | auto less the best |",
        "|---" * 8 + "|",
    ]
    for case in CASES:
        arms = {arm: found.get((case, arm), {}) for arm in ("auto", *map(str, GRID))}
        if seeds := sorted(set.intersection(*(set(own) for own in arms.values()))):
            best = [min((arms[str(rate)][seed] for rate in GRID), key=lambda row: row["nll"]) for seed in seeds]
            auto = [arms["auto"][seed] for seed in seeds]
            chosen = " ".join(f"{row['rate']:.2g}" for row in best)
            cells = [
                case, str(len(seeds)), " ".join(f"{row['rate']:.2g}" for row in auto), said([row["nll"] for row in auto]),
                f"{said([row['nll'] for row in best])} ({chosen})",
                *(said([arms[arm][seed]["nll"] for seed in seeds]) for arm in ("0.1", "0.0")),
                said([own["nll"] - other["nll"] for own, other in zip(auto, best, strict=True)]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| the rule, changed (plain) | rates found | NLL | less the rule's own |", "|---" * 4 + "|"]
    own = found.get(("plain", "auto"), {})
    for arm in ABLATIONS:
        if seeds := sorted(set(found.get(("plain", arm), {})) & set(own)):
            changed_rows = [found["plain", arm][seed] for seed in seeds]
            rates = " ".join(f"{row['rate']:.2g}" for row in changed_rows)
            less = said([row["nll"] - own[seed]["nll"] for row, seed in zip(changed_rows, seeds, strict=True)])
            lines.append(f"| {arm} | {rates} | {said([row['nll'] for row in changed_rows])} | {less} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--table", type=Path, help="write the table of what is there to this file, and run nothing")
    arguments = parser.parse_args()
    book = Ledger(arguments.out / "results.jsonl")
    if arguments.table is None:
        work(book, arguments.seeds, arguments.cases)
        print(table([*book.known.values()]))
    else:
        arguments.table.write_text(table([*book.known.values()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
