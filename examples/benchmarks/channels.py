"""Would a unit mask save time in convolutions, by leaving out the channels that it drops? A layer's step, over the whole one's.

    python examples/benchmarks/channels.py [--rounds 9]

`--mask unit` drops input channels of a convolution whole. Here those that are left, of input and kernel, are copied out and
convolved, forward and backward (CPU seconds, batch 128, 3 x 3, one thread; arms in turns). Copies count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = ((32, 32), (64, 16), (128, 8), (256, 8))
"""Channels, and pixels a side: those of a WRN-22-2, and one more."""
KEPT = (0.9, 0.7, 0.5)


def spent(x: Tensor, kernel: Tensor, kept: Tensor | None) -> float:
    start = time.process_time()
    if kept is None:
        y = F.conv2d(x, kernel, padding=1)
    else:
        y = F.conv2d(x.index_select(1, kept), kernel.index_select(1, kept), padding=1)
    torch.autograd.grad(y.sum(), [x, kernel])
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares = " | ".join(f"{kept:.0%} kept" for kept in KEPT)
    print(f"| channels, pixels a side | whole, again | {shares} |\n{'|---' * (len(KEPT) + 2)}|")
    for channels, side in LAYERS:
        x = torch.randn(arguments.batch, channels, side, side, requires_grad=True)
        kernel = torch.randn(channels, channels, 3, 3, requires_grad=True)
        arms: list[Callable[[], float]] = [lambda x=x, kernel=kernel: spent(x, kernel, None) for _ in range(2)]  # type: ignore[misc]
        for share in KEPT:
            kept = torch.randperm(channels)[: round(share * channels)].sort().values
            arms.append(lambda x=x, kernel=kernel, kept=kept: spent(x, kernel, kept))  # type: ignore[misc]
        turns = [[arm() for arm in arms] for _ in range(arguments.rounds + 1)][1:]
        ratios = [statistics.median(turn[number] / turn[0] for turn in turns) for number in range(1, len(arms))]
        print(f"| {channels}, {side} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
