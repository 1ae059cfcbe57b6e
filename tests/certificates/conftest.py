"""A run to certify: trained once a file, copied for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

import clouds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clouds.made(tmp_path_factory.mktemp("certify"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that no one has looked at, with data of its own beside it."""
    return clouds.copied(folder, tmp_path)
