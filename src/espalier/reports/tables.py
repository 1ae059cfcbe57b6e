"""Scores as people read them: with their intervals, and as many digits as they bear."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CLASSIFICATION = ("accuracy", "nll", "brier", "ece_15", "ece_15_floor")
REGRESSION = ("rmse", "nll", "crps", "coverage_95")
TITLES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece_15": "ECE (15 bins)",
    "ece_15_floor": "its floor",
    "rmse": "RMSE",
    "crps": "CRPS",
    "coverage_95": "95 % coverage",
}


def entry(scores: Mapping[str, Any], name: str) -> str:
    """One score, with its interval where it has one."""
    digits = 4
    if name in ("rmse", "crps") and scores[name] > 0:  # in units of the target, which may be small
        digits = max(4, 3 - math.floor(math.log10(scores[name])))
    if f"{name}_interval" not in scores:
        return f"{scores[name]:.{digits}f}"
    return f"{scores[name]:.{digits}f} {interval(scores[f'{name}_interval'], digits)}"


def interval(bounds: Any, digits: int = 4) -> str:
    """`[low, high]`."""
    low, high = bounds
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def ways_of(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Way to predict -> its scores; one network's ways are one, `any`."""
    ways = dict(scores)
    if len(ways) > 1 and all(own == next(iter(ways.values())) for own in ways.values()):
        return {"any": next(iter(ways.values()))}
    return ways


def differ_sentence(found: Mapping[str, Any]) -> str:
    """Do groups differ? They do where the smallest p-value times the number of tests is at most 0.05. found: what
    `prediction.by_groups` says of one grouping and way to predict."""
    said = "; ".join(f"{_TESTED[name]} p {p:.3g}" for name, p in found["differ"].items())
    least = min(found["differ"].values())
    count = len(found["differ"])
    verdict = "Groups differ" if least * count <= 0.05 else "No difference between groups is shown"
    gap = ""
    if "gaps" in found:
        name = "accuracy" if "accuracy" in found["gaps"] else "nll"
        own = found["gaps"][name]
        gap = (
            f" Largest gap in {TITLES[name]}: {own['highest']} over {own['lowest']} by {own['value']:.4f} "
            f"{interval(own['interval'])}."
        )
    return f"{verdict} ({count} tests: {said}).{gap}"


_TESTED = {
    **TITLES,
    "squared_error": "squared error",
    "calibration": "over-confidence at equal confidence",
}
