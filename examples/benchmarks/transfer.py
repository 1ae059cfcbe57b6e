"""Does sparsity or int8 break calibration under transfer? A study in the spirit of Misra et al. 2023. Prints markdown.

    python examples/benchmarks/transfer.py --data-dir DATA --gtsrb shared/data/gtsrb32/test3000.npz --out runs/transfer
                                                                    (ten minutes of one thread to itself; it resumes)

Source: an MLP 784-300-100-10 on 10,000 images of Fashion-MNIST, dense, int8, and sparse by lottery tickets, RigL and CigL (its
ticket). Targets: digits, MNIST and GTSRB as 28 x 28 grey images, `--shots` training images of each class, drawn by the seed.
Three ways to transfer, with the settings of `BUDGET` for every arm:

    probe       a new last layer; the body stands still
    fine-tune   a new last layer and the body's active weights: zeros stay zeros. An int8 net is tuned in float and rounded again
    prompt      the net stands still; a frame of pixels around the image, shrunk to 20 x 20, is learned, and which of the source's
                classes stands for which of the target's, by greedy matching of how often they are said, anew before every epoch
                (iterative label mapping, Chen et al. 2023). A source class stands for one target class at most: not for GTSRB

Seed k is the source's k-th training and the k-th draw. int8: weights alone, symmetric, a scale for each output, in simulation.
ECE is over all test rows at once. (The paper's scripts add up the ECE of batches and divide by the number of rows: their logged
ECE is another, and far smaller, number.)
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier import (
    BayesianNetwork,
    Data,
    Fit,
    MaskedGuide,
    Split,
    Topology,
    Training,
    calibration,
    from_pretrained,
    load_data,
    train,
)
from espalier.contracts import counts_of
from espalier.deployment import Deployed
from espalier.inference import cigl, dense, lottery, rigl
from espalier.models import mlp
from espalier.store import Ledger
from espalier.topology import schedules
from espalier.training import Streams, find_device, prepare

SIDE, INNER = 28, 20
TEST = 2500  # rows of a target at most


class Budget(NamedTuple):
    """Of the source, of probes and fine-tuning, and of prompts (Adam): the same for every arm."""

    source: Training
    tuning: Training
    prompting: Training


BUDGET = Budget(
    Training(epochs=10, batch_size=256, learning_rate=0.1, device="cpu"),
    Training(epochs=30, batch_size=128, learning_rate=0.03, device="cpu"),
    Training(epochs=30, batch_size=128, learning_rate=0.1, optimizer="adam", device="cpu"),
)
SCORES: dict[str, Callable[..., float]] = {
    "accuracy": calibration.accuracy, "nll": calibration.nll, "ece_15": calibration.ece,
}  # fmt: skip

Infer = Callable[..., Fit]
Row = Mapping[str, Any]
"""Of one transfer: arm, target, way, shots, seed, seconds and `SCORES`."""


def arms(sparsities: Sequence[float]) -> dict[str, Infer]:
    """By name how the source is trained; int8 is the dense one, which is rounded when it is used."""
    methods: dict[str, Infer] = {
        "lottery": partial(lottery.infer, rounds=2), "RigL": partial(rigl.infer, delta_t=20, freeze=0.5),
        "CigL": partial(cigl.infer, delta_t=20, freeze=0.5, average_from=0.5),
    }  # fmt: skip
    sparse = {f"{name} {s:.0%}": partial(infer, sparsity=s) for s in sparsities for name, infer in methods.items()}
    return {"dense": dense.infer, "int8": dense.infer, **sparse}


# --- Images -------------------------------------------------------------------------------------------------------
class Target(NamedTuple):
    """Images `(n, 1, 28, 28)` from 0 to 1 and labels: a pool that shots are drawn from, and test rows."""

    pool: Split
    test: Split
    classes: int


def in_frame(x: Tensor, side: int = SIDE) -> Tensor:
    """Images `(n, 1, h, w)` at another size, no brighter or darker than they were."""
    return functional.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def named(name: str, data_dir: str | None) -> Target:
    data = load_data(name, data_dir=data_dir, validation=0.0, calibration=0.0, standardise="none")
    top, side = data.train.x[:].max(), math.isqrt(math.prod(data.shape))
    pool, test = (Split(in_frame(x[:].view(-1, 1, side, side) / top), y) for x, y in (data.train, data.test))
    test = Split(test.x[:TEST], test.y[:TEST])
    return Target(pool, test, data.num_outputs)


def signs(file: Path) -> Target:
    """GTSRB as packed beside the repository, lossless WebP mosaics of 32 x 32: grey, every other of each class for testing."""
    from PIL import Image

    with np.load(file, allow_pickle=False) as packed:
        (rows, columns), raw, ends = packed["grid"], packed["webp"].tobytes(), packed["offset"]
        mosaics = [np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("L")) for a, b in zip(ends, ends[1:], strict=False)]
        tiles = [each.reshape(rows, 32, columns, 32).swapaxes(1, 2).reshape(-1, 32, 32) for each in mosaics]
        x, y = np.concatenate(tiles)[: int(packed["n"])], packed["labels"].astype(np.int64)
    place = np.array([(y[:row] == label).sum() for row, label in enumerate(y)])
    images, labels = in_frame(torch.from_numpy(x).float()[:, None] / 255), torch.from_numpy(y)
    pool = torch.from_numpy(place % 2 == 0)
    return Target(Split(images[pool], labels[pool]), Split(images[~pool], labels[~pool]), int(y.max()) + 1)


def drawn(pool: Split, shots: int, seed: int) -> Split:
    """So many rows of every class, or all there are."""
    order = torch.from_numpy(np.random.default_rng([7, seed]).permutation(len(pool.y)))
    rows = torch.cat([order[pool.y[order] == label][:shots] for label in pool.y.unique()])
    return Split(pool.x[rows], pool.y[rows])


# --- Sources ------------------------------------------------------------------------------------------------------
def source(arm: str, infer: Infer, seed: int, data: Data, out: Path, training: Training) -> Deployed:
    """The pretrained net of an arm, exported into a folder of its own, and read from there. int8 has the dense one's."""
    folder = out / f"{'dense' if arm == 'int8' else arm.replace(' ', '-')}-{seed}"
    if not folder.is_dir():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = mlp.model(data.shape, data.num_outputs, hidden=(300, 100))
        infer(model, data, training=training, seed=seed).export(folder)
    return from_pretrained(folder, network=mlp.model(data.shape, data.num_outputs, hidden=(300, 100)))


@torch.no_grad()
def rounded(net: nn.Module) -> nn.Module:
    """A copy whose Linear weights lie on an int8 grid: w = s q, q of -127 to 127, s = max |w| / 127 of each output."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            module.weight.copy_((module.weight / scale).round() * scale)
    return net


# --- Ways to transfer ---------------------------------------------------------------------------------------------
def with_head(net: nn.Sequential, classes: int, seed: int) -> nn.Sequential:
    """A copy of the net with a new last layer, which the seed draws: the same for every arm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(net[-1].in_features, classes)
    return nn.Sequential(*copy.deepcopy(net[:-1]), head).requires_grad_(True).train()


def tuned(
    net: nn.Sequential, data: Data, training: Training, *, body: bool, seed: int, like: nn.Sequential | None = None
) -> nn.Module:
    """The net with a new last layer, trained; with its `body` too, where that is wanted. What is zero in the body stays so: of
    `like`, where the net itself has zeros that are none (rounded ones)."""
    start = with_head(net, data.num_outputs, seed)
    if not body:
        start[:-1].requires_grad_(False)
    streams = Streams(seed, find_device(training.device))
    model = prepare(BayesianNetwork(start), data, training)
    topology = active(model)
    if like is not None and body:
        topology = active(BayesianNetwork(with_head(like, data.num_outputs, seed)))
    fit = train(model, MaskedGuide(model, topology), schedules.static(), data, training=training, streams=streams)
    return fit.ticket()


def active(model: BayesianNetwork) -> Topology:
    """The weights that are not zero."""
    positions = model.initial.nonzero().squeeze(1)
    return Topology(positions, counts_of(positions, model.sizes), model.sizes)


class Prompt(nn.Module):
    """A frame of pixels, each sigmoid of a number, around an image `(n, 1, INNER, INNER)` of 0 to 1; `(n, 1, SIDE, SIDE)` out, as
    the net takes it: `inputs` of pixels to 255."""

    def __init__(self, inputs: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inputs, self.edge = inputs, (SIDE - INNER) // 2
        self.frame = nn.Parameter(torch.zeros(1, 1, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        inside = (self.edge,) * 4
        room = functional.pad(torch.ones_like(x[:1]), inside)
        pixels = functional.pad(x, inside) + (1 - room) * torch.sigmoid(self.frame)
        return self.inputs(255 * pixels)


def mapping(said: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Of every target class the source class that stands for it, `(classes,)`: the pair seen most often first, then the next of
    those left. said: the source classes `(n,)` that the net says of rows of these labels."""
    sources = int(max(classes, said.max() + 1))
    counts = torch.zeros(classes, sources).index_put_((labels, said), torch.ones(len(said)), accumulate=True)
    found = torch.zeros(classes, dtype=torch.long)
    for _ in range(classes):
        target, own = divmod(int(counts.argmax()), sources)
        found[target] = own
        counts[target], counts[:, own] = -1, -1
    return found


def prompted(net: nn.Module, prompt: Prompt, rows: Split, classes: int, training: Training, seed: int) -> Tensor:
    """Learn the frame on rows of INNER x INNER pixels, the net as it is. Returns the last mapping."""
    net = copy.deepcopy(net).requires_grad_(False).eval()
    stream = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(prompt.parameters(), training.learning_rate)
    for _ in range(training.epochs):
        with torch.no_grad():
            stands = mapping(net(prompt(rows.x[:])).argmax(1), rows.y, classes)
        for batch in torch.randperm(len(rows.y), generator=stream).split(training.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(net(prompt(rows.x[batch]))[:, stands], rows.y[batch]).backward()
            optimizer.step()
    return stands


@torch.no_grad()
def said_of(net: nn.Module, x: Tensor, stands: Tensor | None = None) -> np.ndarray[Any, Any]:
    """Probabilities `(n, C)`, float64; of a prompted net those of the classes that stand for the target's."""
    logits = torch.cat([net(part) for part in x.split(1000)]).double()
    return torch.softmax(logits if stands is None else logits[:, stands], 1).numpy()


def transfer(
    way: str, deployed: Deployed, target: Target, shots: int, seed: int, budget: Budget, *, int8: bool = False
) -> np.ndarray[Any, Any]:
    """What the transferred net says of the target's test rows, `(n, C)`."""
    rows, whole = drawn(target.pool, shots, seed), deployed.network
    net = rounded(whole) if int8 else whole
    if way == "prompt":
        prompt = Prompt(deployed.inputs)
        small = Split(in_frame(rows.x[:], INNER), rows.y)
        stands = prompted(net, prompt, small, target.classes, budget.prompting, seed)
        return said_of(nn.Sequential(prompt, net), in_frame(target.test.x[:], INNER), stands)
    few, test = (Split(deployed.inputs(255 * part.x[:]), part.y) for part in (rows, target.test))
    none = Split(few.x[:0], few.y[:0])
    data = Data("shots", few, none, none, test, tuple(few.x.shape[1:]), target.classes)
    found = tuned(net, data, budget.tuning, body=way == "fine-tune", seed=seed, like=whole)
    return said_of(rounded(found) if int8 else found, test.x)


def points(targets: Mapping[str, Target], shots: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Target, shots and way."""
    for name, target in targets.items():
        ten = target.classes <= 10  # else GTSRB, whose rarest class has five in the pool
        for number in shots if ten else [number for number in shots if number <= 10]:
            for way in ("probe", "fine-tune", "prompt") if ten else ("probe", "fine-tune"):
                yield name, number, way


class Study(NamedTuple):
    """What is asked for."""

    data: Data
    targets: Mapping[str, Target]
    arms: Mapping[str, Infer]
    shots: Sequence[int]
    seeds: int
    budget: Budget
    out: Path

    def source(self, arm: str, seed: int) -> Deployed:
        return source(arm, self.arms[arm], seed, self.data, self.out, self.budget.source)


def work(study: Study) -> list[Row]:
    """Whatever is not in the ledger yet, seed by seed. Returns what is asked for."""
    book, rows = Ledger(study.out / "results.jsonl"), []
    for seed, arm, (name, number, way) in product(range(study.seeds), study.arms, points(study.targets, study.shots)):
        rows.append(book.of(f"{seed}/{arm}/{name}/{number}/{way}", partial(transferred, study, seed, arm, name, number, way)))
    return rows


def transferred(study: Study, seed: int, arm: str, name: str, number: int, way: str) -> Row:
    deployed, target, start = study.source(arm, seed), study.targets[name], time.process_time()
    probs = transfer(way, deployed, target, number, seed, study.budget, int8=arm == "int8")
    scores = {score: float(of(probs, target.test.y.numpy())) for score, of in SCORES.items()}
    own = {"arm": arm, "target": name, "way": way, "shots": number, "seed": seed}
    return {**own, "seconds": time.process_time() - start, **scores}


# --- Tables -------------------------------------------------------------------------------------------------------
def sources(study: Study) -> str:
    """What the sources are worth at home: means over seeds, on the source's own test rows."""
    lines = [f"| source | weights that are not zero | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 2) + "|"]
    test = study.data.test
    for arm in study.arms:
        nets = [study.source(arm, seed).network for seed in range(study.seeds)]
        weights = sum(int(part.weight.count_nonzero()) for part in nets[0].modules() if isinstance(part, nn.Linear))
        said = [said_of(rounded(net) if arm == "int8" else net, test.x[:]) for net in nets]
        cells = [f"{statistics.fmean(float(of(own, test.y.numpy())) for own in said):.3f}" for of in SCORES.values()]
        lines.append(f"| {arm} | {weights:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def means(rows: Sequence[Row], way: str) -> str:
    """Arms by targets and shots: means over seeds of accuracy / NLL / ECE."""
    own = [row for row in rows if row["way"] == way]
    columns = list(dict.fromkeys((row["target"], row["shots"]) for row in own))
    head = [f"{target}, {shots}" for target, shots in columns]
    lines = [f"| {way} | {' | '.join(head)} |", "|---" * (len(columns) + 1) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in own):
        cells = []
        for column in columns:
            found = [row for row in own if row["arm"] == arm and (row["target"], row["shots"]) == column]
            cells.append(" / ".join(f"{statistics.fmean(row[score] for row in found):.3f}" for score in SCORES))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against_dense(rows: Sequence[Row], score: str) -> str:
    """Arm minus dense, paired by seed, with 95 % t intervals over seeds; digits and MNIST averaged. Bold: clear of 0."""
    found = {
        (row["arm"], row["way"], row["target"] == "gtsrb", row["shots"], row["seed"], row["target"]): row[score]
        for row in rows
    }  # fmt: skip
    columns = sorted({(sign, shots) for _, _, sign, shots, _, _ in found})
    head = [f"{'GTSRB, ' if sign else ''}{shots}" for sign, shots in columns]
    lines = [f"| {score}, minus dense | way | {' | '.join(head)} |", "|---" * (len(columns) + 2) + "|"]
    for arm, way in dict.fromkeys((key[0], key[1]) for key in found if key[0] != "dense"):
        cells = []
        for column in columns:
            gaps: dict[int, list[float]] = {}
            for (own, how, *where, seed, target), value in found.items():
                if (own, how, tuple(where)) == (arm, way, column):
                    gaps.setdefault(seed, []).append(value - found["dense", way, *where, seed, target])
            cells.append(interval([statistics.fmean(each) for each in gaps.values()]) if gaps else "")
        lines.append(f"| {arm} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """Mean with its 95 % t interval, bold where that is clear of 0; of a single one the value alone."""
    mean, own = statistics.fmean(values), calibration.t_interval(values)
    if own is None:
        return f"{mean:+.3f}"
    said = f"{mean:+.3f} [{own[0]:+.3f}, {own[1]:+.3f}]"
    return f"**{said}**" if own[0] > 0 or own[1] < 0 else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA")
    parser.add_argument("--data", default="fashion-mnist", help="the source: a set, or an .npz file, of 28 x 28 grey images")
    parser.add_argument("--rows", type=int, default=10_000, help="of the source that it is trained on")
    parser.add_argument("--gtsrb", type=Path, help="the packed file of signs; without it they are left out")
    parser.add_argument("--targets", nargs="+", default=["digits", "mnist"], help="sets of ten classes")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.95])
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 10, 25], help="training images of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of every training, for a trial of the script")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    budget = BUDGET if arguments.epochs is None else Budget(*[replace(each, epochs=arguments.epochs) for each in BUDGET])
    data = load_data(arguments.data, data_dir=arguments.data_dir, train_size=arguments.rows)
    targets = {name: named(name, arguments.data_dir) for name in arguments.targets}
    if arguments.gtsrb is not None:
        targets["gtsrb"] = signs(arguments.gtsrb)
    wanted = arms(arguments.sparsities)
    study = Study(data, targets, wanted, arguments.shots, arguments.seeds, budget, arguments.out)
    rows = work(study)
    print(f"{len(rows)} transfers, {sum(row['seconds'] for row in rows) / 60:.0f} CPU minutes\n")
    print(sources(study))
    for way in dict.fromkeys(row["way"] for row in rows):
        print(f"\n{means(rows, way)}")
    for score in SCORES:
        print(f"\n{against_dense(rows, score)}")


if __name__ == "__main__":
    main()
