"""Who pays for a good average? Sections on groups of a data set's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from espalier.pages import Block, Figure, Section, Table, Text
from espalier.pictures.data import Curve, Picture
from espalier.prediction.grouped import by_groups, main_ways
from espalier.reports.figures import figure
from espalier.reports.look import Look
from espalier.reports.tables import CLASSIFICATION, REGRESSION, TITLES, differ_sentence, entry, ways_of


def sections(looks: Sequence[Look], groups: Mapping[str, Any]) -> list[Section]:
    """One for each grouping. groups: by its name the group of every row of the split `(n,)`."""
    found = []
    for look in looks:
        predicted = {way: look.predicted[way] for way in main_ways(look.predictor)}
        found.append(by_groups(predicted, look.data, groups, look.split))
    return [_of_column(looks, column, place, [own[column] for own in found]) for place, column in enumerate(groups)]


def _of_column(looks: Sequence[Look], column: str, place: int, found: Sequence[Mapping[str, Any]]) -> Section:
    names = CLASSIFICATION if looks[0].classes else REGRESSION
    blocks: list[Block] = [
        Text(
            "Every group by its own examples alone, with intervals of 95 % that hold one by one. The tests ask whether groups "
            "differ by more than chance. Small groups show large calibration errors by chance: their floor says how large."
        )
    ]
    for look, own in zip(looks, found, strict=True):
        for way, told in ways_of(own).items():
            rows = [
                [group, f"{scores['num_examples']:,}", *(entry(scores, name) for name in names)]
                for group, scores in told["groups"].items()
            ]
            header = [column, "examples", *(TITLES[name] for name in names)]
            blocks += [Table(f"{look.name}, {way}, by {column}", header, rows), Text(differ_sentence(told))]
    blocks.append(_picture(looks, column, [own[look.way] for look, own in zip(looks, found, strict=True)]))
    return Section(f"By {column}", blocks, f"by-{place}")


def _picture(looks: Sequence[Look], column: str, found: Sequence[Mapping[str, Any]]) -> Figure:
    """One score of every group, with its interval."""
    name = "ece_15" if looks[0].classes else "coverage_95"
    curves, said = [], []
    groups = list(found[0]["groups"])
    for place, (look, told) in enumerate(zip(looks, found, strict=True)):
        values = np.array([told["groups"][group][name] for group in groups])
        low, high = np.array([told["groups"][group][f"{name}_interval"] for group in groups]).T
        at = np.arange(len(groups)) + 0.12 * (place - (len(looks) - 1) / 2)
        curves.append(Curve(look.name, at, values, np.minimum(low, values), np.maximum(high, values), style="dots"))
        top = int(values.argmax() if looks[0].classes else values.argmin())
        said.append(f"{look.name}: {'largest' if looks[0].classes else 'least'} in {groups[top]}, {values[top]:.4f}")
    picture = Picture(f"{TITLES[name]} by {column}", column, TITLES[name], tuple(curves), names=tuple(groups))
    return figure(picture, f"{TITLES[name]} by {column}. " + "; ".join(said) + ".")
