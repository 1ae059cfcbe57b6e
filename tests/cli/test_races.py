"""Claims about two commands at once in one folder: one has it, the other is told in a sentence, nothing is mixed or lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import tally

SENTENCES = ("another process is at work in it", "exists: choose another --out", "its confidence is spent")


def raced(folder: Path, races: int, *commands: str) -> None:
    for name, found in tally("race.py", folder, races, *commands).items():
        assert found["broken"] == [], name
        assert all(winners >= 1 for winners in found["won"]), name
        assert all(line.startswith("2: espalier: expected") for line in found["said"]), found["said"]
        assert all(any(sentence in line for sentence in SENTENCES) for line in found["said"]), found["said"]
        if name in ("fit", "certify"):
            assert found["won"] == [1] * races, name


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "resume", "certify", "compare", "theory", "evaluate"])
def test_fifty_races_of_every_command(tmp_path: Path, command: str) -> None:
    raced(tmp_path, 50, command)
