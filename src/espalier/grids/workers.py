"""Where tasks run: processes of this machine, one thread each, or a Dask cluster that is already there.

Both are context managers that are called with a task and its items and yield every item as it ends, with its failure if
it failed: one that fails, or whose process dies, takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, Self, TypeVar

Item = TypeVar("Item")
_ONE_AT_A_TIME = threading.Lock()


class Failure(NamedTuple):
    """Why a task did not end well: one sentence for a table, the traceback for who looks closer."""

    sentence: str
    traceback: str


class Workers(Protocol):
    """What runs tasks."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def __call__(
        self, task: Callable[[Item], None], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Failure | None]]: ...


def workers(jobs: int, scheduler: str | None) -> Workers:
    """`jobs` processes of this machine, or the cluster whose scheduler has this address. Raises ValueError for no job."""
    if jobs < 1:
        raise ValueError(f"expected at least 1 job, got {jobs}")
    return Cluster(scheduler) if scheduler else Processes(jobs)


def attempt(task: Callable[[Item], None], item: Item) -> Failure | None:
    """Do one task on one thread. Training uses torch's global generator and Pyro's global store: in a process whose
    workers are threads, as Dask's may be, one task waits for the other."""
    import torch

    with _ONE_AT_A_TIME:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            task(item)
        except Exception as error:  # noqa: BLE001 - whatever it was, the other tasks go on
            return failure_of(error)
        finally:
            torch.set_num_threads(threads)
    return None


def failure_of(error: BaseException) -> Failure:
    said = " ".join(str(error).split()) or "no message"
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

    def __call__(self, task: Callable[[Item], None], items: Iterable[Item]) -> Iterator[tuple[Item, Failure | None]]:
        waiting = deque(items)
        while waiting or self.busy:
            while waiting and len(self.busy) < self.jobs:
                process, item = self.idle.pop() if self.idle else _Process.new(), waiting.popleft()
                self.busy[process.pool.submit(attempt, task, item)] = process, item
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
    `distributed.scheduler.allowed-failures` times). Workers must see this package and the same files."""

    def __init__(self, address: str, patience: float = 10.0) -> None:
        """patience: seconds to wait for the scheduler's answer."""
        self.address, self.patience = address, patience

    def __enter__(self) -> Self:
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError('expected dask.distributed for --scheduler: pip install "espalier[dask]"') from error
        try:
            self.client = Client(self.address, timeout=self.patience)
        except (OSError, TimeoutError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"expected a Dask scheduler at {self.address}, got none: {reason}") from error
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def __call__(self, task: Callable[[Item], None], items: Iterable[Item]) -> Iterator[tuple[Item, Failure | None]]:
        from distributed import as_completed

        futures = {self.client.submit(attempt, task, item, pure=False): item for item in items}
        for future in as_completed(futures):
            failure = future.result() if future.status == "finished" else failure_of(_error(future))
            yield futures[future], failure


def _error(future: Any) -> BaseException:
    error = future.exception() if future.status == "error" else None
    return error if isinstance(error, BaseException) else RuntimeError(f"the cluster left it {future.status}")
