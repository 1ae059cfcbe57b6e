"""How the price grows: CPU time and memory of a CigL step and of drawn predictions against what they should be proportional to.

    python examples/benchmarks/growth.py [AXIS ...]

Axes: `width`, `density`, `depth`, `batch` of a training step; `draws`, `pairs` of predictions. Every point is a process of its
own on one thread: CPU milliseconds (median of turns; a clock would count who else is on the machine), and MiB at the peak above
the imports. An MLP 784-w-...-w-10 at 98 % sparsity, width 2048, two hidden layers, batch 128, but for what an axis says. Slopes
are of log time and log memory over the log of the axis, least squares over the last three points; where a constant still counts
they are below what they tend to.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from predictive_memory import resident

from espalier import Training, shelf
from espalier.data import from_arrays
from espalier.guides.masked import MaskedGuide
from espalier.inference import cigl
from espalier.network import BayesianNetwork
from espalier.prediction.fit import How
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop

SHAPE, CLASSES = (784,), 10
HOW: tuple[How, How] = ("redraw", "pairs")
TURN = 0.4
"""CPU seconds of a measurement, at least; three of them, or three calls."""


class Point(NamedTuple):
    width: int = 2048
    density: float = 0.02
    depth: int = 2
    batch: int = 128
    draws: int = 0
    pairs: int = 0


AXES: Mapping[str, Sequence[Point]] = {
    "width": [Point(width=width) for width in (256, 512, 1024, 2048, 4096, 8192)],
    "density": [Point(density=density) for density in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)],
    "depth": [Point(width=1024, depth=depth) for depth in (1, 2, 4, 8, 16)],
    "batch": [Point(batch=batch) for batch in (16, 64, 256, 1024)],
    "draws": [Point(width=512, draws=draws) for draws in (1, 4, 16, 64)],
    "pairs": [Point(width=512, pairs=pairs) for pairs in (1, 4, 16, 64)],
}


def model_of(point: Point) -> BayesianNetwork:
    torch.manual_seed(0)
    model: BayesianNetwork = shelf.load("models", "mlp")(SHAPE, CLASSES, hidden=(point.width,) * point.depth)
    return model


def step_of(point: Point) -> tuple[Callable[[], object], int]:
    """One step of the loop, and the active weights."""
    model = model_of(point)
    model.num_data, model.weight_decay = 45000, 5e-4
    guide = MaskedGuide(model, initial(model.shapes, 1 - point.density), 0.9)
    loop = Loop(model, guide, schedules.static(), rates.constant(0.01))
    x, y = torch.randn(point.batch, *SHAPE), torch.randint(CLASSES, (point.batch,))
    return lambda: loop.step(x, y), len(guide.values)


def prediction_of(point: Point) -> tuple[Callable[[], object], int]:
    """All draws of 500 rows, one held at a time, and the active weights."""
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(70, *SHAPE)), np.arange(70) % CLASSES)
    training = Training(epochs=max(1, point.pairs), batch_size=16, learning_rate=1e-3, device="cpu")
    options: dict[str, Any] = {"sparsity": 1 - point.density, "drop_rate": 0.1, "rule": "static", "average_from": 0.0}
    fit = cigl.infer(model_of(point), data, training=training, **options)
    x, how = torch.randn(500, *SHAPE), HOW[point.pairs > 0]
    return lambda: [draw.shape for draw in fit.draws(x, how, num_samples=max(1, point.draws))], fit.topology.num_active


def measured(point: Point) -> tuple[float, float, int]:
    """CPU milliseconds, MiB above the imports, active weights."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    call, active = (prediction_of if point.draws or point.pairs else step_of)(point)
    for _ in range(2):
        call()
    turns = []
    for _ in range(3):
        start, count = time.process_time(), 0
        while time.process_time() - start < TURN or not count:
            call()
            count += 1
        turns.append((time.process_time() - start) / count)
    return 1e3 * statistics.median(turns), resident("VmHWM") - before, active


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x[-3:]), np.log(y[-3:]), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", metavar="AXIS", default=[*AXES])
    arguments = parser.parse_args()
    if unknown := set(arguments.axes) - set(AXES):
        parser.error(f"expected axes of {', '.join(AXES)}, got {', '.join(sorted(unknown))}")
    print(f"torch {torch.__version__}, one thread\n")
    for axis in arguments.axes:
        print(f"| {axis} | active weights | CPU ms | MiB |\n|---|---|---|---|", flush=True)
        found = []
        for point in AXES[axis]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                found.append(alone.submit(measured, point).result())
            milliseconds, mib, active = found[-1]
            print(f"| {getattr(point, axis):g} | {active:,} | {milliseconds:.2f} | {mib:.0f} |", flush=True)
        times, memory, counts = zip(*found, strict=True)
        steps = [float(getattr(point, axis)) for point in AXES[axis]]
        by = f", of active weights {slope(counts, times):.2f}" if not math.isclose(counts[0], counts[-1]) else ""
        print(f"\nSlopes over {axis}: time {slope(steps, times):.2f}{by}; memory {slope(steps, memory):.2f}.\n", flush=True)


if __name__ == "__main__":
    main()
