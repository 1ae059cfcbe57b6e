"""Whose code is it? A program file that someone names is run; one that came with a folder, a recipe or a grid is not, unasked.

What this user had run here is remembered by the digest of its text, in the user's state folder, so that one's own runs need
no flag. `told` is the flag: `--trust` on the command line, `espalier.load(folder, trust=True)` in Python.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from espalier import store

_TOLD: ContextVar[bool] = ContextVar("told", default=False)


class Untrusted(ValueError):
    """A stranger's code would have to be run."""


@contextmanager
def told(yes: bool = True) -> Iterator[None]:
    """Within it, programs that came with folders and files are run, and remembered."""
    before = _TOLD.set(yes or _TOLD.get())
    try:
        yield
    finally:
        _TOLD.reset(before)


def remember(path: Path) -> None:
    """This user has this program run: its digest goes into the state folder. Where that cannot be written, nothing does."""
    with suppress(OSError):
        store.write_bytes(_mark(path), b"")


def check(path: Path, named_by: Path) -> None:
    """May the program at `path`, which the file `named_by` names, be run? Raises `Untrusted` where this user neither has had
    it run before nor says so now."""
    if _TOLD.get():
        remember(path)
    elif not _mark(path).is_file():
        raise Untrusted(
            f"expected to be told before code is run that {named_by} names: {path} was not run here by you, as it is now; read "
            "it, then say --trust (in Python: trust=True)"
        )


def state_folder() -> Path:
    """Where this user's marks are: ESPALIER_STATE, else the system's place for such things."""
    from platformdirs import user_state_path

    own = os.environ.get("ESPALIER_STATE")
    return Path(own).expanduser() if own else user_state_path("espalier", appauthor=False)


def _mark(path: Path) -> Path:
    return state_folder() / "trusted" / store.sha256(path.read_bytes())
