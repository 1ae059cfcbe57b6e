"""Bytes of state at 95 % sparsity against dense, WRN-22-2: parameters, optimiser moments, checkpoint on disk.

    python examples/benchmarks/state_bytes.py

dense torch is the plain network with SGD momentum, saved by safetensors with its optimiser's buffers. The other parameters
(batch norm, the last bias) and their moments are as large in both and are counted in both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyro
import torch
from safetensors.torch import save_file

from espalier import shelf, store
from espalier.guides.masked import MaskedGuide
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from espalier.training.streams import Streams


def size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def main() -> None:
    model = shelf.load("models", "wide_resnet")((3, 32, 32), 10)
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))

    dense = model.network(model.initial)
    optimizer = torch.optim.SGD(dense.parameters(), 0.1, momentum=0.9, nesterov=True)
    torch.nn.functional.cross_entropy(dense(x), y).backward()
    optimizer.step()
    dense_state = {f"net.{name}": tensor for name, tensor in dense.state_dict().items()}
    slots = optimizer.state_dict()["state"]
    dense_moments = {f"momentum.{i}": slot["momentum_buffer"] for i, slot in slots.items()}

    streams = Streams(0, torch.device("cpu"))
    guide = MaskedGuide(model, initial(model.shapes, 0.95), 0.9, generator=streams.mask)
    model.num_data, model.weight_decay = 45000, 5e-4
    loop = Loop(model, guide, schedules.static(), rates.constant(0.1))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        loop.step(x, y)
    tensors, facts = loop.state()
    moments = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    parameters = {"values": guide.values, "positions": guide.positions, **dict(model.state_dict())}

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "dense"
        states = {f"stream.{name}": state for name, state in streams.state().items()}
        store.write_bundle(ours, Bundle({**tensors, **states}, facts))
        save_file({**dense_state, **dense_moments}, theirs)
        print(f"WRN-22-2: {model.num_weights:,} maskable weights, {len(guide.values):,} active\n")
        print("| bytes | dense torch | Espalier, 95 % sparse | ratio |\n|---|---|---|---|")
        rows = [
            ("parameters (ours: values and int64 positions)", size(dense_state), size(parameters)),
            ("optimiser moments", size(dense_moments), size(moments)),
            ("checkpoint on disk (ours: positions by their gaps)", theirs.stat().st_size, ours.stat().st_size),
        ]
        for name, before, after in rows:
            print(f"| {name} | {before:,} | {after:,} | {after / before:.3f} |")


if __name__ == "__main__":
    main()
