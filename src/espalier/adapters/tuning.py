"""Optuna prunes a training: each epoch's score is reported to the trial, and what is not worth its time ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.training import distributed
from espalier.training.watch import Row, Watch


class Pruner(Watch):
    """`infer(..., watch=Pruner(trial))` raises `optuna.TrialPruned` where the study's pruner says so, which Optuna expects of an
    objective: there is no fit then, and none is wanted.

    of: the column of the history that is reported, in the study's own direction; the step is the epoch.
    """

    def __init__(self, trial: Any, of: str = "validation_nll") -> None:
        self.trial, self.of, self.epochs = trial, of, 0

    def on_begin(self, history: Sequence[Row]) -> None:
        """Raises ValueError where several processes train together: one alone would end."""
        if distributed.size() > 1:
            raise ValueError(f"expected one process for a trial, got {distributed.size()}: run trials beside each other instead")
        for row in history:
            self._report(row)

    def on_epoch(self, row: Row) -> None:
        self._report(row)
        if self.trial.should_prune():
            from optuna import TrialPruned

            raise TrialPruned(f"{self.of} {row[self.of]:.4g} after {self.epochs} epochs")

    def _report(self, row: Row) -> None:
        if self.of not in row:
            raise ValueError(f"expected {self.of} in the history to report, got {', '.join(row)}: keep a validation split")
        self.epochs += 1
        self.trial.report(row[self.of], self.epochs)
