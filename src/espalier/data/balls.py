"""What lies around a row: the inputs that are within eps of it in every feature."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from espalier.contracts import Data
from espalier.data.worlds import is_image, levels_of


class Ball(NamedTuple):
    """An L-infinity ball, in the units of the network's inputs: `radius`, and what no input is below or above; each broadcasts
    to a row. eps: its radius in `unit`."""

    radius: Tensor
    low: Tensor
    high: Tensor
    eps: float
    unit: str

    def box(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends around rows x `(n, *shape)`, which are in it whatever the rounding."""
        radius, low, high = (part.to(x) for part in self[:3])
        return torch.minimum(x, (x - radius).maximum(low)), torch.maximum(x, (x + radius).minimum(high))


def ball_of(data: Data, eps: float, white: float | None = None) -> Ball:
    """Of images eps is a share of white, 2 / 255 say, and no pixel leaves [black, white] (see `levels_of`); of other inputs it is
    in the units that the network is given, standard deviations of each feature.

    Raises ValueError for an eps out of range, for inputs that are several tensors, and as `levels_of` does.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"expected an eps above 0, got {eps:g}: it is how far each input may move")
    if isinstance(data.shape, dict) or not all(isinstance(size, int) for size in data.shape):
        raise ValueError(f"expected inputs that are one tensor, to move them by eps, got {data.shape}")
    if not is_image(data.shape):
        edge = torch.tensor(math.inf, dtype=torch.float64)
        return Ball(torch.tensor(eps, dtype=torch.float64), -edge, edge, eps, "sd")
    if eps > 1:
        raise ValueError(f"expected an eps of at most 1 for images, where it is a share of white, got {eps:g}: divide by 255")
    levels = levels_of(data, white)
    sd, mean = (torch.as_tensor(part, dtype=torch.float64).view(-1, 1, 1) for part in (levels.sd, levels.mean))
    return Ball(eps * levels.white / sd, -mean / sd, (levels.white - mean) / sd, eps, "white")
