"""Would this model have made data like these? A regression of constant noise on data whose noise grows, and the one that knows.

    python examples/criticism.py

Posterior predictive checks on held-out rows: the wrong model's p-value of `spread over input` is the smallest that there can be.
"""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction import posterior_check


def growing(output: Tensor) -> dist.TorchDistribution:
    """A normal likelihood whose scale is the network's second output."""
    return dist.Normal(output[:, 0], nn.functional.softplus(output[:, 1]) + 1e-3)


def main(epochs: int = 60, replicates: int = 200) -> dict[str, float]:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 2, (900, 1)).astype(np.float32)
    y = (np.sin(2 * x[:, 0]) + rng.normal(size=900) * (0.05 + 0.4 * x[:, 0])).astype(np.float32)
    data = from_arrays(x, y)
    found = {}
    for name, outputs, likelihood in (("constant noise", 1, "normal"), ("growing noise", 2, growing)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, outputs))
        training = Training(epochs=epochs, batch_size=64, learning_rate=0.01, optimizer="adam")
        model = BayesianNetwork(net, likelihood=likelihood)
        fit = cigl.infer(model, data, sparsity=0.2, drop_rate=0.05, training=training, seed=0)
        checks = posterior_check(fit, data.test.x, data.in_units(data.test.y), ["sd", "spread over input"], replicates=replicates)
        for check in checks:
            print(f"{name}: {check.name} {check.observed:.3f}, p {check.p_value:.3f} ± {check.error:.3f}")
            found[f"{name}: {check.name}"] = check.p_value
    return found


if __name__ == "__main__":
    main()
