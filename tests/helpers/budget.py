"""The false-alarm budget of the statistical tests, and the assertions that spend it.

Every draw in the tests has a fixed seed, so a test that passes once passes always. The budget says how surprising that
one draw may be under a correct implementation before the test calls it wrong: it replaces tolerances made up by hand.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

FALSE_ALARMS = 1e-6
"""Probability that one statistical assertion fails although the code is right, over all the numbers it looks at."""


def assert_mean(draws, truth) -> None:
    """The mean of `draws` `(S, ...)` over its first dimension is `truth` `(...)`, up to a number of standard errors.

    Student's t, the budget shared by all entries (Bonferroni). Entries that do not vary must be equal to the truth.
    """
    draws, truth = np.asarray(draws, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    count = len(draws)
    error = np.abs(draws.mean(0) - truth)
    standard_error = draws.std(0, ddof=1) / np.sqrt(count)
    limit = stats.t.isf(FALSE_ALARMS / (2 * max(1, error.size)), count - 1)
    allowed = limit * standard_error + 1e-12 * (1 + np.abs(truth))
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert (error <= allowed).all(), (
        f"mean {draws.mean(0)[worst]:.6g} of {count} draws at {worst} is {error[worst] / standard_error[worst]:.1f} "
        f"standard errors from {truth[worst]:.6g}; the budget allows {limit:.1f}"
    )


def assert_rate(successes: int, trials: int, probability: float, looks: int = 1) -> None:
    """`successes` of `trials` fit `probability`, by the exact two-sided binomial test.

    looks: how many rates share one assertion's budget.
    """
    p_value = stats.binomtest(int(successes), int(trials), float(probability)).pvalue
    assert p_value >= FALSE_ALARMS / looks, (
        f"{successes} of {trials} is {successes / trials:.6g}, expected {probability:.6g} (p-value {p_value:.2g})"
    )


def assert_at_most(times: int, trials: int, probability: float) -> None:
    """`times` of `trials` fit a probability of at most `probability`: exact one-sided binomial test. Prints its interval."""
    found = stats.binomtest(int(times), int(trials), probability, alternative="greater")
    low, high = stats.binomtest(int(times), int(trials)).proportion_ci(0.95)
    print(f"rate of error {times / trials:.4f}, 95 % interval {low:.4f}..{high:.4f}, nominal {probability:g}")
    assert found.pvalue >= FALSE_ALARMS, f"{times} of {trials} ({low:.4f}..{high:.4f}) is above {probability:g}"
