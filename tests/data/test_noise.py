"""Wrong labels to train on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from espalier import data, runs
from espalier.cli.main import main
from espalier.contracts import Data
from espalier.data import from_arrays, load, with_label_noise


def digits(noise: float | str = 0.0, **options: object) -> Data:
    return load("digits", label_noise=noise, **options)  # type: ignore[arg-type]


def test_so_many_are_wrong_and_all_others_are_as_likely() -> None:
    rows, rate = 60_000, 0.3
    x, y = np.zeros((rows, 1)), np.arange(rows) % 4
    x[:, 0] = np.arange(rows)
    clean = from_arrays(x, y, validation=0.1, calibration=0.1)
    noisy = with_label_noise(clean, rate, seed=5)
    wrong = (noisy.train.y != clean.train.y).numpy()
    assert noisy.replaced == wrong.sum()
    assert abs(wrong.mean() - rate) < 4.5 * np.sqrt(rate * (1 - rate) / len(wrong))
    shift = ((noisy.train.y - clean.train.y) % 4).numpy()[wrong]
    counts = np.array([[((shift == k) & (clean.train.y.numpy()[wrong] == c)).sum() for k in (1, 2, 3)] for c in range(4)])
    assert stats.chisquare(counts.ravel(), np.repeat(counts.sum(1) / 3, 3)).pvalue > 1e-6


def test_no_other_part_is_touched_and_a_smaller_training_set_has_the_same_wrong_labels() -> None:
    clean, noisy, fewer = digits(), digits(0.2), digits(0.2, train_size=300)
    for part in ("validation", "calibration", "test"):
        assert torch.equal(getattr(noisy, part).y, getattr(clean, part).y)
        assert noisy.hashes[part] == clean.hashes[part]
    assert torch.equal(noisy.train.x[:], clean.train.x[:])
    assert torch.equal(fewer.train.y, noisy.train.y[:300])
    assert fewer.replaced == int((fewer.train.y != clean.train.y[:300]).sum()) > 30
    assert len({clean.hashes["train"], noisy.hashes["train"], digits(0.2, split_seed=1).hashes["train"]}) == 3
    assert torch.equal(digits(0.2).train.y, noisy.train.y)
    assert clean.replaced == 0
    assert clean.hashes == digits(0.0).hashes
    assert with_label_noise(clean, 0.3, seed=1).hashes["train"] != with_label_noise(clean, 0.3, seed=2).hashes["train"]


def test_another_annotators_labels(tmp_path: Path) -> None:
    clean = digits()
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 10, clean.source_rows).astype(np.uint8)
    np.savez(tmp_path / "theirs.npz", worse=theirs, few=theirs[:5], wrong=theirs + 3)
    noisy = digits(f"{tmp_path}/theirs.npz:worse")
    assert torch.equal(noisy.train.y, torch.from_numpy(theirs.astype(np.int64)[clean.rows["train"]]))
    assert noisy.replaced == int((noisy.train.y != clean.train.y).sum())
    for name, said in (
        ("few", "expected a label for every row of digits that is trained on, the last is 179., got 5"),
        ("wrong", "expected labels of 0, 1, 2"),
        ("none", "expected labels 'none' in .*theirs.npz, which holds worse, few, wrong"),
    ):
        with pytest.raises(ValueError, match=said):
            digits(f"{tmp_path}/theirs.npz:{name}")
    with pytest.raises(FileNotFoundError, match="expected an .npz file of labels at"):
        digits(f"{tmp_path}/nobody.npz:worse")
    with pytest.raises(ValueError, match="expected label_noise as a number in .0, 1., or labels as FILE.npz:NAME, got 'half'"):
        digits("half")


def test_labels_with_names_are_looked_up_by_name(tmp_path: Path) -> None:
    x, y = np.arange(40.0)[:, None], np.array(["cat", "dog"] * 20)
    clean = from_arrays(x, y, validation=0.0, calibration=0.0)
    np.savez(tmp_path / "named.npz", y=y[::-1])
    noisy = with_label_noise(clean, f"{tmp_path}/named.npz:y")
    assert torch.equal(noisy.train.y, 1 - clean.train.y)
    assert noisy.replaced == len(clean.train.y)


def test_what_has_no_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a label_noise in .0, 1., the share of labels that are wrong, got 1"):
        digits(1.0)
    regression = from_arrays(np.arange(30.0)[:, None], np.arange(30.0), name="line")
    with pytest.raises(ValueError, match="expected one label a row to put noise into, got line without: drop label_noise"):
        with_label_noise(regression, 0.1)
    with pytest.raises(ValueError, match="expected data that know which rows of their source they train on"):
        with_label_noise(digits()._replace(rows={}), 0.1)


def test_a_run_records_it_and_is_loaded_with_it(tmp_path: Path) -> None:
    words = ["fit", "--model", "mlp", "--hidden", "8", "--inference", "rigl", "--data", "digits", "--epochs", "1"]
    assert main([*words, "--label-noise", "0.25", "--train-size", "200", "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    expected = data.load("digits", label_noise=0.25, train_size=200)
    assert record["data"]["replaced_labels"] == expected.replaced > 20
    assert record["data"]["hashes"]["train"] == expected.hashes["train"]
    assert runs.data_of(tmp_path / "run").hashes == expected.hashes
