"""Tables that people read: scores with their intervals, as plain text."""

from __future__ import annotations

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


def score_table(results: Mapping[str, Mapping[str, Any]], split: str) -> str:
    """One row per run and way to predict; every score with its 95 % interval. results: run -> `evaluate`'s mapping."""
    kinds = {"accuracy" in next(iter(result["predict"].values())) for result in results.values()}
    if len(kinds) > 1:
        raise ValueError("expected runs of one kind, got classification and regression: evaluate them apart")
    first = next(iter(next(iter(results.values()))["predict"].values()))
    names = CLASSIFICATION if "accuracy" in first else REGRESSION
    rows = [["run", "way", *(TITLES[name] for name in names)]]
    for run, result in results.items():
        ways = dict(result["predict"])
        if len(ways) > 1 and all(scores == next(iter(ways.values())) for scores in ways.values()):
            ways = {"any": next(iter(ways.values()))}  # one network: its ways to predict are one
        for way, scores in ways.items():
            rows.append([run, way, *(_cell(scores, name) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    heading = f"{split} split; [95 % intervals]"
    facts = [
        f"{run}: {r['num_examples']} examples, {r['num_active']} of {r['num_weights']} weights, {r['num_pairs']} pairs"
        for run, r in results.items()
    ]
    return "\n".join([heading, *facts, "", lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(scores: Mapping[str, Any], name: str) -> str:
    if f"{name}_interval" not in scores:
        return f"{scores[name]:.4f}"
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.4f} [{low:.4f}, {high:.4f}]"
