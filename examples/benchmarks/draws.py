"""Predictions of S masked networks per second, and their time divided by S plain forward passes; one run, by turns.

    python examples/benchmarks/draws.py [CELL ...] [--draws 32] [--rows 10000] [--device cuda]

`redraw`: S draws of the random mask over one fit's weights, every draw through the whole network, averaged: what
`espalier evaluate` does, from rows that lie on the CPU to scores that do. `plain`: S forward passes of the dense network over
batches of the same size, on the device already, nothing kept. Weights are untrained: time does not depend on them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from espalier import shelf
from espalier.contracts import Data, Split
from espalier.inference import cigl
from espalier.prediction.predict import Batches
from espalier.training import Training
from espalier.training.streams import find_device

CELLS: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "mlp-512": ("mlp", (1, 28, 28), {"hidden": (512, 512)}),
    "lenet": ("lenet", (1, 28, 28), {}),
    "wide_resnet": ("wide_resnet", (3, 32, 32), {}),
}


def synthetic(shape: tuple[int, ...], rows: int, *, train: int = 256, validation: int = 0) -> Data:
    """Noise of this shape and ten classes, `rows` of it to predict."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Split:
        return Split(torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator))

    return Data("noise", part(train), part(validation), part(0), part(rows), shape, 10)


def timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", default=list(CELLS))
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}, {arguments.draws} draws of {arguments.rows} rows\n")
    print("| net | draws and rows per second | ÷ plain passes |\n|---|---|---|")
    for cell in arguments.cells:
        name, shape, options = CELLS[cell]
        data = synthetic(shape, arguments.rows)
        model = shelf.load("models", name)(shape, 10, **options)
        training = Training(epochs=1, batch_size=128, device=str(device))
        fit = cigl.infer(model, data, sparsity=0.9, drop_rate=0.1, training=training)
        net = fit.model.network(fit.model.initial).eval()
        batches = list(Batches(data.test.x, device))

        @torch.no_grad()
        def plain(net: torch.nn.Module = net, batches: list[torch.Tensor] = batches) -> None:
            for _ in range(arguments.draws):
                for batch in batches:
                    net(batch)

        def ours(fit: object = fit, x: torch.Tensor = data.test.x) -> None:
            fit.predict(x, "redraw", num_samples=arguments.draws)  # type: ignore[attr-defined]

        turns = [(timed(plain, device), timed(ours, device)) for _ in range(arguments.rounds + 1)][1:]
        seconds = statistics.median(own for _, own in turns)
        ratio = statistics.median(own / base for base, own in turns)
        print(f"| {cell} | {arguments.draws * arguments.rows / seconds:,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
