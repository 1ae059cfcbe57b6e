"""Which of many hypotheses may be rejected together: family-wise error at most delta. The procedures are MAPIE's.

The order of the hypotheses is fixed before the calibration data are seen, here by the pruning ratio: from the least pruned
on. A p-value that is NaN was not computed: it stops a sequence, and rejects nothing.

Sources: Angelopoulos et al. 2021 (fixed sequence, multi-start); Bretz et al. 2009 (Holm as a graph); Laufer-Goldshtein et
al. 2023 (Pareto testing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NUM_STARTS = 5
"""Chains of multi-start, unless said otherwise."""
PROCEDURES = ("fixed-sequence", "multi-start", "holm", "bonferroni")


def rejected(
    p_values: ArrayLike, delta: float, procedure: str = "fixed-sequence", num_starts: int = NUM_STARTS
) -> list[int]:
    """Places, in the order given, of the hypotheses that are rejected; empty where none is.

    num_starts: chains of multi-start, each at delta / num_starts.
    """
    if procedure not in PROCEDURES:
        raise ValueError(f"expected a procedure of {', '.join(PROCEDURES)}, got {procedure!r}")
    from mapie.risk_control import FWERFixedSequenceTesting, control_fwer

    p = np.asarray(p_values, dtype=np.float64)
    if num_starts < 1 and procedure == "multi-start":
        raise ValueError(f"expected num_starts of at least 1, got {num_starts}")
    if not p.size:
        raise ValueError("expected at least one p-value: the grid is empty")
    method = {
        "fixed-sequence": "fixed_sequence",
        "multi-start": FWERFixedSequenceTesting(n_starts=max(1, min(num_starts, len(p)))),
        "holm": "bonferroni_holm",
        "bonferroni": "bonferroni",
    }[procedure]
    return [int(place) for place in control_fwer(np.where(np.isnan(p), np.inf, p), delta, method)]


def strictest(delta: float, size: int, procedure: str, num_starts: int = NUM_STARTS) -> float:
    """The level at which a first hypothesis is rejected whatever the others are."""
    shares = {"fixed-sequence": 1, "multi-start": min(num_starts, size)}
    return delta / shares.get(procedure, size)


def climb(p_value: Callable[[int], float], size: int, delta: float) -> NDArray[np.float64]:
    """p-values `(size,)` along a fixed sequence, computed up to the first above delta; NaN where none was computed."""
    found = np.full(size, np.nan)
    for place in range(size):
        found[place] = p_value(place)
        if not found[place] <= delta:
            break
    return found


def halves(n: int, seed: int, share: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A split of n examples, at random by `seed` and in random order: one part to learn an
    order on, the other to test on."""
    order = np.random.default_rng(seed).permutation(n)
    cut = int(share * n)
    if not 0 < cut < n:
        raise ValueError(f"expected two parts with examples, got {cut} and {n - cut} of {n}")
    return order[:cut], order[cut:]


def pareto_order(p_values: ArrayLike, costs: ArrayLike) -> list[int]:
    """The order that Pareto testing tries: members of the front of (p-value, cost), the safest first.

    p_values, costs: `(m,)`, the former from the part of the data that is not tested on. A member of the front is beaten in
    both by nobody; of equals the first stands for all.
    """
    p, cost = np.asarray(p_values, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    order, cheapest = [], np.inf
    for place in np.lexsort((np.arange(len(p)), cost, p)):  # safest first, then cheapest
        if cost[place] < cheapest:
            order.append(int(place))
            cheapest = cost[place]
    return order


def largest(p_values: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """One p-value per candidate for several risks at once: H is that some risk is too high, p their maximum; no correction."""
    return np.asarray(np.max([np.asarray(p, dtype=np.float64) for p in p_values], axis=0))
