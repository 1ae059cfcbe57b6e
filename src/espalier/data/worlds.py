"""Inputs that a run was not trained on: its own rows, corrupted; and rows of other sets, brought to the form of its inputs."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import nested
from espalier.contracts import PARTS, Data, Rows, Split
from espalier.data import sets
from espalier.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted, corruptions, resized
from espalier.data.images import _IMAGENET_MEAN, _IMAGENET_SD, ImageRows

WHITES = (1.0, 16.0, 255.0, 65535.0)
"""What white may be: of floats, of scikit-learn's digits, of bytes, of 16 bits."""
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow has it
_LOOKED_AT = 1000  # training rows, for the levels


class Levels(NamedTuple):
    """How standardised images `(n, c, h, w)` are read: levels = x * sd + mean, `(c,)` each, between 0 and white."""

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    white: float

    def shown(self, x: Tensor) -> NDArray[np.float64]:
        """In [0, 1], but for rounding."""
        plain = x.double().numpy() * self.sd[:, None, None] + self.mean[:, None, None]
        return np.asarray(plain / self.white)

    def standardised(self, x: NDArray[Any]) -> Tensor:
        """The other way round, float32."""
        return torch.from_numpy((x * self.white - self.mean[:, None, None]) / self.sd[:, None, None]).float()


def levels_of(data: Data, white: float | None = None) -> Levels:
    """By the normalisation that the data keep. white: the level that is white, None: the least of 1, 16, 255 and 65535 that the
    first thousand training rows stay below; 16 of whole numbers alone, and 65535 where half of it is reached.

    Raises ValueError where inputs are no images of one or three channels, have levels below 0 or above white, or do not tell
    which it is (levels of 12 bits, floats a little above 1).
    """
    shape = data.shape
    if not is_image(shape):
        raise ValueError(f"expected a data set of images (1 or 3, h, w), got inputs of shape {shape}: {data.name} has no pixels")
    if isinstance(data.train.x, ImageRows):
        return Levels(255 * np.array(_IMAGENET_MEAN), 255 * np.array(_IMAGENET_SD), 255.0)
    mean, sd = np.zeros(shape[0]), np.ones(shape[0])
    if data.input_scale is not None:
        mean, sd = (values.double().numpy() for values in data.input_scale)
    known = Levels(mean, sd, 1.0)
    if not len(data.train.x):
        raise ValueError("expected training rows to see the levels of, got none")
    found = known.shown(data.train.x[torch.arange(min(len(data.train.x), _LOOKED_AT))])
    low, high = float(found.min()), float(found.max())
    fitting = [one for one in (WHITES if white is None else (white,)) if high <= one * (1 + 1e-5)]
    whole = bool((abs(found - found.round()) < 1e-3).all())
    odd = fitting and ((fitting[0] == 16 and not whole) or (fitting[0] == 65535 and high < 65535 / 2))
    if white is None and odd:
        raise ValueError(
            f"expected images of levels that tell which one is white, {', '.join(f'{one:g}' for one in WHITES)}, got levels to "
            f"{high:.5g} in {data.name}: bring them to [0, 1] before they are given to espalier, or say white= (source_white= of "
            "another world)"
        )
    if not fitting or low < -1e-5 * fitting[0]:
        raise ValueError(
            f"expected images with levels from 0 to {'255, say' if white is None else white}, got {low:.4g} to {high:.4g} in "
            f"{data.name}: give them to espalier before they are normalised, or say white="
        )
    return known._replace(white=fitting[0])


def is_image(shape: Any) -> bool:
    return isinstance(shape, tuple | list) and len(shape) == 3 and isinstance(shape[0], int) and shape[0] in (1, 3)


@final
class Shifted:
    """Rows that are corrupted when asked for: `rows[index]` is float32 `(b, c, h, w)`, standardised as the originals. What is
    random is decided by the seed and each row's number among `rows`."""

    def __init__(self, rows: Rows, levels: Levels, name: str, severity: int, seed: int = 0) -> None:
        self.rows, self.levels, self.name, self.severity, self.seed = rows, levels, name, severity, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        shown = np.clip(self.levels.shown(self.rows[index]), 0, 1)
        return self.levels.standardised(corrupted(shown, self.name, self.severity, seed=self.seed, rows=index.numpy()))


def shifted(
    data: Data, name: str, severity: int, part: str = "test", *, seed: int = 0, white: float | None = None
) -> Split:
    """A part of the data with its images corrupted, labels as they were: `data._replace(test=shifted(...))`. Images in memory
    are corrupted at once, as every draw of a fit will read them; others whenever they are read (`Shifted`), to the same bytes.

    name, severity: of `CORRUPTIONS`, 1 to 5. white: see `levels_of`.

    Raises ValueError for another part, name or severity, and as `levels_of` does.
    """
    if part not in PARTS:
        raise ValueError(f"expected a part of {', '.join(PARTS)}, got {part!r}")
    if name not in CORRUPTIONS or severity not in SEVERITIES or not isinstance(severity, Integral):
        known = ", ".join(CORRUPTIONS)
        raise ValueError(f"expected a corruption of {known} and a severity of 1 to 5, got {name!r}, {severity!r}")
    levels, split = levels_of(data, white), getattr(data, part)
    if name not in corruptions(data.shape[0]):
        raise ValueError(f"expected images of three colours for {name!r}, got grey ones in {data.name}: take another corruption")
    rows = Shifted(split.x, levels, name, int(severity), seed)
    return Split(rows[torch.arange(len(rows))] if isinstance(split.x, Tensor) else rows, split.y)


def out_of_distribution(
    source: str | Path,
    data: Data,
    *,
    part: str = "test",
    count: int | None = None,
    data_dir: str | Path | None = None,
    white: float | None = None,
    source_white: float | None = None,
) -> Tensor:
    """Inputs of another world, `(n, *data.shape)` float32, standardised as the run's own are.

    source: a named set, an `.npz` file or a folder of images, as `load` takes it. Images are brought to the run's size (bilinear,
    antialiased; of a folder the middle square) and colours: grey is ITU-R 601's luma, colour three times the grey. Features must
    be as many. part: of the source; count: the first so many of its rows. data_dir: where named sets lie. white: of the run's own
    images, source_white: of the source's, see `levels_of`.

    Raises ValueError for the run's own set, and, with what would be needed, where the inputs cannot be brought to its form; and
    what `load` raises.
    """
    if part not in PARTS or (count is not None and count < 1):
        raise ValueError(f"expected a part of {', '.join(PARTS)} and a count of at least 1, got {part!r}, {count}")
    source = os.fspath(source)
    size = max(data.shape[1:]) if is_image(data.shape) and _is_folder(source) else None
    other = sets.load(source, data_dir=data_dir, validation=0.0, calibration=0.0, image_size=size, standardise="none")
    rows, y = getattr(other, part)
    if not len(y):
        raise ValueError(f"expected rows in the {part} split of {source}, got none: take its test or train split")
    own_rows = {data.hashes.get(name) for name in PARTS if len(getattr(data, name).y)}
    if _same(other.name, data.name) or other.hashes[part] in own_rows:
        raise ValueError(f"expected another world than the run's own, got {source}, which it was trained on: name another set")
    index = torch.arange(len(y) if count is None else min(count, len(y)))
    if other.shape == data.shape and not is_image(data.shape):
        return torch.as_tensor(data.inputs(rows[index]))
    if not (is_image(data.shape) and is_image(other.shape)):
        raise ValueError(
            f"expected inputs that can be brought to the run's shape {data.shape}, got {other.shape} in {source}: images of one "
            "or three channels for a run of such images, or as many features"
        )
    own, theirs = levels_of(data, white), levels_of(other, source_white)
    out = torch.empty(len(index), *data.shape)
    for start in range(0, len(index), 256):
        chunk = index[start : start + 256]
        shown = np.clip(theirs.shown(rows[chunk]), 0, 1)
        same = np.stack([_sized(image, data.shape[1:]) for image in _coloured(shown, data.shape[0])])
        out[start : start + 256] = own.standardised(same)
    return out


def inputs_of(data: Data) -> str:
    """What tells how a run takes its inputs from how another does: hashes are of rows as they are stored."""
    scales = [leaf.tolist() for leaf in nested.leaves(data.input_scale) if isinstance(leaf, Tensor)]
    return repr((data.shape, scales))


def _same(one: str, other: str) -> bool:
    """Two names of one set, or one file or folder by two paths."""
    if one == other or {one, other} & set(sets.SETS):
        return one == other
    try:
        paths = [Path(name).expanduser() for name in (one, other)]
        return all(path.exists() for path in paths) and paths[0].samefile(paths[1])
    except (OSError, RuntimeError, ValueError):  # a name that is no path
        return False


def _is_folder(source: str) -> bool:
    return bool(source) and source not in sets.SETS and Path(source).expanduser().is_dir()


def _coloured(x: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Images `(n, c, h, w)` with one or three channels."""
    if x.shape[1] == channels:
        return x
    return x.repeat(3, 1) if channels == 3 else np.tensordot(_GREY, x, (0, 1))[:, None]


def _sized(image: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    return image if image.shape[1:] == tuple(size) else np.clip(resized(image, size), 0, 1)
