"""Labels of any kind are numbered in one order, by every door alike; what the numbers stand for is kept."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from espalier import Data, calibration, data
from espalier.data import from_arrays, from_datasets
from espalier.data.labels import labels, targets
from written import PARTS, RNG, write_npz

X = RNG.normal(size=(60, 3))
ROWS = np.arange(60)


def by_npz(folder: Path, y: Any) -> Data:
    return data.load(write_npz(folder / "a.npz", x=X, y=y))


def by_arrays(folder: Path, y: Any) -> Data:
    return from_arrays(X, y)


def by_datasets(folder: Path, y: Any) -> Data:
    held = TensorDataset(torch.from_numpy(X).float(), torch.from_numpy(np.asarray(y)))
    return from_datasets(held, workers=0)


NUMBERS = {
    "from one": ([1, 2, 3], np.int64),
    "with a gap": ([0, 250], np.uint8),
    "with a large gap": ([3, 10**12], np.int64),
    "of a margin": ([-1, 1], np.int8),
    "of two gaps": ([-70, 4, 5, 99], np.int16),
    "bools": ([False, True], np.bool_),
}


@pytest.mark.parametrize("door", [by_npz, by_arrays, by_datasets])
@pytest.mark.parametrize("name", NUMBERS)
def test_labels_with_gaps_have_the_classes_that_are_there(tmp_path: Path, name: str, door: Any) -> None:
    order, dtype = NUMBERS[name]
    loaded = door(tmp_path, np.array(order, dtype)[ROWS % len(order)])
    assert loaded.num_classes == loaded.num_outputs == len(order)
    assert loaded.classes == tuple(order)
    assert loaded.facts()["data"]["classes"] == order
    every = torch.cat([getattr(loaded, part).y for part in PARTS])
    assert every.bincount().tolist() == np.bincount(ROWS % len(order)).tolist()


def test_strings_in_an_npz_are_labels_and_floats_targets(tmp_path: Path) -> None:
    assert by_npz(tmp_path, np.array(["no", "yes"])[ROWS % 2]).classes == ("no", "yes")
    assert by_npz(tmp_path, ROWS[:, None] % 3).num_classes == 3  # a column is one
    real = by_npz(tmp_path, 1.0 * (ROWS % 3))
    assert (real.num_classes, real.classes) == (None, ())


def test_every_part_is_numbered_by_one_vocabulary(tmp_path: Path) -> None:
    y = np.array([10, 20, 30])[ROWS % 3]
    path = write_npz(tmp_path / "a.npz", x=np.column_stack([ROWS, X]), y=y, test=np.flatnonzero(y == 30))
    loaded = data.load(path, standardise="none")
    assert loaded.classes == (10, 20, 30)
    assert set(loaded.test.y.tolist()) == {2}
    for part in PARTS:
        x, numbers = getattr(loaded, part)
        assert [loaded.classes[number] for number in numbers] == y[x[:, 0].long().numpy()].tolist()


def test_no_class_that_is_not_there_is_scored(tmp_path: Path) -> None:
    loaded = by_npz(tmp_path, np.array([1, 2, 3])[ROWS % 3])
    sure = np.full((len(loaded.test.y), loaded.num_outputs), 1 / 3)
    y = loaded.test.y.numpy()
    by_hand = np.mean([abs(1 / 3 - (y == number).mean()) for number in range(3)])
    assert calibration.classwise_ece(sure, y) == pytest.approx(by_hand)


@pytest.mark.parametrize("door", [by_npz, by_arrays, by_datasets])
def test_whole_numbers_that_stand_alone_are_measurements(tmp_path: Path, door: Any) -> None:
    with pytest.raises(
        ValueError, match="expected labels that rows share in .*, got 60 that stand alone in 60 rows: give float"
    ):
        door(tmp_path, ROWS * 7)
    counts = np.where(ROWS < 31, ROWS + 5, 0)
    with pytest.raises(ValueError, match="got 31 that stand alone in 60 rows"):
        door(tmp_path, counts)
    assert door(tmp_path, np.where(ROWS < 30, ROWS + 5, 0)).num_classes == 31
    assert labels([4, 9], None, "y")[1] == (4, 9)
    assert labels(ROWS, list(range(60)), "y")[1] == tuple(range(60))


def test_labels_of_64_bits_are_told_apart() -> None:
    """Hashes: of the size where float64 has none between two of them."""
    y = 2**63 + np.arange(60, dtype=np.uint64) % 2
    numbers, classes = labels(y, None, "y")
    assert numbers.tolist() == [0, 1] * 30
    assert classes == (2**63, 2**63 + 1)


@pytest.mark.parametrize("kind", [float, Decimal])
def test_real_numbers_of_a_mixed_frame_are_targets(kind: Any) -> None:
    numbers, classes = targets(np.array([kind("1.5"), kind("2"), kind("1.5")] * 4, object), None, "y")
    assert (numbers.tolist(), numbers.dtype, classes) == ([1.5, 2.0, 1.5] * 4, np.float64, ())


def test_half_precision_is_a_target_too() -> None:
    numbers, classes = targets(torch.tensor([1.5, -2.0], dtype=torch.bfloat16), None, "y")
    assert (numbers.tolist(), numbers.dtype, classes) == ([1.5, -2.0], np.float64, ())
