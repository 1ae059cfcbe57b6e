"""Who looks at a long training."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from espalier import store
from espalier.store import Bundle
from espalier.training import distributed
from espalier.training.loop import Info

EVERY = 30.0
"""Seconds between checkpoints."""


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


def check_every(seconds: float) -> None:
    """Raises ValueError for what is no time between checkpoints."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected 0 or more seconds between checkpoints, got {seconds:g}")


class Checkpoints:
    """The watch that writes a checkpoint to one file at the end of an epoch, and goes on from it where there is one.

    `infer(..., watch=Checkpoints("mine.safetensors"))`, killed and called again, ends in the bits of a run that was never
    stopped; remove the file and `mine.pairs` afterwards. Of several processes the first one writes, and all read.

    inner: another watch, a progress bar say, that looks on. every: seconds between checkpoints, at least: what a kill may
    cost; 0 is every epoch. pairs: the folder for collected pairs, which are written once, a file each.
    """

    def __init__(
        self, path: str | Path, inner: Watch | None = None, *, every: float = EVERY, pairs: Path | None = None
    ) -> None:
        check_every(every)
        self.path, self.inner, self.every = Path(path), inner or Silent(), every
        self.pairs = pairs or self.path.with_suffix(".pairs")
        self.written: dict[str, str] = {}
        self.last = time.monotonic()

    def resume(self) -> Bundle | None:
        distributed.barrier()
        self.written, self.last = {}, time.monotonic()
        if not self.path.is_file():
            return None
        saved = store.read_bundle(self.path)
        if saved.facts["sha256"] != _digest(saved):
            raise ValueError(
                f"expected {self.path} as it was written, but its content was altered: remove it to start again"
            )
        self.written = saved.facts["pair_files"]
        tensors = dict(saved.tensors)
        for key, digest in self.written.items():
            own = store.added_bundle(self.pairs, digest).tensors
            tensors |= {f"{key}.{name}": tensor for name, tensor in own.items()}
        return saved._replace(tensors=tensors)

    def step(self, info: Info) -> None:
        self.inner.step(info)

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        if distributed.rank() == 0 and time.monotonic() - self.last >= self.every:
            self._write(checkpoint())
            self.last = time.monotonic()
        self.inner.epoch(row, checkpoint)

    def _write(self, bundle: Bundle) -> None:
        """New pairs first, each in its file; then the rest, with their digests."""
        rest: dict[str, Tensor] = {}
        pairs: dict[str, dict[str, Tensor]] = {}
        for name, tensor in bundle.tensors.items():
            of = _PAIR.match(name)
            (pairs.setdefault(of[1], {}) if of else rest)[name[of.end() :] if of else name] = tensor
        for key in pairs.keys() - self.written.keys():
            self.written[key] = store.add_bundle(self.pairs, Bundle(pairs[key], {}))
        known = {key: self.written[key] for key in pairs}
        small = Bundle(rest, {**bundle.facts, "pair_files": known})
        store.write_bundle(self.path, small._replace(facts={**small.facts, "sha256": _digest(small)}))


_PAIR = re.compile(r"((?:next\.)*pair\.\d+)\.")
"""Of a tensor of a checkpoint: which pair it belongs to, of this training or of a later one (`phases.py`)."""



def _digest(bundle: Bundle) -> str:
    parts = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} {store.tensor_digest(tensor)}"
        for name, tensor in sorted(bundle.tensors.items())
    ]
    facts = {key: value for key, value in bundle.facts.items() if key != "sha256"}
    return store.sha256("\n".join([*parts, store.canonical(facts)]).encode())
