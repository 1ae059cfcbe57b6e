"""From a data set as it is stored to its four parts: disjoint, by seed, standardised by the training rows, hashed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import data
from espalier.data import cut
from written import PARTS, RNG, rows_of, toy, write_npz

# ------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("validation", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("calibration", [0.0, 0.25])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_and_cover_all(tmp_path: Path, validation: float, calibration: float, seed: int) -> None:
    path = toy(tmp_path)
    d = data.load(path, validation=validation, calibration=calibration, split_seed=seed)
    rows = [rows_of(getattr(d, part), d) for part in PARTS]
    assert sorted(np.concatenate(rows)) == list(range(50))
    assert [len(r) for r in rows[1:]] == [round(validation * 40), round(calibration * 40), 10]


def test_published_rows_stay_the_test_split_and_unnamed_rows_stay_out(tmp_path: Path) -> None:
    train, test = np.array([[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]], np.uint16), np.array([[6, 7], [2, 0]], np.uint16)
    path = toy(tmp_path, train=train, test=test)
    for fold in (0, 1):
        d = data.load(path, fold=fold, validation=0.2, calibration=0.2)
        assert rows_of(d.test, d).tolist() == test[fold].tolist()
        rest = np.concatenate([rows_of(getattr(d, part), d) for part in PARTS[:3]])
        assert sorted(rest) == sorted(train[fold].tolist())


def test_every_part_knows_which_rows_of_the_source_it_has(tmp_path: Path) -> None:
    cuts = [{}, {"train_size": 7, "split_seed": 3}, {"fold": 1}]
    train, test = np.arange(40).reshape(2, 20), np.arange(20, 60).reshape(2, 20) % 50
    for options, published in zip(cuts, ({}, {}, {"train": train, "test": test}), strict=True):
        d = data.load(toy(tmp_path, **published), **options)
        assert d.source_rows == 50
        for part in PARTS:
            assert d.rows[part].tolist() == rows_of(getattr(d, part), d).tolist(), part


def test_rows_of_a_test_set_given_apart_come_after_the_others() -> None:
    x, y = RNG.normal(size=(40, 2)), np.arange(40) % 3
    d = data.from_arrays(x, y, x_test=x[:10] + 1, y_test=y[:10])
    assert (d.source_rows, d.rows["test"].tolist()) == (50, list(range(40, 50)))
    rest = np.concatenate([d.rows[part] for part in PARTS[:3]])
    assert sorted(rest) == list(range(40))
    np.testing.assert_array_equal(y[d.rows["validation"]], d.validation.y)
    both = data.from_arrays({"a": x, "b": x[:, :1]}, y)
    np.testing.assert_array_equal(y[both.rows["test"]], both.test.y)


@pytest.mark.parametrize("given", ["train", "test"])
def test_one_published_part_leaves_the_other(tmp_path: Path, given: str) -> None:
    path = toy(tmp_path, **{given: np.arange(10, 20)})
    d = data.load(path, validation=0, calibration=0)
    assert sorted(rows_of(getattr(d, given), d)) == list(range(10, 20))
    assert len(d.train.y) + len(d.test.y) == 50


def test_the_same_seed_gives_the_same_hashes_and_another_seed_others(tmp_path: Path) -> None:
    path = toy(tmp_path)
    first, again, other = (data.load(path, split_seed=seed).hashes for seed in (3, 3, 4))
    assert first == again
    assert all(first[part] != other[part] for part in PARTS)
    assert len(set(first.values())) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in first.values())


def test_a_hash_is_of_the_stored_rows_and_labels(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (12, 4, 3, 3), dtype=np.uint8), np.arange(12) % 3
    path = write_npz(tmp_path / "a.npz", x=x, y=y.astype(np.int8), test=np.array([5, 2]))
    stored = np.ascontiguousarray(x.transpose(0, 3, 1, 2))[[5, 2]].tobytes() + y[[5, 2]].astype(np.int64).tobytes()
    assert data.load(path).hashes["test"] == hashlib.sha256(stored).hexdigest()


def test_train_sizes_are_nested_and_leave_the_other_parts_alone(tmp_path: Path) -> None:
    path = toy(tmp_path)
    small, large, full = (data.load(path, train_size=size) for size in (7, 20, None))
    assert (len(small.train.y), len(large.train.y), len(full.train.y)) == (7, 20, 32)
    assert torch.equal(small.train.x[:], large.train.x[torch.arange(7)])
    assert torch.equal(large.train.x[:], full.train.x[torch.arange(20)])
    for part in PARTS[1:]:
        assert small.hashes[part] == full.hashes[part]
        assert torch.equal(getattr(small, part).x, getattr(full, part).x)
        assert torch.equal(getattr(small, part).y, getattr(full, part).y)
    assert small.hashes["train"] != full.hashes["train"]


# ------------------------------------------------------------------------------------------------ scale


def test_features_and_targets_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    path = toy(tmp_path)
    d = data.load(path, split_seed=5)
    x = np.load(path)["x"]
    train, test = rows_of(d.train, d), rows_of(d.test, d)
    scale = np.array([*x[train].std(0)[:2], 1.0])  # the constant feature is only centred
    expected = (x[test] - x[train].mean(0)) / scale
    np.testing.assert_allclose(d.test.x[:].numpy(), expected, atol=1e-6)
    assert not d.test.x[:][:, 2].any()
    y = 2.0 * np.arange(50) + 5
    np.testing.assert_allclose([d.target_shift, d.target_scale], [y[train].mean(), y[train].std()])
    np.testing.assert_allclose(d.test.y * d.target_scale + d.target_shift, y[test], rtol=1e-6)
    assert d.train.y.dtype == torch.float32
    assert (d.num_classes, d.num_outputs) == (None, 1)


def test_a_feature_of_large_offset_keeps_its_scale(tmp_path: Path) -> None:
    x = 1e9 + RNG.normal(size=(400, 1))
    d = data.load(write_npz(tmp_path / "far.npz", x=x, y=x[:, 0]))
    assert d.train.x[:].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_constant_targets_keep_their_unit(tmp_path: Path) -> None:
    d = data.load(write_npz(tmp_path / "flat.npz", x=RNG.normal(size=(20, 2)), y=np.full(20, 3.7)))
    assert (d.target_shift, d.target_scale) == (3.7, 1.0)
    assert not d.train.y.any()


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_channels_are_standardised_whatever_the_chunk(tmp_path: Path, monkeypatch: Any, chunk: int) -> None:
    monkeypatch.setattr(cut, "_CHUNK", chunk)
    x = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    x[..., 1] = 9
    d = data.load(write_npz(tmp_path / "a.npz", x=x, y=np.arange(30) % 2), validation=0, calibration=0.1)
    train = d.train.x[:]
    assert d.shape == (3, 6, 5)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.tensor([1.0, 0.0, 1.0]))


COLUMNS = RNG.normal(3, 2, (60, 3))


@pytest.mark.parametrize("size", [5e-324 * 2**20, 1e-310, 1e-170, 1.0, 1e155, 1e300, 2.0**1020])
def test_a_unit_changes_nothing(size: float) -> None:
    plain, other = data.from_arrays(COLUMNS, COLUMNS[:, 0]), data.from_arrays(COLUMNS * size, COLUMNS[:, 0] * size)
    for ours, theirs in zip(other.train, plain.train, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert other.target_scale == pytest.approx(plain.target_scale * size, rel=1e-5)
    assert other.target_shift == pytest.approx(plain.target_shift * size, rel=1e-5)
    torch.testing.assert_close(other.inputs(COLUMNS * size)[:9], plain.inputs(COLUMNS)[:9], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**-30, 2.0**30, 2.0**1000])
def test_a_unit_of_a_power_of_two_changes_no_bit(unit: float) -> None:
    mean, sd = cut.moments(COLUMNS, np.arange(60))
    np.testing.assert_array_equal(cut.moments(COLUMNS * unit, np.arange(60)), (mean * unit, sd * unit))
    assert torch.equal(
        data.from_arrays(COLUMNS * unit, COLUMNS[:, 0]).train.x, data.from_arrays(COLUMNS, COLUMNS[:, 0]).train.x
    )


def test_both_ends_of_the_numbers_are_one_feature() -> None:
    ends = np.where(np.arange(60) % 2, 1.7e308, -1.7e308)[:, None]
    d = data.from_arrays(ends, np.arange(60.0) % 7)
    torch.testing.assert_close(d.train.x.abs(), torch.ones_like(d.train.x), atol=0.2, rtol=0)
    assert torch.equal(d.inputs(ends[:2]).abs().unique(), d.train.x.abs().unique().flip(0)[:2].sort()[0])


NOISE = {
    "0.3 and 0.1 * 3": (np.where(np.arange(60) % 2, 0.3, 0.1 * 3), True),
    "at 1e300": (np.where(np.arange(60) % 2, 1e300, np.nextafter(1e300, 0)), True),
    "at 1e-300": (np.where(np.arange(60) % 2, -1e-300, np.nextafter(-1e-300, 0)), True),
    "float32": (np.where(np.arange(60) % 2, np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))), True),
    "sums in two orders": (np.where(np.arange(60) % 2, (0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)), True),
    "a hundred roundings": (np.where(np.arange(60) % 2, 1.0, 1.0 + 100 * 2.0**-52), False),
    "half precision, 300 and 300.25": (np.where(np.arange(60) % 2, 300, 300.25).astype(np.float16), False),
    "large whole numbers": (2**60 + np.arange(60) % 2 * 4096, False),
    "noise about nothing": (np.where(np.arange(60) % 2, 1e-17, -1e-17), False),
}


@pytest.mark.parametrize("name", NOISE)
def test_rounding_is_no_spread(name: str) -> None:
    column, constant = NOISE[name]
    d = data.from_arrays(column[:, None], np.arange(60.0) % 7)
    spread = float(d.train.x.max() - d.train.x.min())
    assert spread < 1e-6 if constant else 1.9 < spread < 2.2
    targets = data.from_arrays(COLUMNS, column.astype(column.dtype if column.dtype.kind == "f" else np.float64))
    if name != "large whole numbers" and column.dtype == np.float64:
        assert float(targets.train.y.max() - targets.train.y.min()) == pytest.approx(spread, abs=0.3)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", ">f8", "i1", "u1", ">i2", "i8", "u8", "?", "g"])
def test_numbers_of_every_kind_are_scaled_alike(kind: str) -> None:
    whole = RNG.integers(0, 2 if kind == "?" else 100, (60, 2))
    d, expected = (
        data.from_arrays(whole.astype(kind), whole[:, 0] * 1.0),
        data.from_arrays(whole * 1.0, whole[:, 0] * 1.0),
    )
    assert torch.equal(d.train.x, expected.train.x)
    assert d.train.x.dtype == torch.float32


def test_what_float32_cannot_hold_is_said_with_its_row() -> None:
    far = np.where(np.arange(60)[:, None] == 7, 1e300, COLUMNS)
    with pytest.raises(
        ValueError, match=r"expected numbers within 3\.4e38 after they are standardised, .* got more in row 7 "
    ):
        data.from_arrays(far, np.arange(60) % 2, standardise=False)
    with pytest.raises(ValueError, match=r"got more in row 0 \(counted from 0\): rescale or remove it"):
        data.from_arrays(COLUMNS, np.arange(60) % 2, x_test=far[7:8], y_test=[0])
    assert torch.isfinite(data.from_arrays(far, np.arange(60) % 2, split_seed=1).train.x).all()
    with np.errstate(over="ignore"):
        beyond = np.full((60, 1), np.finfo(np.longdouble).max)
    with pytest.raises(ValueError, match="arrays: expected finite inputs, got NaN or infinity, first in row 0"):
        data.from_arrays(beyond if np.finfo(np.longdouble).max > np.finfo(float).max else beyond * 2, np.arange(60) % 2)


def test_mapped_rows_are_scaled_as_those_in_memory(tmp_path: Path) -> None:
    for size in (1e-170, 1e200):
        np.save(tmp_path / "x.npy", COLUMNS * size)
        mapped = data.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(60) % 2)
        held = data.from_arrays(COLUMNS * size, np.arange(60) % 2)
        assert torch.equal(mapped.train.x[torch.arange(9)], held.train.x[:9])
