"""Where tasks run: processes of this machine, one thread each, or a Dask cluster that is already there.

Both are context managers that are called with a task and its items and yield every item as it ends, with its failure if
it failed: one that fails, or whose process dies, takes no other with it. Items are taken from the left of a deque, which may grow
meanwhile: what an item makes possible is put there when it has ended.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from espalier import __version__

Item = TypeVar("Item")
WAIT, MOST_WAIT, MOST_JOBS = 30.0, 86_400, 1_024
"""Seconds to wait for a cluster, by default and at most; processes at most."""


class Failure(NamedTuple):
    """Why a task did not end well: one sentence for a table, the traceback for who looks closer."""

    sentence: str
    traceback: str


class Workers(Protocol):
    """What runs tasks."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def __call__(self, task: Callable[[Item], None], items: deque[Item]) -> Iterator[tuple[Item, Failure | None]]: ...


def _nothing() -> None:
    """What every worker can do."""


def workers(jobs: int, scheduler: str | None, wait: float = WAIT, check: Callable[[], None] = _nothing) -> Workers:
    """`jobs` processes of this machine, or the cluster whose scheduler has this address, whose workers must pass `check`.

    Raises ValueError for no job, no address and no time.
    """
    if not 1 <= jobs <= MOST_JOBS:
        raise ValueError(f"expected 1 to {MOST_JOBS} jobs, got {jobs}")
    if scheduler is None:
        return Processes(jobs)
    if not scheduler:
        raise ValueError("expected the address of a Dask scheduler, tcp://host:8786 say, got none")
    if not 0 < wait <= MOST_WAIT:
        raise ValueError(f"expected seconds to wait, above 0 and at most {MOST_WAIT}, got {wait:g}")
    return Cluster(scheduler, wait, check)


def attempt(task: Callable[[Item], None], item: Item) -> Failure | None:
    """Do one task on one thread. Training uses torch's global generator and Pyro's global store: in a process whose
    workers are threads, as Dask's may be, one task waits for the other."""
    import torch

    from espalier.training.streams import ONE_AT_A_TIME

    with ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            task(item)
        except (Exception, SystemExit) as error:  # whatever it was, the other tasks go on
            return failure_of(error)
        finally:
            torch.set_num_threads(threads)
    return None


def failure_of(error: BaseException) -> Failure:
    said = _said(error)
    sentence = said if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {said}"
    return Failure(sentence, "".join(traceback.format_exception(error)))


class _Process(NamedTuple):
    """A spawned process as an executor, and its number."""

    pool: ProcessPoolExecutor
    pid: Future[int]

    @classmethod
    def new(cls) -> Self:
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=follow_parent)
        return cls(pool, pool.submit(os.getpid))


class Processes:
    """Spawned processes, each an executor of its own: if one is killed, what it was doing is known, and only that fails."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.idle: list[_Process] = []
        self.busy: dict[Future[Failure | None], tuple[_Process, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        working = [process for process, _ in self.busy.values()]  # there are some if we were stopped
        for process in [*self.idle, *working]:
            process.pool.shutdown(wait=False, cancel_futures=True)
        for process in working:
            if process.pid.done() and not process.pid.cancelled():
                with suppress(ProcessLookupError):
                    os.kill(process.pid.result(), signal.SIGTERM)

    def __call__(self, task: Callable[[Item], None], items: deque[Item]) -> Iterator[tuple[Item, Failure | None]]:
        while items or self.busy:
            while items and len(self.busy) < self.jobs:
                item = items.popleft()
                process, future = self._given(task, item)
                self.busy[future] = process, item
            for future in wait(self.busy, return_when=FIRST_COMPLETED).done:
                process, item = self.busy[future]
                try:
                    failure = future.result()
                    self.idle.append(process)
                except BrokenProcessPool as error:
                    process.pool.shutdown()
                    failure = failure_of(error)._replace(
                        sentence="its process was killed from outside, by the system for want of memory perhaps"
                    )
                del self.busy[future]
                yield item, failure

    def _given(self, task: Callable[[Item], None], item: Item) -> tuple[_Process, Future[Failure | None]]:
        while self.idle:
            process = self.idle.pop()
            try:
                return process, process.pool.submit(attempt, task, item)
            except BrokenProcessPool:  # killed while it had nothing to do
                process.pool.shutdown()
        process = _Process.new()
        return process, process.pool.submit(attempt, task, item)


def follow_parent() -> None:
    """End with the process that started this one, even if it was killed: a run that nobody waits for is left as it is, and
    whoever resumes it must have it alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class Cluster:
    """An existing Dask cluster: one Dask task per item. A task whose worker dies is given to another one by Dask (up to
    `distributed.scheduler.allowed-failures` times). Workers must have this package, in this version, and the same files:
    those that are there are asked at once, and those that join later before their first task."""

    def __init__(self, address: str, wait: float = WAIT, check: Callable[[], None] = _nothing) -> None:
        """wait: seconds to wait for the scheduler, for a worker and for what it answers. check: raises where a worker
        cannot read what the tasks need."""
        self.address, self.wait, self.check = address, wait, check

    def __enter__(self) -> Self:
        try:
            from distributed import Client
            from distributed.protocol.pickle import dumps
        except ImportError as error:
            raise ValueError('expected dask.distributed for --scheduler: pip install "espalier[dask]"') from error
        try:
            self.client = Client(self.address, timeout=self.wait)
        except (OSError, TimeoutError, ValueError) as error:
            raise ValueError(f"expected a Dask scheduler at {self.address}, got none: {_said(error)}") from error
        self.lacks = _lacks(__version__, dumps(self.check))
        try:
            self._find()
            self._ask()
        except BaseException:
            self.client.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def _find(self) -> None:
        """Raises ValueError where there is no worker."""
        try:
            self.client.wait_for_workers(1, timeout=self.wait)
        except TimeoutError as error:
            raise ValueError(
                f"expected a worker at the Dask scheduler {self.address}, got none within {self.wait:g} seconds: start one, or "
                "raise --wait"
            ) from error

    def _ask(self) -> None:
        """Raises ValueError where a worker cannot do the tasks."""
        try:
            answers = self.client.sync(self._answers, callback_timeout=self.wait)
        except TimeoutError as error:
            raise ValueError(
                f"expected every worker of the Dask scheduler {self.address} to answer within {self.wait:g} seconds, and one "
                "did not: raise --wait, or stop it"
            ) from error
        for worker, lacks in answers.items():
            self._refuse(worker, lacks)

    async def _answers(self) -> dict[str, Any]:
        return dict(await self.client.run(self.lacks, on_error="return"))

    def _refuse(self, worker: str, lacks: Any) -> None:
        if lacks:
            said = lacks if isinstance(lacks, str) else _said(lacks)
            raise ValueError(
                f"expected workers with espalier {__version__} and the files of this grid, but the one at {worker} {said}"
            )

    def __call__(self, task: Callable[[Item], None], items: deque[Item]) -> Iterator[tuple[Item, Failure | None]]:
        from distributed import wait
        from distributed.protocol.pickle import dumps

        do = _asked_first(self.lacks)
        left, turn = dict[Any, Item](), 0
        while items or left:
            while items:  # what came later goes first
                item = items.popleft()
                left[self.client.submit(do, dumps(functools.partial(attempt, task, item)), pure=False, priority=turn)] = item
            turn += 1
            try:
                done = wait([*left], self.wait, "FIRST_COMPLETED").done
            except TimeoutError:
                self._find()  # nobody may be there any more
                continue
            for future in done:
                if future.status != "finished":
                    yield left.pop(future), failure_of(_error(future))
                    continue
                worker, lacks, failure = future.result()
                self._refuse(worker, lacks)
                yield left.pop(future), failure


def _lacks(version: str, check: bytes) -> Callable[[], Coroutine[Any, Any, str]]:
    """What a worker lacks to do our tasks, in words; nothing if it lacks nothing.

    A function within a function goes over the wire by value, so that a worker without the package can run it. A coroutine:
    the worker's own loop stays free while the package loads.
    """

    async def lacks() -> str:
        import asyncio

        def look() -> str:
            try:
                import espalier
            except Exception as error:
                return f"cannot import it ({type(error).__name__}: {error})"
            if espalier.__version__ != version:
                return f"has espalier {espalier.__version__}"
            try:
                from espalier.grids.workers import once

                once(check)
            except Exception as error:
                return f"cannot use them ({type(error).__name__}: {error})"
            return ""

        return await asyncio.to_thread(look)

    return lacks


@functools.cache
def once(check: bytes) -> None:
    """Run a check that came over the wire, once in a worker's life."""
    pickle.loads(check)()


def _asked_first(lacks: Callable[[], Coroutine[Any, Any, str]]) -> Callable[[bytes], tuple[str, str, Failure | None]]:
    """A task that runs where nothing lacks: the worker's address, what it lacks, and the failure if it failed. By value."""

    def do(call: bytes) -> tuple[str, str, Failure | None]:
        import asyncio
        import pickle

        from distributed import get_worker

        missing = asyncio.run(lacks())
        return get_worker().address, missing, None if missing else pickle.loads(call)()

    return do


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _error(future: Any) -> BaseException:
    error = future.exception() if future.status == "error" else None
    return error if isinstance(error, BaseException) else RuntimeError(f"the cluster left it {future.status}")
