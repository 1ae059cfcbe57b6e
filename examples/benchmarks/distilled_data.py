"""Calibration of nets trained on distilled data, in the spirit of Zhu et al. 2023. Prints markdown.

    python examples/benchmarks/distilled_data.py --data-dir DATA --out runs/distilled-data
                                                                        (some minutes of one thread; it resumes)

A set of 10,000 images is distilled into 10 a class by distribution matching (Zhao & Bilen 2023): the images are moved until their
mean features, class by class, are those of the real ones under convolutional networks drawn anew at every step. MLPs of
784-300-100-10 are then trained, dense and 90 % sparse, with and without mixup, on

    distilled   these images
    masked      images distilled likewise, but of each random network half the weights, drawn anew at every step, are zero: masked
                matching
    real        as many real images, drawn at random: where both kinds of distilled images started
    full        the whole set

Each net is read as it is and after three maps fitted on real validation rows: temperature, and dropped-logit temperature at drop
rates of .1 and .5 (`calibration.fit_dropped_temperature`). Masked matching and dropped logits are ours, reconstructions in the
spirit of the paper's masked distillation training and masked temperature scaling, whose formulas were not at hand: what is found
of them here is not found of the paper's. Nothing is chosen on test rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transfer import interval

from espalier import Data, Fit, Split, Training, calibration, load_data, store
from espalier.calibration.temperature import log_probs
from espalier.inference import cigl, dense, rigl
from espalier.models import mlp
from espalier.store import Ledger

PER_CLASS = 10
SETS = ("distilled", "masked", "real", "full")
METHODS: dict[str, Callable[..., Fit]] = {
    "dense": dense.infer, "RigL": partial(rigl.infer, sparsity=0.9, delta_t=20),
    "CigL": partial(cigl.infer, sparsity=0.9, delta_t=20, drop_rate=0.1),
}  # fmt: skip
MIXUPS = (0.0, 1.0)
MAPS: dict[str, Callable[..., float] | None] = {
    "as it is": None, "temperature": calibration.fit_temperature, "dropped .1": calibration.fit_dropped_temperature,
    "dropped .5": partial(calibration.fit_dropped_temperature, drop_rate=0.5),
}  # fmt: skip
SCORES: dict[str, Callable[..., float]] = {
    "accuracy": calibration.accuracy, "nll": calibration.nll, "ece_15": calibration.ece,
}  # fmt: skip

Row = Mapping[str, Any]
"""Of one training read by one map: set, method, mixup, map, seed, temperature, spread and `SCORES`."""


class Matching(NamedTuple):
    """How images are distilled. batch: real images of each class at a step. drop_rate: of masked matching."""

    steps: int = 60
    learning_rate: float = 5.0
    batch: int = 16
    width: int = 16
    drop_rate: float = 0.5


# --- Distribution matching ----------------------------------------------------------------------------------------
def random_network(shape: Sequence[int], width: int, generator: torch.Generator, drop_rate: float = 0.0) -> nn.Module:
    """Convolution, instance norm, ReLU and a pool by two, three times or while that leaves three pixels a side, weights He's:
    that of Zhao & Bilen 2023, narrower. From images `(n, *shape)` to features. drop_rate: P(a weight is zero)."""
    layers: list[nn.Module] = []
    for inputs in (shape[0], width, width)[: max(1, (shape[-1] // 3).bit_length() - 1)]:
        conv = nn.Conv2d(inputs, width, 3, padding=1, bias=False).requires_grad_(False)
        weights = torch.randn(conv.weight.shape, generator=generator) * (2 / (9 * inputs)) ** 0.5
        kept = torch.rand(conv.weight.shape, generator=generator) >= drop_rate
        conv.weight.copy_(weights * kept)
        layers += [conv, nn.GroupNorm(width, width, affine=False), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def matching_loss(network: nn.Module, real: Sequence[Tensor], synthetic: Tensor) -> Tensor:
    """sum_c |mean of features of real_c - mean of features of synthetic_c|^2, class by class. real: images `(n_c, *shape)` of
    each of C classes; synthetic `(C * m, *shape)`, class after class."""
    with torch.no_grad():
        wanted = torch.stack([part.mean(0) for part in network(torch.cat(list(real))).split([len(each) for each in real])])
    found = network(synthetic).unflatten(0, (len(real), -1)).mean(1)
    return (wanted - found).square().sum()


def by_class(rows: Split, classes: int) -> list[Tensor]:
    return [rows.x[(rows.y == label).nonzero().squeeze(1)] for label in range(classes)]


def few(rows: Split, classes: int, seed: int) -> Tensor:
    """PER_CLASS real images of each class at random, class after class. Raises ValueError where a class has fewer."""
    stream, pools = torch.Generator().manual_seed(seed), by_class(rows, classes)
    if (least := min(map(len, pools))) < PER_CLASS:
        raise ValueError(f"expected at least {PER_CLASS} rows of each class, got {least}: give more --rows")
    return torch.cat([own[torch.randperm(len(own), generator=stream)[:PER_CLASS]] for own in pools])


def distilled(rows: Split, classes: int, matching: Matching, seed: int, drop_rate: float = 0.0) -> Tensor:
    """Images `(classes * PER_CLASS, *shape)`, class after class, that start as `few` of the real ones; nothing holds them to the
    range of real pixels."""
    stream, pools = torch.Generator().manual_seed(seed + 1_000_000), by_class(rows, classes)
    images = few(rows, classes, seed).clone().requires_grad_()
    optimizer = torch.optim.SGD([images], matching.learning_rate, momentum=0.5)
    for _ in range(matching.steps):
        network = random_network(images.shape[1:], matching.width, stream, drop_rate)
        real = [pool[torch.randint(len(pool), (matching.batch,), generator=stream)] for pool in pools]
        optimizer.zero_grad()
        matching_loss(network, real, images).backward()
        optimizer.step()
    return images.detach()


@torch.no_grad()
def distance(rows: Split, classes: int, images: Tensor, width: int, networks: int = 3) -> float:
    """`matching_loss` to all of these rows, a mean over so many networks that no image was moved for."""
    stream = torch.Generator().manual_seed(77)
    real = by_class(rows, classes)
    drawn = (random_network(images.shape[1:], width, stream) for _ in range(networks))
    return statistics.fmean(float(matching_loss(network, real, images)) for network in drawn)


def kept(name: str, rows: Split, classes: int, matching: Matching, seed: int, out: Path) -> Tensor:
    """The images of a set: `few` real ones, or distilled ones, which are kept in a file."""
    if name == "real":
        return few(rows, classes, seed)
    file = out / f"{name}-{seed}.safetensors"
    if not file.is_file():
        rate = matching.drop_rate if name == "masked" else 0.0
        store.write_bundle(file, store.Bundle({"images": distilled(rows, classes, matching, seed, rate)}, matching._asdict()))
    return store.read_bundle(file).tensors["images"]


# --- Nets ---------------------------------------------------------------------------------------------------------
def reading(fit: Fit, data: Data) -> Iterator[dict[str, Any]]:
    """What the ticket says of the test rows under each map. spread: of the largest logit, less the row's mean logit, its sd
    over its mean over the test rows: how concentrated the largest logits are."""
    val, test = (fit.predict(part.x, "ticket")[0].numpy() for part in (data.validation, data.test))
    logs = log_probs(test)
    top = logs.max(1) - logs.mean(1)
    for name, map_ in MAPS.items():
        temperature = 1.0 if map_ is None else map_(val, data.validation.y.numpy())
        after = calibration.apply_temperature(test, temperature)
        scores = {score: float(of(after, data.test.y.numpy())) for score, of in SCORES.items()}
        confidence = float(after.max(1).mean())
        facts = {"map": name, "temperature": temperature, "spread": float(top.std() / top.mean()), "confidence": confidence}
        yield {**facts, **scores}


def data_on(name: str, data: Data, images: Tensor | None) -> Data:
    """The data with these images of each class as its training rows; None leaves them."""
    if images is None:
        return data
    labels = torch.arange(data.num_outputs).repeat_interleave(len(images) // data.num_outputs)
    return data._replace(name=f"{data.name}, {name}", train=Split(images, labels), hashes={}, rows={})


class Study(NamedTuple):
    """What is asked for. small, whole: how nets are trained on the small sets and on the full one."""

    data: Data
    methods: Sequence[str]
    seeds: int
    matching: Matching
    small: Training
    whole: Training
    out: Path

    def images(self, name: str, seed: int) -> Tensor | None:
        """Those of a set; None is all of them."""
        if name == "full":
            return None
        return kept(name, self.data.train, self.data.num_outputs, self.matching, seed, self.out)


def work(study: Study) -> list[Row]:
    """Whatever is not in the ledger yet, net by net and seed by seed. Returns what is asked for."""
    book, rows = Ledger(study.out / "results.jsonl"), list[Row]()
    for method, seed, name, mixup in product(study.methods, range(study.seeds), SETS, MIXUPS):
        rows += book.of(f"{seed}/{name}/{method}/{mixup}", partial(trained, study, method, seed, name, mixup))
    return rows


def trained(study: Study, method: str, seed: int, name: str, mixup: float) -> list[Row]:
    """A row for every map of a training."""
    images = study.images(name, seed)
    data, start = data_on(name, study.data, images), time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = mlp.model(data.shape, data.num_outputs, hidden=(300, 100))
    training = replace(study.whole if images is None else study.small, mixup=mixup)
    fit = METHODS[method](model, data, training=training, seed=seed)
    facts = {"set": name, "method": method, "mixup": mixup, "seed": seed}
    return [{**facts, **read, "seconds": time.process_time() - start} for read in reading(fit, data)]


# --- Tables -------------------------------------------------------------------------------------------------------
def means(rows: Sequence[Row]) -> str:
    """Means over seeds, a row for every training."""
    lines = [f"| set | net | mixup | accuracy | confidence | spread | T | {' | '.join(MAPS)} |", "|---" * (7 + len(MAPS)) + "|"]
    for name, method, mixup in product(SETS, METHODS, MIXUPS):
        own = [row for row in rows if (row["set"], row["method"], row["mixup"]) == (name, method, mixup)]
        if not own:
            continue

        def mean(score: str, map_: str, own: list[Row] = own) -> float:
            return statistics.fmean(row[score] for row in own if row["map"] == map_)

        plain = [mean(score, "as it is") for score in ("accuracy", "confidence", "spread")]
        cells = [f"{each:.3f}" for each in plain] + [f"{mean('temperature', 'temperature'):.2f}"]
        cells += [f"{mean('nll', map_):.3f} / {mean('ece_15', map_):.3f}" for map_ in MAPS]
        lines.append(f"| {name} | {method} | {mixup:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


Arm = tuple[str, float, str]
"""Set, mixup and map."""


def comparisons() -> dict[str, tuple[Arm, Arm]]:
    """What is compared, of one net each: an arm and what is taken from it."""
    plain, tempered = (lambda name: (name, 0.0, "as it is")), (lambda name: (name, 0.0, "temperature"))
    found = {
        "distilled - real": (plain("distilled"), plain("real")), "distilled - full": (plain("distilled"), plain("full")),
        "masked - distilled": (plain("masked"), plain("distilled")),
        "the same, tempered": (tempered("masked"), tempered("distilled")),
        "distilled - real, both tempered": (tempered("distilled"), tempered("real")),
    }  # fmt: skip
    for name in SETS:
        found[f"{name}: mixup - none"] = (name, MIXUPS[1], "as it is"), plain(name)
        found[f"{name}: temperature - none"] = tempered(name), plain(name)
        for map_ in ("dropped .1", "dropped .5"):
            found[f"{name}: {map_} - temperature"] = (name, 0.0, map_), tempered(name)
    return found


def paired(rows: Sequence[Row], score: str) -> str:
    """Differences paired by seed, with 95 % t intervals over seeds; bold: clear of 0."""
    values = {(row["method"], (row["set"], row["mixup"], row["map"]), row["seed"]): row[score] for row in rows}
    seeds = sorted({seed for _, _, seed in values})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| {score} | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for said, (arm, other) in comparisons().items():
        if score == "accuracy" and (arm[:2] == other[:2] or "temper" in said):
            continue  # a temperature changes no decision
        cells = []
        for method in methods:
            both = [seed for seed in seeds if (method, arm, seed) in values and (method, other, seed) in values]
            cells.append(interval([values[method, arm, seed] - values[method, other, seed] for seed in both]) if both else "")
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--data", default="fashion-mnist", help="a set, or an .npz file, of images of at least 8 x 8")
    parser.add_argument("--rows", type=int, default=10_000, help="of the set that is distilled")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Matching().steps, help="of matching")
    parser.add_argument("--epochs", type=int, nargs=2, default=[150, 4], help="of the small sets, of the full one")
    parser.add_argument("--out", type=Path, default=Path("runs/distilled-data"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_data(arguments.data, data_dir=arguments.data_dir, train_size=arguments.rows, validation=1 / 30)
    small, whole = (
        Training(epochs=epochs, batch_size=100, learning_rate=0.05, device="cpu") for epochs in arguments.epochs
    )
    matching = Matching(steps=arguments.steps)
    study = Study(data, arguments.methods, arguments.seeds, matching, small, whole, arguments.out)
    rows = work(study)
    print(f"{len(rows) // len(MAPS)} trainings\n")
    print("| set | distance of mean features to those of 1,000 real rows, by seed |\n|---|---|")
    first = Split(data.train.x[:1000], data.train.y[:1000])
    for name in SETS[:3]:
        each = [study.images(name, seed) for seed in range(study.seeds)]
        far = [distance(first, data.num_outputs, images, matching.width) for images in each if images is not None]
        print(f"| {name} | {', '.join(f'{own:.2f}' for own in far)} |")
    print(f"\n{means(rows)}")
    for score in SCORES:
        print(f"\n{paired(rows, score)}")


if __name__ == "__main__":
    main()
