"""A door for torch's map-style datasets: they stream, and need never fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from espalier.contracts import Data
from espalier.data.cut import Standardise, as_data
from espalier.data.labels import targets as targets_of
from espalier.data.readers import Raw
from espalier.data.streamed import Guarded, Streamed, as_many_as_useful, input_of, seeded

Seen = Callable[[int, int], None]


def from_datasets(
    train: Dataset[Any],
    test: Dataset[Any] | None = None,
    *,
    targets: Any = None,
    test_targets: Any = None,
    name: str = "datasets",
    validation: float = 0.1,
    calibration: float = 0.1,
    split_seed: int = 0,
    train_size: int | None = None,
    standardise: bool | Standardise = True,
    classes: Sequence[Any] | None = None,
    workers: int | None = None,
    content: bool = True,
    seen: Seen = lambda done, total: None,
) -> Data:
    """torch map-style datasets of `(input, label or target)` as `Data`. Inputs stream; labels are held.

    They are cut as `load` cuts, by `split_seed`, into training, validation and calibration examples, and, without a `test`,
    a fifth for the test split. Inputs are what the dataset gives, transforms and all: tensors, arrays or numbers of one
    shape, standardised by yourself; floats become float32, whole numbers stay so. Whatever the dataset draws at random is
    seeded by epoch and example (`Streamed`), so a run is the same for any number of `workers`, and resumes to equal bytes. A
    label is taken once and held for good: an augmentation may not change it.

    The datasets are read once at the start, by the workers, for the labels and the hashes. content: hash every input;
    False leaves the inputs out of the hashes, and with `targets` nothing is read. targets, test_targets `(n,)`: the labels,
    where they are at hand. standardise: real targets, by the training examples; predictions come back in their units.
    classes, validation, calibration, split_seed, train_size: as in `from_arrays`. workers: processes of the DataLoader; None
    is one a core. seen: told, while the datasets are read, of examples read and in all.

    Raises ValueError, in one sentence, for an iterable dataset, examples that are no pairs, shapes that differ, missing or
    single labels, and what `load` refuses.
    """
    classes = None if classes is None else list(classes)
    raw = _read(train, targets, classes, None, workers, content, "train", seen)
    given = None
    if test is not None:
        known = (raw.classes if classes is None else classes) or None
        given = _read(test, test_targets, known, not raw.classes, workers, content, "test", seen)
    return as_data(
        name,
        raw,
        validation=validation,
        calibration=calibration,
        split_seed=split_seed,
        train_size=train_size,
        test=given,
        standardise=standardise,
    )


def _read(
    dataset: Dataset[Any],
    targets: Any,
    classes: Sequence[Any] | None,
    regression: bool | None,
    workers: int | None,
    content: bool,
    what: str,
    seen: Seen,
) -> Raw:
    """A dataset as rows that stream, its labels as numbers."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(f"expected a map-style dataset, with len() and [], got {type(dataset).__name__}")
    if workers is not None and workers < 0:
        raise ValueError(f"expected workers of 0 or more, got {workers}")
    count = len(dataset)
    if not count:
        raise ValueError(f"expected examples, but the {what} dataset is empty")
    if targets is not None and len(targets) != count:
        raise ValueError(f"expected a target for each of {count} {what} examples, got {len(targets)}")
    digests, values = None, targets
    if content or targets is None:
        workers_now = as_many_as_useful() if workers is None else workers
        digests, own = _once(_Digests(dataset, targets is None), min(workers_now, count), what, seen)
        values = own if targets is None else targets
    numbers, found = targets_of(values, classes, f"the {what} dataset", regression)
    x = Streamed(dataset, workers=workers, digests=digests if content else None)
    return Raw(x, numbers, len(found) or None, classes=found)


class _Digests(Dataset[tuple[bytes, Any, str]]):
    """SHA-256 of every input, its label where it is asked for, and its kind and shape."""

    def __init__(self, dataset: Dataset[Any], labelled: bool) -> None:
        self.dataset, self.labelled = dataset, labelled

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> tuple[bytes, Any, str]:
        with seeded(0, row):
            item = self.dataset[row]
        pair = isinstance(item, tuple | list) and len(item) == 2
        if self.labelled and not pair:
            got = f"{len(item)} things" if isinstance(item, tuple | list) else type(item).__name__
            raise ValueError(
                f"expected examples (input, label), got {got} in row {row}: wrap the dataset, or give targets="
            )
        given = input_of(item)
        if isinstance(given, Mapping) or (isinstance(given, tuple | list) and any(getattr(one, "shape", ()) for one in given)):
            got = f"{type(given).__name__} of {len(given)}"
            raise ValueError(f"expected one input an example, got a {got} in row {row}: several go by espalier.data.from_arrays")
        try:
            x, y = torch.as_tensor(given), item[1] if self.labelled else None
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected inputs that are tensors or arrays, got {type(given).__name__} in row {row}: ToTensor makes images so"
            ) from error
        if x.is_complex():
            raise ValueError(f"expected real inputs, got {x.dtype} in row {row}")
        if x.is_floating_point() and not torch.isfinite(x.float()).all():
            raise ValueError(f"expected finite inputs, got NaN or infinity (in float32) in row {row} (counted from 0)")
        kind = f"{x.dtype} {tuple(x.shape)}"
        head = f"{kind}\0".encode()
        body = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(head + body).digest(), y.tolist() if isinstance(y, Tensor | np.generic) else y, kind


def _once(dataset: _Digests, workers: int, what: str, seen: Seen) -> tuple[NDArray[np.uint8], list[Any]]:
    """One pass: digests `(n, 32)` and labels."""
    total = len(dataset)
    loader: DataLoader[Any] = DataLoader(
        Guarded(dataset), batch_size=64, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    digests, found, kind = np.empty((total, 32), np.uint8), list[Any](), ""
    for batch in loader:
        for example in batch:
            if isinstance(example, Exception):
                raise ValueError(f"the {what} dataset: {example}") from example
            kind = kind or example[2]
            if example[2] != kind:
                got = f"{example[2]} in row {len(found)}"
                raise ValueError(f"the {what} dataset: expected examples of one shape, {kind} as the first is, got {got}")
            digests[len(found)] = np.frombuffer(example[0], np.uint8)
            found.append(example[1])
        seen(len(found), total)
    return digests, found
