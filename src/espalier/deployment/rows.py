"""A file of new rows, as the user has them: what a network is asked about. Labels are not needed, and not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier.data import archives, readers
from espalier.data.images import ImageFiles, files_below


class Asked(NamedTuple):
    """x: `x[start:stop]` is a tensor `(b, *shape)`, not scaled. names: of the rows, where they are files."""

    x: Any
    length: int
    names: Sequence[str] = ()


@final
class Images:
    """Image files, decoded when asked for: uint8 `(b, 3, size, size)`."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.stack([self.files[row] for row in range(*rows.indices(len(self.files)))])


def read(path: str | Path, shape: Any) -> Asked:
    """Rows of this shape, from an `.npz` with `x` (and whatever else), or from all images below a folder, by name.

    Raises FileNotFoundError where there is nothing; ValueError, in one sentence, for what cannot be read, for other shapes, no
    rows, and numbers that are not finite.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _images(path, shape)
    if not path.exists():
        raise FileNotFoundError(f"expected an .npz file or a folder of images at {path}, got nothing: mend the path")
    if path.suffix != ".npz":
        raise ValueError(f"expected an .npz file with x, or a folder of images, got {path}: write it with np.savez(file, x=x)")
    if not (isinstance(shape, list) and all(isinstance(side, int) for side in shape)):
        raise ValueError("expected a network of one input for a file of rows, got one of several: call it from Python")
    if "x" not in archives.names(path):
        raise ValueError(f"{path} lacks 'x': expected the rows under this name, got {sorted(archives.names(path))[:9]}")
    x = readers.channels_first(path, archives.arrays(path, ["x"])["x"])
    if not len(x) or list(x.shape[1:]) != shape:
        raise ValueError(f"expected rows of shape (n, {', '.join(map(str, shape))}) in {path}, got {x.shape}")
    x = x.astype(np.float64 if x.dtype.kind == "f" and x.dtype.itemsize > 8 else x.dtype.newbyteorder("="), copy=False)
    if x.dtype.kind == "f":
        _refuse_broken(path, x)
    return Asked(torch.from_numpy(np.ascontiguousarray(x)), len(x))


def _refuse_broken(path: Path, x: NDArray[Any]) -> None:
    with np.errstate(over="ignore"):
        broken = ~np.isfinite(x.astype(np.float32)).all(axis=tuple(range(1, x.ndim)))
    if broken.any():
        single = "" if not np.isfinite(x).all() else " in single precision"
        first = f"first in row {broken.argmax()} (counted from 0)"
        raise ValueError(f"{path}: expected finite inputs, got NaN or infinity{single}, {first}")


def _images(root: Path, shape: Any) -> Asked:
    if not (isinstance(shape, list) and len(shape) == 3 and shape[0] == 3 and shape[1] == shape[2]):
        raise ValueError(f"expected a network of square colour images for a folder, got one of inputs {shape}: use an .npz")
    files = files_below(root, shape[1])
    return Asked(Images(files), len(files), files.names)
