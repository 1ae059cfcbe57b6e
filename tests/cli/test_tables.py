"""Tables of scores as text: a row a way to predict, each score with its interval, columns under their titles."""

from __future__ import annotations

from typing import Any

import pytest

from espalier.cli import tables
from espalier.cli.tables import CLASSIFICATION, REGRESSION, TITLES, score_table


def result(*ways: str, names: tuple[str, ...] = CLASSIFICATION, start: float = 0.1, step: float = 0.1) -> dict[str, Any]:
    """Scores that count up from way to way, each with an interval around it."""
    predict: dict[str, dict[str, Any]] = {}
    for place, way in enumerate(ways):
        value = start + step * place
        predict[way] = dict.fromkeys(names, value)
        predict[way] |= {f"{name}_interval": [value - 0.05, value + 0.05] for name in names if not name.endswith("floor")}
    return {"num_examples": 50, "num_active": 20, "num_weights": 100, "num_pairs": 3, "predict": predict}


def test_every_way_is_a_row_and_every_score_stands_with_its_interval() -> None:
    text = score_table({"runs/a": result("ticket", "pairs")}, "test")
    heading, facts, blank, titles, rule, *rows = text.splitlines()
    assert heading == "test split; [95 % intervals]"
    assert facts == "runs/a: 50 examples, 20 of 100 weights, 3 pairs"
    assert blank == ""
    assert titles.split() == " ".join(["run", "way", *(TITLES[name] for name in CLASSIFICATION)]).split()
    assert set(rule.strip()) == {"─"}
    assert [row.split()[:2] for row in rows] == [["runs/a", "ticket"], ["runs/a", "pairs"]]
    assert rows[0].count("0.1000 [0.0500, 0.1500]") == len(CLASSIFICATION) - 1
    assert rows[1].count("0.2000 [0.1500, 0.2500]") == len(CLASSIFICATION) - 1
    assert rows[0].endswith("  0.1000")  # a floor has no interval


def test_columns_stand_under_their_titles_whatever_the_names_of_the_runs() -> None:
    text = score_table({"a": result("ticket", "mean"), "a/much/longer/name": result("ticket", "mean")}, "validation")
    titles, _, *rows = text.splitlines()[4:]
    start = titles.index("accuracy")
    assert len(rows) == 4
    assert all(row[start - 2 : start] == "  " and row[start] == "0" for row in rows)


def test_on_a_narrow_terminal_lines_are_folded_and_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"a/much/longer/name": result("ticket", "mean")}
    wide = score_table(results, "test").splitlines()
    monkeypatch.setattr(tables, "UNBOUNDED", 80)
    narrow = score_table(results, "test").splitlines()
    assert len(narrow) > len(wide)
    assert all(len(line) <= 80 for line in narrow)
    for row in wide[5:]:
        for word in row.split():
            assert word in "\n".join(narrow) or word == "a/much/longer/name"
    assert "…" not in "".join(narrow)


def test_ways_that_are_one_network_are_one_row() -> None:
    rows = score_table({"a": result("ticket", "pairs", "mean", step=0.0)}, "test").splitlines()[5:]
    assert [row.split()[1] for row in rows] == ["any"]
    rows = score_table({"a": result("ticket", step=0.0)}, "test").splitlines()[5:]
    assert [row.split()[1] for row in rows] == ["ticket"]  # one way, called by its name


def test_regressions_have_scores_of_their_own_and_stand_in_no_table_with_classifications() -> None:
    text = score_table({"a": result("mean", names=REGRESSION)}, "test")
    assert "RMSE" in text
    assert "accuracy" not in text
    with pytest.raises(ValueError, match="expected runs of one kind, got classification and regression"):
        score_table({"a": result("mean", names=REGRESSION), "b": result("mean")}, "test")


def test_small_errors_keep_their_digits() -> None:
    scores = {"rmse": 0.000123456, "rmse_interval": [0.0001, 0.0002], "nll": -7.5, "crps": 12.3456789, "coverage_95": 0.95}
    result = {"num_examples": 5, "num_active": 1, "num_weights": 2, "num_pairs": 1, "predict": {"ticket": scores}}
    table = score_table({"run": result}, "test")
    assert "0.0001235 [0.0001000, 0.0002000]" in table
    assert "12.3457" in table
