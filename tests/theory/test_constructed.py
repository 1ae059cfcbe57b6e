"""Networks written down: products, cells and polynomials are what they are said to be; functions are as smooth as they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import expit
from torch import nn

from espalier.theory.approximation import built, cost_of_products, lattice, scale_of_products, spread
from espalier.theory.constructed import (
    STEEPNESS,
    Affine,
    Target,
    bend,
    bumps,
    construct,
    exponential,
    outputs,
    power,
    products,
)

SMOOTH = {target.name: target for target in (
    power(1, 0.5), power(2, 1.5), power(1, 2.5), power(1, 3), power(2, 4), exponential(3, 3), exponential(2, 4),
    bumps(1, 3, 4, ((1,),)), bumps(2, 2, 3, ((0, 2), (1, 1))),
)}  # fmt: skip


def _derivatives(x: np.ndarray, count: int) -> np.ndarray:
    """`(count + 1, n)`: of the logistic function at x `(n,)`, by autograd."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    values = [torch.sigmoid(at)]
    for _ in range(count):
        values.append(torch.autograd.grad(values[-1].sum(), at, create_graph=True)[0])
    return torch.stack(values).detach().numpy()


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_bend_is_where_the_next_but_one_derivative_vanishes(m: int) -> None:
    found = bend(m)
    derivatives = _derivatives(np.array([found.bias]), m + 2)[:, 0]
    assert derivatives[m] == pytest.approx(found.slope, rel=1e-9)
    assert abs(derivatives[m + 2]) < 1e-9
    highest = np.abs(_derivatives(np.linspace(-6, 6, 481), m + 4)[-1]).max()
    assert highest <= 72 * found.error * abs(found.slope) * (1 + 1e-9)
    assert highest >= 0.98 * 72 * found.error * abs(found.slope)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_products_are_off_by_at_most_their_bound_and_of_fourth_order(m: int) -> None:
    rng = np.random.default_rng(m)
    u, errors = rng.uniform(-1, 1, (500, m)), []
    truth, norm = u.prod(1), (u**2).sum(1)
    for h in (0.2, 0.1):
        units, read = products(Affine(sparse.eye_array(m, format="csr"), np.zeros(m)), np.arange(m)[None], h)
        found = read @ expit(units.matrix @ u.T + units.shift[:, None])
        errors.append(np.abs(found[0] / truth - 1))
        assert (errors[-1] <= bend(m).error * h**4 * norm**2 + 1e-9 / np.abs(truth)).all()
    top = norm.argmax()
    assert errors[0][top] / errors[1][top] == pytest.approx(16, rel=0.05)


def test_a_number_may_be_a_factor_twice() -> None:
    units, read = products(Affine(sparse.eye_array(2, format="csr"), np.array([0.3, 0.0])), np.array([[0, 0], [0, 1]]), 0.1)
    found = read @ expit(units.matrix @ np.array([0.5, -0.7]) + units.shift)
    np.testing.assert_allclose(found, [0.8**2, 0.8 * -0.7], rtol=1e-4)


def _sum_over_cells(target: Target, n: int, x: np.ndarray) -> np.ndarray:
    """sum_j P(Y = j) P_j(x), each polynomial by its definition and each probability by the logistic distribution function."""
    at_least = np.stack([np.ones_like(x), *(expit(STEEPNESS * (n * x - k)) for k in range(1, n)), np.zeros_like(x)])
    chance, total = at_least[:-1] - at_least[1:], np.zeros(len(x))
    for cell in itertools.product(range(n), repeat=target.dim):
        centre = (np.array(cell) + 0.5) / n
        taylor = np.zeros(len(x))
        for orders in itertools.product(range(target.degree + 1), repeat=target.dim):
            if sum(orders) <= target.degree:
                size = float(target.derivative(centre[None], orders)[0]) / math.prod(map(math.factorial, orders))
                taylor += size * ((x - centre) ** np.array(orders)).prod(1)
        total += math.prod(chance[j, :, i] for i, j in enumerate(cell)) * taylor
    return total


@pytest.mark.parametrize("target", [power(1, 4), power(2, 2.5), exponential(2, 3), exponential(3, 2), bumps(2, 2, 3, ((0, 2),))])
def test_the_network_is_the_expected_taylor_polynomial_of_a_random_cell(target: Target) -> None:
    n = 3
    x = np.random.default_rng(0).random((300, target.dim))
    net, h = built(target, n), scale_of_products(target, n)
    hidden = [part for part in net if isinstance(part, nn.Linear)][:-1]
    assert len(hidden) == sum(isinstance(part, nn.Sigmoid) for part in net) == 3
    gap = np.abs(outputs(net, x) - _sum_over_cells(target, n, x)).max()
    assert gap <= spread(target) * cost_of_products(target.dim, target.degree, h)
    dense = net(torch.from_numpy(x))[:, 0].detach().numpy()
    np.testing.assert_allclose(outputs(net, x), dense, atol=1e-9)


def test_finer_products_come_nearer_at_fourth_order() -> None:
    target, n = exponential(2, 3), 2
    x = np.random.default_rng(1).random((200, 2))
    truth = _sum_over_cells(target, n, x)
    gaps = [np.abs(outputs(construct(target, n, h, spread(target)), x) - truth).max() for h in (0.2, 0.1)]
    assert gaps[0] / gaps[1] == pytest.approx(16, rel=0.1)


def test_two_hidden_layers_are_one_number_a_cell() -> None:
    target, n = power(2, 3), 4
    net = built(target, n, depth=2)
    assert sum(isinstance(part, nn.Sigmoid) for part in net) == 2
    centres = (lattice(2, n - 1) * (n - 1) + 0.5) / n
    np.testing.assert_allclose(outputs(net, centres), target.at(centres), atol=5e-3)


def test_cells_where_the_function_is_zero_are_not_built() -> None:
    target = bumps(2, 2, 4, ((1, 2), (3, 0)))
    last = [part for part in built(target, 8) if isinstance(part, nn.Linear)][-1]
    assert last.in_features == 4 * 2 * 2**2  # 4 units a cell, 2 parts of 2 x 2 cells
    x = lattice(2, 40)
    apart = np.abs(4 * x[:, None] - np.array([[1.5, 2.5], [3.5, 0.5]])).max(2).min(1) > 1.2
    assert np.abs(outputs(built(target, 8), x[apart])).max() < 1e-3 * np.abs(target.at(x)).max()


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_those_of_the_function(name: str) -> None:
    target, step = SMOOTH[name], 1e-6
    x = 0.01 + 0.98 * np.random.default_rng(2).random((50, target.dim))
    x = x[np.abs(x.sum(1) - 0.37 * target.dim) > 0.01]  # off the kink
    for orders in itertools.product(range(target.degree + 1), repeat=target.dim):
        if sum(orders) < target.degree:
            for i in range(target.dim):
                ahead = np.eye(target.dim)[i] * step
                slope = (target.derivative(x + ahead, orders) - target.derivative(x - ahead, orders)) / (2 * step)
                more = target.derivative(x, tuple(np.add(orders, np.eye(target.dim, dtype=int)[i]).tolist()))
                np.testing.assert_allclose(slope, more, atol=2e-5 * max(1.0, target.size))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_highest_derivatives_are_as_near_as_said_and_nothing_is_larger_than_said(name: str) -> None:
    target = SMOOTH[name]
    rng, r = np.random.default_rng(3), target.degree
    x = rng.random((20_000, target.dim))
    t = np.clip(x + 10.0 ** rng.uniform(-3, 0, (len(x), 1)) * rng.standard_normal(x.shape), 0, 1)
    apart = np.abs(x - t).sum(1) ** (target.smoothness - r)
    highest = 0.0
    for orders in itertools.product(range(r + 1), repeat=target.dim):
        if sum(orders) <= r:
            assert np.abs(target.derivative(x, orders)).max() <= target.size * (1 + 1e-12)
        if sum(orders) == r:
            gap = np.abs(target.derivative(x, orders) - target.derivative(t, orders))
            highest = max(highest, float((gap / np.maximum(apart, 1e-12)).max()))
    assert 0.3 * target.holder < highest <= target.holder * (1 + 1e-9)


@pytest.mark.parametrize(("n", "depth"), [(1, 3), (4, 1)])
def test_a_network_that_cannot_be_is_refused(n: int, depth: int) -> None:
    with pytest.raises(ValueError, match="^expected at least 2 cells a side and 2 or 3 hidden layers, got"):
        construct(power(1, 2), n, 0.1, 1.0, depth)


@pytest.mark.parametrize(("dim", "smoothness"), [(0, 2.0), (1, 0), (2, -1.0)])
def test_a_function_of_no_smoothness_is_refused(dim: int, smoothness: float) -> None:
    with pytest.raises(ValueError, match="expected a dim of at least 1 and a smoothness above 0"):
        power(dim, smoothness)
