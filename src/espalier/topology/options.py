"""The options of a topology that programs share: each type, and what it means, is said once.

A program writes `sparsity: Sparsity = 0.9`; `espalier fit --help` takes type and sentence from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

Sparsity = Annotated[float, "fraction of the maskable weights at zero"]
DropScoreName = Annotated[
    Literal["magnitude", "mean-magnitude", "snr", "snr-magnitude", "mean-exponential", "snr-exponential", "bayes-factor"],
    "which active weights go first",
]
Allocation = Annotated[Literal["erk", "uniform"], "how layers share the active weights"]
Start = Annotated[Literal["random", "magnitude"], "where the active weights begin"]
DeltaT = Annotated[int, "steps between moves of the topology"]
DropFraction = Annotated[float, "of each layer's active weights, exchanged at the first moves"]
Freeze = Annotated[float, "fraction of training after which the topology stands still"]
