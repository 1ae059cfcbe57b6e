"""Named data sets, npz files and image folders: cut by seed, standardised by the training rows, identified by hash.

`load` fills the contract `Data`, `names` and `available` say what there is. File formats are the business of `readers`,
fetching sets that of `downloads`. Named sets lie below one folder: `data_dir`, else the environment
variable ESPALIER_DATA, else `~/.cache/espalier`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espalier.contracts import Data
from espalier.data import images, readers
from espalier.data.cut import Standardise, as_data
from espalier.data.noise import with_label_noise
from espalier.data.readers import Raw


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
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    train_size: int | None = None,
    validation: float = 0.1,
    calibration: float = 0.1,
    split_seed: int = 0,
    fold: int = 0,
    image_size: int | None = None,
    workers: int | None = None,
    standardise: Standardise = "all",
    label_noise: float | str = 0.0,
) -> Data:
    """A data set by name (`names()`), by path of an `.npz` file, or by path of a folder of images, cut into four parts.

    The published test rows stay the test split (of a set that has folds, those of `fold`); where none are published,
    a fifth of the rows, drawn by `split_seed`, takes their place. Published validation and calibration rows stay theirs;
    else `validation` and `calibration` are fractions of the other rows, drawn by `split_seed` too. Training keeps the rest,
    or the first `train_size` of it: no other part depends on `train_size`.

    Arrays become float32, channels first, and every channel or feature is standardised with the mean and sd of all rows
    left to training, before `train_size` takes its share, so that no part's values depend on it either; a constant
    one is only centred. Regression targets likewise. Labels are numbered in their sorted order (`Data.classes`). A folder of
    images stays on disk (`ImageRows`; shorter side `image_size`, by default 224, ImageNet's mean and sd).

    data_dir: where named sets lie. train_size: training examples to keep. validation: fraction for validation.
    calibration: fraction for certificates. split_seed: of the cut. fold: which published split, of a set that has them.
    image_size: pixels of the shorter side, for a folder of images. workers: processes that decode its images; None is one a
    core. The numbers do not depend on it. standardise: all, or inputs alone (for a likelihood of counts or positive targets),
    or none. label_noise: probability of a wrong label in training, by `split_seed`; or another's labels, FILE.npz:NAME
    (`with_label_noise`).

    `hashes`: SHA-256 over the rows of each split in their order: the inputs as stored, channels first, then the labels
    as int64 or the targets as float64. For a folder of images: over file names, sizes in bytes and labels, as reading
    every pixel would take hours: two images of the same name and size are not told apart.

    Raises FileNotFoundError where files are missing, ValueError where an option or the files' content is wrong.
    """
    name = os.fspath(name)
    data = as_data(
        name,
        _read(name, data_dir, image_size, workers),
        validation=validation,
        calibration=calibration,
        split_seed=split_seed,
        fold=fold,
        train_size=train_size,
        standardise=standardise,
    )
    return with_label_noise(data, label_noise, split_seed)


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
    packed = [p.with_name(f"{p.name}.gz") for p in plain]  # first: `espalier data get` looks at these
    return [
        gz if p.name.endswith("-ubyte") and (gz.is_file() or not p.is_file()) else p
        for p, gz in zip(plain, packed, strict=True)
    ]


def _missing(root: Path, layout: Layout) -> list[Path]:
    return [path for path in _paths(root, layout) if not path.is_file()]


def _read(name: str, data_dir: str | Path | None, image_size: int | None, workers: int | None) -> Raw:
    path = Path(name).expanduser()
    is_folder = name != "" and name not in SETS and path.is_dir()
    if image_size is not None and not (is_folder and image_size > 0 and image_size == int(image_size)):
        raise ValueError(f"{name}: expected a whole image_size > 0, and for folders of images alone, got {image_size}; drop it")
    if workers is not None and workers < 0:
        raise ValueError(f"{name}: expected workers of 0 or more, got {workers}")
    if name == "digits":
        return readers.digits()
    if name in SETS:
        return _read_named(name, root_of(data_dir))
    if is_folder:
        return images.folder(path, image_size or 224, workers)
    if path.suffix == ".npz" and path.is_file():
        return readers.npz(path)
    if path.is_file():
        raise ValueError(f"expected an .npz file or a folder of images, got the file {path}: write its arrays with np.savez")
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
