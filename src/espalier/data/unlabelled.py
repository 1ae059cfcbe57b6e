"""A file of rows without labels, as the user has them: what a network is asked about, or what a student learns on. Labels are
not needed, and not looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import nested
from espalier.contracts import Data, Rows
from espalier.data import archives, readers
from espalier.data.images import ImageFiles, ImageRows, files_below
from espalier.data.repeats import comparable, keys, repeated
from espalier.data.streamed import Streamed


class Asked(NamedTuple):
    """x: rows `(n, *shape)`, not scaled; of images uint8, decoded when asked for. names: of the rows, where they are files."""

    x: Rows
    names: Sequence[str] = ()

    def prepared(self, data: Data) -> Rows:
        """As the network of these data takes them. Raises ValueError where they are no such rows."""
        if isinstance(self.x, Streamed):
            return _Prepared(self.x, data)
        parts = torch.arange(len(self.x)).split(4096)  # scaled in float64, and not all at once
        return torch.cat([data.inputs(self.x[index]) for index in parts])


@final
class _Prepared(Streamed):
    """Image files, scaled as the inputs of a run are."""

    def __init__(self, files: Streamed, data: Data) -> None:
        super().__init__(files.dataset, files.rows, workers=files.workers)
        self.data = data._replace(train=data.train._replace(x=data.example()))  # one row tells how

    def finish(self, batch: Tensor) -> Tensor:
        found: Tensor = self.data.inputs(batch)
        return found


def digest_of(x: Rows) -> str:
    """SHA-256 of rows as they stand; of those that are decoded when asked for, of what tells them: names and sizes of images."""
    if isinstance(x, Streamed) and isinstance(x.dataset, ImageFiles):
        x = ImageRows(x.dataset, x.rows)
    parts = x.identity() if isinstance(x, Streamed) else keys(x)
    return hashlib.sha256(b"".join(parts) + str(len(x)).encode()).hexdigest()


def check_rows(x: Rows, data: Data) -> None:
    """Raises ValueError for what the network of these data does not take, and as `check_apart` does."""
    if not len(x):
        raise ValueError("expected inputs without labels, as the network takes them, got no rows")
    both = data.example(), x[torch.arange(1)]
    wanted, got = ([(tuple(leaf.shape[1:]), leaf.dtype) for leaf in nested.leaves(rows)] for rows in both)
    if got != wanted:
        raise ValueError(f"expected inputs as the network takes them, {wanted}, got {got}: data.inputs(x) makes them so")
    if isinstance(x, Tensor) and x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError("expected finite inputs, got NaN or infinity")
    check_apart(x, data)


def check_apart(x: Rows, data: Data) -> None:
    """Raises ValueError where rows that are held out are among these, to the bit (of two folders of images by the names and sizes
    of the files), more than a hundredth of a split and than chance makes. Rows that would have to be decoded are not compared."""
    held = {part: getattr(data, part).x for part in ("calibration", "test")}
    held = {part: rows for part, rows in held.items() if len(rows) and comparable(x, rows)}
    for (part, rows), (same, wrong) in zip(held.items(), repeated([x], *held.values()) if held else (), strict=True):
        if wrong:
            raise ValueError(
                f"expected inputs that are not held out, but {same} of {len(rows)} rows of the {part} split are among them: "
                "leave them out, since scores and certificates are of rows that nothing has learnt on"
            )


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
    rows = nested.rows_of(x)
    if x.dtype.kind == "f":
        _refuse_broken(path, rows.numpy())
    return Asked(rows)


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
    return Asked(Streamed(files), files.names)
