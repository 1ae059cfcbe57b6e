"""ONNX beside torch: every model of the shelf, at its full size, as onnxruntime says it.

    python examples/benchmarks/onnx_parity.py [MODEL ...] [--rows 64]

A fit of one epoch of `cigl` at 90 % on noise of the shape that the model is for; its ticket is exported as a folder, read back
and written as ONNX. Apart: the largest difference of a probability, of a regression per standard deviation of its target, over
rows that the exporter has not seen, by as many as are asked for and by one alone. Time: onnxruntime's of these rows over that of
the dense torch module on as many threads, median of 7 turns, one run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import espalier
from espalier import Training, shelf
from espalier.contracts import Data
from espalier.data import from_arrays
from espalier.deployment import to_onnx
from espalier.inference import cigl

SHAPES: dict[str, tuple[int, ...]] = {
    "deep_gp": (8,), "lenet": (1, 28, 28), "linear": (8,), "logistic": (64,), "mlp": (1, 28, 28), "resnet50": (3, 32, 32),
    "unet": (3, 64, 64), "wide_resnet": (3, 32, 32),
}  # fmt: skip
TARGETS = ("deep_gp", "linear")


def noise(model: str) -> Data:
    rng, shape = np.random.default_rng(0), SHAPES[model]
    x = rng.integers(0, 256, (80, *shape), dtype=np.uint8) if len(shape) == 3 else rng.normal(size=(80, *shape))
    y = rng.normal(size=80) if model in TARGETS else np.arange(80) % 10
    if model == "unet":
        y = rng.integers(0, 2, (80, *shape[1:]))
    return from_arrays(x, y, channels="first" if len(shape) == 3 else None)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def row(model: str, rows: int, folder: Path) -> str:
    data, rng = noise(model), np.random.default_rng(1)
    torch.manual_seed(0)
    program = shelf.load("models", model)(data.shape, data.num_outputs)
    training = Training(epochs=1, batch_size=16, learning_rate=0.005, device="cpu")
    fit = cigl.infer(program, data, sparsity=0.9, drop_rate=0.1, delta_t=2, freeze=0.5, average_from=0.5, training=training)
    module = espalier.from_pretrained(fit.export(folder / model, program={"model": model}))
    to_onnx(module, folder / f"{model}.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / f"{model}.onnx", options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, SHAPES[model]
    x = torch.from_numpy(rng.uniform(0, 255, (rows, *shape)) if len(shape) == 3 else rng.normal(size=(rows, *shape))).float()

    def torch_says(part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(part)  # type: ignore[no-any-return]

    def onnx_says(part: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["said"], {name: part.numpy()})[0])

    unit = float(torch.as_tensor(module.scale).max()) if model in TARGETS else 1.0
    apart = [float((onnx_says(part) - torch_says(part)).abs().max()) / unit for part in (x, x[:1])]
    turns = [seconds(lambda: onnx_says(x)) / seconds(lambda: torch_says(x)) for _ in range(7)]
    size = (folder / f"{model}.onnx").stat().st_size / 2**20
    figures = f"{apart[0]:.1e} | {apart[1]:.1e} | {size:.1f} | {statistics.median(turns):.2f}"
    return f"| {model} | {fit.model.num_weights:,} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[*SHAPES], metavar="MODEL")
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(f"| model | weights | apart, {arguments.rows} rows | one row | MiB | time ÷ torch |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in arguments.models:
            print(row(model, arguments.rows, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
