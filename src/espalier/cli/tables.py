"""Tables that people read: scores with their intervals, as plain text."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

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
UNBOUNDED = 10_000
"""Columns of a line that goes to a pipe or a file: nothing is folded there."""


def score_table(results: Mapping[str, Mapping[str, Any]], split: str) -> str:
    """One row per run and way to predict; every score with its 95 % interval. results: run -> `evaluate`'s mapping.

    Lines are folded to the terminal's width where there is one.
    """
    kinds = {"accuracy" in next(iter(result["predict"].values())) for result in results.values()}
    if len(kinds) > 1:
        raise ValueError("expected runs of one kind, got classification and regression: evaluate them apart")
    first = next(iter(next(iter(results.values()))["predict"].values()))
    names = CLASSIFICATION if "accuracy" in first else REGRESSION
    facts = [
        f"{run}: {r['num_examples']} examples, {r['num_active']} of {r['num_weights']} weights, {r['num_pairs']} pairs"
        for run, r in results.items()
    ]
    box = SIMPLE_HEAD if "utf" in (sys.stdout.encoding or "").lower() else ASCII
    table = Table(Column("run", overflow="fold"), "way", *(TITLES[name] for name in names), box=box, pad_edge=False)
    for run, result in results.items():
        ways = dict(result["predict"])
        if len(ways) > 1 and all(scores == next(iter(ways.values())) for scores in ways.values()):
            ways = {"any": next(iter(ways.values()))}  # one network: its ways to predict are one
        for way, scores in ways.items():
            table.add_row(run, way, *(_cell(scores, name) for name in names))
    return "\n".join([f"{split} split; [95 % intervals]", *facts, *_rendered(table)])


def _rendered(table: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else UNBOUNDED, markup=False)
    with console.capture() as text:
        console.print(table)
    return [line.rstrip() for line in text.get().rstrip().split("\n")]


def _cell(scores: Mapping[str, Any], name: str) -> str:
    digits = 4
    if name in ("rmse", "crps") and scores[name] > 0:  # in units of the target, which may be small
        digits = max(4, 3 - math.floor(math.log10(scores[name])))
    if f"{name}_interval" not in scores:
        return f"{scores[name]:.{digits}f}"
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
