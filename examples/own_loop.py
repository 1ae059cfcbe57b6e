"""Your own loop, made sparse by a pair of calls: `attach(net)` before it, `sparse.step(optimizer)` in it.

python examples/own_loop.py               (seconds; scikit-learn's digits)
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from espalier import calibration
from espalier.adapters import attach


def main(epochs: int = 30) -> dict[str, float]:
    torch.manual_seed(0)
    pixels, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(digits))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(digits)[order]
    loader = DataLoader(TensorDataset(x[:1300], y[:1300]), batch_size=50, shuffle=True)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    sparse = attach(net, steps=epochs * len(loader), sparsity=0.9, drop_rate=0.1, delta_t=20, num_data=1300)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    moves = 0
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs), labels).backward()
            moves += sparse.step(optimizer)  # in place of optimizer.step()
            schedule.step()
        sparse.collect()

    fit = sparse.fit()
    print(f"{fit.topology.num_active:,} of {fit.topology.num_weights:,} weights active after {moves} moves")
    print(f"{len(fit.pairs.values)} pairs (Z, u) collected")
    found = {}
    for how in ("ticket", "redraw"):
        probs = fit.predict(x[1300:], how).mean(0).numpy()
        found[how] = calibration.accuracy(probs, y[1300:].numpy())
        print(f"{how:7s} accuracy {found[how]:.3f}  NLL {calibration.nll(probs, y[1300:].numpy()):.3f}")
    plain = sparse.remove()  # the network as it was, sparse
    print(f"what is left is a {type(plain).__name__} with {sum(int((p == 0).sum()) for p in plain.parameters()):,} zeros")
    return found


if __name__ == "__main__":
    main()
