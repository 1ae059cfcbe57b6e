"""Rows that are never held: examples of a torch `Dataset`, decoded when asked for, by workers and ahead of time."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from espalier.contracts import Rows

MOST_WORKERS = 8
AHEAD = 2
"""Batches that every worker decodes ahead."""


def as_many_as_useful() -> int:
    """Workers where nobody says how many: one a core. A process that may have no children (a Dask worker's) gets none."""
    return 0 if multiprocessing.current_process().daemon else min(MOST_WORKERS, os.cpu_count() or 1)


class Streamed:
    """Examples of a map-style `torch.utils.data.Dataset` as `Rows`.

    `rows[index]` with int64 `(b,)` decodes in this process. `rows.stream(batches, seed)` goes through a torch DataLoader:
    `workers` processes, two batches ahead each, pinned memory where there is a GPU. Whatever an example draws while it is
    decoded (an augmentation inside the dataset, from torch, NumPy or `random`) is decided by the seed and its row number:
    equal bytes for any number of workers, in any order, and after a resume; and the caller's generators do not move.

    dataset: of inputs, or of tuples whose first item is the input: a tensor, array or number, all of one shape. rows `(n,)`:
    which of its examples, in this order; None is all. workers: processes; None is one a core, 0 is this process.
    digests `(len(dataset), 32)`: SHA-256 of each example, where they are known: what identifies the rows.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        rows: NDArray[np.int64] | None = None,
        *,
        workers: int | None = None,
        digests: NDArray[np.uint8] | None = None,
    ) -> None:
        self.dataset, self.workers, self.digests = dataset, workers, digests
        self.rows = np.arange(len(dataset)) if rows is None else rows  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, *shape)`; the dataset's first example is looked at."""
        return (len(self), *next(self._load([[0]], 0, 0)).shape[1:])

    def select(self, rows: NDArray[np.int64]) -> Streamed:
        """The same source, these of its rows `(m,)` only."""
        return Streamed(self.dataset, self.rows[rows], workers=self.workers, digests=self.digests)

    def identity(self) -> Iterator[bytes]:
        """What tells these rows from others."""
        if self.digests is not None:
            yield self.digests[self.rows].tobytes()

    @property
    def scale(self) -> tuple[Tensor, Tensor] | None:
        """Mean and sd by which inputs are standardised after they are decoded; None: they are not."""
        return None

    def finish(self, batch: Tensor) -> Tensor:
        """A batch of what the dataset gives as what the network takes: float32, or whole numbers as they are."""
        return batch.float() if batch.is_floating_point() else batch

    def __getitem__(self, index: Tensor, /) -> Tensor:
        return next(self._load([self.rows[index.numpy()].tolist() or [0]], 0, 0))[: len(index)]

    def stream(self, batches: Sequence[Tensor], seed: int = 0) -> Iterator[Tensor]:
        """`rows[index]` for every index of `batches` in turn."""
        workers = as_many_as_useful() if self.workers is None else self.workers
        numbers = [self.rows[batch.numpy()].tolist() for batch in batches]
        yield from self._load(numbers, seed, min(workers, len(batches) // 2))  # one batch is not worth a process

    def _load(self, numbers: Sequence[list[int]], seed: int, workers: int) -> Iterator[Tensor]:
        """Batches of the dataset's own row numbers."""
        loader: DataLoader[Any] = DataLoader(
            Guarded(_Seeded(self.dataset, seed)),
            batch_sampler=numbers,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=workers > 0 and torch.cuda.is_available(),
            collate_fn=_stacked,
            generator=torch.Generator(),  # else the loader would draw from torch's default stream
        )
        decoded = iter(loader)
        for _ in numbers:
            with nullcontext() if workers else unmoved_generators():
                batch = next(decoded)
            if isinstance(batch, Exception):
                raise batch
            yield self.finish(batch)


class _Seeded(Dataset[Tensor]):
    """Inputs of a dataset, each decoded under a seed of its own. The generators are left as an example leaves them."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, row: int) -> Tensor:
        _seed(self.seed, row)
        return torch.as_tensor(input_of(self.dataset[row]))


class Guarded(Dataset[Any]):
    """A dataset that hands back what is wrong with an example, instead of raising it: a worker of torch's would wrap the
    sentence in a traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, row: int) -> Any:
        try:
            return self.dataset[row]
        except (ValueError, OSError) as error:
            return error


def input_of(example: Any) -> Any:
    """Of a tuple the first item."""
    return example[0] if isinstance(example, tuple | list) else example


def _stacked(examples: list[Tensor | Exception]) -> Tensor | Exception:
    shapes = {tuple(example.shape) for example in examples if isinstance(example, Tensor)}
    wrong = next((example for example in examples if isinstance(example, Exception)), None)
    if len(shapes) > 1:
        wrong = wrong or ValueError(
            f"expected examples of one shape, got {' and '.join(map(str, sorted(shapes)))}: resize"
        )
    return wrong or torch.stack([example for example in examples if isinstance(example, Tensor)])


@contextmanager
def unmoved_generators() -> Iterator[None]:
    """torch's (CPU), NumPy's and Python's default generators stand afterwards where they stood before."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@contextmanager
def seeded(seed: int, row: int) -> Iterator[None]:
    """These generators, for the while, in a state that seed and row number decide."""
    with unmoved_generators():
        _seed(seed, row)
        yield


def _seed(seed: int, row: int) -> None:
    words = np.random.SeedSequence([seed, row]).generate_state(3, np.uint32).tolist()
    torch.default_generator.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    random.seed(words[2])


def in_turn(x: Rows, batches: Sequence[Tensor], seed: int = 0) -> Iterator[Tensor]:
    """`x[index]` for every index of `batches`; of rows that stream, decoded ahead, randomness inside them by `seed`."""
    stream = getattr(x, "stream", None)
    yield from stream(batches, seed) if stream else (x[index] for index in batches)


def selected(x: Rows, rows: Tensor) -> Rows:
    """Some of the rows, as `Rows`; of rows that stream, still undecoded."""
    return x.select(rows.numpy()) if isinstance(x, Streamed) else x[rows]


def some(count: int, most: int, generator: torch.Generator | None = None) -> Tensor:
    """Row numbers of at most `most` of `count` rows: all in their order, or a random choice, since a published split may lie
    class by class. generator: None is one of its own."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator or torch.Generator().manual_seed(0))[:most]
