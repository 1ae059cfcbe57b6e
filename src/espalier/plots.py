"""Pictures, and the only place that imports matplotlib. Each function returns a figure; `save` writes it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espalier import calibration, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, atomically and without the date, so that equal figures are equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    store.write_bytes(path, buffer.getvalue())


def reliability(panels: Mapping[str, tuple[Any, Any]], num_bins: int = 15) -> Figure:
    """Reliability diagrams side by side: title -> (probs `(n, C)`, labels `(n,)`).

    Top: accuracy in each confidence bin with a 95 % Clopper-Pearson interval, the gap to the diagonal shaded. Bottom:
    how many predictions fall into the bin (Guo et al. 2017, with the intervals they leave out).
    """
    from matplotlib.figure import Figure
    from scipy.stats import beta

    figure = Figure(figsize=(3.4 * len(panels) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=[3, 1])
    for column, (title, (probs, labels)) in enumerate(panels.items()):
        top, bottom = axes[:, column]
        confidence, hit = np.clip(probs.max(1), 0, 1), probs.argmax(1) == labels
        bins = calibration.reliability(confidence, hit, num_bins)
        some = bins.counts > 0
        count, accuracy, believed = bins.counts[some], bins.accuracy[some], bins.confidence[some]
        hits = np.rint(accuracy * count)
        low = np.nan_to_num(beta.ppf(0.025, hits, count - hits + 1), nan=0.0)
        high = np.nan_to_num(beta.ppf(0.975, hits + 1, count - hits), nan=1.0)
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
