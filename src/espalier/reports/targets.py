"""How good the predictive distributions of a regression are: the sections of a report on runs with targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from espalier import calibration
from espalier.pages import Block, Figure, Section, Table, Text
from espalier.pictures.data import Curve, Picture
from espalier.prediction.mixture import Mixture
from espalier.reports.figures import figure
from espalier.reports.look import Look
from espalier.reports.tables import interval

BINS = 20
LEVELS = np.arange(0.1, 1.0, 0.1)
SHOWN = 10
DRAWN = 2048
"""Of each example's predictive distribution, where it has no closed form."""


def sections(looks: Sequence[Look]) -> list[Section]:
    """All of them, in their order."""
    told = [told_of(look.predicted[look.predictor.posterior], look.labels) for look in looks]
    return [transform(looks, told), intervals(looks, told), residuals(looks, told), furthest(looks[0], told[0])]


def named(look: Look) -> str:
    """What is looked at here: the run, by the way that averages its posterior."""
    return f"{look.name} ({look.predictor.posterior})"


class Told(NamedTuple):
    """Of n targets and a predictive distribution. pit: the probability integral transform P(Y <= y_i) (Dawid 1984), uniform if
    it is right; by draws where it has no closed form, and of ties, as counts have, a uniform share (the randomised transform of
    Czado, Gneiting & Held 2009). centre, wide: its mean and standard deviation; where it has no mean the median of draws, where
    it has no variance NaN."""

    pit: NDArray[np.float64]
    centre: NDArray[np.float64]
    wide: NDArray[np.float64]


def told_of(said: Any, y: NDArray[Any]) -> Told:
    """said: of one way to predict, as `evaluation.predictions` returns it."""
    if isinstance(said, Mixture):
        drawn = np.sort(said.sample(DRAWN).numpy(), axis=0)
        share = np.random.default_rng(0).random(len(y))
        pit = np.asarray((drawn < y).mean(0) + share * (drawn == y).mean(0))
        return Told(pit, said.centre(drawn), said.spread())
    wide = np.sqrt(np.mean(said[..., 1] ** 2, 0) + said[..., 0].var(0))
    return Told(np.asarray(ndtr((y - said[..., 0]) / said[..., 1]).mean(0)), said[..., 0].mean(0), wide)


def losses(look: Look) -> dict[str, NDArray[np.float64]]:
    """Of the one network that the run is about, by name of the score, what every example costs: `(n,)`."""
    said, y = look.predicted[look.way], look.labels
    if isinstance(said, Mixture):
        own = said.scores(torch.from_numpy(y))[0]
        return {"NLL": own["nll"], "CRPS": own["crps"], "squared error": own["rmse"]}
    nll, crps = (score(said[..., 0], said[..., 1], y) for score in (calibration.gaussian_nll_scores, calibration.crps_scores))
    return {"NLL": nll, "CRPS": crps, "squared error": (said[..., 0].mean(0) - y) ** 2}


def pit_figure(pits: Mapping[str, NDArray[np.float64]], title: str = "Probability integral transform") -> Figure:
    """Their histograms, in the band of a uniform one."""
    curves, said = [], []
    for name, pit in pits.items():
        counts = np.histogram(pit, BINS, (0, 1))[0]
        low, high = binom.ppf([0.025 / BINS, 1 - 0.025 / BINS], len(pit), 1 / BINS)
        outside = int(((counts < low) | (counts > high)).sum())
        curves.append(Curve(name, (np.arange(BINS) + 0.5) / BINS, counts * BINS / len(pit), style="points"))
        wide = f"sd of the PIT {pit.std():.3f} (0.289 if calibrated)"
        said.append(f"{name}: {outside} of {BINS} bars are outside the band; {wide}.")
    ends = np.array([0.0, 1.0])
    band = Curve(
        "uniform, 95 % for all bars",
        ends,
        np.ones(2),
        np.full(2, low * BINS / len(pit)),
        np.full(2, high * BINS / len(pit)),
    )
    return figure(Picture(title, "P(Y ≤ y)", "density", (band, *curves)), " ".join(said))


def transform(looks: Sequence[Look], told: Sequence[Told]) -> Section:
    drawn = pit_figure({named(look): own.pit for look, own in zip(looks, told, strict=True)})
    text = Text(
        "Where the predictive distributions are right, P(Y ≤ y) is uniform. A hump says that they are too wide, a trough too "
        "narrow, a slope that they are biased."
    )
    return Section("Calibration of the distribution", [text, drawn], "pit")


def intervals(looks: Sequence[Look], told: Sequence[Told]) -> Section:
    """How often central intervals hold the target."""
    curves: list[Curve] = [Curve("as promised", LEVELS, LEVELS, style="dashed")]
    rows, apart = list[list[str]](), dict[str, float]()
    for look, (pit, _, _) in zip(looks, told, strict=True):
        held = np.array([int((np.abs(pit - 0.5) <= level / 2).sum()) for level in LEVELS])
        n = len(pit)
        low, high = calibration.clopper_pearson(held, n)
        curves.append(Curve(named(look), LEVELS, held / n, low, high, style="points"))
        rows.append([named(look), *(f"{own:.3f} {interval(ends, 3)}" for own, *ends in zip(held / n, low, high, strict=True))])
        apart[named(look)] = float(np.abs(held / n - LEVELS).max())
    worst = max(apart, key=apart.__getitem__)
    says = f"Central intervals against how often they hold the target; {worst} is farthest from its promise."
    picture = Picture("Coverage of central intervals", "promised", "observed", tuple(curves))
    table = Table("Coverage", ["run", *(f"{level:.0%}" for level in LEVELS)], rows)
    return Section("Coverage", [figure(picture, says), table], "coverage")


def residuals(looks: Sequence[Look], told: Sequence[Told]) -> Section:
    blocks: list[Block] = []
    for look, (_, centre, wide) in zip(looks, told, strict=True):
        if not (np.isfinite(wide) & (wide > 0)).all():
            blocks.append(Text(f"{look.name}: of some examples its likelihood has no variance, so no standardised residuals."))
            continue
        rest = (look.labels - centre) / wide
        picture = residual_picture(named(look), centre, rest)
        slope = np.corrcoef(wide, np.abs(look.labels - centre))[0, 1] if wide.std() > 0 else 0.0
        says = (
            f"{named(look)}: standardised residuals have mean {rest.mean():.2f} and sd {rest.std():.2f} (0 and 1 if right); "
            f"predicted sd and error correlate by {slope:.2f}."
        )
        blocks.append(figure(picture, says))
        blocks.append(Text(says))
    return Section("Residuals", blocks, "residuals")


def residual_picture(name: str, centre: NDArray[np.float64], rest: NDArray[np.float64]) -> Picture:
    """Standardised residuals over predictions, each a dot by itself, and where 95 % of a normal distribution's lie."""
    ends, wide = np.array([centre.min(), centre.max()]), np.full(2, ndtri(0.975))
    normal = Curve("95 % of a normal's", ends, np.zeros(2), -wide, wide)
    examples = Curve("examples", centre, rest, style="dots")
    return Picture(f"Residuals of {name}", "predicted", "(target - predicted) / sd", (normal, examples))


def furthest(look: Look, told: Told) -> Section:
    """The examples that the run is most surprised by."""
    pit, centre, wide = told
    with np.errstate(all="ignore"):
        rest = (look.labels - centre) / wide
    far = np.abs(rest) if np.isfinite(rest).all() else np.abs(pit - 0.5)
    order = np.argsort(-far, kind="stable")[:SHOWN]
    epistemic = np.sqrt(look.unsure.get("epistemic_variance", np.full(len(pit), np.nan)))
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
    header = ["row", "target", "predicted", "sd", "of it between draws", "residual / sd"]
    return Section("Examples", [Table(f"Farthest from their prediction, {named(look)}", header, rows)], "examples")
