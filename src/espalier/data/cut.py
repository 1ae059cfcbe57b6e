"""From a data set as it is stored to `Data`: cut by seed, standardised by the training rows, identified by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from espalier.contracts import Data, Rows, Split, number
from espalier.data.readers import Array, Raw, checked, fold_rows
from espalier.data.streamed import Streamed

Standardise = Literal["all", "inputs", "none"]
"""What is standardised: inputs and real targets (True is the same), inputs alone, or nothing (False)."""
TEST_FRACTION = 0.2  # of all rows, where no test set is published or given
_ULPS = 4  # a spread of so many roundings of the largest value is no spread: 0.3 and 0.1 * 3 are one
_CHUNK = 1 << 22  # numbers handled in float64 at a time: bounds the memory beside the result


def as_data(
    name: str,
    raw: Raw,
    *,
    validation: float,
    calibration: float,
    split_seed: int,
    fold: int = 0,
    train_size: int | None = None,
    test: Raw | None = None,
    standardise: bool | Standardise = True,
) -> Data:
    """`raw` as four parts. The test rows are those of `test`, or published with `raw`, or a fifth of the rows; validation and
    calibration rows are those published with `raw`, or the fractions that are asked for. Streamed inputs are as their source
    gives them, arrays standardised unless that is not wanted: in memory, or, where the array is mapped from a file, as they
    are read (`Mapped`).

    Raises ValueError where an option is out of range, nothing is left to train on, or the rows of `raw` or `test` are not what
    `readers.checked` takes, and of one shape.
    """
    validation, calibration = number(validation, float, "validation"), number(calibration, float, "calibration")
    split_seed, fold = number(split_seed, int, "split_seed"), number(fold, int, "fold")
    train_size = None if train_size is None else number(train_size, int, "train_size")
    raw = checked(name, raw)
    if test is not None:
        test = checked(f"{name} (test)", test._replace(num_classes=raw.num_classes))
        if test.y.shape[1:] != raw.y.shape[1:]:
            raise ValueError(
                f"{name}: expected y of the test rows like that to train on, {_of_a_row(raw.y)} a row, got {_of_a_row(test.y)}"
            )
        if test.x.shape[1:] != raw.x.shape[1:]:
            raise ValueError(
                f"{name}: expected test rows like those to train on, {tuple(raw.x.shape[1:])}, got {tuple(test.x.shape[1:])}"
            )
    parts = {
        part: (raw, rows) for part, rows in _cut(name, raw, validation, calibration, split_seed, fold, test).items()
    }
    if test is not None:
        parts["test"] = (test, np.arange(len(test.y)))
    left = parts["train"][1]
    if train_size is not None and not 0 < train_size <= len(left):
        raise ValueError(f"{name}: expected train_size in 1..{len(left)}, the rows left to train on, got {train_size}")
    parts["train"] = (raw, left[:train_size])

    what = ("all" if standardise else "none") if isinstance(standardise, bool) else standardise
    if what not in get_args(Standardise):
        raise ValueError(f"expected standardise of {', '.join(get_args(Standardise))}, got {what!r}")
    scale = moments(raw.x, left) if what != "none" and isinstance(raw.x, np.ndarray) else None
    inputs = _inputs(raw, scale)
    several = raw.num_classes is None and raw.y.ndim > 1
    columns = raw.y.shape[1] if several else 1
    mean, sd = np.zeros(columns), np.ones(columns)
    if raw.num_classes is None and what == "all":
        mean, sd = moments(raw.y.reshape(len(raw.y), -1), left)

    def split(source: Raw, rows: Array) -> Split:
        if raw.num_classes is not None:
            return Split(inputs(source, rows), torch.from_numpy(source.y)[torch.from_numpy(rows)])
        y = standardised(source.y.reshape(len(source.y), -1), mean, sd, rows)
        return Split(inputs(source, rows), y if several else y[:, 0])

    return Data(
        name,
        train=split(*parts["train"]),
        validation=split(*parts["validation"]),
        calibration=split(*parts["calibration"]),
        test=split(*parts["test"]),
        shape=tuple(raw.x.shape[1:]),
        num_classes=raw.num_classes,
        target_shift=tuple(mean.tolist()) if several else float(mean[0]),
        target_scale=tuple(sd.tolist()) if several else float(sd[0]),
        hashes={part: _hash(*of) for part, of in parts.items()},
        classes=raw.classes,
        input_scale=_scale_of(raw, scale),
        rows={part: rows if source is raw else len(raw.y) + rows for part, (source, rows) in parts.items()},
        source_rows=len(raw.y) + (0 if test is None else len(test.y)),
    )


def _scale_of(raw: Raw, scale: tuple[Array, Array] | None) -> tuple[Tensor, Tensor] | None:
    """Mean and sd by which the inputs are standardised, if they are."""
    if isinstance(raw.x, Streamed):
        return raw.x.scale
    return None if scale is None else (torch.from_numpy(scale[0]), torch.from_numpy(scale[1]))


class Mapped:
    """Rows of an array that stays in its file, standardised as they are read. `rows[index]` is float32 `(b, *shape)`."""

    def __init__(self, x: Array, mean: Array, sd: Array, rows: Array) -> None:
        self.x, self.mean, self.sd, self.rows = x, mean, sd, rows
        self.shape = (len(rows), *x.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return standardised(self.x, self.mean, self.sd, self.rows[index.numpy()])


def _inputs(raw: Raw, scale: tuple[Array, Array] | None) -> Callable[[Raw, Array], Rows]:
    """What makes the inputs of a part from its source and its row numbers."""
    if isinstance(raw.x, Streamed):
        return lambda source, rows: source.x.select(rows)  # type: ignore[union-attr]
    mean, sd = scale or (np.zeros(raw.x.shape[1]), np.ones(raw.x.shape[1]))

    def of(source: Raw, rows: Array) -> Rows:
        assert isinstance(source.x, np.ndarray)
        return (Mapped if isinstance(source.x, np.memmap) else standardised)(source.x, mean, sd, rows)

    return of


def _cut(
    name: str, raw: Raw, validation: float, calibration: float, split_seed: int, fold: int, given: Raw | None
) -> dict[str, Array]:
    """Row numbers of the four parts; `train` is all that is left."""
    for option, fraction in (("validation", validation), ("calibration", calibration)):
        if not 0 <= fraction < 1:
            raise ValueError(f"expected {option} in [0, 1), a fraction of all but the test rows, got {fraction}")
    if split_seed < 0:
        raise ValueError(f"expected split_seed to be 0 or more, got {split_seed}")
    rng = np.random.default_rng(split_seed)
    rows, parts = fold_rows(name, raw, fold)
    rows = rng.permutation(rows)
    if "test" not in parts:
        parts["test"], rows = np.split(rows, [0 if given is not None else round(TEST_FRACTION * len(rows))])
    held = 0 if "validation" in parts else round(validation * len(rows))
    kept = held + (0 if "calibration" in parts else round(calibration * len(rows)))
    if kept >= len(rows):
        raise ValueError(
            f"{name}: expected rows left to train on, got none of {len(rows)} outside the test set with validation "
            f"{validation} and calibration {calibration}; lower them"
        )
    return {"train": rows[kept:], "validation": rows[:held], "calibration": rows[held:kept], **parts}


def _of_a_row(y: Array) -> str:
    return f"{list(y.shape[1:])}" if y.ndim > 1 else "one"


def _chunks(x: Array, rows: Array) -> list[Array]:
    step = max(1, _CHUNK * len(x) // x.size)
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def moments(x: Array, rows: Array) -> tuple[Array, Array]:
    """Mean and sd `(C,)` of each channel or feature over `rows`; of one that is constant up to rounding, an sd that leaves it so.

    Sums are taken about a value of the sample, so that they are exact where all values are equal, and in a unit near the
    largest value, so that no square overflows or vanishes.
    """
    low, high = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    for block in _blocks(x, rows):
        low, high = np.minimum(low, block.min(axis=(0, 2))), np.maximum(high, block.max(axis=(0, 2)))
    largest = np.maximum(abs(low), abs(high))
    unit = np.ldexp(1.0, np.frexp(largest)[1] - 1)  # a power of two: dividing by it is exact
    pivot = next(_blocks(x, rows[:1]))[0, :, :1] / unit[:, None]
    first, second = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for block in _blocks(x, rows):
        gap = block / unit[:, None] - pivot
        first += gap.sum(axis=(0, 2))
        second += np.square(gap).sum(axis=(0, 2))
    count = len(rows) * (x[0].size // x.shape[1])
    mean = (pivot[:, 0] + first / count) * unit
    sd = np.sqrt(np.maximum(second / count - (first / count) ** 2, 0)) * unit
    rounded = (high / unit - low / unit <= _ULPS * _eps(x.dtype) * (largest / unit)) | (sd / 2 == 0)
    return mean, np.where(low == high, 1.0, np.where(rounded, np.maximum(largest, 1.0), sd))


def _blocks(x: Array, rows: Array) -> Iterator[Array]:
    """The rows as arrays `(b, C, m)`."""
    return (x[part].reshape(len(part), x.shape[1], -1) for part in _chunks(x, rows))


def _eps(dtype: np.dtype[Any]) -> float:
    """What rounding does to a number, relative to it. Steps of half precision are wide enough to be what was measured."""
    return min(float(np.finfo(dtype).eps), 2.0**-23) if dtype.kind == "f" else 0.0


def standardised(x: Array, mean: Array, sd: Array, rows: Array) -> Tensor:
    """`(x[rows] - mean) / sd`, float32. Raises ValueError where that is more than float32 holds."""
    out = np.empty((len(rows), *x.shape[1:]), np.float32)
    mean, sd = (values.reshape(-1, *[1] * (x.ndim - 2)) / 2 for values in (mean, sd))
    for part, into in zip(_chunks(x, rows), _chunks(x, np.arange(len(rows))), strict=True):
        with np.errstate(over="ignore"):
            out[into] = (np.multiply(x[part], 0.5, dtype=np.float64) - mean) / sd  # of halves no difference overflows
        wide = ~np.isfinite(out[into]).reshape(len(part), -1).all(1)
        if wide.any():
            raise ValueError(
                f"expected numbers within 3.4e38 after they are standardised, as float32 holds them, got more in row "
                f"{part[wide.argmax()]} (counted from 0): rescale or remove it"
            )
    return torch.from_numpy(out)


def _hash(raw: Raw, rows: Array) -> str:
    digest = hashlib.sha256()
    if isinstance(raw.x, Streamed):
        for piece in raw.x.select(rows).identity():
            digest.update(piece)
    else:
        for part in _chunks(raw.x, rows):
            digest.update(raw.x[part].tobytes())
    digest.update(raw.y[rows].tobytes())
    return digest.hexdigest()
