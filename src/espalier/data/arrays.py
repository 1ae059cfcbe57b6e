"""A door for one's own arrays: NumPy, torch or pandas, labels of any kind, targets in their own units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal, get_args

import numpy as np
import torch

from espalier.contracts import PARTS, Data, Split, check_features, features_of
from espalier.data.cut import Standardise, as_data
from espalier.data.labels import refuse_masked, targets
from espalier.data.readers import Array, Raw, channels_of
from espalier.nested import Together

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
    disk: its rows are read and standardised when they are asked for. A tuple or a dict of such, for a network of several
    inputs, which is called as `net(*x)` or `net(**x)`.
    y: `(n,)`; `(n, d)` floats, a column for each output; or labels `(n, ...)`, of a sequence's words or a mask's pixels.
    Floats are regression targets, unless `classes` says otherwise; anything else is a label: strings, whole numbers from
    anywhere, bool, a pandas categorical. Labels are numbered in their sorted order, a categorical's in its own;
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
    if isinstance(x, Mapping | tuple):
        options: dict[str, Any] = {
            "validation": validation, "calibration": calibration, "split_seed": split_seed, "train_size": train_size,
            "standardise": standardise, "classes": classes, "channels": channels,
        }  # fmt: skip
        return _several(x, y, x_test, y_test, name, options)
    if channels not in (None, *get_args(Channels)):
        raise ValueError(f"expected channels of {', '.join(get_args(Channels))}, got {channels!r}")
    if y is None:
        raise ValueError("expected a y for every x, got none: to predict alone, a fit takes x itself")
    _aligned(x, y, "x and y")
    classes = None if classes is None else list(classes)
    features = features_of(x)
    numbers, found = targets(y, classes, "y")
    test = None
    if x_test is not None:
        _aligned(x_test, y_test, "x_test and y_test")
        check_features(x_test, features, "x_test")
        known = (found if classes is None else classes) or None
        test = Raw(_inputs(x_test, channels, "x_test"), targets(y_test, known, "y_test", regression=not found)[0])
    return as_data(
        name,
        Raw(_inputs(x, channels, "x"), numbers, len(found) or None, classes=found),
        validation=validation,
        calibration=calibration,
        split_seed=split_seed,
        train_size=train_size,
        test=test,
        standardise=standardise,
    )._replace(features=features)


def _several(x: Any, y: Any, x_test: Any, y_test: Any, name: str, options: dict[str, Any]) -> Data:
    """Each input by itself, all cut alike; then put together."""
    keys = list(x) if isinstance(x, Mapping) else list(range(len(x)))
    theirs = list(x_test) if isinstance(x_test, Mapping) else list(range(len(x_test))) if isinstance(x_test, tuple) else None
    alike = isinstance(x_test, Mapping) == isinstance(x, Mapping) and set(theirs or []) == set(keys)
    if not keys or (x_test is not None and not alike):
        raise ValueError(f"expected one or more inputs, and x_test with the same ones, got {keys} in x and {theirs} in x_test")
    for own, what in ((x, "x"), (x_test, "x_test")):
        frames = [] if own is None else [own[key] for key in keys if hasattr(own[key], "iloc")]
        if any(not frame.index.equals(frames[0].index) for frame in frames):
            raise ValueError(f"expected the frames of {what} with one index, got two that differ: align them first, by .loc")
    each = [
        from_arrays(x[key], y, x_test=None if x_test is None else x_test[key], y_test=y_test, name=f"{name}[{key!r}]", **options)
        for key in keys
    ]

    def joined(parts: list[Any]) -> Any:
        return dict(zip(keys, parts, strict=True)) if isinstance(x, Mapping) else tuple(parts)

    splits: dict[str, Any] = {}
    for part in PARTS:
        splits[part] = Split(Together(joined([getattr(data, part).x for data in each])), getattr(each[0], part).y)
    return each[0]._replace(
        name=name,
        **splits,
        shape=joined([data.shape for data in each]),
        hashes={part: sha256("".join(data.hashes[part] for data in each).encode()).hexdigest() for part in PARTS},
        input_scale=joined([data.input_scale for data in each]),
        features=joined([data.features for data in each]),
    )


def _inputs(x: Any, channels: Channels | None, what: str) -> Array:
    """Inputs as a NumPy array, channels first."""
    refuse_masked(x, what)
    if features_of(x) is not None:
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
    if hasattr(x, "tocsr"):
        raise ValueError("expected a dense array of inputs, got a sparse matrix: x.toarray()")
    if len(x) != len(y):
        raise ValueError(f"expected {what} of one length, got {len(x)} and {len(y)} rows")
    if hasattr(x, "iloc") and hasattr(y, "iloc") and not x.index.equals(y.index):
        raise ValueError(f"expected {what} with one index, got two that differ: align them first, as y.loc[x.index]")
