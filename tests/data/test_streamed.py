"""Claims about espalier.data.streamed: rows in any order and by any number of workers are the same, and move no generator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from espalier.data.streamed import Streamed, in_turn, seeded


class Noisy(Dataset[Tensor]):
    """Each example draws from torch, NumPy and Python."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, row: int) -> Tensor:
        return torch.tensor([row, float(torch.rand(())), np.random.rand(), random.random()])  # noqa: NPY002


class Uneven(Dataset[Tensor]):
    """Examples of a length each, and one that is not there."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> Tensor:
        if row == 8:
            raise FileNotFoundError("8.png is gone")
        return torch.zeros(1 + row % 2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_an_example_draws_is_decided_by_seed_and_row_number(workers: int) -> None:
    rows = Streamed(Noisy(), workers=workers)
    expected = torch.stack([Streamed(Noisy())[torch.tensor([row])][0] for row in range(50)])
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    for size in (7, 50):
        assert torch.equal(torch.cat(list(rows.stream(order.split(size)))), expected[order])
    other = torch.cat(list(rows.stream(order.split(7), seed=12)))
    assert (other[:, 1:] != expected[order][:, 1:]).all()
    assert other[:, 1:].unique().numel() == 150  # no two draws alike


def test_draws_are_uniform_over_rows_and_seeds() -> None:
    draws = torch.cat([torch.cat(list(Streamed(Noisy()).stream([torch.arange(50)], seed))) for seed in range(20)])[
        :, 1:
    ]
    assert abs(float(draws.mean()) - 0.5) < 5 * (1 / 12 / draws.numel()) ** 0.5
    assert np.abs(np.corrcoef(draws.T.numpy()) - np.eye(3)).max() < 5 / 1000**0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_no_generator_of_the_caller_moves(workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    list(Streamed(Noisy(), workers=workers).stream(torch.arange(40).split(8), 3))
    Streamed(Noisy())[torch.arange(4)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_a_failure_inside_puts_the_generators_back() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(1, 2):
        torch.rand(3) / (1 // 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("rows", "says"),
    [([0, 2, 8], "^8.png is gone$"), ([0, 1, 2], r"^expected examples of one shape, got \(1,\) and \(2,\): resize$")],
)
def test_what_is_wrong_with_an_example_is_one_sentence_from_a_worker_too(
    workers: int, rows: list[int], says: str
) -> None:
    batches = [torch.tensor([0, 2]), torch.tensor([4]), torch.tensor(rows), torch.tensor([6])]
    seen: list[Any] = []
    with pytest.raises((FileNotFoundError, ValueError), match=says):
        seen.extend(Streamed(Uneven(), workers=workers).stream(batches))


def test_a_selection_is_rows_of_its_own() -> None:
    rows = Streamed(Noisy()).select(np.array([9, 4, 30]))
    assert len(rows) == 3
    assert rows.shape == (3, 4)
    assert rows[torch.tensor([2, 0])][:, 0].tolist() == [30, 9]
    assert rows.select(np.array([1]))[torch.tensor([0])][0, 0] == 4
    assert rows[torch.empty(0, dtype=torch.int64)].shape == (0, 4)


def test_tensors_are_taken_in_turn_as_they_are() -> None:
    x = torch.arange(12.0).view(6, 2)
    assert [batch.tolist() for batch in in_turn(x, torch.tensor([3, 1, 0]).split(2))] == [[[6, 7], [2, 3]], [[0, 1]]]


class Typed(Dataset[Tensor]):
    """Halves of whole numbers, of a type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Tensor:
        return (torch.tensor([row, 2 * row]) / 2).to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_width_become_float32(dtype: torch.dtype) -> None:
    rows = Streamed(Typed(dtype))
    assert torch.equal(rows[torch.tensor([3, 1])], torch.tensor([[1.5, 3.0], [0.5, 1.0]]))
    assert next(rows.stream([torch.tensor([3])])).dtype == torch.float32


def test_whole_numbers_stay_whole() -> None:
    assert torch.equal(Streamed(Typed(torch.int64))[torch.tensor([4])], torch.tensor([[2, 4]]))


def test_no_rows_are_rows_of_the_same_shape() -> None:
    none = Streamed(Noisy()).select(np.arange(0))
    assert none.shape == (0, 4)
    assert none[torch.arange(0)].shape == (0, 4)
    assert Streamed(Noisy())[torch.arange(0)].shape == (0, 4)
