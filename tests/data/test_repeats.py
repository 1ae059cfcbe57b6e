"""Rows that stand in two places: they are counted, and refused where they are more than chance makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espalier.data import ImageRows, Together
from espalier.data.images import files_below
from espalier.data.repeats import chance, comparable, keys, repeated, too_many


def test_equal_rows_have_one_key_whatever_they_are_made_of() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.5], [1.0, 2.0]])
    first, second, third = keys(x)
    assert first == third != second
    several = keys(Together({"a": x, "b": torch.tensor([0, 0, 1])}))
    assert len(set(several)) == 3
    assert len(keys(x[:0])) == 0


def drawn(rows: int, columns: int, values: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, values, (rows, columns)) if values else rng.normal(size=(rows, columns)))


def test_repeats_are_counted_and_a_hundredth_of_them_is_none() -> None:
    seen, fresh = drawn(1000, 4, 0, 0), drawn(500, 4, 0, 1)
    assert repeated([seen], fresh) == [(0, False)]
    assert repeated([seen], torch.cat([fresh[5:], seen[:5]])) == [(5, False)]
    assert repeated([seen[:500], seen[500:]], torch.cat([fresh[10:], seen[:10]])) == [(10, True)]
    assert repeated([seen], seen[:0]) == [(0, False)]


@pytest.mark.parametrize(("columns", "values"), [(1, 60), (2, 8), (6, 2), (3, 5)])
def test_of_few_columns_of_few_values_rows_are_alike_by_chance(columns: int, values: int) -> None:
    for seed in range(30):
        x = drawn(500, columns, values, seed)
        ((count, wrong),) = repeated([x[:400]], x[400:])
        assert count > 50
        assert not wrong, seed


@pytest.mark.parametrize("share", [0.04, 0.2, 1.0])
def test_rows_that_stand_there_twice_are_no_chance(share: float) -> None:
    """Duplicates of a source, oversampled rows, a file of the test rows twice: continuous rows do not repeat themselves."""
    x = drawn(1000, 50, 0, 0)
    seen = torch.cat([x[:800], x[:800][: int(800 * share)]])
    held = torch.cat([drawn(180, 50, 0, 1), x[:20]])
    assert repeated([seen], held) == [(20, True)]
    assert not repeated([seen], held[:180])[0][1]


def test_what_chance_makes_is_counted() -> None:
    """P(a match) by column, of independent ones."""
    for columns, values in ((6, 2), (3, 5), (2, 8)):
        x = drawn(1000, columns, values, 3)
        fresh = drawn(1000, columns, values, 4)
        found = repeated([x[:20]], fresh)[0][0] / 1000
        assert abs(chance([x[:20]]) - found) < 0.12
    assert chance([drawn(1000, 5, 0, 0)]) == 0.0


def test_files_of_images_are_known_by_their_names_and_sizes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            level = 40 * number if folder == "a" or number < 3 else 7
            image = Image.fromarray(np.random.default_rng(level).integers(0, 255, (9, 9 + number, 3)).astype(np.uint8))
            image.save(tmp_path / folder / f"{number + (folder == 'b' and number > 2) * 10}.png")
    rows = [ImageRows(files_below(tmp_path / folder, 8), workers=0) for folder in ("a", "b")]
    assert comparable(*rows)
    assert not comparable(rows[0], torch.zeros(3, 4))
    assert comparable(torch.zeros(3, 4), torch.zeros(2, 4))
    assert repeated(rows[:1], rows[1]) == [(3, True)]


def test_the_margin_is_three_standard_errors_of_twice_a_binomial_s_variance() -> None:
    usual, held, seen = 0.2, 100, 400
    error = (2 * 0.2 * 0.8 * (1 / 100 + 1 / 400)) ** 0.5
    assert not too_many(usual + 0.01 + 2.99 * error, usual, held, seen)
    assert too_many(usual + 0.01 + 3.01 * error, usual, held, seen)
