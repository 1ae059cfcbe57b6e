"""Labels of any kind as numbers 0, 1, ..., and what the numbers stand for; targets as they are."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def labels(y: Any, classes: Sequence[Any] | None, what: str) -> tuple[NDArray[np.int64], tuple[Any, ...]]:
    """Labels `(n,)`, or `(n, ...)`, of any kind as int64 numbers, and what 0, 1, ... stand for: `classes`, a categorical's
    own, or all that are there, sorted.

    Raises ValueError for a missing label, one that is not among `classes`, labels that cannot be sorted, one class only, or
    nearly as many classes as rows.
    """
    if classes is None and hasattr(getattr(y, "dtype", None), "categories"):
        classes = list(y.dtype.categories)
    values = column(y, what)
    if values.ndim > 1:  # the words of a sentence, the pixels of a mask
        flat, found = labels(values.ravel(), classes, what)
        return flat.reshape(values.shape), found
    if values.dtype.kind in "cV":
        raise ValueError(f"expected labels as numbers, strings or bool in {what}, got {values.dtype}")
    missing = [row for row, value in enumerate(values.tolist()) if _is_missing(value)]
    if missing:
        raise ValueError(f"expected a label in every row of {what}, got none in row {missing[0]} (counted from 0)")
    if classes is None:
        order = _sorted(values, what)
        if values.dtype.kind in "iu" and len(order) > 1:
            # In their own dtype: among Python's numbers it would be float64, which knows no two neighbours above 2^53.
            return np.searchsorted(np.array(order, values.dtype), values).astype(np.int64), tuple(order)
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
        got = f"only {order[0]!r}" if order else "none"
        raise ValueError(f"expected two or more classes in {what}, got {got}; give float targets for regression")
    return np.array([number[value] for value in values.tolist()], np.int64), tuple(order)


def _sorted(values: NDArray[Any], what: str) -> list[Any]:
    """The labels that are there. Whole numbers of which most stand alone are measurements."""
    try:
        order, counts = np.unique(values, return_counts=True)
    except TypeError as error:
        raise ValueError(
            f"expected labels of one kind in {what}, got several ({error}): name them by classes="
        ) from error
    if 2 * (alone := int((counts == 1).sum())) > max(len(values), 4):
        raise ValueError(
            f"expected labels that rows share in {what}, got {alone} that stand alone in {len(values)} rows: give float "
            "targets for regression, or name the labels by classes="
        )
    return list(order.tolist())


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA is neither
        return True


def targets(
    y: Any, classes: Sequence[Any] | None, what: str, regression: bool | None = None
) -> tuple[NDArray[Any], tuple[Any, ...]]:
    """Labels as numbers and what they stand for, or real targets as float64 and nothing.

    Floats are targets unless `classes` says otherwise, or `regression` what they are.
    """
    values = column(y, what)
    if values.dtype.kind == "O" and classes is None and values.size and all(isinstance(v, float | Decimal) for v in values.flat):
        y = values = values.astype(np.float64)  # a column of a frame of several kinds
    if regression is None:
        stored = getattr(
            getattr(y, "dtype", None), "kind", values.dtype.kind
        )  # pandas' whole numbers with a gap become floats
        regression = classes is None and values.dtype.kind == stored == "f"
    if not regression:
        return labels(y, classes, what)
    if values.ndim > 2:
        raise ValueError(f"expected real-valued targets of shape (n,) or (n, d) in {what}, got {values.shape}")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"expected real-valued targets in {what}, as in y, got {values.dtype}")
    with np.errstate(invalid="ignore", over="ignore"):  # of wider floats; what is not finite is refused by who cuts
        return values.astype(np.float64), ()


def column(y: Any, what: str) -> NDArray[Any]:
    """Labels or targets as a NumPy array `(n,)`, or `(n, ...)` where a row has several; one column `(n, 1)` is one."""
    refuse_masked(y, what)
    mixed = (
        isinstance(y, list | tuple) and len({isinstance(label, str) for label in y}) > 1
    )  # NumPy would make all strings
    plain = y.detach().cpu() if isinstance(y, torch.Tensor) else None
    if plain is not None and plain.dtype is torch.bfloat16:  # which NumPy does not know
        plain = plain.float()
    values = np.asarray(y, dtype=object if mixed else None) if plain is None else plain.numpy()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim < 1 or not all(values.shape[1:]):
        raise ValueError(f"expected labels or targets for every row, {what} of shape (n,) or (n, ...), got {values.shape}")
    return values


def refuse_masked(values: Any, what: str) -> None:
    """Raises ValueError for a masked array with something masked: what lies beneath the mask would be taken for data."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        masked = int(np.ma.getmaskarray(values).sum())
        raise ValueError(f"expected {what} without masked entries, got {masked:,}: fill or remove them")
