"""Watches of a training: one keeps every checkpoint, one ends it, one ends the work as a kill would."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.prediction.fit import Fit
from espalier.store import Bundle
from espalier.training.watch import Checkpoints, Row, Watch, Watches


class Recorder(Watch):
    """Keeps every checkpoint, after an empty one for the start; starts from one."""

    def __init__(self, start: Bundle | None = None) -> None:
        self.start, self.checkpoints, self.steps = start, [Bundle({}, {})], 0

    def resume(self) -> Bundle | None:
        return self.start

    def on_step(self, info: object) -> None:
        self.steps += 1

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        tensors, facts = checkpoint()
        self.checkpoints.append(Bundle(copy.deepcopy(tensors), json.loads(json.dumps(facts))))  # as a file holds them


class Ending(Watch):
    """Ends the training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, row: Row) -> str | None:
        return f"it was to end after {self.epoch}" if row["epoch"] == self.epoch else None


class Killed(Watch):
    """A watch that ends the work after a step, or within an epoch's end, as a kill would; and counts."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self.at, self.seen = (step, epoch), [0, 0]

    def on_step(self, info: object) -> None:
        self.seen[0] += 1
        if self.seen[0] == self.at[0]:
            raise KeyboardInterrupt

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        self.seen[1] += 1
        if self.seen[1] == self.at[1]:
            raise KeyboardInterrupt


def killed_and_resumed(trained: Callable[[Watches], Fit], folder: Path, step: int) -> Fit:
    """The fit of a training that is killed after a step and goes on from its last checkpoint."""
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(folder / "mine.safetensors", Killed(step=step), every=0))
    return trained(Checkpoints(folder / "mine.safetensors", every=0))
