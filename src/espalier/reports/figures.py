"""Pictures as figures of a page: drawn, said in a sentence, and their numbers as a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from espalier import calibration
from espalier.data.worlds import Levels
from espalier.pages import Figure
from espalier.pictures import plots
from espalier.pictures.data import Picture

SIDE = 112
"""Pixels that an example is shown in."""


def figure(picture: Picture, says: str, title: str | None = None) -> Figure:
    """A picture of curves, and its curves as data."""
    header, rows = ["curve", picture.x, picture.y, "low", "high"], []
    for curve in picture.curves:
        x, y = np.asarray(curve.x), np.asarray(curve.y)
        low, high = (np.full(len(y), np.nan) if each is None else np.asarray(each) for each in (curve.low, curve.high))
        rows += [
            [curve.label, *("" if value != value else value for value in row)]
            for row in zip(x.tolist(), y.tolist(), low.tolist(), high.tolist(), strict=True)
        ]
    return Figure(plots.png(plots.curves(picture)), title or picture.title, says, (header, rows))


def grid(
    values: NDArray[Any], says: str, title: str, x: str, y: str, names: list[str] | None = None, label: str = ""
) -> Figure:
    """A matrix `(rows, columns)` as a picture."""
    drawn = plots.heatmap(values, title=title, x=x, y=y, names=names, label=label)
    header = [y, *(names or map(str, range(values.shape[1])))]
    rows = [[names[i] if names else i, *row] for i, row in enumerate(values.tolist())]
    return Figure(plots.png(drawn), title, says, (header, rows))


def reliability_rows(probs: NDArray[np.float64], labels: NDArray[Any]) -> list[tuple[Any, ...]]:
    """The bins of a reliability diagram: low, high, examples, accuracy, confidence."""
    confidence, hit = np.clip(probs.max(1), 0, 1), probs.argmax(1) == labels
    bins = calibration.reliability(confidence, hit, calibration.NUM_BINS)
    return list(zip(bins.edges[:-1], bins.edges[1:], bins.counts, bins.accuracy, bins.confidence, strict=True))


def image_of(x: NDArray[np.float32], levels: Levels | None = None, scale: Any = None) -> bytes:
    """An input `(c, h, w)` as a PNG: from black to white where these levels are known; else from its least to its largest value,
    a flat one in grey, in its own units where its channels were scaled by mean and sd `(c,)` each."""
    if levels is None and scale is not None:
        mean, sd = (np.asarray(values, np.float32)[:, None, None] for values in scale)
        x = x * sd + mean
    low, high = float(x.min()), float(x.max())
    shown = (x - low) / (high - low) if high > low else np.full_like(x, 0.5)
    if levels is not None:
        shown = np.clip(levels.shown(torch.from_numpy(x)), 0, 1).astype(np.float32)
    bytes_ = np.round(255 * shown).astype(np.uint8)
    picture = Image.fromarray(bytes_[0] if len(bytes_) != 3 else bytes_.transpose(1, 2, 0))
    times = max(1, round(SIDE / max(picture.size)))
    file = io.BytesIO()
    picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()
