"""Known optima of the objective: the linear model with and without a mask, ridge regression."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn.linear_model import Ridge
from torch import Tensor

from budget import assert_mean
from espalier import shelf
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Loop
from espalier.training.rates import constant
from rounding import close

pytestmark = pytest.mark.usefixtures("float64")


class Linear(NamedTuple):
    """A linear regression with all weights active, its guide, its data, and its closed-form optimum."""

    model: BayesianNetwork
    guide: MaskedGuide
    x: Tensor
    y: Tensor
    optimum: Tensor


TAU, PRIOR = 2.3, 0.6


def optimum_of(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Where E_Z |y - X (Z u)|^2 tau/2 + p |u|^2 / 2v has no slope.

    E_Z |y - X (Z u)|^2 = |y - p X u|^2 + p (1-p) sum_j u_j^2 |x_j|^2, whose slope, over p tau, is set to 0.
    """
    gram = x.T @ x
    system = p * gram + (1 - p) * torch.diag(torch.diag(gram)) + torch.eye(x.shape[1]) / (TAU * PRIOR**2)
    return torch.linalg.solve(system, x.T @ y)


def linear(p: float, d: int = 6, n: int = 40) -> Linear:
    torch.manual_seed(5)
    x = torch.randn(n, d) @ (torch.eye(d) + 0.4 * torch.randn(d, d))  # correlated, or ridge and masks would agree
    y = x @ torch.randn(d) + TAU**-0.5 * torch.randn(n)
    program = shelf.load("models", "linear")
    model = program((d,), 1, noise_precision=TAU, learn_precision=False, bias=False, prior_scale=PRIOR)
    model.num_data = n
    guide = MaskedGuide(model, initial(model.shapes, 0.0), p, generator=torch.Generator().manual_seed(6))
    return Linear(model, guide, x, y, optimum_of(x, y, p))


@pytest.mark.parametrize("p", [0.75, 0.5])
def test_expected_gradient_of_the_linear_model_vanishes_at_its_optimum(
    p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = linear(p)
    slopes = {}
    for name, at in {"optimum": case.optimum, "ridge": optimum_of(case.x, case.y, 1.0)}.items():
        case.guide.values.data = at.clone()
        slopes[name] = torch.zeros(6)
        for bits in itertools.product([False, True], repeat=6):
            keep = torch.tensor(bits)
            monkeypatch.setattr("espalier.guides.masked.draw_keep", lambda *_, keep=keep: keep)
            loss = TraceMeanField_ELBO().differentiable_loss(case.model, case.guide, case.x, case.y) / len(case.y)
            (slope,) = torch.autograd.grad(loss, case.guide.values)
            slopes[name] += p ** sum(bits) * (1 - p) ** (6 - sum(bits)) * slope
    close(slopes["optimum"], torch.zeros(6))
    assert slopes["ridge"].abs().max() > 1e-2


def test_training_the_linear_model_reaches_its_optimum() -> None:
    """With a constant rate the iterates' mean is u* exactly (the gradient is linear in u, Z is fresh); average them."""
    case, blocks, length = linear(0.75), 20, 100
    loop = Loop(case.model, case.guide, schedules.static(), constant(0.02), momentum=0.0)
    for _ in range(300):
        loop.step(case.x, case.y)
    means = []
    for _ in range(blocks):
        iterates = []
        for _ in range(length):
            loop.step(case.x, case.y)
            iterates.append(case.guide.values.detach().clone())
        means.append(torch.stack(iterates).mean(0))
    assert_mean(torch.stack(means), case.optimum)
    with pytest.raises(AssertionError, match="standard errors"):  # sharp enough to tell the two apart
        assert_mean(torch.stack(means), optimum_of(case.x, case.y, 1.0))


def test_without_a_mask_training_reaches_ridge_regression() -> None:
    case = linear(1.0)
    loop = Loop(case.model, case.guide, schedules.static(), constant(0.05))
    for _ in range(600):
        loop.step(case.x, case.y)
    ridge = Ridge(alpha=1 / (TAU * PRIOR**2), fit_intercept=False, solver="cholesky")
    expected = ridge.fit(case.x.numpy(), case.y.numpy()).coef_
    np.testing.assert_allclose(case.guide.values.detach().numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(case.optimum.numpy(), expected, rtol=0, atol=1e-12)
