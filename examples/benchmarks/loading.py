"""Does the data keep up? Rows per second that a stream of JPEG images delivers, beside those that a training step takes.

    python examples/benchmarks/loading.py [--rows 20000] [--workers 0 1 2] [--side 32]

The images are made here (noise over a gradient, quality 90, held in memory), decoded, standardised and batched by 128 as
`from_datasets` streams any torch Dataset. Steps are CigL's at 90 % sparsity over a batch that is there already, on one thread, so
that workers have cores of their own where there are any. One run.
"""

from __future__ import annotations

import argparse
import io
import time

import numpy as np
import pyro
import torch
from PIL import Image
from step_time import our_step, turn
from torch import Tensor
from torch.utils.data import Dataset

from espalier import shelf
from espalier.data.streamed import Streamed

BATCH, KINDS = 128, 256


class Images(Dataset[tuple[Tensor, int]]):
    """`count` examples of KINDS encoded images."""

    def __init__(self, count: int, side: int) -> None:
        random, ramp = np.random.default_rng(0), np.linspace(0, 200, side)[:, None, None]
        self.count, self.encoded = count, list[bytes]()
        for _ in range(KINDS):
            pixels = ramp + random.integers(0, 56, (side, side, 3))
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
            self.encoded.append(buffer.getvalue())

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        pixels = np.asarray(Image.open(io.BytesIO(self.encoded[row % KINDS])), dtype=np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, row % 10


def delivered(images: Images, workers: int) -> float:
    """Rows per second, from the start of the workers to the last batch: an epoch's."""
    start = time.perf_counter()
    count = sum(len(batch) for batch in Streamed(images, workers=workers).stream(torch.arange(len(images)).split(BATCH)))
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {arguments.rows} JPEG images of {arguments.side} x {arguments.side}, batch {BATCH}\n")
    print("| | rows per second |\n|---|---|")
    images = Images(arguments.rows, arguments.side)
    for workers in arguments.workers:
        print(f"| delivered, {workers} workers | {delivered(images, workers):,.0f} |", flush=True)
    shape = (3, arguments.side, arguments.side)
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        for name in ("mlp", "lenet", "wide_resnet"):
            step = our_step(lambda name=name: shelf.load("models", name)(shape, 10), 0.9, 0.9, x, y, bf16=False)  # type: ignore[misc]
            step()
            print(f"| taken by a step, {name} | {BATCH / turn(step):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
