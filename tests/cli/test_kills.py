"""Claims about commands that are killed at any moment: called again, they leave what they would have left."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import tally


def killed(folder: Path, kills: int, *commands: str) -> None:
    found = tally("kills.py", folder, kills, *commands)
    assert {name: own["different"] for name, own in found.items()} == {name: [] for name in commands}
    assert all(own["landed"] for own in found.values()), "no kill landed: nothing was tried"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "distilled", "lottery", "certify", "compare"])
def test_forty_kills_of_every_command(tmp_path: Path, command: str) -> None:
    killed(tmp_path, 40, command)
