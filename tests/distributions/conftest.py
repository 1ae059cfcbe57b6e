"""Both algorithms of the distribution over subsets, for the laws that hold for each."""

from __future__ import annotations

import pytest

from espalier.distributions import subsets


@pytest.fixture(params=["tree", "contour"])
def route(request, monkeypatch):
    """Both sides of the exact limit, at any n; beyond it four items are left open to the sampler."""
    if request.param == "contour":
        monkeypatch.setattr(subsets, "EXACT_LIMIT", -1)
        monkeypatch.setattr(subsets, "CORE", 4)
    return request.param
