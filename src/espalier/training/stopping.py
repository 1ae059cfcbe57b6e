"""Training that ends when it no longer helps: patience on a score of the validation split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from espalier.contracts import Data
from espalier.training.watch import Row, Watch


class EarlyStopping(Watch):
    """Ends a training when a score of the history has not gone below its lowest for `patience` epochs.

    of: a column of the history, the lower the better. All it knows are the rows, so a training that goes on after a kill ends
    where it would have.
    """

    def __init__(self, patience: int, of: str = "validation_nll") -> None:
        if patience < 1:
            raise ValueError(f"expected patience of at least 1 epoch, got {patience}")
        self.patience, self.of = patience, of
        self._forget()

    def _forget(self) -> None:
        self.lowest, self.where, self.seen = math.inf, 0, 0

    def on_begin(self, history: Sequence[Row]) -> None:
        self._forget()
        for row in history:
            self.on_epoch(row)

    def on_epoch(self, row: Row) -> str | None:
        """Raises ValueError where the history has no such column."""
        if self.of not in row:
            raise ValueError(
                f"expected {self.of} in the history to stop on, got {', '.join(row)}: keep a validation split, or name another"
            )
        self.seen += 1
        if row[self.of] < self.lowest:
            self.lowest, self.where = row[self.of], self.seen
        if self.seen - self.where < self.patience:
            return None
        return f"patience {self.patience}: {self.of} was lowest, {self.lowest:.4g}, in epoch {self.where}"


def check_patience(patience: int, data: Data) -> None:
    """Raises ValueError, before any work, where there is nothing to have patience with."""
    if patience and not len(data.validation.y):
        raise ValueError(f"expected a validation split for patience, but {data.name} has none: keep one (--validation 0.1)")


def ending(history: Sequence[Row], stopped: str, epochs: int) -> dict[str, Any]:
    """What the record says of a training that was ended before its last epoch."""
    return {"stopped_at": len(history), "stopped_by": stopped} if stopped and len(history) < epochs else {}
