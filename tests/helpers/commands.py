"""Commands of `espalier` in this process: a small fit, and the one sentence of what must fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.cli.main import main

TINY = ["--data", "digits", "--train-size", "150", "--epochs", "2", "--batch-size", "50", "--delta-t", "2"]
WAYS = {"ticket", "pairs", "redraw", "mean", "unmasked"}


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
