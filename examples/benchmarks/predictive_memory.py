"""Memory and time of averaging over many pairs: 50 pairs of a WRN-22-2, 80 % sparse, on 10,000 images of CIFAR-10's shape.

    python examples/benchmarks/predictive_memory.py [--pairs 50] [--rows 10000] [--folder FIT]

A fit of as many pairs as asked for is made by as many steps of `cigl` on noise, a pair after each, and saved; where the folder
holds one, it is taken. A new process of one thread then reads it and says what `predictions(fit, data, ways=["pairs"])` holds
at its peak above the imports, and how long it takes over PAIRS plain forward passes of the dense network, of which one is timed
before, one between two pairs in the middle and one after (CPU seconds of one thread: a clock would count who else is on the
machine). Weights and images are as good as random: neither figure depends on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from espalier import shelf
from espalier.contracts import Data, Split
from espalier.inference import cigl
from espalier.prediction import Fit, predictions
from espalier.prediction.predict import BATCH, to_device
from espalier.training import Training

SHAPE, CLASSES, SPARSITY = (3, 32, 32), 10, 0.8


def noise(rows: int) -> Data:
    """64 images to train on, `rows` to predict."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Split:
        return Split(torch.randn(count, *SHAPE, generator=generator), torch.randint(CLASSES, (count,), generator=generator))

    return Data("noise", part(64), part(0), part(0), part(rows), SHAPE, CLASSES)


def model() -> Any:
    return shelf.load("models", "wide_resnet")(SHAPE, CLASSES)


def make(folder: Path, pairs: int) -> None:
    training = Training(epochs=pairs, batch_size=64, device="cpu", learning_rate=0.01)
    options: dict[str, Any] = {"sparsity": SPARSITY, "drop_rate": 0.1, "rule": "static", "average_from": 0.0}
    cigl.infer(model(), noise(1), training=training, **options).save(folder)


def resident(name: str) -> float:
    """MiB of this process: VmRSS, now, or VmHWM, at its highest."""
    told = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert told is not None
    return int(told[1]) / 1024


def measure(folder: Path, rows: int) -> None:
    torch.set_num_threads(1)
    imports = resident("VmRSS")
    fit, data = Fit.load(folder, model()), noise(rows)
    dense, pairs = fit.model.network(fit.model.initial).eval(), len(fit.pairs.values)
    held = resident("VmRSS")
    seconds: list[float] = []

    @torch.no_grad()
    def plain() -> None:
        start = time.process_time()
        for batch in data.test.x.split(BATCH):
            dense(to_device(batch, torch.device("cpu")))
        seconds.append(time.process_time() - start)
        print(f"one plain pass: {seconds[-1]:.1f} s", flush=True)

    def interleaved(*arguments: Any, **options: Any) -> Iterator[Any]:
        for index, draw in enumerate(drawn(*arguments, **options)):
            if index == pairs // 2:
                plain()
            yield draw
            print(f"pair {index + 1} of {pairs}: {resident('VmHWM') - imports:.0f} MiB at most above the imports", flush=True)

    plain()
    alone = resident("VmHWM")
    drawn, fit.weights = fit.weights, interleaved  # type: ignore[method-assign]
    start = time.process_time()
    predictions(fit, data, ways=["pairs"])
    taken = time.process_time() - start - seconds[1]
    peak = resident("VmHWM")
    plain()
    print(f"\ntorch {torch.__version__}, one thread, {pairs} pairs, {rows:,} images; MiB above the imports' {imports:.0f}\n")
    print("| fit and images held | peak of a plain pass | peak over all pairs | CPU time ÷ plain passes | plain passes, CPU s |")
    print("|---|---|---|---|---|")
    memory = " | ".join(f"{mib - imports:.0f}" for mib in (held, alone, peak))
    passes = ", ".join(f"{each:.1f}" for each in seconds)
    print(f"| {memory} | {taken / (pairs * statistics.mean(seconds)):.2f} | {passes} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where the fit is kept; default: nowhere")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch) / "fit"
        if not (folder / "record.json").exists():
            make(folder, arguments.pairs)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(folder, arguments.rows))
        process.start()
        process.join()
    raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
