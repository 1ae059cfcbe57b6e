"""A door for one's own arrays: NumPy, torch or pandas, labels of any kind, targets in their own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from espalier.contracts import Data
from espalier.data.cut import Standardise, as_data
from espalier.data.readers import Array, Raw, channels_of, checked

Channels = Literal["first", "last"]


def from_arrays(
    x: Any,
    y: Any,
    *,
    x_test: Any = None,
    y_test: Any = None,
    name: str = "arrays",
    validation: float = 0.1,
    calibration: float = 0.1,
    split_seed: int = 0,
    train_size: int | None = None,
    standardise: bool | Standardise = True,
    classes: Sequence[Any] | None = None,
    channels: Channels | None = None,
) -> Data:
    """One's own arrays as `Data`: cut, standardised and hashed as `load` does it.

    x: features `(n, d)`, images `(n, C, H, W)` or `(n, H, W, C)`, grey uint8 images `(n, H, W)` or series `(n, C, L)`: a
    NumPy array, a torch tensor or a pandas frame of numbers. A memory-mapped array (`np.load(file, mmap_mode="r")`) stays on
    disk: its rows are read and standardised when they are asked for.
    y: `(n,)`. Floats are regression targets, unless `classes` says otherwise; anything else is a label: strings, whole
    numbers from anywhere, bool, a pandas categorical. Labels are numbered in their sorted order, a categorical's in its own;
    `Data.classes` keeps what the numbers stand for.
    x_test, y_test: the test split, where it is set apart already; else a fifth of the rows.
    validation, calibration: fractions of the rows that are not test rows. split_seed: of the cut. train_size: training rows
    to keep. standardise: inputs, and real targets, by mean and sd of the training rows, or `inputs` alone (for
    counts, say); predictions come back in the
    targets' units, and `Data.inputs(x)` scales new inputs. classes: the labels in the order of the network's outputs; none
    may be missing from it.
    channels: where an image's channels are; None goes by the axis that has at most four, and for tensors by torch's custom.

    Raises ValueError, in one sentence, for what cannot be right: other lengths, text or NaN among the inputs (with its place),
    missing labels, labels of the test split that training does not have, and what `load` refuses.
    """
    if (x_test is None) != (y_test is None):
        raise ValueError("expected x_test and y_test together, got one of them: give both or neither")
    _aligned(x, y, "x and y")
    targets, found = _targets(y, classes, "y")
    raw = checked(name, Raw(_inputs(x, channels, "x"), targets, None if found is None else len(found)))
    test = None
    if x_test is not None:
        _aligned(x_test, y_test, "x_test and y_test")
        known = None if found is None else (found if classes is None else classes)
        test_targets, _ = _targets(y_test, known, "y_test", regression=found is None)
        test = checked(name, Raw(_inputs(x_test, channels, "x_test"), test_targets, raw.num_classes))
        if test.x.shape[1:] != raw.x.shape[1:]:
            raise ValueError(
                f"expected x_test with rows like those of x, {tuple(raw.x.shape[1:])}, got {tuple(test.x.shape[1:])}"
            )
    data = as_data(
        name,
        raw,
        validation=validation,
        calibration=calibration,
        split_seed=split_seed,
        train_size=train_size,
        test=test,
        standardise=standardise,
    )
    return data._replace(classes=() if found is None else tuple(found))


def labels(y: Any, classes: Sequence[Any] | None, what: str) -> tuple[Array, list[Any]]:
    """Labels `(n,)` of any kind as int64 numbers, and what 0, 1, ... stand for.

    Raises ValueError for a missing label, one that is not among `classes`, labels that cannot be sorted, or one class only.
    """
    if classes is None and hasattr(getattr(y, "dtype", None), "categories"):
        classes = list(y.dtype.categories)
    values = _column(y, what)
    missing = [row for row, value in enumerate(values.tolist()) if _is_missing(value)]
    if missing:
        raise ValueError(f"expected a label in every row of {what}, got none in row {missing[0]} (counted from 0)")
    if classes is None:
        try:
            order = np.unique(values).tolist()
        except TypeError as error:
            raise ValueError(
                f"expected labels of one kind in {what}, got several ({error}): name them by classes="
            ) from error
    else:
        order = [value.item() if isinstance(value, np.generic) else value for value in classes]
        if len(set(order)) != len(order):
            raise ValueError(f"expected classes without repeats, got {order}")
    number = {label: index for index, label in enumerate(order)}
    for row, value in enumerate(values.tolist()):
        if value not in number:
            raise ValueError(
                f"expected labels of {', '.join(map(repr, order[:10]))}{' ...' if len(order) > 10 else ''} in {what}, got "
                f"{value!r} in row {row} (counted from 0): name all of them by classes="
            )
    if len(order) < 2:
        raise ValueError(
            f"expected two or more classes in {what}, got only {order[0]!r}; give float targets for regression"
        )
    return np.array([number[value] for value in values.tolist()], np.int64), order


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither
        return True


def _targets(
    y: Any, classes: Sequence[Any] | None, what: str, regression: bool | None = None
) -> tuple[Array, list[Any] | None]:
    """Float targets as they are and None, or labels as numbers and what they stand for."""
    values = _column(y, what)
    if regression is None:
        stored = getattr(getattr(y, "dtype", None), "kind", values.dtype.kind)  # pandas' whole numbers with a gap become floats
        regression = classes is None and values.dtype.kind == stored == "f"
    if not regression:
        return labels(y, classes, what)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"expected real-valued targets in {what}, as in y, got {values.dtype}")
    return values.astype(np.float64), None


def _column(y: Any, what: str) -> Array:
    """Labels or targets as a NumPy array `(n,)`; one column `(n, 1)` is one."""
    mixed = isinstance(y, list | tuple) and len({isinstance(label, str) for label in y}) > 1  # NumPy would make all strings
    values = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y, dtype=object if mixed else None)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"expected one label or target per row, {what} of shape (n,), got {values.shape}")
    return values


def _inputs(x: Any, channels: Channels | None, what: str) -> Array:
    """Inputs as a NumPy array, channels first."""
    if hasattr(x, "columns") and hasattr(x, "to_numpy"):
        for column, dtype in x.dtypes.items():
            if getattr(dtype, "kind", "O") not in "biuf":
                raise ValueError(
                    f"expected numbers in {what}, got {dtype} in column {column!r}: encode it (pandas.get_dummies)"
                )
        array: Array = x.to_numpy(dtype=np.float64, na_value=np.nan)
    elif isinstance(x, torch.Tensor):
        plain, channels = x.detach().cpu(), channels or "first"
        array = (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
    else:
        array = x if isinstance(x, np.ndarray) else np.asarray(x)
    if array.dtype.kind not in "biuf" or array.ndim < 2:
        raise ValueError(
            f"expected {what} as numbers, features (n, d), images (n, C, H, W) or (n, H, W, C), or series (n, C, L), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.ndim == 3 and array.dtype == np.uint8:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 and (channels or _channels(array, what)) == "last" else array


def _channels(x: Array, what: str) -> Channels:
    found = channels_of(x)
    if found is None:
        raise ValueError(
            f"expected images with channels first or last, and cannot tell which of {x.shape} in {what}: say channels='first' "
            "or channels='last'"
        )
    return found


def _aligned(x: Any, y: Any, what: str) -> None:
    """Raises ValueError where the rows of two pandas objects do not belong together, or lengths differ."""
    if len(x) != len(y):
        raise ValueError(f"expected {what} of one length, got {len(x)} and {len(y)} rows")
    if hasattr(x, "iloc") and hasattr(y, "iloc") and not x.index.equals(y.index):
        raise ValueError(f"expected {what} with one index, got two that differ: align them first, as y.loc[x.index]")
