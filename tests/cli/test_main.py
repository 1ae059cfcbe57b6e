"""The command line itself: help that answers at once."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from commands import spoken
from soon import of_children


def test_help_answers_in_under_half_a_second() -> None:
    words = [sys.executable, "-c", "from espalier.cli.main import main; raise SystemExit(main(['--help']))"]
    times = [of_children()]  # the clock on the wall also counts what else a busy machine does
    for _ in range(5):
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        times.append(of_children())
    assert "espalier fit" in done.stdout
    assert min(after - before for before, after in itertools.pairwise(times)) < 0.5


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from espalier.cli.main import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "pyro", "numpy", "matplotlib", "arviz", "jsonargparse", "rich"):
        assert f"'{heavy}'" not in done.stderr


@pytest.mark.parametrize("words", [["x" * 10**6], ["fit", "--model", "y" * 10**6], ["compare", "--jobs", "9" * 10**6]])
def test_a_sentence_stays_one_that_a_person_reads(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(spoken(capsys, words)) < 1100


def test_a_warning_of_ours_is_a_note_without_a_line_of_code(tmp_path: Path) -> None:
    words = ["fit", "--model", "mlp", "--inference", "cigl", "--data", "digits", "--epochs", "1"]
    line = [sys.executable, "-m", "espalier", *words, "--out", tmp_path / "run"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "espalier: note: the drop rate stays at 0.01, where it begins" in done.stderr
    assert "UserWarning" not in done.stderr
