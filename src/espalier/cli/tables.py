"""Tables that people read: scores with their intervals, as plain text."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

from rich.box import ASCII, SIMPLE_HEAD, Box
from rich.console import Console
from rich.table import Column, Table

from espalier.reports.tables import CLASSIFICATION, REGRESSION, TITLES, differ_sentence, entry, ways_of

ROBUST = {
    "accuracy": "accuracy",
    "noise": "noise",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "certified": "certified",
    "unstable": "unstable ReLUs",
}
"""Of `robustness_of`, and their titles."""
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
    table = Table(Column("run", overflow="fold"), "way", *(TITLES[name] for name in names), box=_box(), pad_edge=False)
    for run, result in results.items():
        for way, scores in ways_of(result["predict"]).items():
            table.add_row(run, way, *(entry(scores, name) for name in names))
    return "\n".join([f"{split} split; [95 % intervals]", *facts, *_rendered(table)])


def group_tables(run: str, result: Mapping[str, Any]) -> list[str]:
    """Of every grouping and way to predict that `evaluate`'s mapping has a table of the groups, and what the tests say."""
    told = []
    for column, ways in result.get("by_group", {}).items():
        for way, found in ways_of(ways).items():
            names = CLASSIFICATION if "accuracy" in found["differ"] else REGRESSION
            titles = [TITLES[name] for name in names]
            table = Table(Column(column, overflow="fold"), "examples", *titles, box=_box(), pad_edge=False)
            for group, scores in found["groups"].items():
                table.add_row(group, f"{scores['num_examples']:,}", *(entry(scores, name) for name in names))
            told.append("\n".join([f"{run}, {way}, by {column}", *_rendered(table), differ_sentence(found)]))
    return told


def robust_tables(run: str, result: Mapping[str, Any]) -> list[str]:
    """Of every network that `evaluate`'s mapping has the robustness of: a line for each eps."""
    told = []
    for way, rows in result.get("robust", {}).items():
        table = Table("eps", *ROBUST.values(), box=_box(), pad_edge=False)
        for row in rows:
            table.add_row(f"{row['eps']:.4g}", *(entry(row, name) for name in ROBUST))
        unit = {"white": "a share of white", "sd": "standard deviations of each feature"}[rows[0]["unit"]]
        told.append("\n".join([
            f"{run}, {way}: accuracy when inputs may move by eps ({unit}), "
            f"{rows[0]['num_examples']:,} examples drawn by the seed",
            *_rendered(table),
        ]))  # fmt: skip
    return told


def _box() -> Box:
    return SIMPLE_HEAD if "utf" in (sys.stdout.encoding or "").lower() else ASCII


def _rendered(table: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=None if sys.stdout.isatty() else UNBOUNDED, markup=False)
    with console.capture() as text:
        console.print(table)
    return [line.rstrip() for line in text.get().rstrip().split("\n")]
