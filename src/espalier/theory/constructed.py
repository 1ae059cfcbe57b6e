"""For approximation: logistic networks written down weight by weight, and functions whose smoothness is known.

A constructed network is an expectation. The gates rho(a (n x_i - k)), k = 1 .. n - 1, of one coordinate are P(Y_i >= k) for the
random cell Y_i = floor(n x_i - xi_i), clipped to 0 .. n - 1, with xi_i logistic of scale 1/a; their differences P(Y_i = k) sum to
1. With f's Taylor polynomial P_j about the centre of each cell j, sum_j P(Y = j) P_j(x) = E P_Y(x). All else is products, and a
product of m numbers is 2^m units (`products`). docs/theory.md has the proof.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import gamma
from torch import nn

from espalier.sparse import kernels
from espalier.sparse.modules import SparseLinear

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STEEPNESS = 32.0
"""a: a gate's slope where cells have width 1. The steeper, the nearer the bound's constant to the best; weights grow with it."""


class Target(NamedTuple):
    """f on [0, 1]^dim whose derivatives of order r = ceil(smoothness) - 1 differ by at most holder |x - t|_1^(smoothness - r)."""

    name: str
    dim: int
    smoothness: float
    holder: float
    size: float
    """At least every |derivative| of order up to r."""
    derivative: Callable[[Floats, tuple[int, ...]], Floats]
    """Points `(n, dim)` and orders `(dim,)` -> `(n,)`."""

    @property
    def degree(self) -> int:
        """r, which is the degree of its Taylor polynomials."""
        return math.ceil(self.smoothness) - 1

    def at(self, x: Floats) -> Floats:
        return self.derivative(x, (0,) * self.dim)


@functools.cache
def power(dim: int, smoothness: float) -> Target:
    """z^s / s! of z = x_1 + .. + x_d - c for a whole s; else |z|^s, no smoother than s, scaled so that its r-th derivative is
    |z|^(s - r), or that with z's sign: Hoelder with constant 1, or 2^(1 + r - s)."""
    if dim < 1 or not smoothness > 0:
        raise ValueError(f"expected a dim of at least 1 and a smoothness above 0, got {dim} and {smoothness}")
    degree, c = math.ceil(smoothness) - 1, 0.37 * dim
    odd = int(smoothness) if smoothness == int(smoothness) else 0

    def scale(order: int) -> float:
        return float(gamma(smoothness - degree + 1) / gamma(smoothness - order + 1))

    def derivative(x: Floats, orders: tuple[int, ...]) -> Floats:
        z, k = x.sum(1) - c, sum(orders)
        return np.asarray(scale(k) * np.abs(z) ** (smoothness - k) * np.sign(z) ** (k + odd))

    size = max(scale(k) * (dim - c) ** (smoothness - k) for k in range(degree + 1))
    holder = 2 ** (1 + degree - smoothness) if degree % 2 else 1.0
    return Target(f"z^{smoothness:g}, d = {dim}", dim, smoothness, holder, size, derivative)


@functools.cache
def exponential(dim: int, smoothness: int) -> Target:
    """exp(x_1 + .. + x_d - d): no derivative of any order exceeds 1, so it has every smoothness."""
    return Target(f"exp, d = {dim}, s = {smoothness}", dim, smoothness, 1.0, 1.0, lambda x, _: np.exp(x.sum(1) - dim))


@functools.cache
def bumps(dim: int, smoothness: int, parts: int, where: tuple[tuple[int, ...], ...]) -> Target:
    """A product of (4 z (1 - z))^s, z from 0 to 1 over a part, on those parts of `parts`^dim that are in `where`; elsewhere 0."""
    one = Polynomial([0, 4, -4]) ** smoothness
    ways = [one.deriv(k) if k else one for k in range(smoothness + 1)]
    tops = [parts**k * _largest(way) for k, way in enumerate(ways)]

    def derivative(x: Floats, orders: tuple[int, ...]) -> Floats:
        cell = np.minimum(np.floor(parts * x), parts - 1)
        z = parts * x - cell
        inside = np.isin(np.ravel_multi_index(tuple(cell.T.astype(int)), (parts,) * dim), of_parts)
        return np.asarray(inside * np.prod([parts**k * ways[k](z[:, i]) for i, k in enumerate(orders)], axis=0))

    of_parts = [int(np.ravel_multi_index(part, (parts,) * dim)) for part in where]
    highest = [max(math.prod(tops[k] for k in own) for own in _orders(dim, total)) for total in range(smoothness + 1)]
    return Target(
        f"{len(where)} of {parts**dim} parts, s = {smoothness}", dim, smoothness, highest[-1], max(highest[:-1]), derivative,
    )  # fmt: skip


def _orders(dim: int, total: int) -> list[tuple[int, ...]]:
    return [orders for orders in itertools.product(range(total + 1), repeat=dim) if sum(orders) == total]


def _largest(p: Polynomial) -> float:
    """sup |p| on [0, 1]."""
    roots = p.deriv().roots()
    inner = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0) & (roots.real < 1)]
    return float(np.abs(p(np.concatenate([[0.0, 1.0], inner]))).max())


class Bend(NamedTuple):
    """Where the logistic function multiplies m numbers: there its derivative of order m + 2 vanishes, and that of m does not."""

    bias: float
    slope: float
    """rho^(m)(bias)."""
    error: float
    """kappa: 2^m units of scale h give u_1 .. u_m (1 + e) with |e| <= kappa h^4 |u|_2^4."""


@functools.cache
def bend(m: int) -> Bend:
    """rho' = rho (1 - rho), so rho^(m) is a polynomial in rho; kappa = sup |rho^(m + 4)| / (72 |rho^(m)(bias)|)."""
    rho = Polynomial([0.0, 1.0])
    ways = [rho]
    for _ in range(m + 4):
        ways.append(ways[-1].deriv() * rho * (1 - rho))
    roots = ways[m + 2].roots()
    inner = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0.5 - 1e-9) & (roots.real < 1 - 1e-6)]
    at = inner[np.abs(ways[m](inner)).argmax()]
    slope = float(ways[m](at))
    return Bend(float(np.log(at / (1 - at))), slope, _largest(ways[m + 4]) / (72 * abs(slope)))


class Affine(NamedTuple):
    """`matrix @ z + shift`: a layer before its activation, or numbers that are read from one after it."""

    matrix: sparse.csr_array
    shift: Floats


def products(of: Affine, factors: Ints, h: float) -> tuple[Affine, sparse.csr_array]:
    """Units that multiply, and what reads the products from them. factors `(count, m)`: which of the numbers `of`.

    With eps over the 2^m sign patterns, sum_eps prod(eps) rho(b + h eps.u) is an integral of h^m rho^(m)(b + h v) over |v_i| <=
    u_i, so (2 h)^m rho^(m)(b) prod(u) but for a relative error that is `Bend.error`'s.
    """
    count, m = factors.shape
    at, signs = bend(m), np.array(list(itertools.product((1.0, -1.0), repeat=m)))
    units = count * len(signs)
    rows, columns = np.repeat(np.arange(units), m), np.repeat(factors, len(signs), axis=0).ravel()
    chosen = sparse.csr_array((h * np.tile(signs, (count, 1)).ravel(), (rows, columns)), shape=(units, len(of.shift)))
    read = sparse.kron(sparse.eye_array(count), signs.prod(1)[None] / ((2 * h) ** m * at.slope), format="csr")
    return Affine(chosen @ of.matrix, at.bias + chosen @ of.shift), read


def construct(target: Target, n: int, h: float, scale: float, depth: int = 3) -> nn.Sequential:
    """The network of `depth` hidden layers: n^dim cells, of which those are built whose Taylor polynomial is not 0.

    h: scale of the products; scale: what the polynomials are divided by before the last of them. Two hidden layers have no
    place for a polynomial: they weight the cells by f at their centres.
    """
    if n < 2 or depth not in (2, 3):
        raise ValueError(f"expected at least 2 cells a side and 2 or 3 hidden layers, got {n} and {depth}")
    dim, degree = target.dim, target.degree if depth == 3 else 0
    monomials = [own for k in range(1, degree + 1) for own in itertools.combinations_with_replacement(range(dim), k)]
    cells = np.array(list(itertools.product(range(n), repeat=dim)))
    terms = _taylor(target, (cells + 0.5) / n, degree, monomials)
    cells, terms = cells[(terms != 0).any(1)], terms[(terms != 0).any(1)]

    # Layer 1: gates, and products of coordinates.
    gates = sorted({(i, k) for cell in cells for i, j in enumerate(cell.tolist()) for k in (j, j + 1) if 0 < k < n})
    axes, knots = (np.array(each) for each in zip(*gates, strict=True))
    first = [Affine(STEEPNESS * n * sparse.csr_array(np.eye(dim)[axes]), -STEEPNESS * knots)]
    centred, reads = Affine(sparse.eye_array(dim, format="csr"), np.full(dim, -0.5)), []
    for k in range(1, degree + 1):
        units, read = products(centred, np.array([own for own in monomials if len(own) == k]), h)
        first.append(units)
        reads.append(read)

    # Layer 2: products of steps, and the monomials carried on.
    steps, place = _steps(gates, n, dim)
    numbers = Affine(sparse.block_diag([steps.matrix, *reads], format="csr"), np.append(steps.shift, np.zeros(len(monomials))))
    inside, of_cells = products(numbers, np.array([[place[i, j] for i, j in enumerate(cell)] for cell in cells.tolist()]), h)
    if depth == 2:
        return _network([_stacked(first), inside], of_cells.T @ terms[:, 0])
    carried, of_monomials = products(numbers, len(steps.shift) + np.arange(len(monomials))[:, None], h)

    # Layer 3: each cell times its polynomial.
    polynomials = sparse.csr_array(terms[:, 1:] / scale) @ of_monomials
    pairs = Affine(sparse.block_diag([of_cells, polynomials], format="csr"), np.append(0 * terms[:, 0], terms[:, 0] / scale))
    last, read = products(pairs, np.arange(2 * len(cells)).reshape(2, -1).T, h)
    return _network([_stacked(first), _stacked([inside, carried]), last], scale * read.sum(0))


def _taylor(target: Target, centres: Floats, degree: int, monomials: Sequence[tuple[int, ...]]) -> Floats:
    """Coefficients `(cells, 1 + monomials)` of 1 and the monomials in x - 1/2, of f's Taylor polynomial about each centre."""
    index = {own: place for place, own in enumerate([(), *monomials])}
    terms = np.zeros((len(centres), len(index)))
    for orders in itertools.product(range(degree + 1), repeat=target.dim):
        if sum(orders) > degree:
            continue
        value = target.derivative(centres, orders) / math.prod(map(math.factorial, orders))
        for low in itertools.product(*(range(k + 1) for k in orders)):
            binomials = math.prod(map(math.comb, orders, low))
            shift = np.prod((0.5 - centres) ** np.subtract(orders, low), axis=1)
            terms[:, index[tuple(i for i, j in enumerate(low) for _ in range(j))]] += value * binomials * shift
    return terms


def _steps(gates: Sequence[tuple[int, int]], n: int, dim: int) -> tuple[Affine, dict[tuple[int, int], int]]:
    """P(Y_i = j), gate j less gate j + 1 (gate 0 is 1, gate n is 0), and the place of each that the gates are there for."""
    column = {gate: place for place, gate in enumerate(gates)}
    known = [(i, j) for i in range(dim) for j in range(n) if all(k in (0, n) or (i, k) in column for k in (j, j + 1))]
    matrix = sparse.lil_array((len(known), len(gates)))
    for row, (i, j) in enumerate(known):
        for k, sign in ((j, 1.0), (j + 1, -1.0)):
            if 0 < k < n:
                matrix[row, column[i, k]] = sign
    return Affine(matrix.tocsr(), np.array([float(j == 0) for _, j in known])), {own: row for row, own in enumerate(known)}


def _stacked(layers: Sequence[Affine]) -> Affine:
    """Layers side by side on the same input."""
    return Affine(sparse.vstack([own.matrix for own in layers], format="csr"), np.concatenate([own.shift for own in layers]))


def _network(layers: Sequence[Affine], read: Floats) -> nn.Sequential:
    parts: list[nn.Module] = []
    for own in layers:
        parts += [_linear(own.matrix.toarray(), own.shift), nn.Sigmoid()]
    return nn.Sequential(*parts, _linear(np.asarray(read)[None], None))


def _linear(weight: Floats, bias: Floats | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(torch.from_numpy(weight))
    if bias is not None:
        linear.bias = nn.Parameter(torch.from_numpy(bias))
    return linear


def outputs(net: nn.Sequential, x: Floats) -> Floats:
    """The network at points `(n, dim)`, each layer multiplied by its active weights alone where torch has kernels for it."""
    sparsely = kernels.there()
    parts = [SparseLinear(part) if sparsely and isinstance(part, nn.Linear) else part for part in net]
    with torch.no_grad():
        chunks = [nn.Sequential(*parts)(rows) for rows in torch.from_numpy(x).split(1 << 11)]
    return np.asarray(torch.cat(chunks)[:, 0].numpy())
