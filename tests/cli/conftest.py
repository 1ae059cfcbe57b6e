"""A finished run, for the tests that read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, with options of every owner."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert fit(folder, "--hidden", "32,16", "--sparsity", "0.8", "--drop_rate", "0.2", "--rescale") == 0
    return folder
