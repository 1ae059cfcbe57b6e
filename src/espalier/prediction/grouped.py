"""Who pays for a good average? Scores of a split by group of its rows, and whether groups differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import calibration
from espalier.contracts import Data
from espalier.prediction.evaluation import split_of
from espalier.prediction.fit import How
from espalier.prediction.mixture import Mixture
from espalier.prediction.predictor import Predictor

KEPT = ("num_examples", "accuracy", "nll", "brier", "ece_15", "ece_15_floor", "rmse", "crps", "coverage_95")
"""Of a summary, what is told of a group; each with its interval."""


def main_ways(fit: Predictor) -> tuple[How, ...]:
    """Of all ways to predict, the one network that the fit is about, and the posterior predictive."""
    return ("distilled" if "distilled" in fit.ways else "ticket"), fit.posterior


def by_groups(
    predicted: Mapping[Any, Any], data: Data, groups: Mapping[str, Sequence[Any] | NDArray[Any]], split: str = "test"
) -> dict[str, dict[str, dict[str, Any]]]:
    """Of every grouping and way to predict, JSON-able: `groups`, the scores of each with their intervals; `differ`, p-values of
    `calibration.groups_differ` by score, and of `calibration.calibration_differs` as `calibration`; `gaps`, the largest
    difference of two groups' means, where no group is a single example.

    predicted: as `predictions` returns it. groups: by name of the grouping the group of every row `(n,)`, as `data.groups_of` has
    them. Intervals and p-values hold one by one: of m tests read the smallest as m times as large.

    Raises ValueError where an example has several labels or targets.
    """
    check(data, split)
    if not isinstance(groups, Mapping):
        raise ValueError(f"expected groups by the name of their column, {{'site': groups}}, got a {type(groups).__name__}")
    y = split_of(data, split).y
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for column, names in groups.items():
        found[column] = {}
        for way, said in predicted.items():
            if data.num_classes is not None:
                found[column][str(way)] = _of_classes(said, y.long().numpy(), np.asarray(names))
            else:
                found[column][str(way)] = _of_targets(*_scores(said, data.in_units(y)), np.asarray(names))
    return found


def check(data: Data, split: str) -> None:
    """Raises ValueError, before any work, where there are no scores by group."""
    if (several := split_of(data, split).y.dim()) > 1:
        raise ValueError(
            f"expected one label or target an example for scores by group, got targets of {several} dimensions"
        )


def _of_classes(probs: NDArray[Any], labels: NDArray[Any], names: NDArray[Any]) -> dict[str, Any]:
    summaries = calibration.by_group(probs, labels, names)
    scores = {"accuracy": calibration.accuracy_scores(probs, labels), "nll": calibration.nll_scores(probs, labels)}
    told = _told(summaries, scores, names)
    told["differ"]["calibration"] = calibration.calibration_differs(probs, labels, names).p_value
    return told


def _of_targets(scores: dict[str, NDArray[Any]], covered: NDArray[Any], names: NDArray[Any]) -> dict[str, Any]:
    summaries = {}
    for name in np.unique(names):
        own = names == name
        summaries[str(name)] = calibration.summary_of({key: each[own] for key, each in scores.items()}, covered[own])
    means = {"squared_error": scores["rmse"], "nll": scores["nll"], "crps": scores["crps"], "coverage_95": covered}
    return _told(summaries, means, names)


def _told(summaries: Mapping[str, Any], scores: Mapping[str, NDArray[Any]], names: NDArray[Any]) -> dict[str, Any]:
    kept = {key for name in KEPT for key in (name, f"{name}_interval")}
    told: dict[str, Any] = {
        "groups": {name: {key: value for key, value in own.items() if key in kept} for name, own in summaries.items()},
        "differ": {name: calibration.groups_differ(each, names).p_value for name, each in scores.items()},
    }
    if np.unique(names, return_counts=True)[1].min() > 1:
        told["gaps"] = {name: calibration.largest_gap(each, names)._asdict() for name, each in scores.items()}
    return told


def _scores(said: Any, targets: Any) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Of every example its squared error, nll and crps, and whether its central 95 % hold the target."""
    if isinstance(said, Mixture):
        return said.scores(targets)
    y = targets.numpy()
    parts = said[..., 0], said[..., 1], y
    scores = {
        "rmse": calibration.squared_errors(*parts),
        "nll": calibration.gaussian_nll_scores(*parts),
        "crps": calibration.crps_scores(*parts),
    }
    return scores, calibration.coverage_scores(*parts)
