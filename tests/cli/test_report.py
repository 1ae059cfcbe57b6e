"""Claims about `espalier report`: a page, or one sentence and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.cli.main import main


def test_a_run_becomes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0
    assert "MiB, opens anywhere" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0  # its own page is made anew


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-samples", "0"], "expected --num-samples of 1 to 10,000, got 0"),
        (["--split", "tset"], "expected a split of"),
        (["--out", "."], "expected the name of an HTML file"),
    ],
)
def test_what_makes_no_page_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
