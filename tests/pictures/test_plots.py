"""Pictures as they are drawn."""

from __future__ import annotations

import numpy as np

from espalier.pictures import plots
from espalier.pictures.data import Replicated
from espalier.theory.claims import Curve, Picture, Ranks


def test_a_picture_draws_every_style_with_its_band() -> None:
    x = np.arange(1, 6)
    shapes = [Curve(style, x, x**2, x**2 - 0.5, x**2 + 0.5, style) for style in ("line", "dashed", "points", "bars")]
    (axes,) = plots.curves(Picture("title", "x", "y", tuple(shapes), "log", "log")).axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"line", "dashed", "points", "bars"}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len(axes.patches) == 5  # the bars
    line = next(line for line in axes.lines if line.get_label() == "line")
    assert np.asarray(line.get_ydata()).tolist() == (x**2).tolist()


def test_a_name_that_begins_with_a_line_is_in_the_legend() -> None:
    shapes = tuple(Curve(name, [0, 1], [0, 1]) for name in ("_mine", "theirs"))
    (axes,) = plots.curves(Picture("title", "x", "y", shapes)).axes
    assert [text.get_text().strip() for text in axes.get_legend().get_texts()] == ["_mine", "theirs"]


def test_ranks_are_drawn_with_what_they_should_follow() -> None:
    ranks = np.random.default_rng(0).integers(0, 21, 500)
    expected = np.linspace(1, 2, 21)
    figure = plots.ranks(Ranks("title", ranks, 20, expected / expected.sum()))
    assert figure.axes


def test_a_statistic_without_a_value_is_drawn_without_a_line() -> None:
    values = np.array([0.1, 0.4, np.nan, 0.2])
    (known, unknown) = plots.replicated([Replicated("a", values, 0.3, 0.5), Replicated("b", values, np.nan, 1.0)]).axes
    assert (len(known.lines), len(unknown.lines)) == (1, 0)
    assert sum(patch.get_height() for patch in unknown.patches) == 3


def test_a_dollar_in_a_name_is_a_dollar() -> None:
    """Not the beginning of a formula, which may not even be one."""
    names = ["a$_$", "$#1$", "US$ 5% - US$ 10", "50$\\frac$"]
    pictures = [Picture(name, name, name, (Curve(name, [0, 1], [0, 1]),)) for name in names]
    for name, picture in zip(names, pictures, strict=True):
        figure = plots.curves(picture)
        assert plots.png(figure).startswith(b"\x89PNG")
        assert figure.axes[0].get_xlabel() == name
        assert not figure.axes[0].xaxis.label.get_parse_math()


def test_powers_of_ten_on_a_logarithmic_axis_stay_formulas() -> None:
    figure = plots.curves(Picture("a$_$", "x", "y", (Curve("one", [1e-3, 1.0], [1e-5, 1.0]),), xscale="log", yscale="log"))
    plots.png(figure)
    axes = figure.axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        assert all(label.get_parse_math() for label in axis.get_ticklabels() if label.get_text())
        assert any("10^" in label.get_text() for label in axis.get_ticklabels())
    assert not axes.title.get_parse_math()
