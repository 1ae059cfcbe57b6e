"""Pictures as data: whatever they may ask for is drawn."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest

from espalier.pictures import data, plots
from espalier.pictures.data import Curve, Picture, Ranks


@pytest.mark.parametrize("style", get_args(get_type_hints(Curve)["style"]))
@pytest.mark.parametrize("banded", [False, True])
def test_every_style_of_a_curve_is_drawn_with_and_without_a_band(style, banded: bool) -> None:
    x = np.arange(1.0, 5)
    curve = Curve("a curve", x, x**2, *((x**2 - 0.5, x**2 + 0.5) if banded else (None, None)), style)
    (axes,) = plots.curves(Picture("title", "across", "up", (curve,))).axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "across", "up")
    low, high = axes.get_ylim()
    assert low <= 1.0
    assert high >= 16.0


@pytest.mark.parametrize("scale", get_args(get_type_hints(Picture)["xscale"]))
def test_every_scale_of_a_picture_is_drawn(scale) -> None:
    assert get_type_hints(Picture)["xscale"] == get_type_hints(Picture)["yscale"]
    curve = Curve("a curve", [1.0, 10.0], [2.0, 3.0])
    (axes,) = plots.curves(Picture("title", "x", "y", (curve,), scale, scale)).axes
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, scale)


def test_ranks_are_counted_and_what_they_should_follow_is_drawn_where_it_is_told() -> None:
    found, law = np.arange(5).repeat([3, 1, 4, 1, 5]), np.array([0.3, 0.1, 0.2, 0.1, 0.3])
    for expected in (None, law):
        left, _ = plots.ranks(Ranks("title", found, 4, expected)).axes
        bars = [patch.get_height() for patch in left.patches if patch.get_width() == 1.0]
        assert [height for height in bars if height == int(height)][-5:] == [3, 1, 4, 1, 5]
        assert len(left.lines) == (expected is not None)
        if expected is not None:
            np.testing.assert_allclose(left.lines[0].get_ydata(), [0, *(14 * law), 0])


def test_pictures_are_plain_data_without_a_way_to_draw() -> None:
    assert not {name for name in vars(data) if name in ("plt", "matplotlib", "Figure")}
