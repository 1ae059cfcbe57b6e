"""Who looks at a long training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from espalier.store import Bundle
from espalier.training.loop import Info


class Watch(Protocol):
    """Who looks at a long training: a progress bar, a run folder. `Silent` looks at nothing."""

    def resume(self) -> Bundle | None:
        """The checkpoint to continue from, if there is one."""

    def step(self, info: Info) -> None:
        """After every step."""

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        """After every epoch, with its row of the history."""


class Silent:
    """The watch that looks at nothing."""

    def resume(self) -> Bundle | None:
        return None

    def step(self, info: Info) -> None:
        return None

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        return None
