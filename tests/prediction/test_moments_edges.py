"""Means and variances where a rule's premise does not hold: what is done instead, or said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.prediction.moments import Moments, Unknown

P = 0.7


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(seed: int, *shape: int) -> Any:
    return Moments(normal(seed, *shape), normal(seed + 100, *shape).square() + 0.1)


def masked(u: Tensor) -> Any:
    return Moments(P * u, P * (1 - P) * u.square(), (1 - P) / P)


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh])
def test_a_number_times_a_function_of_itself_is_one_function(function: Callable[[Any], Any]) -> None:
    """Beside a grid of the normal density; taken for independent, x sigmoid(x) of N(0, 1) would have mean 0."""
    x: Any = Moments(torch.tensor([0.0, 0.7, -1.0], dtype=torch.float64), torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64))
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = (-z.square() / 2).exp()
    density /= density.sum()
    at = x.loc[:, None] + x.variance.sqrt()[:, None] * z
    mean = (at * function(at) * density).sum(1)
    variance = ((at * function(at) - mean[:, None]).square() * density).sum(1)
    for found in (x * function(x), function(x) * x):
        torch.testing.assert_close(found.loc, mean, rtol=2e-3, atol=1e-3)
        torch.testing.assert_close(found.variance, variance, rtol=2e-3, atol=1e-3)


def test_a_number_that_was_written_into_is_another() -> None:
    x = some(0, 4)
    gate = torch.sigmoid(x)
    x += 1.0
    found: Any = x * gate
    torch.testing.assert_close(found.loc, x.loc * gate.loc)


def test_weights_that_were_written_into_have_another_variance() -> None:
    """Beside masks: of W + 3 I the ratio of variance to loc^2 is that of W no more."""
    u, x = normal(0, 6, 6), normal(1, 4, 6)
    weight = masked(u).clone()
    weight += 3 * torch.eye(6, dtype=torch.float64)
    found: Any = F.linear(x, weight)
    variance = x.square() @ (P * (1 - P) * u.square()).t()
    torch.testing.assert_close(found.variance, variance)
    torch.testing.assert_close(found.loc, x @ (P * u + 3 * torch.eye(6, dtype=torch.float64)).t())


@pytest.mark.parametrize("random", ["input", "weight", "both", "neither"])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_masked_bias_adds_its_own(kind: str, random: str) -> None:
    image = (3, 2, 5, 5) if kind == "conv2d" else (3, 2)
    shape, function = ((4, 2, 3, 3), F.conv2d) if kind == "conv2d" else ((4, 2), F.linear)
    x = some(0, *image) if random in ("input", "both") else normal(0, *image)
    w: Any = masked(normal(1, *shape)) if random in ("weight", "both") else normal(1, *shape)
    bias = normal(2, 4)
    found: Any = function(x, w, masked(bias))
    plain: Any = function(x, w)
    loc, variance = (plain.loc, plain.variance) if isinstance(plain, Moments) else (plain, torch.zeros_like(plain))
    own = (P * bias, P * (1 - P) * bias.square())
    loc_bias, variance_bias = (part.view(-1, 1, 1) if kind == "conv2d" else part for part in own)
    torch.testing.assert_close(found.loc, loc + loc_bias)
    torch.testing.assert_close(found.variance, variance + variance_bias)


def test_a_sum_has_torchs_factor() -> None:
    x, y = some(0, 3), some(1, 3)
    found: Any = torch.add(x, y, alpha=0.5)
    torch.testing.assert_close(found.loc, x.loc + 0.5 * y.loc)
    torch.testing.assert_close(found.variance, x.variance + 0.25 * y.variance)
    plain: Any = torch.sub(x, torch.ones(3, dtype=torch.float64), alpha=2)
    torch.testing.assert_close(plain.loc, x.loc - 2)


@pytest.mark.parametrize("power", [0.5, -1, torch.nn.Parameter(torch.full((1,), 2.5))])
def test_a_root_of_what_may_lie_below_zero_at_a_node_is_refused(power: Any) -> None:
    with pytest.raises(Unknown, match="a power that is not 0, 1, 2, ..."):
        some(0, 3) ** power
