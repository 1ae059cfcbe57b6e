"""Claims about two commands at once in one folder: one has it, the other is told in a sentence, nothing is mixed or lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from places import HELPERS

SENTENCES = ("another process is at work in it", "exists: choose another --out", "its confidence is spent")


def raced(folder: Path, races: int, *commands: str) -> None:
    words = [sys.executable, str(HELPERS / "race.py"), str(folder), str(races), *commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HELPERS)])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, env=environment)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    for name, found in json.loads(done.stdout).items():
        assert found["broken"] == [], name
        assert all(winners >= 1 for winners in found["won"]), name
        assert all(line.startswith("2: espalier: expected") for line in found["said"]), found["said"]
        assert all(any(sentence in line for sentence in SENTENCES) for line in found["said"]), found["said"]
        if name in ("fit", "certify"):
            assert found["won"] == [1] * races, name


def test_of_two_commands_at_once_one_has_the_folder(tmp_path: Path) -> None:
    raced(tmp_path, 1, "fit", "certify")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "resume", "certify", "compare", "theory", "evaluate"])
def test_fifty_races_of_every_command(tmp_path: Path, command: str) -> None:
    raced(tmp_path, 50, command)
