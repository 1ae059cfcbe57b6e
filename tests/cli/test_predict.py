"""Claims about `espalier predict`: a table of an exported folder or of a run, or one sentence and nothing written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from commands import spoken
from espalier.cli.main import main


@pytest.fixture
def x(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=load_digits().images[:7].astype(np.uint8))
    return tmp_path / "x.npz"


def test_a_folder_and_its_run_say_the_same_of_the_same_network(
    run: Path, x: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", str(tmp_path / "net")]) == 0
    for source, words in ((tmp_path / "net", []), (run, ["--how", "ticket"])):
        assert main(["predict", str(source), "--data", str(x), "--out", str(tmp_path / f"{source.name}.csv"), *words]) == 0
    assert "7 rows, columns row, class, confidence, p(0), p(1), p(2), ..." in capsys.readouterr().out
    tables = [list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines())) for name in ("net", run.name)]
    for mine, theirs in zip(*tables, strict=True):
        assert (mine["row"], mine["class"]) == (theirs["row"], theirs["class"])
        assert float(mine["confidence"]) == pytest.approx(float(theirs["confidence"]), abs=1e-6)


def test_a_run_says_how_far_its_masks_differ(run: Path, x: Path, tmp_path: Path) -> None:
    out = tmp_path / "said.parquet"
    assert main(["predict", str(run), "--data", str(x), "--out", str(out), "--num-samples", "3"]) == 0
    from pyarrow import parquet

    table = parquet.read_table(out)
    assert table.column_names[-1] == "mutual_information"
    assert table.num_rows == 7


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "said.csv"], "the following arguments are required: --data"),
        (["--data", "x.npz", "--out", "said.xlsx"], "expected the name of a .csv or .parquet file"),
        (["--data", "none.npz", "--out", "said.csv"], "expected an .npz file or a folder of images at none.npz, got nothing"),
        (["--data", "x.npz", "--out", "x.npz"], "expected the name of a .csv or .parquet file"),
        (["--data", "x.npz", "--out", "said.csv", "--num-samples", "0"], "expected --num-samples of 1 to 10,000, got 0"),
        (["--data", "x.npz", "--out", "said.csv", "--how", "tiket"], "expected one of ticket, pairs"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(
    run: Path, x: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(x.parent)
    assert sentence in spoken(capsys, ["predict", str(run), *words])
    assert [path.name for path in x.parent.iterdir()] == ["x.npz"]
