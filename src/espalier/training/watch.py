"""Who looks at a long training, and may end it: a bar, a log, early stopping, a file of checkpoints, a run folder."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from espalier import store
from espalier.store import Bundle
from espalier.training import distributed
from espalier.training.loop import Info

EVERY = 30.0
"""Seconds between checkpoints."""
Row = Mapping[str, Any]
"""An epoch's line of the history: its number, the steps so far, means of the loss, the validation split's scores."""


class Watch:
    """Who looks at a long training. This one looks at nothing; yours is a subclass that says what it wants to hear of:

        class Printer(Watch):
            def on_epoch(self, row):
                print(row["epoch"], row["validation_nll"])

    `infer(..., watch=Printer())`, or a list of several. None of them changes what a training computes, but for its end.
    """

    def resume(self) -> Bundle | None:
        """The checkpoint to continue from, if there is one."""

    def on_begin(self, history: Sequence[Row]) -> None:
        """Before the first step, with the rows that are there already: none of a new training. Once for each training where an
        inference has several."""

    def on_step(self, info: Info) -> None:
        """After every step."""

    def on_epoch(self, row: Row) -> str | None:
        """After every epoch, with its row of the history. A sentence that says why ends the training here, as if this epoch were
        its last; it stands in the record."""

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        """After that, with what makes a checkpoint."""


Watches: TypeAlias = Watch | Sequence[Watch] | None
"""One, several or none."""


def as_one(watch: Watches) -> Watch:
    """One watch that is all of them."""
    if isinstance(watch, Watch):
        return watch
    if watch is not None and not isinstance(watch, Sequence):
        what = watch.__name__ if isinstance(watch, type) else type(watch).__name__
        raise ValueError(f"expected a Watch, several in a list, or None, got {what}: make it an object of a subclass")
    return Several(watch) if watch else Watch()


class Several(Watch):
    """All look on, in their order; the first that ends the training is the one that is named."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        for watch in watches:
            if not isinstance(watch, Watch):
                raise ValueError(f"expected espalier.training.Watch objects, got {type(watch).__name__}: make it a subclass")
        self.watches = watches

    def resume(self) -> Bundle | None:
        found = [bundle for bundle in [watch.resume() for watch in self.watches] if bundle is not None]
        return found[0] if found else None

    def on_begin(self, history: Sequence[Row]) -> None:
        for watch in self.watches:
            watch.on_begin(history)

    def on_step(self, info: Info) -> None:
        for watch in self.watches:
            watch.on_step(info)

    def on_epoch(self, row: Row) -> str | None:
        reasons = [watch.on_epoch(row) for watch in self.watches]
        return next((reason for reason in reasons if reason), None)

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        for watch in self.watches:
            watch.keep(checkpoint)


class Around(Watch):
    """A watch around others, which hear of everything: what it does not do itself is theirs to do."""

    def __init__(self, inner: Watches = None) -> None:
        self.inner = as_one(inner)

    def resume(self) -> Bundle | None:
        return self.inner.resume()

    def on_begin(self, history: Sequence[Row]) -> None:
        self.inner.on_begin(history)

    def on_step(self, info: Info) -> None:
        self.inner.on_step(info)

    def on_epoch(self, row: Row) -> str | None:
        return self.inner.on_epoch(row)

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        self.inner.keep(checkpoint)


def check_every(seconds: float) -> None:
    """Raises ValueError for what is no time between checkpoints."""
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"expected 0 or more seconds between checkpoints, got {seconds:g}")


class Checkpoints(Around):
    """The watch that writes a checkpoint to one file at the end of an epoch, and goes on from it where there is one.

    `infer(..., watch=Checkpoints("mine.safetensors"))`, killed and called again, ends in the bits of a run that was never
    stopped; remove the file and `mine.pairs` afterwards. Of several processes the first one writes, and all read.

    inner: other watches, a progress bar say, that look on. every: seconds between checkpoints, at least: what a kill may
    cost; 0 is every epoch. pairs: the folder for collected pairs, which are written once, a file each.
    """

    def __init__(
        self, path: str | Path, inner: Watches = None, *, every: float = EVERY, pairs: Path | None = None
    ) -> None:
        check_every(every)
        super().__init__(inner)
        self.path, self.every = Path(path), every
        if self.path.is_dir():
            raise ValueError(f"expected a file for the checkpoint, but {path} is a folder: name a file in it")
        self.pairs = pairs or self.path.with_suffix(".pairs")
        self.written: dict[str, str] = {}
        self.last = time.monotonic()

    def resume(self) -> Bundle | None:
        distributed.barrier()
        self.written, self.last = {}, time.monotonic()
        if not self.path.is_file():
            return None
        saved = store.read_bundle(self.path)
        if saved.facts.get("sha256") != _digest(saved):
            raise ValueError(
                f"expected {self.path} as a checkpoint was written here, but it is another file, or its content was altered: "
                "remove it to start again"
            )
        self.written = saved.facts["pair_files"]
        tensors = dict(saved.tensors)
        for key, digest in self.written.items():
            own = store.added_bundle(self.pairs, digest).tensors
            tensors |= {f"{key}.{name}": tensor for name, tensor in own.items()}
        return saved._replace(tensors=tensors)

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        if distributed.rank() == 0 and time.monotonic() - self.last >= self.every:
            self._write(checkpoint())
            self.last = time.monotonic()
        self.inner.keep(checkpoint)

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
