"""Claims about figures: the picture's numbers are the file's, and inputs are shown in their own units."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from PIL import Image

from espalier.data.worlds import Levels
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
    own /= 2  # a dim one stays dim
    shift, scale = np.full(channels, 100.0), np.arange(1, channels + 1) * 10.0
    x = (own - shift[:, None, None]) / scale[:, None, None]
    shown = np.asarray(Image.open(io.BytesIO(image_of(x, Levels(shift, scale, 255.0))))).astype(float)
    times = SIDE // 8
    assert shown.shape[:2] == (8 * times, 8 * times)
    small = shown[::times, ::times] if channels == 1 else shown[::times, ::times].transpose(2, 0, 1)
    np.testing.assert_allclose(small.reshape(own.shape), own, atol=0.5001)


def test_an_input_of_unknown_levels_is_stretched_and_a_flat_one_is_grey() -> None:
    def shown(x: np.ndarray) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(image_of(x.astype(np.float32)))))

    assert set(shown(np.array([[[0.45, 0.5]]])).reshape(-1)) == {0, 255}
    assert set(shown(np.ones((1, 4, 4))).reshape(-1)) == {128}
    cast = np.stack([np.linspace(0.7, 0.9, 4), np.linspace(-1, 1, 4)])[[0, 1, 1], :, None].repeat(4, 2)
    scale = cast.mean((1, 2)), cast.std((1, 2))
    standardised = ((cast - scale[0][:, None, None]) / scale[1][:, None, None]).astype(np.float32)
    reds = np.asarray(Image.open(io.BytesIO(image_of(standardised, None, scale))))[..., 0]
    assert reds.min() > 200, "its channels in their own units"
    white = image_of(np.ones((1, 4, 4), np.float32), Levels(np.zeros(1), np.ones(1), 1.0))
    assert np.asarray(Image.open(io.BytesIO(white))).min() == 255
