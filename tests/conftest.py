"""Fixtures of several folders, asked for by name: `pytestmark = pytest.mark.usefixtures("float64")`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

from espalier.runs import trust
from espalier.sparse import kernels

# Marks of trust go here, and not to whoever runs the tests; other processes follow.
os.environ.setdefault("ESPALIER_STATE", tempfile.mkdtemp(prefix="espalier-state-"))
# Numbers by torch's kernels, also where others have been compiled; tests of those ask for them.
os.environ.setdefault("ESPALIER_KERNELS", "torch")
trust.remember(Path(__file__).parent / "helpers" / "programs.py")
# The same examples each time, and no verdict by the clock of a machine that does other things too.
settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")


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


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> kernels.Kernels:
    """The kernels of our own, compiled here and now."""
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None:
        pytest.skip("no C compiler on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return kernels.Compiled(kernels.build())


@pytest.fixture
def by_compiled(compiled: kernels.Kernels) -> Iterator[None]:
    """Products by the kernels of our own."""
    with kernels.using(compiled):
        yield
