"""Your own network, in one line: a plain `nn.Module` becomes a Bayesian one, is trained sparse, and says how sure it is.

python examples/own_network.py            (seconds; scikit-learn's digits)
"""

from __future__ import annotations

import torch
from torch import nn

from espalier import BayesianNetwork, Training, calibration, load_data
from espalier.inference import cigl


def main(epochs: int = 60) -> dict[str, float]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )  # nothing of Espalier's in it
    model = BayesianNetwork(net)
    print(f"{model.num_weights:,} weights may be masked: {', '.join(weight.name for weight in model.weights)}")

    data = load_data("digits")  # or espalier.data.from_arrays(x, y): NumPy, torch, pandas
    fit = cigl.infer(
        model, data, sparsity=0.9, drop_rate=0.2, delta_t=20, training=Training(epochs=epochs, batch_size=64), seed=1
    )

    print(f"{fit.topology.num_active:,} of them are active; {len(fit.pairs.values)} pairs (Z, u) collected")
    found = {}
    for how in ("ticket", "redraw"):
        probs = fit.predict(data.test.x, how).mean(0).numpy()  # (draws, n, classes), averaged over draws
        labels = data.test.y.numpy()
        low, high = calibration.ece_interval(probs, labels)
        found[how] = calibration.accuracy(probs, labels)
        print(f"{how:7s} accuracy {found[how]:.3f}  ECE {calibration.ece(probs, labels):.3f} [{low:.3f}, {high:.3f}]")

    plain = fit.ticket()  # an nn.Module again, with zeros
    print(f"the ticket is a {type(plain).__name__} with {sum(int((p == 0).sum()) for p in plain.parameters()):,} zeros")
    return found


if __name__ == "__main__":
    main()
