"""Run by runs/test_folder.py in a process of its own: trains, kills the training with -9 at random, resumes, hashes.

    python kill.py CONFIG FOLDER KILLS      prints one JSON object

Each training is a fork of this process, which never computes itself, so that none of them need import torch.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401 - here and not in every fork
import torch

torch.set_num_threads(1)

from espalier import runs  # noqa: E402
from espalier.runs.recipes import resolve  # noqa: E402
from espalier.training.loop import Info  # noqa: E402
from espalier.training.watch import Watch  # noqa: E402
from hashed import hashes  # noqa: E402


class Reporter(Watch):
    """Tells the parent process which step was just taken."""

    def __init__(self, board: mmap.mmap) -> None:
        self.board = board

    def on_step(self, info: Info) -> None:
        self.board[:4] = info.step.to_bytes(4, "little")


def forked(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # a child must never return into the parent's loop
            print(error, file=sys.stderr)
            os._exit(1)
    return child


def main(config: str, folder: Path, kills: int) -> None:
    recipe = resolve(["--config", config])
    board = mmap.mmap(-1, 4)
    whole = folder / "whole"
    assert os.waitpid(forked(lambda: runs.start(recipe, whole)), 0)[1] == 0
    expected = hashes(whole)
    history = json.loads((whole / "history.json").read_text())
    per_epoch, steps = history[0]["step"], history[-1]["step"]
    chance = random.Random(2026)
    landed, different, before_first = [], [], 0
    for attempt in range(4 * kills):
        run = folder / f"run-{attempt}"
        board[:4] = bytes(4)
        target = chance.randrange(1, steps - 1 if attempt else per_epoch)  # once before the first checkpoint
        child = forked(lambda run=run: runs.start(recipe, run, Reporter(board), every=0))
        while int.from_bytes(board[:4], "little") < target:
            time.sleep(0.0002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        step = int.from_bytes(board[:4], "little")
        before_first += not (run / "checkpoint.safetensors").exists()
        assert os.waitpid(forked(lambda run=run: runs.resume(run, every=0)), 0)[1] == 0
        if step % per_epoch:
            landed.append(step)
        if hashes(run) != expected:
            different.append(step)
        if len(landed) == kills:
            break
    print(json.dumps({
        "steps": steps, "per_epoch": per_epoch, "landed": landed, "different": different,
        "before_first_checkpoint": before_first, "files": sorted(expected),
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
