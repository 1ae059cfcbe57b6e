"""What prediction costs without the zeros: a network of Linear layers, its sparse form beside its dense one; one run.

    python examples/benchmarks/sparse_inference.py [--width 2048] [--batch 256] [--layers 1] [--rounds 15] [--threads 2]

Arms take turns of at least 50 ms each, so that whatever else the machine does falls on all of them; what is shown is the median
of the ratios within a turn, and their quartiles. The floor is the dense arm against itself.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from step_time import turn
from torch import nn

from espalier.sparse import sparsified


def network(width: int, layers: int, sparsity: float) -> nn.Module:
    """Square Linear layers with ReLU between them, equally sparse."""
    stream, parts = torch.Generator().manual_seed(0), list[nn.Module]()
    for _ in range(layers):
        linear = nn.Linear(width, width)
        with torch.no_grad():
            linear.weight.mul_(torch.rand(width, width, generator=stream) >= sparsity)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts).eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.99])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(arguments.batch, arguments.width, generator=torch.Generator().manual_seed(1))
    arms: dict[str, nn.Module] = {"dense": network(arguments.width, arguments.layers, 0.9)}
    arms["dense, again"] = network(arguments.width, arguments.layers, 0.9)
    for sparsity in arguments.sparsity:
        arms[f"{sparsity:.3g} sparse"] = sparsified(network(arguments.width, arguments.layers, sparsity), x)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds; {arguments.layers} of "
          f"{arguments.width} x {arguments.width}, batch {arguments.batch}\n")  # fmt: skip
    print("| arm | median ms | ÷ dense | quartiles |\n|---|---|---|---|")
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(arguments.rounds + 1):
        for name, net in arms.items():
            seconds = turn(lambda net=net: net(x))  # type: ignore[misc]
            if number:  # the first round warms caches and the allocator up
                times[name].append(seconds)
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {1e3 * statistics.median(seconds):.2f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
