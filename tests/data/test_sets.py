"""Data sets by name and path: where their files are looked for, and the sentences for what is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier import data
from espalier.data import downloads
from written import PARTS, cifar_parts, toy, write_cifar_binary, write_mnist


def test_digits_are_cut_by_seed_and_need_no_files(tmp_path: Path) -> None:
    d = data.load("digits", data_dir=tmp_path, train_size=100)
    assert (d.name, d.shape, d.num_classes, d.num_outputs) == ("digits", (1, 8, 8), 10, 10)
    assert [len(getattr(d, part).y) for part in PARTS] == [100, 144, 144, 359]
    assert (d.train.x[:].dtype, d.train.y.dtype) == (torch.float32, torch.int64)


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
        ({"image_size": 32}, "expected a whole image_size > 0, and for folders of images alone, got 32; drop it"),
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
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"expected an \.npz file or a folder of images, got the file .*rows\.csv: write its"):
        data.load(tmp_path / "rows.csv")


def test_a_set_may_be_named_by_a_path(tmp_path: Path) -> None:
    path = toy(tmp_path)
    assert data.load(Path(path)).facts() == data.load(str(path)).facts()


def test_the_environment_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path))
    assert data.available() == ["digits", "mnist"]
    assert data.load("mnist").shape == (1, 5, 4)
    assert data.available(tmp_path / "elsewhere") == ["digits"]
