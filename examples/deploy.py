"""From a fit to where it is used: a folder, the network in it without Espalier's classes, ONNX, and a table.

    python examples/deploy.py FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import espalier
from espalier import Training, load_data
from espalier.deployment import predict, to_onnx
from espalier.inference import cigl
from espalier.models import mlp


def main(folder: Path | None = None, epochs: int = 40) -> dict[str, float]:
    home = folder or Path(tempfile.mkdtemp())
    data = load_data("digits")
    model = mlp.model(data.shape, data.num_outputs, hidden=(256, 256))
    fit = cigl.infer(model, data, drop_rate=0.1, delta_t=20, training=Training(epochs=epochs, batch_size=64), seed=1)

    program = {"model": "mlp", "hidden": (256, 256)}
    net = espalier.from_pretrained(fit.export(home / "net", data, program=program, name="digits", licence="apache-2.0"))
    print((home / "net" / "README.md").read_text())

    raw = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]  # as they come: levels from 0 to 16
    unseen = raw[data.rows["test"]]
    lean = espalier.from_pretrained(home / "net", sparse="auto")
    with torch.no_grad():
        said, without_zeros = net(unseen), lean(unseen)
    np.savez(home / "unseen.npz", x=unseen.numpy())
    table = predict(home / "net", home / "unseen.npz", home / "said.csv")

    right = float((said.argmax(1) == data.test.y).double().mean())
    found = {
        "accuracy": right,
        "from the fit": float((said - fit.predict(data.test.x)[0]).abs().max()),
        "without its zeros": float((said - without_zeros).abs().max()),
        "in the table": float(np.abs(table["confidence"] - said.max(1).values.numpy()).max()),
        "onnxruntime": to_onnx(net, home / "net.onnx"),
        "bytes": (home / "net" / "model.safetensors").stat().st_size,
        "bytes of a dense one": 4.0 * sum(parameter.numel() for parameter in net.network.parameters()),
    }
    for name, value in found.items():
        print(f"{name:22s} {value:.3g}" if value < 1000 else f"{name:22s} {value:,.0f}")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
