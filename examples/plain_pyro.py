"""Only Pyro: the model and the guide are ordinary Pyro programs, so SVI, Predictive and poutine work on them.

python examples/plain_pyro.py             (seconds; generated data)
"""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import nn

from espalier import BayesianNetwork, MaskedGuide
from espalier.topology import erk, random_topology


def main(steps: int = 600) -> float:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    x = torch.rand(200, 1) * 6 - 3
    y = torch.sin(x[:, 0]) + 0.1 * torch.randn(200)

    net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))
    model = BayesianNetwork(net, likelihood="normal", prior_scale=1.0, num_data=200)
    topology = random_topology(model.shapes, erk(model.shapes, density=0.3))
    guide = MaskedGuide(model, topology, keep_prob=0.95)

    svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), TraceMeanField_ELBO())
    for step in range(steps):
        loss = svi.step(x, y)
        if step % max(1, steps // 5) == 0:
            print(f"step {step:4d}  -ELBO / N {loss / 200:8.3f}")

    trace = pyro.poutine.trace(guide).get_trace(x)
    print(
        f"the guide's one site: {trace.stochastic_nodes}, {int((trace.nodes['weights']['value'] != 0).sum())} weights not zero"
    )
    grid = torch.linspace(-3, 3, 7)[:, None]
    draws = Predictive(model, guide=guide, num_samples=200)(grid)["y"]
    for point, mean, sd in zip(grid[:, 0], draws.mean(0), draws.std(0), strict=True):
        print(f"x {point:5.1f}  sin x {torch.sin(point):6.3f}  predicted {mean:6.3f} ± {sd:.3f}")
    return float((draws.mean(0) - torch.sin(grid[:, 0])).square().mean().sqrt())


if __name__ == "__main__":
    main()
