"""A small grid as its lines, and workers that are this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import yaml

from espalier.grids import compare
from espalier.grids.grid import Grid, read
from espalier.grids.workers import Failure, attempt

RIGL = {"run": {"inference": "rigl"}, "predict": "unmasked"}
CIGL = {"inference": "cigl", "drop_rate": 0.2}
LINES: dict[str, Any] = {
    "base": {
        "model": "mlp",
        "hidden": [16],
        "data": "digits",
        "train_size": 300,
        "batch_size": 50,
        "delta_t": 4,
        "epochs": 6,
    },
    "sparsities": [0.8],
    "seeds": [0, 1],
    "methods": {
        "RigL": RIGL,
        "RigL + TS": {**RIGL, "calibrate": "temperature"},
        "MC-DP": {"run": CIGL, "predict": "redraw"},
        "CigL": {"run": CIGL, "predict": "ticket"},
        "CigL w/o WMA": {"run": CIGL, "predict": "pairs"},
        "Ensemble of 2": {**RIGL, "members": 2},
    },
    "num_samples": 4,
}


class InThisProcess:
    """Workers that are this process, and remember what they did."""

    def __init__(self) -> None:
        self.did: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, task: Callable[[Any], None], items: deque[Any]) -> Iterator[tuple[Any, Failure | None]]:
        while items:
            item = items.popleft()
            self.did.append(item)
            yield item, attempt(task, item)


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(LINES | changes, sort_keys=False))
    return path


def finished(folder: Path) -> tuple[Grid, Path, compare.Outcome]:
    """The grid of LINES, written and done in `folder` by this process."""
    grid = read(write(folder / "lines.yaml"))
    outcome = compare.compare(grid, folder / "out", InThisProcess())
    assert outcome.failures == {}
    return grid, folder / "out", outcome
