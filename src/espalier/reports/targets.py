"""How good the predictive distributions of a regression are: the sections of a report on runs with targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import binom

from espalier import calibration
from espalier.pages import Block, Section, Table, Text
from espalier.pictures.data import Curve, Picture
from espalier.prediction.mixture import Mixture
from espalier.reports.figures import figure
from espalier.reports.look import Look

BINS = 20
LEVELS = np.arange(0.1, 1.0, 0.1)
SHOWN = 10
DRAWN = 2048
"""Of each example's predictive distribution, where it has no closed form."""


def sections(looks: Sequence[Look]) -> list[Section]:
    """All of them, in their order."""
    return [transform(looks), intervals(looks), residuals(looks), furthest(looks[0])]


def pit_of(look: Look) -> NDArray[np.float64]:
    """The probability integral transform P(Y <= y_i) of every target under the run's predictive distribution (Dawid 1984):
    uniform if it is right. Of a distribution without a closed form by draws, ties by halves."""
    said, y = look.predicted["redraw"], look.labels
    if isinstance(said, Mixture):
        drawn = said.sample(DRAWN).numpy()
        return np.asarray((drawn < y).mean(0) + 0.5 * (drawn == y).mean(0))
    return np.asarray(ndtr((y - said[..., 0]) / said[..., 1]).mean(0))


def transform(looks: Sequence[Look]) -> Section:
    curves, said = [], []
    for look in looks:
        pit = pit_of(look)
        counts = np.histogram(pit, BINS, (0, 1))[0]
        low, high = binom.ppf([0.025 / BINS, 1 - 0.025 / BINS], len(pit), 1 / BINS)
        outside = int(((counts < low) | (counts > high)).sum())
        curves.append(Curve(look.name, (np.arange(BINS) + 0.5) / BINS, counts * BINS / len(pit), style="points"))
        said.append(
            f"{look.name}: {outside} of {BINS} bars are outside the band; sd of the PIT {pit.std():.3f} (0.289 if calibrated)."
        )
    ends = np.array([0.0, 1.0])
    band = Curve(
        "uniform, 95 % for all bars",
        ends,
        np.ones(2),
        np.full(2, low * BINS / len(pit)),
        np.full(2, high * BINS / len(pit)),
    )
    picture = Picture("Probability integral transform", "P(Y ≤ y)", "density", (band, *curves))
    told = Text(
        "Where the predictive distributions are right, P(Y ≤ y) is uniform. A hump says that they are too wide, a trough too "
        "narrow, a slope that they are biased."
    )
    return Section("Calibration of the distribution", [told, figure(picture, " ".join(said))], "pit")


def intervals(looks: Sequence[Look]) -> Section:
    """How often central intervals hold the target."""
    curves: list[Curve] = [Curve("as promised", LEVELS, LEVELS, style="dashed")]
    rows: list[list[str]] = []
    for look in looks:
        pit = pit_of(look)
        held = np.array([int((np.abs(pit - 0.5) <= level / 2).sum()) for level in LEVELS])
        n = len(pit)
        low, high = calibration.clopper_pearson(held, n)
        curves.append(Curve(look.name, LEVELS, held / n, low, high, style="points"))
        rows.append([look.name, *(f"{share:.3f}" for share in held / n)])
    worst = max(
        rows, key=lambda row: max(abs(float(share) - level) for share, level in zip(row[1:], LEVELS, strict=True))
    )
    says = f"Central intervals against how often they hold the target; {worst[0]} is farthest from its promise."
    picture = Picture("Coverage of central intervals", "promised", "observed", tuple(curves))
    table = Table("Coverage", ["run", *(f"{level:.0%}" for level in LEVELS)], rows)
    return Section("Coverage", [figure(picture, says), table], "coverage")


def residuals(looks: Sequence[Look]) -> Section:
    blocks: list[Block] = []
    for look in looks:
        centre, wide = _moments(look)
        rest = (look.labels - centre) / wide
        picture = Picture(
            f"Residuals of {look.name}",
            "predicted",
            "(target - predicted) / sd",
            (Curve("examples", centre, rest, style="points"),),
        )
        slope = np.corrcoef(wide, np.abs(look.labels - centre))[0, 1] if wide.std() > 0 else 0.0
        says = (
            f"{look.name}: standardised residuals have mean {rest.mean():.2f} and sd {rest.std():.2f} (0 and 1 if right); "
            f"predicted sd and error correlate by {slope:.2f}."
        )
        blocks.append(figure(picture, says))
        blocks.append(Text(says))
    return Section("Residuals", blocks, "residuals")


def _moments(look: Look) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the predictive distribution, by the draws of `redraw`."""
    said = look.predicted["redraw"]
    if isinstance(said, Mixture):
        drawn = said.sample(DRAWN).numpy()
        return drawn.mean(0), drawn.std(0)
    centre = said[..., 0].mean(0)
    return centre, np.sqrt(np.mean(said[..., 1] ** 2, 0) + said[..., 0].var(0))


def furthest(look: Look) -> Section:
    """The examples that the run is most surprised by."""
    centre, wide = _moments(look)
    rest = (look.labels - centre) / wide
    order = np.argsort(-np.abs(rest), kind="stable")[:SHOWN]
    epistemic = np.sqrt(look.unsure["epistemic_variance"])
    rows: list[list[Any]] = [
        [
            str(row),
            f"{look.labels[row]:.4g}",
            f"{centre[row]:.4g}",
            f"{wide[row]:.3g}",
            f"{epistemic[row]:.3g}",
            f"{rest[row]:+.2f}",
        ]
        for row in order
    ]
    header = ["row", "target", "predicted", "sd", "of it between masks", "residual / sd"]
    return Section("Examples", [Table(f"Farthest from their prediction, {look.name}", header, rows)], "examples")
