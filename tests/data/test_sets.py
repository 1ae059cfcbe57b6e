"""Data sets: their parts, their scale, their identity, and the sentences for what is wrong with them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import data
from espalier.data import cut, downloads
from written import PARTS, RNG, cifar_parts, rows_of, toy, write_cifar_binary, write_mnist, write_npz

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


def test_digits_are_cut_by_seed_and_need_no_files(tmp_path: Path) -> None:
    d = data.load("digits", data_dir=tmp_path, train_size=100)
    assert (d.name, d.shape, d.num_classes, d.num_outputs) == ("digits", (1, 8, 8), 10, 10)
    assert [len(getattr(d, part).y) for part in PARTS] == [100, 144, 144, 359]
    assert (d.train.x[:].dtype, d.train.y.dtype) == (torch.float32, torch.int64)


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


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": 1.0}, r"expected validation in \[0, 1\), a fraction of all but the test rows, got 1\.0"),
        ({"validation": -0.1}, r"expected validation in \[0, 1\)"),
        ({"calibration": float("nan")}, r"expected calibration in \[0, 1\), .* got nan"),
        ({"validation": 0.5, "calibration": 0.5}, "expected rows left to train on, got none of 40 .*; lower them"),
        ({"validation": 0.9, "calibration": 0.9}, "expected rows left to train on"),
        ({"train_size": 33}, r"expected train_size in 1\.\.32, the rows left to train on, got 33"),
        ({"train_size": 0}, r"expected train_size in 1\.\.32"),
        ({"fold": 1}, r"expected fold in 0\.\.0, got 1; the set has 1 published split"),
        ({"fold": -1}, r"expected fold in 0\.\.0, got -1"),
        ({"split_seed": -1}, "expected split_seed to be 0 or more, got -1"),
        ({"image_size": 32}, "expected image_size > 0, and for folders of images alone, got 32; drop it"),
    ],
)
def test_a_bad_option_gets_one_sentence(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        data.load(toy(tmp_path), **options)


@pytest.mark.parametrize(("name", "near"), [("fashon-mnst", "fashion-mnist"), ("CIFAR-10", "cifar10")])
def test_an_unknown_name_gets_the_nearest_and_the_list(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}' \(did you mean {near}\?\); the names are digits, mnist, "):
        data.load(name)
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        downloads.get(name)


def test_an_empty_or_strange_name_does_not_guess() -> None:
    for name in ("", "zzzz"):
        with pytest.raises(ValueError, match=rf"got '{name}'; the names are"):
            data.load(name)


@pytest.mark.parametrize("name", [name for name in data.names() if name != "digits"])
def test_missing_files_say_what_was_looked_for_where_and_what_to_do(tmp_path: Path, name: str) -> None:
    sentence = rf"{name}: expected a file {re.escape(str(tmp_path))}/.*, got none; run `espalier data get {name}`.*"
    with pytest.raises(FileNotFoundError, match=sentence + "--data-dir or ESPALIER_DATA"):
        data.load(name, data_dir=tmp_path)


def test_an_incomplete_folder_names_the_file_that_is_missing(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path, cifar_parts())
    (tmp_path / "cifar-10-batches-bin/data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin/data_batch_4\.bin, got none"):
        data.load("cifar10", data_dir=tmp_path)


def test_a_path_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "no.npz", tmp_path / "folder"):
        with pytest.raises(FileNotFoundError, match=f"folder of images at {re.escape(str(path))}, got nothing"):
            data.load(str(path))


def stored(folder: Path) -> list[str]:
    """Every file below, hidden ones too, and every folder that a download may have made for itself."""
    paths = folder.rglob("*")
    return sorted(str(p.relative_to(folder)) for p in paths if p.is_file() or p.name.startswith("."))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_environment_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path))
    assert data.available() == ["digits", "mnist"]
    assert data.load("mnist").shape == (1, 5, 4)
    assert data.available(tmp_path / "elsewhere") == ["digits"]
