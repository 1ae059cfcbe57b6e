"""Which weights belong in the network, and how sure is it? A distribution over topologies instead of one.

python examples/inclusion.py [--picture inclusion.png]             (a minute; scikit-learn's digits)

`HierarchicalGuide` samples the topology M from P(M) proportional to exp(sum M |U| / temperature) at every step; its
gradient is `LeaveOneOutELBO`'s. Its inclusion probabilities say how firmly each weight is in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import nn

from espalier import BayesianNetwork, load_data
from espalier.guides.hierarchy import HierarchicalGuide, LeaveOneOutELBO, reversed_model
from espalier.topology.masks import erk, random_topology


def main(steps: int = 400, picture: Path | None = None) -> torch.Tensor:
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    data = load_data("digits")
    x, y = data.train.x[torch.arange(len(data.train.y))], data.train.y
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    model = BayesianNetwork(net, num_data=len(y), prior_scale=0.3)
    topology = random_topology(model.shapes, erk(model.shapes, density=0.3))  # how many, not which
    guide = HierarchicalGuide(model, topology, keep_prob=0.95, temperature=0.05)

    svi = SVI(reversed_model(model, guide), guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), LeaveOneOutELBO(4))
    for step in range(steps + 1):
        if step % max(1, steps // 5) == 0:
            probability = guide.inclusion()
            sure = int(((probability > 0.95) | (probability < 0.05)).sum())
            print(f"step {step:4d}  {sure} of {len(probability)} weights are in or out with 95 % probability", end="  ")
            print(f"overlap with the top-k {float(probability[guide.collapse(model).positions].sum()) / topology.num_active:.2f}")
        batch = torch.randint(len(y), (128,))
        svi.step(x[batch], y[batch])

    first, second = guide.inclusion().split(model.sizes)
    print(f"expected active weights: {float(first.sum()):.1f} and {float(second.sum()):.1f}, as many as the topology has")
    if picture is not None:
        _draw(first.view(16, 64), second, picture)
        print(f"drawn: {picture}")
    return guide.inclusion()


def _draw(first: torch.Tensor, second: torch.Tensor, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = left.imshow(first.sum(0).view(8, 8), cmap="viridis", vmin=0)
    left.set(title="expected active weights of each pixel", xticks=[], yticks=[])
    figure.colorbar(image, ax=left)
    for name, part in (("64 to 16", first.flatten()), ("16 to 10", second)):
        right.plot(torch.linspace(0, 1, len(part)), part.sort(descending=True).values, label=name)
    right.set(title="inclusion probability", xlabel="rank / number of weights", ylabel="P(M = 1)")
    right.legend(title="layer", frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.picture)
