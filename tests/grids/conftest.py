"""A small grid that is done, for the tests that read it."""

from __future__ import annotations

from pathlib import Path

import pytest

import lines
from espalier.grids import compare
from espalier.grids.grid import Grid


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path, compare.Outcome]:
    """The grid of LINES, done in this process."""
    return lines.finished(tmp_path_factory.mktemp("grid"))
