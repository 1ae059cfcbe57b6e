"""Has training seen the calibration examples? By their inputs: to the bit, or with a little noise."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from espalier.contracts import Data, Split
from espalier.data.repeats import LOOKED_AT, repeated, too_many
from espalier.data.streamed import Streamed

NEAR = 0.01
"""Standard deviations, root mean square over features, within which two inputs count as one."""


def check_unseen(data: Data, calibration: Split) -> int:
    """Number of calibration examples whose input stands in training or validation too, to the bit. Raises ValueError where these,
    or copies with a little noise, are too many to be so by chance. Folders of images are not compared: that would decode every
    file."""
    if any(isinstance(x, Streamed) and x.digests is None for x in (calibration.x, data.train.x)):
        return 0
    ((count, wrong),) = repeated([data.train.x, data.validation.x], calibration.x)
    if wrong:
        raise ValueError(
            f"expected calibration examples that training has not seen, but {count} of {len(calibration.y)} inputs are "
            "training or validation inputs: a certificate would be worthless; set fresh examples aside"
        )
    if isinstance(data.train.x, Tensor) and isinstance(calibration.x, Tensor) and len(data.train.x) > 1:
        sizes = min(LOOKED_AT, len(calibration.x)), min(LOOKED_AT, len(data.train.x))
        found = [near(*rows) for rows in _scales(data.train.x, calibration.x)]
        noisy = [(copies, usual) for copies, usual in found if too_many(copies, usual, *sizes)]
        if noisy:
            copies, usual = noisy[0]
            raise ValueError(
                f"expected calibration examples that training has not seen, but {100 * (copies - usual):.3g} % are training "
                "inputs with a little noise: a certificate would be worthless; set fresh examples aside"
            )
    return count


def _scales(train: Tensor, calibration: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Both as they are, of which the noise may be of one size in all features, as of pixels; and with each feature in standard
    deviations of its own, whatever they were scaled to. A constant one counts as it is."""
    unit = train.flatten(1).double().std(0)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    return [(train, calibration), (train.flatten(1).double() / unit, calibration.flatten(1).double() / unit)]


def near(train: Tensor, calibration: Tensor) -> tuple[float, float]:
    """Share of calibration rows `(m, ...)` that are copies of a training row but for some noise, an rms of a hundredth of a
    standard deviation; and what training rows themselves have of such neighbours: of `LOOKED_AT` rows of either.

    Distances are those of 16 random projections, which keep them (Johnson & Lindenstrauss 1984).
    """
    own, other = train.flatten(1).double(), calibration.flatten(1).double()
    size = own.shape[1]
    radius = NEAR * size**0.5
    if size > 16:
        generator = torch.Generator().manual_seed(0)
        onto = torch.randn(size, 16, generator=generator, dtype=torch.float64) / 4
        own, other = own @ onto, other @ onto
    tree = cKDTree(own.numpy())
    copies = np.isfinite(tree.query(other[:LOOKED_AT].numpy(), distance_upper_bound=radius)[0]).mean()
    usual = np.isfinite(tree.query(own[:LOOKED_AT].numpy(), k=2, distance_upper_bound=radius)[0][:, 1]).mean()
    return float(copies), float(usual)
