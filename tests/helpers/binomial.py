"""The binomial law, a term at a time."""

import math


def mass(n: int, alpha: float, k: int) -> float:
    """P(Bin(n, alpha) = k)."""
    logs = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(logs + k * math.log(alpha) + (n - k) * math.log1p(-alpha))


def naive_binomial(k: int, n: int, alpha: float) -> float:
    return math.fsum(mass(n, alpha, j) for j in range(k + 1))
