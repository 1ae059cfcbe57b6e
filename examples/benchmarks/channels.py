"""Would a unit mask save time in convolutions, by leaving out the channels that it drops? A layer's step, over the whole one's.

    python examples/benchmarks/channels.py [--rounds 9]

`--mask unit` drops channels that come into a convolution, `--mask filter` those that go out. Here what is left of input and
kernel is copied out and convolved, or what comes of the filters left is copied into zeros, forward and backward (CPU seconds,
batch 128, 3 x 3, one thread; arms in turns; images channels-last, as they always are here). Copies count.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = ((32, 32), (64, 16), (128, 8), (256, 8))
"""Channels, and pixels a side: those of a WRN-22-2, and one more."""
KEPT = (0.9, 0.8, 0.7, 0.5)
MASKS = ("unit", "filter")


def convolved(x: Tensor, kernel: Tensor, kept: Tensor, mask: str) -> Tensor:
    """`F.conv2d(x, kernel)` of a kernel that is zero but in the kept channels."""
    if mask == "unit":
        chosen = x.permute(0, 2, 3, 1).index_select(3, kept).permute(0, 3, 1, 2)
        return F.conv2d(chosen, kernel.index_select(1, kept), padding=1)
    y = F.conv2d(x, kernel.index_select(0, kept), padding=1)
    return torch.zeros_like(x).index_copy(1, kept, y)


def spent(x: Tensor, kernel: Tensor, upstream: Tensor, kept: Tensor | None, mask: str = "") -> float:
    start = time.process_time()
    y = F.conv2d(x, kernel, padding=1) if kept is None else convolved(x, kernel, kept, mask)
    torch.autograd.grad(y, [x, kernel], upstream)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shares = " | ".join(f"{mask}s, {kept:.0%} kept" for mask in MASKS for kept in KEPT)
    print(f"| channels, pixels a side | whole, again | {shares} |\n{'|---' * (len(KEPT) * len(MASKS) + 2)}|")
    for channels, side in LAYERS:
        x, upstream = (
            torch.randn(arguments.batch, channels, side, side).contiguous(memory_format=torch.channels_last) for _ in range(2)
        )
        kernel = torch.randn(channels, channels, 3, 3, requires_grad=True)
        whole = functools.partial(spent, x.requires_grad_(), kernel, upstream, None)
        arms: list[Callable[[], float]] = [whole, whole]
        for mask in MASKS:
            for share in KEPT:
                kept = torch.randperm(channels)[: round(share * channels)].sort().values
                arms.append(functools.partial(spent, x, kernel, upstream, kept, mask))
        turns = [[arm() for arm in arms] for _ in range(arguments.rounds + 1)][1:]
        ratios = [statistics.median(turn[number] / turn[0] for turn in turns) for number in range(1, len(arms))]
        print(f"| {channels}, {side} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
