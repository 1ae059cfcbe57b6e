"""Claims about groups on the page: their scores are those of the functions they name, and the picture's are the table's."""

from __future__ import annotations

import numpy as np
import pytest

from espalier.pages import Figure, Table, Text
from espalier.prediction import by_groups
from espalier.reports import groups
from espalier.reports.look import Look


def test_every_group_stands_with_its_scores_and_the_tests(looks: list[Look]) -> None:
    names = np.where(looks[0].labels % 3 == 0, "threes", "others")
    sections = groups.sections(looks, {"kind": names, "half": looks[0].labels < 5})
    assert [section.title for section in sections] == ["By kind", "By half"]
    assert len({section.anchor for section in sections}) == 2
    found = by_groups({"ticket": looks[0].probs}, looks[0].data, {"kind": names})["kind"]["ticket"]
    table = next(block for block in sections[0].blocks if isinstance(block, Table))
    assert table.caption == "cigl, ticket, by kind"
    assert [row[0] for row in table.rows] == ["others", "threes"]
    assert str(table.rows[1][1]) == f"{found['groups']['threes']['num_examples']:,}"
    assert str(table.rows[1][2]).startswith(f"{found['groups']['threes']['accuracy']:.4f} [")
    captions = [block.caption for block in sections[0].blocks if isinstance(block, Table)]
    assert captions == ["cigl, ticket, by kind", "cigl, redraw, by kind", "rigl, any, by kind"]
    told = " ".join(block.text for block in sections[0].blocks if isinstance(block, Text))
    assert f"accuracy p {found['differ']['accuracy']:.3g}" in told
    figure = next(block for block in sections[0].blocks if isinstance(block, Figure))
    assert figure.data is not None
    drawn = [row[2] for row in figure.data[1] if row[0] == "cigl"]
    assert drawn == pytest.approx([found["groups"][name]["ece_15"] for name in ("others", "threes")])


def test_a_regressions_groups_show_their_coverage(regression: Look) -> None:
    section = groups.sections([regression], {"far": np.where(regression.labels > 5000, "above", "below")})[0]
    figure = next(block for block in section.blocks if isinstance(block, Figure))
    assert figure.title == "95 % coverage by far"
    assert "RMSE" in next(block for block in section.blocks if isinstance(block, Table)).header
