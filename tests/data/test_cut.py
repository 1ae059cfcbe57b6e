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


def stored(folder: Path) -> list[str]:
    """Every file below, hidden ones too, and every folder that a download may have made for itself."""
    paths = folder.rglob("*")
    return sorted(str(p.relative_to(folder)) for p in paths if p.is_file() or p.name.startswith("."))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
