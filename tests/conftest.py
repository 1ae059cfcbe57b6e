"""Fixtures of several folders, asked for by name: `pytestmark = pytest.mark.usefixtures("float64")`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch

from espalier.runs import trust

# Marks of trust go here, and not to whoever runs the tests; other processes follow.
os.environ.setdefault("ESPALIER_STATE", tempfile.mkdtemp(prefix="espalier-state-"))
trust.remember(Path(__file__).parent / "helpers" / "programs.py")


@pytest.fixture
def own_store() -> Iterator[None]:
    """A parameter store that no other test sees."""
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def own_stream() -> Iterator[None]:
    """A random stream that no other test sees."""
    with torch.random.fork_rng():
        yield


@pytest.fixture
def float64(own_store: None) -> Iterator[None]:
    """Double precision, Pyro's validation on, and a parameter store of its own."""
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(torch.float32)
