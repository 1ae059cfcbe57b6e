"""How often predictive checks speak: for right models at their nominal rate, for wrong ones always? Prints markdown.

    python examples/benchmarks/criticism.py [--worlds 500] [--quick]

In every world parameters are drawn from their prior, data from them, and the posterior is exact (conjugate): linear regression
with known noise, and classes in groups with Dirichlet priors. The checks are of held-out rows, where p-values of a right model
are uniform. The wrong model takes the noise for constant where it grows with the first input, by a factor `GROWTH` from end to
end.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pyro.distributions as dist
import torch
from scipy import stats

from espalier.prediction.criticism import Check, predictive_check

ROWS, HELD_OUT, REPLICATES, LEVEL = 60, 120, 199, 0.05
GROWTH = 6.0
GROUPS, CLASSES = 5, 3


def regression(seed: int, grows: bool = False, knows: bool = True) -> tuple[Check, ...]:
    """y = w'x + noise of sd s(x), w ~ N(0, I). grows: s(x) is not constant. knows: the model has that s(x)."""
    rng = np.random.default_rng([seed, 1])
    x = rng.uniform(-1, 1, (ROWS + HELD_OUT, 3))
    true = np.exp(0.5 * math.log(GROWTH) * x[:, 0]) if grows else np.ones(len(x))
    y = x @ rng.normal(size=3) + true * rng.normal(size=len(x))
    said = true if knows else np.full(len(x), np.sqrt(np.mean(true[:ROWS] ** 2)))
    precision = np.eye(3) + (x[:ROWS].T / said[:ROWS] ** 2) @ x[:ROWS]
    mean = np.linalg.solve(precision, (x[:ROWS].T / said[:ROWS] ** 2) @ y[:ROWS])
    draws = mean + np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=(3, REPLICATES))).T
    held, sd = torch.from_numpy(x[ROWS:]), torch.from_numpy(said[ROWS:])
    outcomes = (dist.Normal(mean, sd) for mean in torch.from_numpy(draws) @ held.T)
    return predictive_check(outcomes, held, torch.from_numpy(y[ROWS:]), seed=seed)


def classes(seed: int) -> tuple[Check, ...]:
    """Labels of rows in groups, each with its own frequencies ~ Dirichlet(1)."""
    rng = np.random.default_rng([seed, 2])
    group = rng.integers(0, GROUPS, ROWS + HELD_OUT)
    frequencies = rng.dirichlet(np.ones(CLASSES), GROUPS)
    y = np.array([rng.choice(CLASSES, p=frequencies[g]) for g in group])
    counts = np.zeros((GROUPS, CLASSES))
    np.add.at(counts, (group[:ROWS], y[:ROWS]), 1)
    held = group[ROWS:]
    drawn = np.stack([rng.dirichlet(1 + row, REPLICATES) for row in counts], 1)
    outcomes = (dist.Categorical(one) for one in torch.from_numpy(drawn[:, held]))
    return predictive_check(outcomes, torch.from_numpy(held), torch.from_numpy(y[ROWS:]), seed=seed)


STUDIES: dict[str, Callable[[int], tuple[Check, ...]]] = {
    "regression, right": regression,
    "regression, right, noise grows": lambda seed: regression(seed, grows=True),
    "classes, right": classes,
    "regression, WRONG: noise grows": lambda seed: regression(seed, grows=True, knows=False),
}


def p_values(study: str, worlds: int) -> dict[str, np.ndarray]:
    """Two-sided p-values `(worlds,)` of every statistic."""
    found: dict[str, list[float]] = {}
    for seed in range(worlds):
        for check in STUDIES[study](seed):
            found.setdefault(check.name, []).append(check.p_value)
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="20 worlds")
    options = parser.parse_args()
    worlds = 20 if options.quick else options.worlds
    for study in STUDIES:
        print(f"\n### {study}: {worlds} worlds\n\n| statistic | p <= {LEVEL:g} | 95 % interval | KS p of uniformity |")
        print("|---|---|---|---|", flush=True)
        for name, values in p_values(study, worlds).items():
            times = int((values <= LEVEL).sum())
            low, high = stats.binomtest(times, worlds).proportion_ci(0.95)
            print(f"| {name} | {times / worlds:.3f} | {low:.3f}..{high:.3f} | {stats.kstest(values, 'uniform').pvalue:.2g} |")


if __name__ == "__main__":
    main()
