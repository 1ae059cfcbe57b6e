"""Bounds on time that a busy machine keeps: processor time for work, and minutes of the clock for what only waits."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 300.0


def of_children() -> float:
    """The processor's seconds that ended children have taken."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


@contextmanager
def soon(seconds: float, what: object = "it", patience: float = PATIENCE) -> Iterator[None]:
    """The block takes less than so many seconds of this process's processors, and does not wait for something for ever.

    The clock on the wall counts whatever else the machine does: a read of two milliseconds has been seen to take fifteen seconds.
    """

    def hangs(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what} hangs: {patience:g} seconds have passed")

    before, began = signal.signal(signal.SIGALRM, hangs), time.process_time()
    signal.setitimer(signal.ITIMER_REAL, patience)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken = time.process_time() - began
    assert taken < seconds, f"{what} took {taken:.2f} seconds of the processor"
