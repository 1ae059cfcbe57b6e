"""Watches that hand a training's history on, to where its people look: TensorBoard, a CSV file, whatever logs metrics.

`infer(..., watch=[TensorBoard("logs"), Csv("history.csv")])`, or `espalier fit --log tensorboard:logs --log csv:history.csv`.
None of them is part of a recipe: what a training computes does not depend on who listens.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from espalier import store
from espalier.training.loop import Info
from espalier.training.watch import Row, Watch

EVERY_STEPS = 20
"""Steps between two readings of the loss: each one waits for the device."""


def numbers(row: Row) -> dict[str, float]:
    """What of a row can be drawn."""
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}


class TensorBoard(Watch):
    """Writes every column of the history, by epoch, and the loss of every `every`-th step.

    writer: a folder for events, or anything with torch's `add_scalar(tag, value, step)`: a SummaryWriter of yours. A folder is
    written to beside what is there; of a training that goes on after a kill, the events after its checkpoint are withdrawn.
    """

    def __init__(self, writer: str | Path | Any, *, every: int = EVERY_STEPS) -> None:
        self.folder = Path(writer) if isinstance(writer, str | Path) else None
        self.writer: Any = None if self.folder else writer
        self.every, self.before, self.last = every, 0, 0
        if self.folder:
            _summary_writer()

    def _at(self, step: int) -> int:
        """A step, counted through the trainings of a run: one that counts anew begins where the last one ended."""
        self.before += self.last if step < self.last else 0
        self.last = step
        return self.before + step

    def on_begin(self, history: Sequence[Row]) -> None:
        reached = [self._at(row["step"]) for row in history]
        if self.folder and self.writer is None:
            again = {"purge_step": reached[-1] + 1} if reached else {}
            self.writer = _summary_writer()(str(self.folder), **again)

    def on_step(self, info: Info) -> None:
        step = self._at(info.step)
        if info.step % self.every == 0:
            self.writer.add_scalar("step/loss", float(info.loss), step)

    def on_epoch(self, row: Row) -> None:
        step = self._at(row["step"])
        for name, value in numbers(row).items():
            if name != "step":
                self.writer.add_scalar(f"epoch/{name}", value, step)
        if hasattr(self.writer, "flush"):
            self.writer.flush()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "expected TensorBoard to be installed for a folder of events, and it is not: pip install 'espalier[tensorboard]'"
        ) from error
    return SummaryWriter


class Csv(Watch):
    """Keeps the history in a CSV file, a line an epoch, whole at any time; numbers to their last digit.

    Raises ValueError, when the training begins, where the file holds anything but the first lines of this very training.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, str]] = []
        self.ours = False

    def on_begin(self, history: Sequence[Row]) -> None:
        self.rows += [_texts(row) for row in history]
        if self.path.exists() and not self.ours and not (self.rows and self._there()[: len(self.rows)] == self.rows):
            raise ValueError(
                f"expected a new file, or the log of this very training, but {self.path} holds something else: choose another "
                "or remove it"
            )
        self.ours = True
        if self.rows:
            self._write()

    def on_epoch(self, row: Row) -> None:
        self.rows.append(_texts(row))
        self._write()

    def _there(self) -> list[dict[str, str]]:
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]

    def _write(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(self.path, text.getvalue().encode())


def _texts(row: Row) -> dict[str, str]:
    return {name: str(value) for name, value in row.items()}


class Metrics(Watch):
    """Hands every epoch's numbers to `log_metrics(numbers, step)`, step being the epoch: of MLflow (`mlflow.log_metrics`), of any
    logger of Lightning, of Weights & Biases (`run.log`)."""

    def __init__(self, log_metrics: Callable[[Mapping[str, float], int], Any]) -> None:
        self.log_metrics, self.epochs = log_metrics, 0

    def on_begin(self, history: Sequence[Row]) -> None:
        self.epochs += len(history)

    def on_epoch(self, row: Row) -> None:
        self.epochs += 1
        self.log_metrics(numbers(row), self.epochs)


KINDS: dict[str, Callable[[str], Watch]] = {"csv": Csv, "tensorboard": TensorBoard}


def log_to(place: str) -> Watch:
    """`csv:FILE` or `tensorboard:DIR`. Raises ValueError for anything else."""
    kind, colon, path = place.partition(":")
    if kind not in KINDS or not colon or not path:
        raise ValueError(f"expected a log of csv:FILE or tensorboard:DIR, got {place!r}")
    return KINDS[kind](path)
