"""The front page's picture, from the tables of examples/benchmarks/fashion-mlp.md: where the claim holds, and where not.

python docs/pictures/claim.py            (writes docs/pictures/claim.png)
"""

# ruff: noqa: INP001

from __future__ import annotations

import re
import sys
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t

from espalier.pictures import plots

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "examples" / "benchmarks" / "fashion-mlp.md"
METHODS = {"RigL": "#d55e00", "CigL": "#0072b2", "CigL distilled": "#009e73", "RigL + TS": "#777777"}
REGIMES = {
    "interpolating": "interpolating: 10,000 images, 60 epochs",
    "under-trained": "under-trained: 48,000 images, 5 epochs",
}
SPARSITIES = ("80", "90", "95", "99")


def ece(regime: str, sparsity: str) -> dict[str, tuple[float, float, float]]:
    """Method -> ECE (15 bins), its standard deviation over three seeds, and its floor, from the table of one cell."""
    text = TABLES.read_text(encoding="utf-8")
    table = text.split(f"## regime {regime}, {sparsity} % sparse\n")[1].split("Minus RigL:")[0]
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in METHODS:
            mean, sd, floor, _ = map(float, re.findall(r"[\d.]+", " ".join(cells[6:8])))
            found[cells[0]] = mean, sd, floor
    return found


def draw() -> Figure:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (regime, title) in zip(figure.subplots(1, 2, sharey=True), REGIMES.items(), strict=True):
        cells = [ece(regime, sparsity) for sparsity in SPARSITIES]
        for place, (method, colour) in enumerate(METHODS.items()):
            mean = [cell[method][0] for cell in cells]
            half = [t.ppf(0.975, 2) * cell[method][1] / 3**0.5 for cell in cells]
            style = "--" if method == "RigL + TS" else "-"
            beside = [x + 0.05 * (place - 1.5) for x in range(len(SPARSITIES))]  # error bars do not hide each other
            axes.errorbar(beside, mean, half, fmt=f"o{style}", color=colour, capsize=3, markersize=4, label=method)
        floor = [max(cell[method][2] for method in METHODS) for cell in cells]
        axes.fill_between(range(len(SPARSITIES)), 0, floor, color="0.9", label="floor of a calibrated net")
        axes.set_xticks(range(len(SPARSITIES)), SPARSITIES)
        axes.set(title=title, xlabel="sparsity, %", ylim=(0, 0.13))
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("ECE, 15 bins")
    figure.axes[1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    plots.save(draw(), Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "claim.png")
