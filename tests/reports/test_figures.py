"""Claims about figures: the picture's numbers are the file's, and inputs are shown in their own units."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from espalier.pictures.data import Curve, Picture
from espalier.reports.figures import SIDE, figure, grid, image_of


def test_a_figures_file_holds_its_curves() -> None:
    curves = (Curve("a", [0.0, 1.0], [2.0, 3.0], [1.5, 2.5], [2.5, 3.5]), Curve("b", [0.0], [0.5], style="points"))
    found = figure(Picture("Title", "x", "y", curves), "says")
    rows = list(csv.reader(io.StringIO(found.csv)))
    assert rows == [["curve", "x", "y", "low", "high"], ["a", "0.0", "2.0", "1.5", "2.5"], ["a", "1.0", "3.0", "2.5", "3.5"],
                    ["b", "0.0", "0.5", "", ""]]  # fmt: skip
    assert isinstance(found.png, bytes)
    assert Image.open(io.BytesIO(found.png)).width > 300


def test_a_matrix_is_its_own_file() -> None:
    found = grid(np.array([[0.9, 0.1], [0.25, 0.75]]), "says", "Confusion", "answer", "truth", ["cat", "dog"])
    assert list(csv.reader(io.StringIO(found.csv))) == [["truth", "cat", "dog"], ["cat", "0.9", "0.1"], ["dog", "0.25", "0.75"]]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_input_is_shown_in_its_own_units(channels: int) -> None:
    own = np.linspace(0, 255, channels * 64).reshape(channels, 8, 8).astype(np.float32)
    shift, scale = np.full(channels, 100.0), np.arange(1, channels + 1) * 10.0
    x = (own - shift[:, None, None]) / scale[:, None, None]
    shown = np.asarray(Image.open(io.BytesIO(image_of(x, shift, scale)))).astype(float)
    times = SIDE // 8
    assert shown.shape[:2] == (8 * times, 8 * times)
    small = shown[::times, ::times] if channels == 1 else shown[::times, ::times].transpose(2, 0, 1)
    np.testing.assert_allclose(small.reshape(own.shape), own, atol=0.5001)


def test_a_flat_input_is_black_and_not_an_error() -> None:
    assert not np.asarray(Image.open(io.BytesIO(image_of(np.ones((1, 4, 4), np.float32))))).any()
