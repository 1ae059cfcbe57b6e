"""Which uncertainty sees digits that a network was never shown? Trained on 0 to 7, asked about 8 and 9.

    python examples/out_of_distribution.py

Prints the AUROC, with its 95 % interval, by every uncertainty of 32 random masks and of the ticket alone.
"""

from __future__ import annotations

import torch

from espalier import Data, Split, Training, load_data
from espalier.calibration import UNCERTAINTIES, auroc_interval
from espalier.inference import cigl
from espalier.models import mlp
from espalier.prediction import uncertainties


def known(split: Split, *, below: int = 8) -> Split:
    """The rows whose label is below a number."""
    chosen = torch.nonzero(split.y < below).squeeze(1)
    return Split(split.x[chosen], split.y[chosen])


def main(epochs: int = 30, num_samples: int = 32) -> dict[str, float]:
    whole = load_data("digits")
    parts = {name: known(getattr(whole, name)) for name in ("train", "validation", "calibration", "test")}
    data = Data("digits 0 to 7", **parts, shape=whole.shape, num_classes=8)
    model = mlp.model(data.shape, data.num_outputs, hidden=(128, 64))
    fit = cigl.infer(model, data, drop_rate=0.2, delta_t=20, training=Training(epochs=epochs, batch_size=64), seed=0)

    strange = whole.test.x[torch.nonzero(whole.test.y >= 8).squeeze(1)]
    found = {}
    for way in ("ticket", "redraw"):
        inside, outside = (uncertainties(fit, x, way, num_samples=num_samples) for x in (data.test.x, strange))
        for name in UNCERTAINTIES:
            if not inside[name].any() and not outside[name].any():
                continue  # of one network, nothing differs between draws
            value, (low, high) = auroc_interval(inside[name], outside[name])
            print(f"{way:7s} {name:20s} AUROC {value:.3f} [{low:.3f}, {high:.3f}]")
            found[f"{way} {name}"] = value
    return found


if __name__ == "__main__":
    main()
