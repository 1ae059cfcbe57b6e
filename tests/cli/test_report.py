"""Claims about `espalier report`: a page, or one sentence and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from espalier.cli.main import main


def test_a_run_becomes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0
    assert "MiB, opens anywhere" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0  # its own page is made anew


def test_groups_and_calibrators_of_ones_choice_stand_on_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file = tmp_path / "page.html", tmp_path / "groups.csv"
    file.write_text("half\n" + "".join(f"{'low' if label < 5 else 'high'}\n" for label in load_digits().target))
    words = ["report", str(run), "--out", str(page), "--num-samples", "2", "--replicates", "0"]
    assert main([*words, "--by", str(file), "half", "--calibrate", "vector"]) == 0
    text = page.read_text()
    assert "By half</h2>" in text
    assert "ticket + vector" in text
    assert "ticket + temperature" not in text
    capsys.readouterr()
    assert main([*words, "--by", str(file), "whole"]) == 2
    assert "which are half, got 'whole'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-samples", "0"], "expected --num-samples of 1 to 10,000, got 0"),
        (["--split", "tset"], "expected a split of"),
        (["--out", "."], "expected the name of an HTML file"),
        (["--calibrate", "platt"], "expected calibrators of temperature"),
        (["--by", "none.csv"], "expected a CSV file of groups at none.csv, got nothing"),
    ],
)
def test_what_makes_no_page_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
