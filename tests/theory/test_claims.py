"""What a claim is, and what checking it finds."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch

from espalier import theory
from espalier.distributions import masked
from espalier.theory import claims, kl, sbc
from espalier.theory.claims import Finding
from rewritten import KL_WITHOUT_P, Rewrite, rewritten


def test_every_claim_says_what_and_whence() -> None:
    for name, claim in theory.catalogue().items():
        assert claim.name == name
        assert 20 <= len(claim.says) <= 220
        assert claim.source


@pytest.mark.parametrize(
    ("discrepancy", "verdict"), [(0.0, "holds"), (1.0, "holds"), (1.0001, "fails"), (math.nan, "fails"), (math.inf, "fails")]
)
def test_a_claim_holds_up_to_its_tolerance_and_not_on_a_nan(discrepancy, verdict) -> None:
    assert Finding("a", discrepancy, 1.0, "").verdict == verdict


def test_the_limit_is_the_normal_quantile_shared_by_the_looks() -> None:
    draws = np.abs(np.random.default_rng(0).standard_normal((200_000, 5)).max(1))
    assert claims.limit(1) == pytest.approx(4.8916, abs=1e-3)  # Phi^-1(1 - 5e-7)
    assert claims.limit(5) > claims.limit(1)
    assert (draws > claims.limit(5)).mean() < 1e-4


def test_the_worst_z_is_in_standard_errors_and_forgives_rounding() -> None:
    z, tolerance = claims.worst_z([1.0, 2.5, 3 + 1e-13], [1.0, 2.0, 3.0], [0.1, 0.25, 0.0])
    assert z == pytest.approx(2.0)
    assert tolerance == claims.limit(3)
    assert claims.worst_z([1.0], [2.0], [0.0])[0] == math.inf  # no error bar, yet apart


def test_rewritten_code_reaches_whoever_holds_the_function_and_is_taken_back() -> None:
    held, mean = kl.check_bound.__kwdefaults__["bound"], torch.ones(())
    before = held(mean, 0.5, 1.0, 0.1)
    with rewritten(Rewrite(masked.kl_bound, "keep_prob * mean", "mean", anew=False)):
        assert held(mean, 0.5, 1.0, 0.1) == before + 0.25
    assert held(mean, 0.5, 1.0, 0.1) == before


def test_a_rewrite_of_what_is_no_longer_there_is_refused() -> None:
    with pytest.raises(AssertionError, match="^expected kl_bound to have one 'drop_rate', it has 0"):  # noqa: SIM117
        with rewritten(Rewrite(masked.kl_bound, "drop_rate", "1")):
            pass


def test_what_was_kept_is_made_anew_under_a_rewrite_and_comes_back() -> None:
    kept = sbc.simulate
    with rewritten(KL_WITHOUT_P):
        assert sbc.simulate is not kept
        made = sbc.simulate
    assert sbc.simulate is kept
    with rewritten(KL_WITHOUT_P):
        assert sbc.simulate is made  # shared by the claims that the same rewrite is tried on


def test_the_worst_of_numbers_with_a_nan_is_a_nan() -> None:
    assert claims.worst(0.5, np.array([[2.0, 1.0]]), torch.tensor(-3.0)) == 2.0
    for among in ((math.nan, 1.0), (1.0, math.nan), (np.array([0.0, math.nan]), math.inf)):
        assert math.isnan(claims.worst(*among))
    assert math.isnan(claims.surprise(math.nan))
    assert claims.surprise(7.0) == 0.0


def nan_of(value: Any) -> Any:
    """The same with NaN for every number that is none of counting."""
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, math.nan) if value.is_floating_point() else value
    if isinstance(value, np.ndarray):
        return np.full_like(value, math.nan) if value.dtype.kind == "f" else value
    if isinstance(value, tuple):
        return tuple(map(nan_of, value))
    return math.nan if isinstance(value, float) else value


@pytest.mark.parametrize(("name", "formula"), [
    ("literal-marginal", "cdf"), ("subsets-large", "reference"), ("kl-bound", "entropy"), ("kl-gal", "approximation"),
    ("kl-monte-carlo", "log_density"), ("objective-prior-scale", "prior"), ("approximation-rate", "count"),
    ("nngp-kernel", "expectation"), ("deep-gp-reference", "posterior"), ("deep-gp-reference", "elbo"),
])  # fmt: skip
def test_a_formula_that_gives_nan_does_not_hold(name: str, formula: str) -> None:
    check = theory.catalogue()[name].check
    own = inspect.signature(check).parameters[formula].default
    assert check(True, **{formula: lambda *a, **k: nan_of(own(*a, **k))}).verdict == "fails"


def test_a_check_leaves_the_world_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()

    def careless(quick: bool) -> Finding:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(1)
        raise RuntimeError("and it ends badly")

    with pytest.raises(RuntimeError, match="badly"):
        claims.apart(careless)(True)
    assert torch.get_default_dtype() == torch.float32
    theory.catalogue()["objective-cigl"].check(True)
    assert torch.equal(torch.random.get_rng_state(), before)
