"""Named data sets, npz files and image folders: cut by seed, standardised by the training rows, identified by hash.

`load` fills the contract `Data`, `names` and `available` say what there is. File formats are the business of `readers`,
fetching sets that of `downloads`. Named sets lie below one folder: `data_dir`, else the environment
variable ESPALIER_DATA, else `~/.cache/espalier`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from espalier.contracts import Data, Split
from espalier.data import readers
from espalier.data.readers import Array, Raw
from espalier.data.readers import ImageRows as ImageRows

_TEST_FRACTION = 0.2  # of all rows, where no test set is published
_CHUNK = 1 << 22  # numbers handled in float64 at a time: bounds the memory beside the result


class Layout(NamedTuple):
    """One way in which a set lies on disk: the files it needs in `folder`, and what reads them."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Raw]


def _idx(*folders: str) -> tuple[Layout, ...]:
    files = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    return tuple(Layout(folder, files, readers.idx) for folder in folders)


def _uci(name: str, about: str) -> tuple[str, tuple[Layout, ...]]:
    return f"UCI regression, {about}", (Layout("uci", (f"{name}.npz",), lambda paths: readers.npz(paths[0])),)


MNIST, FASHION = _idx("MNIST/raw", "mnist"), _idx("FashionMNIST/raw", "fashion-mnist")
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR10 = (
    Layout("cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), lambda p: readers.cifar_binary(p, 1, 10)),
    Layout("cifar-10-batches-py", _BATCHES, lambda p: readers.cifar_python(p, "labels", 10)),
)
CIFAR100 = (
    Layout("cifar-100-binary", ("train.bin", "test.bin"), lambda p: readers.cifar_binary(p, 2, 100)),
    Layout("cifar-100-python", ("train", "test"), lambda p: readers.cifar_python(p, "fine_labels", 100)),
)
# Name -> one line about it, and where it may lie; nowhere, if it comes with scikit-learn.
SETS: Mapping[str, tuple[str, tuple[Layout, ...]]] = {
    "digits": ("1,797 handwritten digits, 8x8 grey, 10 classes; comes with scikit-learn", ()),
    "mnist": ("70,000 handwritten digits, 28x28 grey, 10 classes", MNIST),
    "fashion-mnist": ("70,000 articles, 28x28 grey, 10 classes", FASHION),
    "cifar10": ("60,000 photographs, 32x32 colour, 10 classes", CIFAR10),
    "cifar100": ("60,000 photographs, 32x32 colour, 100 classes", CIFAR100),
    "boston": _uci("boston", "506 rows, 13 features, 20 published splits: house prices"),
    "concrete": _uci("concrete", "1,030 rows, 8 features, 20 published splits: compressive strength"),
    "energy": _uci("energy", "768 rows, 8 features, 20 published splits: heating load"),
    "kin8nm": _uci("kin8nm", "8,192 rows, 8 features, 20 published splits: a robot arm"),
    "power-plant": _uci("power-plant", "9,568 rows, 4 features, 20 published splits: electrical output"),
    "protein": _uci("protein", "45,730 rows, 9 features, 5 published splits: tertiary structure"),
    "wine-red": _uci("wine-red", "1,599 rows, 11 features, 20 published splits: quality marks"),
}


def names() -> dict[str, str]:
    """Every set known by name, and one line about it."""
    return {name: about for name, (about, _) in SETS.items()}


def available(data_dir: str | Path | None = None) -> list[str]:
    """The named sets of which every file is in the data folder (they are not opened)."""
    root = root_of(data_dir)
    whole = [name for name, (_, layouts) in SETS.items() if any(not _missing(root, layout) for layout in layouts)]
    return ["digits", *whole]


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    validation: float = 0.1,
    calibration: float = 0.1,
    split_seed: int = 0,
    fold: int = 0,
    image_size: int | None = None,
) -> Data:
    """A data set by name (`names()`), by path of an `.npz` file, or by path of a folder of images, cut into four parts.

    The published test rows stay the test split (of a set that has folds, those of `fold`); where none are published,
    a fifth of the rows, drawn by `split_seed`, takes their place. `validation` and `calibration` are fractions of the
    other rows, drawn by `split_seed` too, and training keeps the rest, or the first `train_size` of it: no other part
    depends on `train_size`.

    Arrays become float32, channels first, and every channel or feature is standardised with the mean and sd of all rows
    left to training, before `train_size` takes its share, so that no part's values depend on it either; a constant
    one is only centred. Regression targets likewise. A folder of images stays on disk (`ImageRows`; shorter side
    `image_size`, by default 224, ImageNet's mean and sd).

    data_dir: where named sets lie. train_size: training examples to keep. validation: fraction for validation.
    calibration: fraction for certificates. split_seed: of the cut. fold: which published split, of a set that has them.
    image_size: pixels of the shorter side, for a folder of images.

    `hashes`: SHA-256 over the rows of each split in their order: the inputs as stored, channels first, then the labels
    as int64 or the targets as float64. For a folder of images: over file names, sizes in bytes and labels, as reading
    every pixel would take hours: two images of the same name and size are not told apart.

    Raises FileNotFoundError where files are missing, ValueError where an option or the files' content is wrong.
    """
    raw = readers.checked(name, _read(name, data_dir, image_size))
    parts = _cut(name, raw, validation, calibration, split_seed, fold)
    left = parts["train"]
    if train_size is not None and not 0 < train_size <= len(left):
        raise ValueError(f"{name}: expected train_size in 1..{len(left)}, the rows left to train on, got {train_size}")
    parts["train"] = left[:train_size]

    inputs = raw.x.select if isinstance(raw.x, ImageRows) else partial(_standardised, raw.x, *_moments(raw.x, left))
    y, mean, sd = torch.from_numpy(raw.y), np.zeros(1), np.ones(1)
    if raw.num_classes is None:
        mean, sd = _moments(raw.y[:, None], left)
        y = _standardised(raw.y[:, None], mean, sd, np.arange(len(y)))[:, 0]
    return Data(
        name,
        **{part: Split(inputs(rows), y[torch.from_numpy(rows)]) for part, rows in parts.items()},
        shape=raw.x.shape[1:],
        num_classes=raw.num_classes,
        target_shift=float(mean[0]),
        target_scale=float(sd[0]),
        hashes={part: _hash(raw, rows) for part, rows in parts.items()},
    )


def root_of(data_dir: str | Path | None) -> Path:
    """Where named sets lie."""
    return Path(data_dir or os.environ.get("ESPALIER_DATA") or "~/.cache/espalier").expanduser()


def unknown_set(name: str) -> ValueError:
    """The sentence for a name that no set has."""
    near = difflib.get_close_matches(name.lower(), SETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ValueError(
        f"expected the name of a data set, the path of an .npz file or of a folder of images, got {name!r}{hint}; "
        f"the names are {', '.join(SETS)}"
    )


def _paths(root: Path, layout: Layout) -> list[Path]:
    """Where the files of a layout are, or should be; IDX files may be compressed."""
    plain = [root / layout.folder / file for file in layout.files]
    return [p if p.is_file() or not p.name.endswith("-ubyte") else p.with_name(f"{p.name}.gz") for p in plain]


def _missing(root: Path, layout: Layout) -> list[Path]:
    return [path for path in _paths(root, layout) if not path.is_file()]


def _read(name: str, data_dir: str | Path | None, image_size: int | None) -> Raw:
    path = Path(name).expanduser()
    is_folder = name != "" and name not in SETS and path.is_dir()
    if image_size is not None and not (is_folder and image_size > 0):
        raise ValueError(f"{name}: expected image_size > 0, and for folders of images alone, got {image_size}; drop it")
    if name == "digits":
        return readers.digits()
    if name in SETS:
        return _read_named(name, root_of(data_dir))
    if is_folder:
        return readers.folder(path, image_size or 224)
    if path.suffix == ".npz" and path.is_file():
        return readers.npz(path)
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise FileNotFoundError(f"expected an .npz file or a folder of images at {path}, got nothing; mend the path")
    raise unknown_set(name)


def _read_named(name: str, root: Path) -> Raw:
    layouts = SETS[name][1]
    for layout in layouts:
        if not _missing(root, layout):
            return layout.read(_paths(root, layout))
    # An incomplete folder says more than one that is not there.
    nearest = next((layout for layout in layouts if (root / layout.folder).is_dir()), layouts[0])
    raise FileNotFoundError(
        f"{name}: expected a file {_missing(root, nearest)[0]}, got none; run `espalier data get {name}`, or name the "
        f"folder that holds {' or '.join(layout.folder for layout in layouts)} by --data-dir or ESPALIER_DATA"
    )


def _cut(name: str, raw: Raw, validation: float, calibration: float, split_seed: int, fold: int) -> dict[str, Array]:
    """Row numbers of the four parts; `train` is all that is left."""
    for option, fraction in (("validation", validation), ("calibration", calibration)):
        if not 0 <= fraction < 1:
            raise ValueError(f"expected {option} in [0, 1), a fraction of all but the test rows, got {fraction}")
    if split_seed < 0:
        raise ValueError(f"expected split_seed to be 0 or more, got {split_seed}")
    rng = np.random.default_rng(split_seed)
    rows, test = readers.fold_rows(name, raw, fold)
    rows = rng.permutation(rows)
    if test is None:
        test, rows = np.split(rows, [round(_TEST_FRACTION * len(rows))])
    held = round(validation * len(rows))
    kept = held + round(calibration * len(rows))
    if kept >= len(rows):
        raise ValueError(
            f"{name}: expected rows left to train on, got none of {len(rows)} outside the test set with validation "
            f"{validation} and calibration {calibration}; lower them"
        )
    return {"train": rows[kept:], "validation": rows[:held], "calibration": rows[held:kept], "test": test}


def _chunks(x: Array, rows: Array) -> list[Array]:
    step = max(1, _CHUNK * len(x) // x.size)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def _moments(x: Array, rows: Array) -> tuple[Array, Array]:
    """Mean and sd `(C,)` of each channel or feature over `rows`, the sd of a constant one being 1.

    Sums are taken about a value of the sample, so that they are exact where all values are equal.
    """
    flat = x.reshape(len(x), x.shape[1], -1)
    pivot = flat[rows[0], :, :1].astype(np.float64)
    first, second = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for part in _chunks(x, rows):
        gap = flat[part] - pivot
        first += gap.sum(axis=(0, 2))
        second += np.square(gap).sum(axis=(0, 2))
    count = len(rows) * flat.shape[2]
    sd = np.sqrt(np.maximum(second / count - (first / count) ** 2, 0))
    return pivot[:, 0] + first / count, np.where(sd > 0, sd, 1.0)


def _standardised(x: Array, mean: Array, sd: Array, rows: Array) -> Tensor:
    out = np.empty((len(rows), *x.shape[1:]), np.float32)
    mean, sd = (values.reshape(-1, *[1] * (x.ndim - 2)) for values in (mean, sd))
    for part, into in zip(_chunks(x, rows), _chunks(x, np.arange(len(rows))), strict=True):
        out[into] = (x[part] - mean) / sd
    return torch.from_numpy(out)


def _hash(raw: Raw, rows: Array) -> str:
    digest = hashlib.sha256()
    if isinstance(raw.x, ImageRows):
        digest.update("".join(f"{raw.x.names[row]}\0{raw.x.sizes[row]}\n" for row in rows).encode())
    else:
        for part in _chunks(raw.x, rows):
            digest.update(raw.x[part].tobytes())
    digest.update(raw.y[rows].tobytes())
    return digest.hexdigest()
