"""Time of one training step through the Pyro guide, divided by a plain dense torch step; batch 128, medians, one run.

    python examples/benchmarks/step_time.py [--rounds 15]

The arms are interleaved round-robin, so that whatever else the machine does falls on all of them. Both use SGD with
Nesterov momentum; the dense arm is the plain network with cross-entropy. A round of WRN-22-2 takes seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import torch

from espalier import shelf
from espalier.guides.masked import MaskedGuide
from espalier.prediction.predict import to_device
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop

NETS = {"mlp": ("MLP 784-512-512-10", (1, 28, 28), 10), "wide_resnet": ("WRN-22-2", (3, 32, 32), 1)}


def dense_step(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def arms(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    build = shelf.load("models", name)
    x, y = to_device(torch.randn(128, *shape), torch.device("cpu")), torch.randint(0, 10, (128,))
    model = build(shape, 10)
    result = {"dense torch": dense_step(model.network(model.initial), x, y)}
    for sparsity, keep_prob in ((0.9, 1.0), (0.9, 0.9), (0.99, 0.9)):
        own = build(shape, 10)
        own.num_data, own.weight_decay = 45000, 5e-4
        guide = MaskedGuide(own, initial(own.shapes, sparsity), keep_prob)
        loop = Loop(own, guide, schedules.static(), rates.constant(0.01))
        label = f"{sparsity:.0%} sparse, " + ("RigL" if keep_prob == 1 else f"CigL (drop_rate {1 - keep_prob:.1f})")
        result[label] = lambda loop=loop: loop.step(x, y)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} rounds\n")
    print("| net | arm | median ms | ÷ dense |\n|---|---|---|---|")
    for name, (title, shape, repeats) in NETS.items():
        steps = arms(name, shape)
        times: dict[str, list[float]] = {label: [] for label in steps}
        with pyro.get_param_store().scope(), pyro.validation_enabled(False):
            for turn in range(arguments.rounds + 2):
                for label, step in steps.items():
                    start = time.perf_counter()
                    for _ in range(repeats):
                        step()
                    if turn >= 2:  # the first rounds warm caches and the allocator up
                        times[label].append((time.perf_counter() - start) / repeats)
        base = statistics.median(times["dense torch"])
        for label, seconds in times.items():
            median = statistics.median(seconds)
            print(f"| {title} | {label} | {1e3 * median:.2f} | {median / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
