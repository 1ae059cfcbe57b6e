"""Who looks at a long training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from espalier import store
from espalier.store import Bundle
from espalier.training import distributed
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


class Checkpoints:
    """The watch that writes a checkpoint to one file after every epoch, and goes on from it where there is one.

    `infer(..., watch=Checkpoints("mine.safetensors"))`, killed and called again, ends in the bits of a run that was never
    stopped; remove the file afterwards. Of several processes the first one writes, and all read. inner: another watch, a
    progress bar say, that looks on.
    """

    def __init__(self, path: str | Path, inner: Watch | None = None) -> None:
        self.path, self.inner = Path(path), inner or Silent()

    def resume(self) -> Bundle | None:
        distributed.barrier()
        if not self.path.is_file():
            return None
        saved = store.read_bundle(self.path)
        if saved.facts["sha256"] != _digest(saved):
            raise ValueError(
                f"expected {self.path} as it was written, but its content was altered: remove it to start again"
            )
        return saved

    def step(self, info: Info) -> None:
        self.inner.step(info)

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        if distributed.rank() == 0:
            bundle = checkpoint()
            store.write_bundle(self.path, bundle._replace(facts={**bundle.facts, "sha256": _digest(bundle)}))
        self.inner.epoch(row, checkpoint)


def _digest(bundle: Bundle) -> str:
    parts = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} {store.tensor_digest(tensor)}"
        for name, tensor in sorted(bundle.tensors.items())
    ]
    facts = {key: value for key, value in bundle.facts.items() if key != "sha256"}
    return store.sha256("\n".join([*parts, store.canonical(facts)]).encode())
