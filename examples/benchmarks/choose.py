"""The setting of every method with the lowest validation NLL, from the table of a tuning grid.

    python examples/benchmarks/choose.py runs/fashion-tune/cells.csv

A tuning grid names a method's settings `METHOD a`, `METHOD b`, ...; see examples/grids/fashion-mlp-tune.yaml. Prints the
chosen letter per point of the grid, and beside it the NLL of all, so that an optimum at the edge shows.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from statistics import mean


def chosen(rows: list[dict[str, str]], score: str = "nll") -> dict[tuple[str, ...], dict[str, float]]:
    """(method, variant, sparsity) -> mean score of each setting over seeds."""
    found: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        method, _, letter = row["method"].rpartition(" ")
        if method and len(letter) == 1 and row.get(score):
            found[method, row.get("regime", ""), row["sparsity"]][letter].append(float(row[score]))
    return {point: {letter: mean(values) for letter, values in settings.items()} for point, settings in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--score", default="nll", help="a column where smaller is better")
    arguments = parser.parse_args()
    with arguments.table.open(newline="") as file:
        found = chosen(list(csv.DictReader(file)), arguments.score)
    for (method, regime, sparsity), settings in found.items():
        best = min(settings, key=lambda letter: settings[letter])
        values = "  ".join(f"{letter} {value:.4f}" for letter, value in sorted(settings.items()))
        print(f"{method:10s} {regime:14s} {sparsity:5s} {best}    {values}")


if __name__ == "__main__":
    main()
