"""Run by cli/test_kills.py: commands killed with -9 at random times and called again, from a process with all imported.

    python kills.py FOLDER KILLS COMMAND ...      prints, per command, when kills landed and what was different after
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from espalier.cli.main import main
from hashed import hashes, timeless
from race import FIT, GRID, a_run

LONGER = ["--epochs", "10", "--average-from", "0.5", "--freeze", "0.4", "--delta-t", "3", "--checkpoint-every", "0"]
INFERENCES = {
    "fit": ["--inference", "cigl"],
    "distilled": ["--inference", "distilled", "--distill-epochs", "5"],
    "lottery": ["--inference", "lottery", "--rounds", "2"],
}
"""What is fitted, under the name that the tally has for it."""


def command(name: str, folder: Path, out: Path) -> tuple[list[str], list[str]]:
    """The words of a command that writes into `out`, and those that go on with it."""
    if name in INFERENCES:
        drop = ["--freeze", "0.4", "--delta-t", "3"] if name == "lottery" else []
        words = [word for word in [*FIT, *INFERENCES[name], *LONGER] if word not in drop]
        return ["fit", *words, "--out", str(out)], ["resume", str(out), "--checkpoint-every", "0"]
    if name == "certify":
        shutil.copytree(a_run(folder / "original"), out)
        words = ["certify", str(out), "--alpha", "0.9", "--step", "0.02"]
    else:
        folder.mkdir(exist_ok=True)
        (folder / "grid.yaml").write_text(GRID.replace("epochs: 1", "epochs: 6"))
        words = ["compare", str(folder / "grid.yaml"), "--out", str(out), "--jobs", "1", "--checkpoint-every", "0"]
    return words, words


def forked(words: list[str]) -> int:
    """A command in a process of its own."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            os._exit(int(main(words) != 0))
    return child


def whole(folder: Path, name: str) -> tuple[dict[str, str], float]:
    """What the command leaves if nobody kills it, and its seconds."""
    out = folder / f"{name}-whole" / "run"
    words, _ = command(name, folder, out)
    began = time.monotonic()
    assert os.waitpid(forked(words), 0)[1] == 0, name
    return left(out), time.monotonic() - began


def left(out: Path) -> dict[str, str]:
    """Every file that does not hold times or the folder's own name; of the table of a grid, all else."""
    own = ("progress.json", "cells.csv", "cells.parquet", "evaluation-validation.json", "reliability-validation.png")
    found = {
        name: digest for name, digest in hashes(out).items() if not name.endswith(own) and "/cells/" not in f"/{name}"
    }
    if (out / "cells.csv").exists():
        found["cells.csv"] = json.dumps(timeless(out / "cells.csv"))
    return found


def run(folder: Path, kills: int, name: str) -> dict[str, object]:
    expected, seconds = whole(folder, name)
    chance, landed, different = random.Random(f"kills {name}"), [], []
    for number in range(kills):
        out = folder / f"{name}-{number}" / "run"  # no siblings: a certificate tells of them
        words, again = command(name, folder, out)
        child = forked(words)
        time.sleep(wait := chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] == signal.SIGKILL:
            landed.append(round(wait, 2))
        begun = (out / "config.yaml").exists() or name not in INFERENCES
        code = os.waitpid(forked(again if begun else words), 0)[1]
        if code or left(out) != expected:
            different.append([wait, code, sorted({*left(out).items()} ^ {*expected.items()})[:4]])
        shutil.rmtree(out.parent)
    return {"seconds": round(seconds, 2), "landed": len(landed), "different": different}


if __name__ == "__main__":
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = {name: run(folder, kills, name) for name in sys.argv[3:]}
    print(json.dumps(found, indent=1))
