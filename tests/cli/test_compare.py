"""`espalier compare`: what a dry run says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import spoken
from espalier.cli.main import main
from lines import finished, write


def test_a_missing_job_or_scheduler_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "lines.yaml")
    words = ["compare", str(path), "--out", str(tmp_path / "out")]
    assert spoken(capsys, [*words, "--jobs", "0"]) == "espalier: expected 1 to 1024 jobs, got 0\n"
    assert "expected the address of a Dask scheduler" in spoken(capsys, [*words, "--scheduler="])
    assert "expected seconds to wait, above 0" in spoken(capsys, [*words, "--scheduler", "tcp://127.0.0.1:9", "--wait", "0"])
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, out, _ = finished(tmp_path)
    words = ["compare", str(out.parent / "lines.yaml"), "--dry-run"]
    assert main([*words, "--out", str(out.parent / "none")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("6 runs, 6 to train\n")
    assert "12 cells, 12 to score\n" in text
    assert f"  score  RigL + TS, sparsity 0.8, seed 0: unmasked of {grid.cells[0].runs[0]}, temperature\n" in text
    assert not (out.parent / "none").exists()
    assert main([*words, "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("6 runs, 0 to train\n")
