"""What a person sees while a network trains: a bar with the loss, the density and the time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from espalier.training.loop import Info
from espalier.training.watch import Watch

REFRESH = 20
"""Steps between two readings of the loss: each one waits for the device."""


@contextmanager
def transfers(console: Console | None = None) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar per file that is being downloaded, on stderr."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console or Console(stderr=True),
    )
    tasks: dict[str, TaskID] = {}

    def seen(file: str, done: int, total: int | None) -> None:
        if file not in tasks:
            tasks[file] = progress.add_task(file)
        progress.update(tasks[file], completed=done, total=total)

    with progress:
        yield seen


@contextmanager
def counting(what: str, total: int, console: Console | None = None) -> Iterator[Callable[[int], None]]:
    """A bar of things done, on stderr, with the time left; nothing on a pipe. Yields what to tell the count to."""
    with tallying({what: total}, console) as seen:
        yield partial(seen, what)


@contextmanager
def tallying(totals: Mapping[str, float], console: Console | None = None) -> Iterator[Callable[[str, float], None]]:
    """A bar for each kind of thing that is done. Yields what to tell a kind and its count to."""
    console = console or Console(stderr=True)
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=600,  # what is counted may take minutes apiece
        redirect_stdout=sys.stdout.isatty(),  # else rich would send our lines to stderr
    )
    tasks = {what: progress.add_task(what, total=total) for what, total in totals.items()}
    with progress:
        yield lambda what, done: progress.update(tasks[what], completed=done)


@contextmanager
def comparing(
    runs: int, epochs: float, cells: int, look: Callable[[], float], console: Console | None = None
) -> Iterator[Callable[[str, str, str | None], None]]:
    """Bars for a grid: the epochs of its runs, which `look` counts every other second wherever they are trained, and its
    cells. On a pipe a line for each run and failure. Yields what to tell an ended run or cell to, and why it failed."""
    console = console or Console(stderr=True)
    start, already, done = time.monotonic(), look(), {"run": 0, "cell": 0}
    over = threading.Event()

    def time_left() -> str:
        behind = look() - already
        left = (time.monotonic() - start) * (epochs - already - behind) / behind if behind > 0 else 0.0
        return f", about {left / 60:.0f} min left" if left > 0 else ""

    with tallying({"epochs": epochs, "cells": cells}, console) as bars:

        def watch() -> None:
            while not over.wait(2.0):
                bars("epochs", look())

        def seen(what: str, name: str, why: str | None) -> None:
            done[what] += 1
            bars("epochs", look()) if what == "run" else bars("cells", done["cell"])
            line = f"{what} {done[what]}/{runs if what == 'run' else cells} {name}"
            if why is not None:
                console.print(f"{line} failed: {why}", highlight=False, soft_wrap=True, markup=False)
            elif what == "run" and not console.is_terminal:
                console.print(f"{line}{time_left()}", highlight=False, soft_wrap=True, markup=False)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()


class Bar(Watch):
    """A watch that draws a progress bar on stderr; on a pipe or a log, ten to twenty lines in all. Use as a context manager."""

    def __init__(self, title: str, epochs: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.title, self.epochs = title, epochs
        self.moves, self.done, self.first, self.last = 0, 0, 0, ""
        self.per_epoch = 0.0  # steps, known after the first one
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=epochs, status="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def on_step(self, info: Info) -> None:
        self.moves += info.grown > 0
        self.first = self.first or info.step
        if info.step % REFRESH == 0:
            self._show(float(info.loss), self.done + self._part_of_epoch(info.step))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.done, self.first = row["epoch"], row["step"] + 1
        self.epochs = max(self.epochs, self.done)  # a student's few steps may be more epochs than were counted on
        self.per_epoch = row["step"] / row["epoch"]
        self.last = _validation(row) + f"density {row['density']:.4f}  "
        self.last += f"drop rate {row['drop_rate']:.3f}  " if "drop_rate" in row else ""
        status = self._show(row["loss"], self.done)
        if not self.console.is_terminal and self.done % max(1, self.epochs // 10) == 0:
            self.console.print(f"{self.title}  {status}", highlight=False, soft_wrap=True)

    def _show(self, loss: float, completed: float) -> str:
        status = f"epoch {self.done}/{self.epochs}  loss {loss:.3f}  {self.last}moves {self.moves}"
        self.progress.update(self.task, total=self.epochs, completed=completed, status=status)
        return status

    def _part_of_epoch(self, step: int) -> float:
        return min(1.0, (step - self.first + 1) / self.per_epoch) if self.per_epoch else 0.0


def _validation(row: Mapping[str, Any]) -> str:
    if "validation_accuracy" in row:
        return f"validation accuracy {row['validation_accuracy']:.3f} ECE {row['validation_ece']:.3f}  "
    return f"validation RMSE {row['validation_rmse']:.3g}  " if "validation_rmse" in row else ""
