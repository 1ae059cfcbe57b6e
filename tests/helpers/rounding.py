"""Equal up to the rounding of double precision, for what runs under the fixture `float64`."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-10


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=0, atol=TOLERANCE)
