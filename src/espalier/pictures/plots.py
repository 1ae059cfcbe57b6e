"""Pictures, and the only place that imports matplotlib. Each function returns a figure; `save` writes it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espalier import calibration, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from espalier.pictures.data import Picture, Ranks, Replicated

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe & Ito's palette: told apart by colour-blind readers too."""


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, atomically and without the date, so that equal figures are equal files."""
    store.write_bytes(path, png(figure))


def png(figure: Figure) -> bytes:
    """The bytes of such a file."""
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    powers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for which, by in (("major", axis.get_major_formatter()), ("minor", axis.get_minor_formatter()))
        if isinstance(by, LogFormatter)
        for label in axis.get_ticklabels(which=which)  # type: ignore[arg-type]
    }
    for text in set(figure.findobj(Text)) - powers:
        text.set_parse_math(False)  # a dollar in a name is a dollar  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": "Espalier"})
    return buffer.getvalue()


def check_free(path: Path) -> None:
    """Raises ValueError where `path` is no name for a picture, or holds one that Espalier did not draw."""
    if path.is_dir() or not path.name:
        raise ValueError(f"expected the name of a PNG file for the picture, got {str(path)!r}")
    if path.exists() and b"tEXtSoftware\0Espalier" not in path.read_bytes()[:1024]:
        raise ValueError(f"expected a new file for the picture, but {path} is there and not Espalier's: choose another name")


def reliability(panels: Mapping[str, tuple[Any, Any]], num_bins: int = 15) -> Figure:
    """Reliability diagrams side by side: title -> (probs `(n, C)`, labels `(n,)`).

    Top: accuracy in each confidence bin with a 95 % Clopper-Pearson interval, the gap to the diagonal shaded. Bottom:
    how many predictions fall into the bin (Guo et al. 2017, with the intervals they leave out).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, (title, (probs, labels)) in enumerate(panels.items()):
        top, bottom = axes[:, column]
        confidence, hit = np.clip(probs.max(1), 0, 1), probs.argmax(1) == labels
        bins = calibration.reliability(confidence, hit, num_bins)
        some = bins.counts > 0
        count, accuracy, believed = bins.counts[some], bins.accuracy[some], bins.confidence[some]
        hits = np.rint(accuracy * count)
        low, high = calibration.clopper_pearson(hits, count)
        top.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--", label="perfectly calibrated")
        top.vlines(believed, np.minimum(accuracy, believed), np.maximum(accuracy, believed), color="#d55e00", alpha=0.35,
                   linewidth=7, label="gap")  # fmt: skip
        top.errorbar(believed, accuracy, [np.maximum(accuracy - low, 0), np.maximum(high - accuracy, 0)], fmt="o",
                     color="#0072b2", markersize=4, linewidth=1, label="accuracy, 95 % interval")  # fmt: skip
        top.set(xlim=(0, 1), ylim=(0, 1), title=_titled(title, probs, labels, num_bins))
        bottom.bar(bins.edges[:-1], bins.counts, width=np.diff(bins.edges), align="edge", color="#0072b2", alpha=0.6)
        bottom.set(xlabel="confidence", yscale="log")
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("examples")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _titled(title: str, probs: Any, labels: Any, num_bins: int) -> str:
    ece = calibration.ece(probs, labels, num_bins)
    low, high = calibration.ece_interval(probs, labels, num_bins)
    return f"{title}\nECE {ece:.3f} [{low:.3f}, {high:.3f}]"


def curves(picture: Picture) -> Figure:
    """The curves of a claim's picture over one pair of axes."""
    from matplotlib.figure import Figure

    aside = len(picture.curves) > 4  # a long legend would lie on the curves
    figure = Figure(figsize=(8.4 if aside else 6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(picture.curves):
        x, y, colour = np.asarray(curve.x), np.asarray(curve.y), COLOURS[index % len(COLOURS)]
        low, high = (None if each is None else np.asarray(each) for each in (curve.low, curve.high))
        label = f" {curve.label}" if curve.label.startswith("_") else curve.label  # else a legend leaves it out
        if curve.style == "bars":
            axes.bar(
                x, y, width=0.8 * np.min(np.diff(x)) if len(x) > 1 else 0.8, color=colour, alpha=0.6, label=label
            )
        else:
            again = ("-", "-.", ":")[index // len(COLOURS) % 3]  # where the colours begin anew
            form = {"line": again, "dashed": "--", "points": f"o{again}", "dots": "o"}[curve.style]
            axes.plot(x, y, form, color=colour, label=label, linewidth=1.4, markersize=4)
        if low is not None and high is not None and curve.style == "line":
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        elif low is not None and high is not None:
            spread = np.maximum(np.stack([y - low, high - y]), 0)
            axes.errorbar(x, y, spread, fmt="none", color=colour, linewidth=1, capsize=2)
    axes.set(title=picture.title, xlabel=picture.x, ylabel=picture.y, xscale=picture.xscale, yscale=picture.yscale)
    axes.grid(alpha=0.25)
    if picture.names:
        axes.set_xticks(range(len(picture.names)), picture.names)
        if sum(map(len, picture.names)) > 60:
            axes.tick_params("x", rotation=45)
    if aside:
        figure.legend(loc="outside right center", fontsize=8, frameon=False)
    else:
        axes.legend(fontsize=8, frameon=False)
    return figure


def heatmap(
    values: Any, *, title: str, x: str, y: str, names: Sequence[str] | None = None, label: str = ""
) -> Figure:
    """A matrix `(rows, columns)`, darker where it is larger; small ones with their numbers. names: of rows and columns alike."""
    from matplotlib.figure import Figure

    found = np.asarray(values, dtype=np.float64)
    side = min(8.4, max(4.2, 0.42 * found.shape[1] + 1.6))
    figure = Figure(figsize=(side, side * found.shape[0] / found.shape[1] * 0.9), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(found, cmap="Blues", vmin=0)
    figure.colorbar(drawn, label=label, shrink=0.8)
    if names is not None:
        axes.set_xticks(range(len(names)), names)
        if max(map(len, names)) > 2:
            axes.tick_params("x", rotation=45)
        axes.set_yticks(range(len(names)), names)
        for (row, column), value in np.ndenumerate(found):
            if len(names) <= 12 and value > 0:
                colour = "white" if value > 0.6 * found.max() else "black"
                axes.text(column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7, color=colour)
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure


def ranks(picture: Ranks, ci_prob: float = 0.99) -> Figure:
    """A rank histogram and its difference from the uniform ECDF, with ArviZ's simultaneous bands (Säilynoja et al. 2022).

    Left: counts by rank; the band is where a uniform rank's count lies with probability `ci_prob` for all ranks together
    (Bonferroni). Right: ranks spread over their cell, (rank + U) / (L + 1), so that uniform ranks are uniform on [0, 1].
    """
    from arviz_stats.ecdf_utils import ecdf_pit
    from matplotlib.figure import Figure
    from scipy import stats

    found, cells = np.asarray(picture.ranks), picture.num_draws + 1
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = stats.binom.ppf([0.5 * (1 - ci_prob) / cells, 1 - 0.5 * (1 - ci_prob) / cells], len(found), 1 / cells)
    left.axhspan(low, high, color="0.5", alpha=0.3, zorder=2)
    left.bar(np.arange(cells), np.bincount(found, minlength=cells), width=1.0, color=COLOURS[0], alpha=0.6)
    pit = (found + np.random.default_rng(0).random(len(found))) / cells
    at, ecdf, lower, upper = ecdf_pit(pit, ci_prob, 500, rng=np.random.default_rng(0))
    right.fill_between(at, lower - at, upper - at, color="0.85", label=f"uniform: {ci_prob:.0%} band for all at once")
    right.plot(at, ecdf - at, color=COLOURS[0], linewidth=1.2, label="ranks")
    if picture.expected is not None:
        law = np.asarray(picture.expected)
        left.step(np.arange(-1, cells + 1), len(found) * np.pad(law, 1), where="mid", color=COLOURS[1], linewidth=1.2)
        edges = np.arange(cells + 1) / cells
        right.plot(edges, np.concatenate([[0], np.cumsum(law)]) - edges, color=COLOURS[1], linestyle="--", linewidth=1.2,
                   label="predicted law")  # fmt: skip
        left.set_yscale("log")
    left.set(xlabel=f"rank among {picture.num_draws} draws", ylabel="data sets", xlim=(-1, cells))
    right.set(xlabel="rank / number of draws", ylabel="ECDF - uniform")
    handles, names = right.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(picture.title)
    return figure


def replicated(panels: Sequence[Replicated], columns: int = 4) -> Figure:
    """Predictive checks: for each, a histogram of the statistic over replicated data sets, and a line where the data's own lies.

    Raises ValueError for no panels.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("expected one or more checks to draw, got none")
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2.6 * across + 0.4, 2.3 * down + 0.4), layout="constrained")
    for axes, panel in zip(figure.subplots(down, across, squeeze=False).flat, panels, strict=False):
        values = np.asarray(panel.replicated, dtype=np.float64)
        axes.hist(values[np.isfinite(values)], bins="sqrt", color=COLOURS[0], alpha=0.6)
        if np.isfinite(panel.observed):
            axes.axvline(panel.observed, color=COLOURS[1], linewidth=1.6)
        axes.set_title(f"{panel.title}\np = {panel.p_value:.3g}", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    return figure
