"""Small made-up segmentation: one bright disc on noise, and the pixels it covers."""

from __future__ import annotations

import torch

from espalier import Data, Split


def blobs(size: int = 16, counts: tuple[int, int, int, int] = (48, 16, 16, 16)) -> Data:
    """x `(n, 3, size, size)`, y `(n, size, size)` of 0 and 1, in four parts of `counts` images."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        centre = size / 4 + size / 2 * torch.rand(count, 2, 1, 1, generator=generator)
        radius = size / 8 + size / 8 * torch.rand(count, 1, 1, generator=generator)
        rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
        y = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2).float()
        return Split(torch.randn(count, 3, size, size, generator=generator) + 2 * y[:, None], y)

    return Data("blobs", *(split(count) for count in counts), shape=(3, size, size), num_classes=2)
