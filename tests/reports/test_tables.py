"""Claims about scores in words: their intervals beside them, as many digits as they bear."""

from __future__ import annotations

from espalier.reports.tables import entry, interval, ways_of


def test_a_score_stands_with_its_interval() -> None:
    assert entry({"nll": 0.12345, "nll_interval": (0.1, 0.2)}, "nll") == "0.1235 [0.1000, 0.2000]"
    assert entry({"nll": 0.12345}, "nll") == "0.1235" or entry({"nll": 0.12345}, "nll") == "0.1234"
    assert interval((1, 2.25), 1) in ("[1.0, 2.2]", "[1.0, 2.3]")


def test_small_units_keep_their_digits() -> None:
    assert entry({"rmse": 0.000012345}, "rmse") == "0.00001234" or entry({"rmse": 0.000012345}, "rmse") == "0.00001235"


def test_one_networks_ways_are_one() -> None:
    assert ways_of({"ticket": {"nll": 1.0}, "mean": {"nll": 1.0}}) == {"any": {"nll": 1.0}}
    assert set(ways_of({"ticket": {"nll": 1.0}, "mean": {"nll": 2.0}})) == {"ticket", "mean"}
