"""Watches of a training: one keeps every checkpoint, one ends the work as a kill would."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from espalier.store import Bundle
from espalier.training.watch import Silent


class Recorder(Silent):
    """Keeps every checkpoint, after an empty one for the start; starts from one."""

    def __init__(self, start: Bundle | None = None) -> None:
        self.start, self.checkpoints, self.steps = start, [Bundle({}, {})], 0

    def resume(self) -> Bundle | None:
        return self.start

    def step(self, info: object) -> None:
        self.steps += 1

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        tensors, facts = checkpoint()
        self.checkpoints.append(Bundle(copy.deepcopy(tensors), json.loads(json.dumps(facts))))  # as a file holds them


class Killed(Silent):
    """A watch that ends the work after a step, or within an epoch's end, as a kill would; and counts."""

    def __init__(self, step: int = 0, epoch: int = 0) -> None:
        self.at, self.seen = (step, epoch), [0, 0]

    def step(self, info: object) -> None:
        self.seen[0] += 1
        if self.seen[0] == self.at[0]:
            raise KeyboardInterrupt

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        self.seen[1] += 1
        if self.seen[1] == self.at[1]:
            raise KeyboardInterrupt
