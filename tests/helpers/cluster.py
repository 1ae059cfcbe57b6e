"""Run by grids/test_workers.py in a process of its own: a Dask cluster of so many workers, and the end of one.

Prints its address. For each line on stdin it kills a worker that is at work with -9, waits until it is gone, and says so.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from distributed import Client, LocalCluster


def main() -> None:
    with (
        LocalCluster(
            n_workers=int(sys.argv[1]), threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        pids = client.run(os.getpid)
        print(cluster.scheduler_address, flush=True)
        for _ in sys.stdin:
            busy: list[str] = []
            while not busy:
                busy = [a for a, w in cluster.scheduler.workers.items() if w.processing and a in pids]
                time.sleep(0.01)
            os.kill(pids[busy[0]], signal.SIGKILL)
            while busy[0] in cluster.scheduler.workers:
                time.sleep(0.01)
            print("killed at work", flush=True)


if __name__ == "__main__":
    main()
