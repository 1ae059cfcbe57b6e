"""What a run's certificates promise of selective prediction: error among the examples that are answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from espalier import store
from espalier.calibration import clopper_pearson
from espalier.certificates.runs import load_pruned, ticket_of
from espalier.pages import Cell, Table
from espalier.prediction import evaluation
from espalier.reports.look import Look
from espalier.reports.tables import interval

RISK = "selective:"


class Promised(NamedTuple):
    """look: whose run. threshold: the confidence from which the certified network answers. alpha: its error is at most that, with
    confidence 1 - delta. answered, wrong: examples of the look's split; None where nothing was certified."""

    look: Look
    threshold: float
    alpha: float
    delta: float
    answered: int | None
    wrong: int | None


def certificates_in(*folders: Path) -> dict[Path, dict[str, Any]]:
    """The certificates of runs, by their files. Raises ValueError for one that was altered."""
    found = {}
    for path in (path for folder in folders for path in sorted(folder.glob("certificate*.json"))):
        facts = store.read_json(path)
        if isinstance(facts, dict) and "lambda" in facts and "risks" in facts:
            found[path] = store.check_signed(path)
    return found


def promised(looks: Sequence[Look]) -> list[Promised]:
    """Of every certificate with a selective risk, and what the network that it certifies does on the split. Raises ValueError
    where that network was altered."""
    found = []
    for look in looks:
        for path, facts in certificates_in(*look.folders).items():
            for risk in facts["risks"]:
                if str(risk["name"]).startswith(RISK):
                    threshold = float(str(risk["name"]).removeprefix(RISK))
                    answered, wrong = (None, None) if facts["lambda"] is None else _answers(look, path, threshold)
                    found.append(Promised(look, threshold, float(risk["alpha"]), float(facts["delta"]), answered, wrong))
    return found


def _answers(look: Look, path: Path, threshold: float) -> tuple[int, int]:
    probs = load_pruned(path.parent, ticket_of(path).name).predict(evaluation.split_of(look.data, look.split).x)
    answered = probs.max(1) >= threshold
    return int(answered.sum()), int((answered & (probs.argmax(1) != look.labels)).sum())


def table(found: Sequence[Promised]) -> Table:
    """Each with a link to the page's certificates."""
    rows: list[list[str | Cell]] = []
    for own in found:
        told = ["", ""]
        if own.answered is not None and own.wrong is not None:
            n = len(own.look.labels)
            low, high = np.asarray(clopper_pearson(own.wrong, max(1, own.answered)), dtype=float)
            share = f"{own.wrong / own.answered:.4f} {interval((low, high))}" if own.answered else "none answered"
            told = [f"{own.answered / n:.4f} ({own.answered:,} of {n:,})", share]
        promise = f"at most {own.alpha:g}" if own.answered is not None else f"at most {own.alpha:g}: not certified"
        name = Cell(f"{own.look.name}: certificate", link="#certificate")
        rows.append([name, f"{own.threshold:g}", promise, f"{1 - own.delta:g}", *told])
    header = ["run", "answers from confidence", "error promised", "with confidence", "answered here", "errors among them here"]
    return Table("Certified for selective prediction: the pruned network", header, rows)
