"""Time of one training step through the Pyro guide, divided by a plain dense torch step; batch 128, one run.

    python examples/benchmarks/step_time.py [CELL ...] [--rounds 15] [--threads 2] [--device cuda] [--bf16] [--pyro] [--compile]
                                               [--kernels] [--sparselab]

A cell is `mlp-512`, `mlp-2048`, `lenet`, `wide_resnet`. Arms take turns of at least 50 ms each, so that whatever else the machine
does falls on all of them, and what is shown is the median of the ratios within a turn. The floor is the dense arm against
itself. All arms use SGD with Nesterov momentum; the dense one is the plain network with cross-entropy; `masked` is what
released code does, a mask multiplied into the gradient and one drawn over all weights. --pyro adds our step through
`TraceMeanField_ELBO`, the definition that the closed form is tested against. --bf16: all arms under bf16 autocast. --compile adds
the dense step and ours through torch.compile, and says how long compiling took. --kernels adds ours by the kernels that `espalier
kernels build` compiled; all other arms are by torch's. --sparselab adds a net of that package's sparse layers, without any random
mask, if it is installed (MIT, `pip install --no-deps sparselab`).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable

import pyro
import torch

from espalier import shelf
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.predict import to_device
from espalier.sparse import kernels
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from espalier.training.streams import find_device

Step = Callable[[], object]
CELLS: dict[str, tuple[str, tuple[int, ...], dict[str, object], tuple[float, ...]]] = {
    "mlp-512": ("mlp", (1, 28, 28), {"hidden": (512, 512)}, (0.9, 0.95, 0.98)),
    "mlp-2048": ("mlp", (1, 28, 28), {"hidden": (2048, 2048)}, (0.9, 0.95, 0.98)),
    "lenet": ("lenet", (1, 28, 28), {}, (0.9, 0.98)),
    "wide_resnet": ("wide_resnet", (3, 32, 32), {}, (0.9,)),
    "resnet50": ("resnet50", (3, 32, 32), {}, (0.9,)),
}
CPU_CELLS = ("mlp-512", "mlp-2048", "lenet", "wide_resnet")
TURN = 0.05
"""Seconds of one arm's turn, at least."""


def dense_step(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, *, bf16: bool) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(net, x, y, bf16).backward()
        optimizer.step()

    return step


def loss_of(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, bf16: bool) -> torch.Tensor:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return torch.nn.functional.cross_entropy(net(x), y)


def masked_step(model: BayesianNetwork, sparsity: float, x: torch.Tensor, y: torch.Tensor, *, bf16: bool) -> Step:
    """Dense tensors with masks multiplied in, as released code of the field has it."""
    net = model.network(model.initial)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    masks = [(torch.rand_like(weight) > sparsity).float() for weight in weights]

    def step() -> None:
        kept = [weight.data.clone() for weight in weights]
        for weight, mask in zip(weights, masks, strict=True):
            weight.data.mul_(mask * torch.bernoulli(torch.full_like(mask, 0.9)))
        optimizer.zero_grad()
        loss_of(net, x, y, bf16).backward()
        for weight, mask, own in zip(weights, masks, kept, strict=True):
            weight.data.copy_(own)
            weight.grad.mul_(mask)
        optimizer.step()
        for weight, mask in zip(weights, masks, strict=True):
            weight.data.mul_(mask)

    return step


def our_step(
    build: Callable[[], BayesianNetwork],
    sparsity: float,
    keep_prob: float,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    closed: bool = True,
    bf16: bool,
    compile: bool = False,
) -> Step:
    model = build()
    model.compiled = "training" if compile else "no"
    model.num_data, model.weight_decay = 45000, 5e-4
    guide = MaskedGuide(model, initial(model.shapes, sparsity), keep_prob)
    loop = Loop(model, guide, schedules.static(), rates.constant(0.01), precision="bf16" if bf16 else "float32")
    loop.closed = None if closed else False
    return lambda: loop.step(x, y)


def sparselab_step(hidden: tuple[int, ...], sparsity: float, x: torch.Tensor, y: torch.Tensor) -> Step:
    """The same MLP of the package's sparse layers, the last one dense as ours is, and its own mask held still."""
    from sparselab import SparseLinear

    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for inputs, outputs in itertools.pairwise((x[0].numel(), *hidden)):
        layers += [SparseLinear(inputs, outputs, sparsity=sparsity), torch.nn.ReLU()]
    return dense_step(torch.nn.Sequential(*layers, torch.nn.Linear(hidden[-1], 10)), x, y, bf16=False)


def by(chosen: kernels.Kernels, step: Step) -> Step:
    def wrapped() -> object:
        with kernels.using(chosen):
            return step()

    return wrapped


def arms(cell: str, device: torch.device, wanted: argparse.Namespace) -> dict[str, Step]:
    name, shape, options, sparsities = CELLS[cell]
    bf16 = wanted.bf16
    program = shelf.load("models", name)
    x, y = to_device(torch.randn(128, *shape), device), torch.randint(0, 10, (128,)).to(device)

    def build() -> BayesianNetwork:
        model = program(shape, 10, **options).to(device)
        assert isinstance(model, BayesianNetwork)
        return model

    model = build()
    result = {"dense torch": dense_step(model.network(model.initial), x, y, bf16=bf16)}
    result["dense torch, again"] = dense_step(model.network(model.initial), x, y, bf16=bf16)
    result["90% sparse, masked"] = masked_step(model, 0.9, x, y, bf16=bf16)
    for sparsity in sparsities:
        result[f"{sparsity:.0%} sparse, RigL"] = our_step(build, sparsity, 1.0, x, y, bf16=bf16)
        result[f"{sparsity:.0%} sparse, CigL"] = our_step(build, sparsity, 0.9, x, y, bf16=bf16)
        if wanted.kernels:
            ours = our_step(build, sparsity, 0.9, x, y, bf16=bf16)
            result[f"{sparsity:.0%} sparse, CigL, compiled kernels"] = by(kernels.current(), ours)
        if wanted.sparselab and name == "mlp":
            result[f"{sparsity:.0%} sparse, sparselab"] = sparselab_step(options["hidden"], sparsity, x, y)  # type: ignore[arg-type]
        if wanted.pyro:
            result[f"{sparsity:.0%} sparse, CigL by Pyro"] = our_step(build, sparsity, 0.9, x, y, closed=False, bf16=bf16)
    if wanted.compile:
        ours = our_step(build, sparsities[0], 0.9, x, y, bf16=bf16, compile=True)
        result["dense torch, compiled"] = dense_step(torch.compile(model.network(model.initial)), x, y, bf16=bf16)
        result[f"{sparsities[0]:.0%} sparse, CigL, compiled"] = ours
        for label in [*result][-2:]:
            start = time.perf_counter()
            result[label]()
            print(f"{cell}, {label}: {time.perf_counter() - start:.0f} s to compile", file=sys.stderr, flush=True)
    return result


def turn(step: Step) -> float:
    """Seconds of a step, over a turn."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < TURN:
        step()
        count += 1
    if torch.cuda.is_available():  # what was launched is not done
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", default=list(CPU_CELLS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--pyro", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--sparselab", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = find_device(arguments.device)
    if arguments.kernels and kernels.current() is kernels.STOCK:
        parser.error("expected kernels of our own for --kernels, but none are in use: `espalier kernels build`")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{arguments.threads} threads"
    print(f"torch {torch.__version__}, {where}, {arguments.rounds} rounds{', bf16' if arguments.bf16 else ''}\n")
    print("| net | arm | median ms | ÷ dense | quartiles |\n|---|---|---|---|---|")
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        for cell in arguments.cells:
            steps = arms(cell, device, arguments)
            times: dict[str, list[float]] = {label: [] for label in steps}
            for number in range(arguments.rounds + 2):
                for label, step in steps.items():
                    with kernels.using(kernels.STOCK):  # an arm by others says so itself
                        seconds = turn(step)
                    if number >= 2:  # the first rounds warm caches and the allocator up
                        times[label].append(seconds)
            for label, seconds in times.items():
                ratios = [own / base for own, base in zip(seconds, times["dense torch"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                shown = f"{1e3 * statistics.median(seconds):.2f} | {middle:.2f} | {low:.2f} to {high:.2f}"
                print(f"| {cell} | {label} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
