"""From files to arrays: one reader per format, each a function of paths.

No reader runs anything that stands in a file: archives of arrays are opened without pickle, and the one format that is
a pickle (CIFAR's python version) goes through an unpickler that knows numpy arrays and nothing else. What was read is
judged afterwards, in one place for all formats: `checked` (labels, finite numbers) and `fold_rows` (row numbers).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import pickletools
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from espalier.data import archives
from espalier.data.labels import targets
from espalier.data.streamed import Streamed

Array = NDArray[Any]

_PIXELS = 3 * 32 * 32
_DEFLATE = 1032  # bytes that one byte of a gzip file can stand for


PART_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "calibration": ("calibration",),
    "test": ("test",),
}
"""The parts that may be published, and by which names."""
_OF_PARTS = {"train", "training", "val", "valid", "validation", "calib", "calibration", "test", "tests", "testing"}


class Raw(NamedTuple):
    """A data set as its files store it: nothing cut, nothing standardised."""

    x: Array | Streamed
    """`(n, features)` or, channels first, `(n, C, H, W)`."""
    y: Array
    """`(n,)`, or `(n, ...)`: integers for classes, floats for regression."""
    num_classes: int | None = None
    """None for regression."""
    published: Mapping[str, Array] = {}
    """Part -> `(folds, n1)`: published row numbers."""
    classes: tuple[Any, ...] = ()
    """What the labels 0, 1, ... stand for, where that was said."""


def digits() -> Raw:
    """The 1,797 handwritten digits that come with scikit-learn: `(n, 1, 8, 8)`, grey levels 0..16."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    return Raw(stored.images.astype(np.uint8)[:, None], stored.target, num_classes=10)


def open_plain(path: Path) -> io.BufferedIOBase:
    """The file's content as bytes, decompressed where the name ends in `.gz`."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def sha256(path: Path, most: int, plain: bool = True) -> str:
    """Hexadecimal, of the content, or, not `plain`, of the file itself; words for one that is damaged or above `most` bytes."""
    digest, left = hashlib.sha256(), most
    try:
        with open_plain(path) if plain else path.open("rb") as file:
            while left >= 0 and (block := file.read(1 << 20)):
                digest.update(block)
                left -= len(block)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "a damaged gzip file"
    return digest.hexdigest() if left >= 0 else f"more than {most:,} bytes"


def _idx(path: Path, axes: int) -> Array:
    """One IDX file of unsigned bytes (Y. LeCun's format): magic 0 0 8 axes, big-endian lengths, then the bytes."""
    magic, header, most = bytes((0, 0, 8, axes)), 4 + 4 * axes, path.stat().st_size * _DEFLATE
    try:
        with open_plain(path) as file:
            head = file.read(header)
            if head[:4] != magic:
                got = head[:4].hex(" ")
                raise ValueError(
                    f"{path} is no IDX file of {axes} axes: expected {magic.hex(' ')} first, got {got}; replace"
                )
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, header, 4)]
            whole = header + math.prod(shape)
            archives.check_memory(str(path), whole, 1)
            content = file.read(whole - header + 1 if whole <= most else 0)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: expected a whole gzip file, got {error}; fetch it again") from error
    if len(head) + len(content) != whole:
        got = f"{len(head) + len(content):,}" if whole <= most else f"at most {most:,}"
        raise ValueError(f"{path} is damaged: expected {whole:,} bytes, got {got}; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def idx(paths: Sequence[Path]) -> Raw:
    """MNIST and its kin from four IDX files: train images, train labels, test images, test labels; `(n, 1, H, W)`.

    Raises ValueError where a file is damaged, truncated or not IDX, or where images and labels differ in number.
    """
    images = [_idx(path, 3)[:, None] for path in paths[::2]]
    labels = [_idx(path, 1) for path in paths[1::2]]
    for path, x, y in zip(paths[1::2], images, labels, strict=True):
        if len(x) != len(y):
            raise ValueError(f"{path} holds {len(y):,} labels, expected {len(x):,}, one per image; fetch both again")
    return _published(images, labels, 10)


def cifar_binary(paths: Sequence[Path], label_bytes: int, num_classes: int) -> Raw:
    """CIFAR's binary version (A. Krizhevsky 2009), the test file last; `(n, 3, 32, 32)`.

    A record is its label bytes, of which the last counts (CIFAR-100: coarse, fine), and the red, green and blue planes.
    Raises ValueError where a file does not hold whole records.
    """
    size = label_bytes + _PIXELS
    images, labels = [], []
    for path in paths:
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % size:
            raise ValueError(
                f"{path} is truncated: expected records of {size:,} bytes, got {len(content):,} bytes; fetch it again"
            )
        records = content.reshape(-1, size)
        images.append(records[:, label_bytes:].reshape(-1, 3, 32, 32))
        labels.append(records[:, label_bytes - 1])
    return _published(images, labels, num_classes)


def cifar_python(paths: Sequence[Path], key: str, num_classes: int) -> Raw:
    """CIFAR's python version, the test file last, labels under `key`; `(n, 3, 32, 32)`.

    The files are pickles: they are read by an unpickler that rebuilds numpy arrays and refuses everything else.
    Raises ValueError where a file asks for anything else, is damaged, or is no CIFAR batch.
    """
    images, labels = [], []
    for path in paths:
        batch = _arrays_only(path)
        x, y = np.asarray(batch.get("data")), np.asarray(batch.get(key))
        if x.dtype != np.uint8 or x.shape[1:] != (_PIXELS,) or y.shape != x.shape[:1]:
            raise ValueError(
                f"{path} is no CIFAR batch: expected uint8 data [n, {_PIXELS}] and n {key}, "
                f"got {x.dtype} {list(x.shape)} and {list(y.shape)}; fetch it again"
            )
        images.append(x.reshape(-1, 3, 32, 32))
        labels.append(y)
    return _published(images, labels, num_classes)


def _published(images: list[Array], labels: list[Array], num_classes: int) -> Raw:
    """Parts of which the last is the published test set."""
    y = np.concatenate(labels)
    rows = np.arange(len(y))[None]
    cut = len(y) - len(labels[-1])
    return Raw(np.concatenate(images), y, num_classes, {"train": rows[:, :cut], "test": rows[:, cut:]})


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which protocol 2 writes bytes; the one encoding that it needs."""
    return text.encode("latin1")


# numpy's `_reconstruct` has moved between versions; an array says where it stands now, without the deprecated import.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


@final
class _ArraysOnly(pickle.Unpickler):
    """Every name that a pickle can call passes through `find_class`; this one imports nothing."""

    def find_class(self, module: str, name: str, /) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, only numpy arrays are allowed") from None


def _arrays_only(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        for number, (code, argument, _) in enumerate(pickletools.genops(content)):
            # a pickle that numbers what it remembers by a billion has a list of a billion made for it
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > number:
                raise pickle.UnpicklingError(f"it asks for room for {argument:,} things")
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise ValueError(
            f"{path} is refused: {archives.said(error)}; fetch it again, or take CIFAR's binary version"
        ) from error


def npz(path: Path) -> Raw:
    """A NumPy archive: `x`, `y` and, where parts are published, their row numbers `[n]` or `[folds, n]` (`PART_NAMES`).

    `x`: features `[n, d]`; uint8 images `[n, H, W]` or `[n, H, W, C]`; float images `[n, C, H, W]`; of either, channels are where
    one axis alone is at most four. Float `y` are regression targets, all others labels. Raises ValueError for object
    arrays, missing keys, other shapes, and parts that would go unused.
    """
    there = archives.names(path)
    for key in ("x", "y"):
        if key not in there:
            raise ValueError(f"{path} lacks {key!r}: expected x and y, got {sorted(there)[:9]}; write it with np.savez")
    own = {
        part: one_of(path, aliases, [name for name in aliases if name in there]) for part, aliases in PART_NAMES.items()
    }
    if apart := [
        key for key in there for aliases in PART_NAMES.values() if key[:2] in ("x_", "y_") and key[2:] in aliases
    ]:
        raise ValueError(
            f"{path}: expected all rows in x and y, and row numbers {apart[0][2:]}, got {apart[0]}; join them"
        )
    odd = [key for key in there if key not in ("x", "y", *own.values()) and _OF_PARTS & set(re.split(r"[^a-z]+", key.lower()))]
    for key, array in archives.arrays(path, odd).items():
        if array.ndim and array.size > 1 and (array.dtype.kind in "iub" or key.lower()[:2] in ("x_", "y_")):
            known = ", ".join(name for aliases in PART_NAMES.values() for name in aliases)
            raise ValueError(f"{path}: expected row numbers of parts under {known}, got {key}; rename or remove it")
    arrays = archives.arrays(path, ["x", "y", *filter(None, own.values())])
    y, classes = targets(arrays["y"], None, f"y of {path}")
    given = {part: arrays[name] for part, name in own.items() if name}
    columns = {part: rows for part, rows in given.items() if rows.ndim == 2 and rows.shape[1] == 1 < len(rows)}
    if columns and len(columns) == len(given) and any(len(rows) < len(arrays["x"]) for rows in columns.values()):
        part, rows = next(iter(columns.items()))  # of as many folds as rows each may be left out once
        raise ValueError(
            f"{path}: expected row numbers of {part} as [n] or [folds, n], got a column {list(rows.shape)}, which would be "
            f"{len(rows)} folds of one row; store rows.ravel()"
        )
    published = {part: np.atleast_2d(rows) for part, rows in given.items()}
    return Raw(channels_first(path, arrays["x"]), y, len(classes) or None, published, classes)


def one_of(where: Path, names: Sequence[str], found: Sequence[str]) -> str | None:
    """By which of its names a part is there. Raises ValueError where it is there twice."""
    if len(found) > 1:
        raise ValueError(f"{where}: expected one of {', '.join(names)}, got {' and '.join(found)}; join or rename them")
    return found[0] if found else None


def channels_of(x: Array) -> Literal["first", "last"] | None:
    """Where the channels of images `(n, ., ., .)` are, by the one axis that has at most four; None where that does not tell."""
    first, last = x.shape[1] <= 4, x.shape[3] <= 4
    return None if first == last else ("first" if first else "last")


def channels_first(path: Path, x: Array) -> Array:
    """Inputs of a file in the shapes that `npz` takes, channels first. Raises ValueError for others."""
    if x.ndim == 2 and x.dtype.kind in "biuf":
        return x
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim == 4 and (x.dtype == np.uint8 or x.dtype.kind == "f"):
        # Where the axes do not tell, by custom: bytes as cameras have them, floats as torch has them.
        last = (channels_of(x) or ("last" if x.dtype == np.uint8 else "first")) == "last"
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if last else x
    raise ValueError(
        f"{path}: expected x as features [n, d], uint8 images [n, H, W] or [n, H, W, C] or float images [n, C, H, W], "
        f"got {x.dtype} {list(x.shape)}; store it in one of these shapes"
    )


def checked(name: str, raw: Raw) -> Raw:
    """The same with `y` as int64 classes or float64 targets.

    Raises ValueError for labels and targets that are not one, or some, for each row, for labels out of range, NaN and infinity.
    """
    x, y = raw.x, raw.y
    if y.ndim < 1 or len(x) != len(y) or 0 in x.shape or 0 in y.shape:
        raise ValueError(
            f"{name}: expected x with rows and columns and one y per row, got x {list(x.shape)}, y {list(y.shape)}; "
            "store y as [n], or as [n, d] where a row has several"
        )
    if isinstance(x, np.ndarray) and x.dtype.kind == "f":
        if x.itemsize > 8:
            with np.errstate(over="ignore", invalid="ignore"):
                x = x.astype(np.float64)
        broken = np.concatenate([~np.isfinite(part).all(axis=tuple(range(1, x.ndim))) for part in _pieces(x)])
        _refuse(broken, f"{name}: expected finite inputs, got NaN or infinity")
    if raw.num_classes is None:
        _refuse(~np.isfinite(y).reshape(len(y), -1).all(1), f"{name}: expected finite targets, got NaN or infinity")
        return raw._replace(x=x)
    if y.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integer labels, got {y.dtype}; fetch or write it again")
    wrong = np.logical_or(y < 0, y >= raw.num_classes)
    bad = wrong.reshape(len(y), -1).any(1)
    _refuse(bad, f"{name}: expected labels in 0..{raw.num_classes - 1}, got {y.flat[wrong.argmax()]}")
    return raw._replace(x=x, y=y.astype(np.int64))


def _pieces(x: Array, size: int = 1 << 24) -> list[Array]:
    """The array in pieces of about `size` numbers: what is computed of one need not be as large as all."""
    step = max(1, size * len(x) // x.size)
    return [x[start : start + step] for start in range(0, len(x), step)]


def _refuse(bad: Array | np.bool_, sentence: str) -> None:
    if bad.any():
        raise ValueError(f"{sentence}, first in row {bad.argmax()} (counted from 0); mend or remove such rows")


def fold_rows(name: str, raw: Raw, fold: int) -> tuple[Array, dict[str, Array]]:
    """The rows of a fold that are to be trained on or cut `(n1,)`, and those of every other published part.

    Training rows are those published as such, else all that are in no other part; where they are published and no test rows are,
    the test rows are what all parts leave. Raises ValueError for a fold that is not there, and for row numbers out of range or
    in two parts.
    """
    given, n = raw.published.values(), len(raw.y)
    folds = max((len(rows) for rows in given), default=1)
    what = " and ".join(raw.published)
    if any(rows.ndim != 2 or rows.dtype.kind not in "iu" or len(rows) != folds for rows in given):
        got = " and ".join(f"{rows.dtype} {list(rows.shape)}" for rows in given)
        raise ValueError(f"{name}: expected {what} as integers [n] or, equally many, [folds, n], got {got}")
    if not 0 <= fold < folds:
        raise ValueError(f"{name}: expected fold in 0..{folds - 1}, got {fold}; the set has {folds} published split(s)")
    for rows in given:
        outside = rows[fold][(rows[fold] < 0) | (rows[fold] >= n)]
        if len(outside):
            raise ValueError(f"{name}: expected {what} rows in 0..{n - 1}, got {outside[0]} in fold {fold}")
    parts = {part: rows[fold].astype(np.int64) for part, rows in raw.published.items()}
    times = np.bincount(np.concatenate([*parts.values(), np.empty(0, np.int64)]), minlength=n)
    if times.max() > 1:
        raise ValueError(f"{name}: expected every row once in {what}, got row {times.argmax()} twice in fold {fold}")
    rest = np.flatnonzero(times == 0)
    if "train" in parts:
        parts.setdefault("test", rest)
    return parts.pop("train", rest), parts
