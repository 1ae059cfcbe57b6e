"""Approximation: networks of three hidden layers reach the rate of smooth and of sparse functions; of two, they stop at 1.

For f of smoothness s on [0, 1]^d, r = ceil(s) - 1, L = `Target.holder` and F = `Target.size`, the network of `constructed.py` of
n^d cells obeys |network - f| <= C n^-s everywhere, where

    C = L c K + R w(h_0),   c = Gamma(s - r + 1) / Gamma(s + 1),   K >= E(d/2 + sum |xi_i|)^s,   R = F e^d;

K is what the random cell is away from x, and w(h), a polynomial in h^4 without a constant, what the products cost at scale
h = h_0 n^(-s/4). The proof is in docs/theory.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import integrate
from scipy.special import expit, gamma
from torch import nn

from espalier.theory.claims import Claim, Curve, Finding, Picture
from espalier.theory.constructed import (
    STEEPNESS,
    Floats,
    Target,
    bend,
    bumps,
    construct,
    exponential,
    outputs,
    power,
)

Of = Callable[[Target, int], float]
"""A number for a target and n, the cells a side."""
SOURCE = "Liu 2020; constructed and proved in docs/theory.md"
ROUNDING = 1e-12
"""Of the bounds themselves: the largest weight attains its."""


def moment(dim: int, smoothness: float) -> float:
    """K = d^s (E(1/2 + |xi|)^q)^(s/q), q = max(s, 1): above E(d/2 + sum |xi_i|)^s, by Jensen's inequality on either side of 1."""
    q = max(smoothness, 1.0)

    def integrand(u: float) -> float:
        inside = expit(STEEPNESS * u)
        return float((0.5 + u) ** q * 2 * STEEPNESS * inside * (1 - inside))

    above = integrate.quad(integrand, 0, 60 / STEEPNESS, epsabs=1e-13, epsrel=1e-11, limit=200)[0]  # e^-60 lies beyond
    return float(dim**smoothness * above ** (smoothness / q))


def remainder(target: Target) -> float:
    """L c: Taylor's polynomial of degree r about t is off by at most that times |x - t|_1^s."""
    s, r = target.smoothness, target.degree
    return float(target.holder * gamma(s - r + 1) / gamma(s + 1))


def spread(target: Target) -> float:
    """R: no polynomial exceeds it on the cube, nor does the sum of its terms' sizes."""
    return target.size * math.exp(target.dim)


def scale_of_products(target: Target, n: int) -> float:
    """h = h_0 n^(-s/4), with h_0^4 = L c K / 4R: the products then cost a fraction of what the polynomials do."""
    first = remainder(target) * moment(target.dim, target.smoothness) / (4 * spread(target))
    return float(min(1.0, first) ** 0.25 * n ** (-target.smoothness / 4))


def cost_of_cells(dim: int, h: float) -> float:
    """Relative error of the product of d steps."""
    return bend(dim).error * h**4 * dim**2


def cost_of_products(dim: int, degree: int, h: float) -> float:
    """w(h): relative error of all products, one after the other: monomials, carried on, beside cells; then cell by polynomial."""
    terms = 0.0
    for k in range(1, degree + 1):
        made = bend(k).error * h**4 * (k / 4) ** 2
        carried = bend(1).error * h**4 * (2.0**-k * (1 + made)) ** 4
        terms = max(terms, (1 + made) * (1 + carried) - 1)
    cells = cost_of_cells(dim, h)
    last = bend(2).error * h**4 * ((1 + cells) ** 2 + (1 + terms) ** 2) ** 2
    return (1 + terms) * (1 + cells) * (1 + last) - 1


def upper(target: Target, n: int) -> float:
    """C n^-s."""
    polynomials = remainder(target) * moment(target.dim, target.smoothness)
    products = spread(target) * cost_of_products(target.dim, target.degree, scale_of_products(target, 1))
    return float((polynomials + products) * n**-target.smoothness)


def lower(target: Target, n: int) -> float:
    """What the error on z^s / s! exceeds: in the corner 0 every centre is at least d / 2n away, and all on one side."""
    polynomials = remainder(target) * float(target.dim / (2 * n)) ** target.smoothness
    h = scale_of_products(target, n)
    return float(polynomials - spread(target) * cost_of_products(target.dim, target.degree, h))


def _monomials(dim: int, degree: int) -> int:
    return math.comb(dim + degree, dim) - 1


def per_cell(target: Target) -> int:
    """A: its gates, 2^d units that multiply its steps, 4 that multiply cell and polynomial."""
    d: int = target.dim
    return 4 * d + int(2**d) * (2 * d + 1) + 4 * (int(2**d) + 2 * _monomials(d, target.degree) + 2)


def once(target: Target) -> int:
    """B: the monomials, made and carried on."""
    d = target.dim
    counts = [(k, math.comb(d + k - 1, k)) for k in range(1, target.degree + 1)]
    return sum(count * (2**k * (min(d, k) + 1) + 2 * (2**k + 1)) for k, count in counts)


def nonzeros(target: Target, cells: int) -> float:
    """A m + B: weights and biases of the network of m cells."""
    return float(per_cell(target) * cells + once(target))


def largest(target: Target, n: int) -> float:
    """No weight or bias exceeds it: max(a n, R / (4 h^2 |rho''|), (2 h)^(1 - k) / (2 |rho^(k)|) for k = d and 1 .. r, ..)."""
    h, ways = scale_of_products(target, n), {target.dim, *range(1, target.degree + 1)}
    reads = [(2 * h) ** (1 - k) / (2 * abs(bend(k).slope)) for k in ways]
    biases = max(abs(bend(k).bias) for k in ways | {2}) + h * max(target.dim, target.degree)
    linear = 2.0 ** (target.degree - 1) / bend(1).slope  # polynomial's weights times what reads a carried monomial
    return float(max(STEEPNESS * n, spread(target) / (4 * h**2 * abs(bend(2).slope)), *reads, biases, linear))


class Measured(NamedTuple):
    """A network that was built: its largest error on a grid, weights and biases that are not 0, the largest of them."""

    error: float
    nonzeros: int
    largest: float


@functools.cache
def measured(target: Target, n: int, depth: int = 3) -> Measured:
    """On 16, 8 or 4 points a cell and axis (d = 1, 2, 3), corners and knots among them, wherever f is not 0; elsewhere on 9 an
    axis."""
    net = built(target, n, depth)
    fine = lattice(target.dim, n * {1: 16, 2: 8}.get(target.dim, 4))
    x = np.concatenate([fine[target.at(fine) != 0], lattice(target.dim, 8)])
    largest_of = max(float(tensor.detach().abs().max()) for tensor in net.parameters())
    return Measured(float(np.abs(outputs(net, x) - target.at(x)).max()), size_of(net), largest_of)


def built(target: Target, n: int, depth: int = 3) -> nn.Sequential:
    return construct(target, n, scale_of_products(target, n), spread(target), depth)


def size_of(net: nn.Module) -> int:
    """Weights and biases that are not 0."""
    return sum(int(tensor.count_nonzero()) for tensor in net.parameters())


def lattice(dim: int, steps: int) -> Floats:
    """`((steps + 1)^dim, dim)`: both ends of every axis are on it."""
    axis = np.arange(steps + 1) / steps
    return np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), -1).reshape(-1, dim)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y in log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _finding(compared: str, ratios: Mapping[str, Sequence[float]], rows: Any, breaks: str, picture: Picture) -> Finding:
    """ratios: each at most 1 where what is proved holds."""
    worst = {name: float(np.max(values)) for name, values in ratios.items()}
    return Finding(f"{compared}; float64", float(np.max([*worst.values()])), 1 + ROUNDING, "of what is proved",
                   {**worst, "networks": rows}, breaks, (picture,))  # fmt: skip


def _picture(title: str, curves: Sequence[Curve]) -> Picture:
    return Picture(title, "weights and biases that are not 0", "largest error", tuple(curves), xscale="log", yscale="log")


def check_rate(
    quick: bool, *, bound: Of = upper, floor: Of = lower, count: Of = nonzeros, weight: Of = largest
) -> Finding:
    orders = [1, 1.5, 2, 3, 4] if quick else [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    sides = {1: [2, 4, 8, 16], 2: [2, 4, 8]} if quick else {1: [2, 4, 8, 16, 32], 2: [2, 4, 8, 16], 3: [2, 3, 4]}
    ratios: dict[str, list[float]] = {"error / C n^-s": [], "floor / error": [], "size / bound": [], "weight / bound": []}
    rows, curves, networks = [], [], 0
    for d, s in itertools.product(sides, orders):
        target, ns = power(d, s), [n for n in sides[d] if n**s < 1e5]
        found = [measured(target, n) for n in ns]
        for n, own in zip(ns, found, strict=True):
            ratios["error / C n^-s"].append(own.error / bound(target, n))
            ratios["size / bound"].append(own.nonzeros / count(target, n**d))
            ratios["weight / bound"].append(own.largest / weight(target, n))
            if s == int(s):
                ratios["floor / error"].append(floor(target, n) / own.error)
        networks += len(ns)
        errors, sizes = [own.error for own in found], [own.nonzeros for own in found]
        rows.append({"d": d, "s": s, "n": ns, "error": errors, "non-zeros": sizes, "slope in n": slope(ns, errors),
                     "largest weight": [own.largest for own in found]})  # fmt: skip
        if d == 2 and s == int(s):
            curves += [Curve(f"s = {s}", sizes, errors, style="points"),
                       Curve(f"s = {s}, proved", sizes, [bound(target, n) for n in ns], style="dashed")]  # fmt: skip
    return _finding(
        f"largest error on a grid, non-zeros and largest weight of {networks} networks, s = {orders[0]:g} to 4, d = 1 to "
        f"{max(sides)}, with what is proved; the error on z^s / s! from below too",
        ratios, rows,
        "In exact arithmetic: in float64 a product of k factors at scale h loses 1e-16 / h^k, so that s = 5 stops near 2e-8.",
        _picture("Three hidden layers, d = 2", curves),
    )  # fmt: skip


def gain(share: float, smoothness: float, dim: int) -> float:
    """The extra factor of the error at equal size where f lives on that share of the cells."""
    return float(share ** (smoothness / dim))


def check_sparse(quick: bool, *, bound: Of = upper, factor: Callable[[float, float, int], float] = gain) -> Finding:
    """Of m = share n^d cells: error <= C (A share / (N - B))^(s/d), and N - B between the share of a full network's, within what
    a cell costs more that shares no gate."""
    ns = [8, 16] if quick else [8, 16, 32]
    problems = [(power(d, s), bumps(d, s, 4, where), len(where) / 4**d)
                for d, where in ((1, ((1,),)), (2, ((1, 2), (3, 0)))) for s in (2, 3)]  # fmt: skip
    ratios: dict[str, list[float]] = {"error / C n^-s": [], "error / bound by size": [], "share of the size": []}
    rows, curves = [], []
    for everywhere, target, share in problems:
        d, s, a, b = target.dim, target.smoothness, per_cell(target), once(target)
        found = [measured(target, n) for n in ns]
        errors, sizes = [own.error for own in found], [own.nonzeros for own in found]
        proved = [bound(target, 1) * (a / (size - b)) ** (s / d) for size in sizes]
        by_size = [factor(share, s, d) * most for most in proved]
        shares = [(size - b) / (size_of(built(everywhere, n)) - b) for n, size in zip(ns[:2], sizes, strict=False)]
        room = math.log(a / (a - 4 * d - 2**d * d))
        ratios["error / C n^-s"] += [error / bound(target, n) for n, error in zip(ns, errors, strict=True)]
        ratios["error / bound by size"] += [error / most for error, most in zip(errors, by_size, strict=True)]
        ratios["share of the size"] += [abs(math.log(own) - d / s * math.log(factor(share, s, d))) / room for own in shares]
        rows.append({"d": d, "s": s, "share of the cells": share, "factor": factor(share, s, d), "n": ns, "error": errors,
                     "non-zeros": sizes, "share of the non-zeros": shares, "slope in n": slope(ns, errors)})  # fmt: skip
        if d == 2:
            curves += [Curve(f"s = {s}", sizes, errors, style="points"),
                       Curve(f"s = {s}, proved", sizes, by_size, style="dashed"),
                       Curve(f"s = {s}, proved without the factor", sizes, proved)]  # fmt: skip
    return _finding(
        f"error of {len(problems)} functions on 1/4 and 1/8 of the cells, n to {ns[-1]}, with what is proved by n and by size, "
        "and their non-zeros with that share of those of a function on all cells",
        ratios, rows,
        "Size follows the share up to what a cell costs more that shares no gates with its neighbours; and f must be smooth "
        "across the edge of where it lives.",
        _picture("Functions on 2 of 16 parts, d = 2", curves),
    )  # fmt: skip


def saturated(dim: int, n: int) -> float:
    """What two hidden layers miss of exp(x_1 + .. + x_d - d) in the corner 1: f rises, and the last centre is d / 2n away."""
    return -math.expm1(-dim / (2 * n)) - cost_of_cells(dim, scale_of_products(exponential(dim, 1), n))


def ceiling(dim: int, n: int) -> float:
    """What they miss of it at most: L c K / n, and the products of steps."""
    target = exponential(dim, 1)
    return float(remainder(target) * moment(dim, 1) / n + target.size * cost_of_cells(dim, scale_of_products(target, n)))


def check_saturation(
    quick: bool, *, bound: Of = upper, floor: Callable[[int, int], float] = saturated,
    most: Callable[[int, int], float] = ceiling,
) -> Finding:  # fmt: skip
    sides = {1: [2, 4, 8, 16], 2: [2, 4, 8] if quick else [2, 4, 8, 16]}
    ratios: dict[str, list[float]] = {"floor / two": [], "two / ceiling": [], "three / C n^-s": []}
    rows, curves = [], []
    for d, ns in sides.items():
        found = {"two": [measured(exponential(d, 1), n, 2) for n in ns],
                 **{f"three, s = {s}": [measured(exponential(d, s), n) for n in ns] for s in (2, 3, 4)}}  # fmt: skip
        errors = {name: [own.error for own in nets] for name, nets in found.items()}
        ratios["floor / two"] += [floor(d, n) / error for n, error in zip(ns, errors["two"], strict=True)]
        ratios["two / ceiling"] += [error / most(d, n) for n, error in zip(ns, errors["two"], strict=True)]
        ratios["three / C n^-s"] += [error / bound(exponential(d, s), n) for s in (2, 3, 4)
                                     for n, error in zip(ns, errors[f"three, s = {s}"], strict=True)]  # fmt: skip
        rows.append({"d": d, "n": ns, "floor of two": [floor(d, n) for n in ns], **errors,
                     "slopes in n": {name: slope(ns, own) for name, own in errors.items()}})  # fmt: skip
        curves = [Curve(name, [own.nonzeros for own in nets], errors[name], style="points") for name, nets in found.items()]
    return _finding(
        "error on exp(x_1 + .. + x_d - d) of two hidden layers with a floor and a ceiling of order 1/n, of three with C n^-s, "
        f"s = 2 to 4, d = 1 and 2, n to {sides[1][-1]}",
        ratios, rows,
        "It is the construction that stops, one number a cell, not the class: two hidden layers whose units multiply more "
        "factors at once could do what three do here.",
        _picture("One smooth function, d = 2: hidden layers", curves),
    )  # fmt: skip


CLAIMS = (
    Claim("approximation-rate",
          "three hidden layers reach error C n^-s with A n^d + B weights, none above a power of n: N^(-s/d) for any smoothness s",
          SOURCE, check_rate),
    Claim("approximation-sparse",
          "on a share of the cells a function needs that share of the weights: the error at equal size has a factor share^(s/d)",
          SOURCE, check_sparse),
    Claim("approximation-saturation",
          "two hidden layers, one number a cell, stop at n^-1 however smooth the function; with one more they follow it",
          SOURCE, check_saturation),
)  # fmt: skip
