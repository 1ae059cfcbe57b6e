"""Commands of `espalier` in this process: a small fit, and the one sentence of what must fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espalier.cli.main import main
from places import HELPERS

TINY = ["--data", "digits", "--train-size", "150", "--epochs", "2", "--batch-size", "50", "--delta-t", "2"]
WAYS = {"ticket", "pairs", "redraw", "mean", "unmasked", "moments"}


def fit(out: Path, *words: str, model: str = "mlp", inference: str = "cigl") -> int:
    return main(["fit", "--model", model, "--inference", inference, *TINY, "--out", str(out), *words])


def spoken(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one sentence of a command that must fail."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("espalier: ")
    assert err.count("\n") == 1
    return err


def tally(script: str, folder: Path, count: int, *commands: str) -> dict[str, Any]:
    """What `race.py` or `kills.py` counted, by command; shown, too."""
    words = [sys.executable, str(HELPERS / script), str(folder), str(count), *commands]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path, str(HELPERS)])}
    done = subprocess.run(words, capture_output=True, text=True, timeout=3600, env=environment)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
