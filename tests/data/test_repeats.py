"""Rows that stand in two places: they are counted, and refused where they are more than chance makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espalier.data import Together
from espalier.data.repeats import keys, repeated, too_many


def test_equal_rows_have_one_key_whatever_they_are_made_of() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.5], [1.0, 2.0]])
    first, second, third = keys(x)
    assert first == third != second
    several = keys(Together({"a": x, "b": torch.tensor([0, 0, 1])}))
    assert len(set(several)) == 3
    assert len(keys(x[:0])) == 0


def test_repeats_are_counted_and_a_few_are_none() -> None:
    rng = np.random.default_rng(0)
    seen = [rng.bytes(8) for _ in range(1000)]
    fresh = [rng.bytes(8) for _ in range(500)]
    assert repeated(seen, fresh) == (0, False)
    assert repeated(seen, fresh[5:] + seen[:5]) == (5, False)
    assert repeated(seen, fresh[10:] + seen[:10]) == (10, True)
    assert repeated(seen, []) == (0, False)


@pytest.mark.parametrize("kinds", [20, 60, 1000])
def test_of_few_columns_rows_are_alike_by_chance(kinds: int) -> None:
    """Independent rows of so many kinds are not refused; the training rows themselves are, as far as they can be told."""
    for seed in range(40):
        drawn = [str(kind).encode() for kind in np.random.default_rng(seed).integers(0, kinds, 400)]
        assert not repeated(drawn[:300], drawn[300:])[1], seed
        if kinds == 1000:
            assert repeated(drawn[:300], drawn[200:300])[1], seed


def test_the_margin_is_three_standard_errors_of_twice_a_binomial_s_variance() -> None:
    usual, held, seen = 0.2, 100, 400
    error = (2 * 0.2 * 0.8 * (1 / 100 + 1 / 400)) ** 0.5
    assert not too_many(usual + 0.01 + 2.99 * error, usual, held, seen)
    assert too_many(usual + 0.01 + 3.01 * error, usual, held, seen)
