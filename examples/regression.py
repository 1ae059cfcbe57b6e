"""Regression with uncertainty: the finite-width deep GP, sparse, where the data end.

python examples/regression.py             (seconds; generated data)
"""

from __future__ import annotations

import numpy as np
import torch

from espalier import Data, Training, calibration
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.models import deep_gp


def generated(seed: int = 0) -> Data:
    """y = x sin(3 x) + noise, seen on [-1, 1] only."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (600, 1))
    y = x[:, 0] * np.sin(3 * x[:, 0]) + 0.1 * random.normal(size=600)
    return from_arrays(x, y, name="wave", calibration=0.0)


def main(epochs: int = 300) -> dict[str, float]:
    torch.manual_seed(0)
    data = generated()
    model = deep_gp.model(data.shape, 1, widths=(100, 100), prior_scale=2.0)
    training = Training(epochs=epochs, batch_size=50, learning_rate=0.02, optimizer="adam")
    fit = cigl.infer(model, data, sparsity=0.5, drop_rate=0.02, training=training)

    draws = fit.predict(data.test.x, "redraw", num_samples=64).numpy()  # (draws, n, 2): means and standard deviations
    targets = data.test.y.numpy() * data.target_scale + data.target_shift
    scores = calibration.regression_summary(draws[..., 0], draws[..., 1], targets)
    print(f"test RMSE {scores['rmse']:.3f} (noise 0.1), 95 % intervals cover {scores['coverage_95']:.0%}")
    grid = torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])
    mean = fit.predict(data.inputs(grid), "redraw", num_samples=64)[..., 0]
    for point, centre, spread in zip(grid[:, 0], mean.mean(0), mean.std(0), strict=True):
        where = "inside " if abs(point) <= 1 else "outside"
        print(f"x {point:5.1f} ({where} the data)  mean {centre:6.2f}  spread of the masks {spread:.3f}")
    return {
        "rmse": float(scores["rmse"]),
        "inside": float(mean.std(0)[2]),
        "outside": float(mean.std(0)[[0, 4]].mean()),
    }


if __name__ == "__main__":
    main()
