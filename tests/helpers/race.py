"""Run by cli/test_races.py: many commands at once, again and again, from one process that has imported everything.

    python race.py FOLDER RACES COMMAND ...      prints, per command, what winners and losers came to
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import sklearn.datasets  # noqa: F401 - here and not in every fork
import torch

torch.set_num_threads(1)

import espalier.certificates.runs  # noqa: E402, F401 - imported before the forks
from espalier.cli.main import main  # noqa: E402
from espalier.grids import compare, report  # noqa: E402, F401
from hashed import hashes  # noqa: E402

FIT = ["--model", "mlp", "--hidden", "16", "--inference", "cigl", "--data", "digits", "--epochs", "2", "--train-size", "128"]
GRID = """
base: {model: mlp, hidden: [8], data: digits, epochs: 1, train_size: 128}
sparsities: [0.5]
methods: {RigL: {run: {inference: rigl}}, CigL: {run: {inference: cigl, drop_rate: 0.2}}}
"""


def forked(words: list[str], told: Path, start: float) -> int:
    """A command in a process of its own, at the stroke of `start`."""
    child = os.fork()
    if child == 0:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            time.sleep(max(0.0, start - time.time()))
            try:
                code = main(words)
            except BaseException as error:  # a traceback is what must not be
                code = f"{type(error).__name__}: {error}"
        told.write_text(json.dumps([code, err.getvalue()]))
        os._exit(0)
    return child


def race(folder: Path, commands: list[list[str]]) -> list[tuple[object, str]]:
    """All at once; exit code and the last line of stderr of each."""
    start = time.time() + 0.1
    children = [forked(words, folder / f"told-{place}", start) for place, words in enumerate(commands)]
    for child in children:
        os.waitpid(child, 0)
    told = [json.loads((folder / f"told-{place}").read_text()) for place in range(len(commands))]
    return [(code, (said.strip().splitlines() or [""])[-1]) for code, said in told]


def a_run(folder: Path) -> Path:
    """A finished run, once."""
    run = folder / "finished"
    if not run.exists():
        assert main(["fit", *FIT, "--epochs", "6", "--calibration", "0.4", "--out", str(run)]) == 0
    return run


def fits(folder: Path, out: Path) -> list[list[str]]:
    return [["fit", *FIT, "--seed", str(seed), "--out", str(out)] for seed in (0, 1)]


def resumes(folder: Path, out: Path) -> list[list[str]]:
    """Of a run that was stopped before its end."""
    stopped = folder / "stopped"
    if not stopped.exists():
        shutil.copytree(a_run(folder), stopped)
        for name in ("record.json", "fit.safetensors", "history.json"):
            (stopped / name).unlink()
    shutil.copytree(stopped, out)
    return [["resume", str(out)]] * 2


def certifies(folder: Path, out: Path) -> list[list[str]]:
    """Two questions to one calibration split."""
    shutil.copytree(a_run(folder), out)
    return [["certify", str(out), "--alpha", alpha, "--step", "0.1"] for alpha in ("0.8", "0.9")]


def compares(folder: Path, out: Path) -> list[list[str]]:
    (folder / "grid.yaml").write_text(GRID)
    return [["compare", str(folder / "grid.yaml"), "--out", str(out), "--jobs", "1"]] * 2


def theories(folder: Path, out: Path) -> list[list[str]]:
    return [["theory", "subsets-enumeration", "--quick", "--jobs", "1", "--out", str(out)]] * 2


def evaluates(folder: Path, out: Path) -> list[list[str]]:
    """Readers: all may win."""
    shutil.copytree(a_run(folder), out)
    return [["evaluate", str(out)]] * 2


RACES: dict[str, Callable[[Path, Path], list[list[str]]]] = {
    "fit": fits, "resume": resumes, "certify": certifies, "compare": compares, "theory": theories, "evaluate": evaluates,
}  # fmt: skip


def run(folder: Path, races: int, name: str) -> dict[str, object]:
    """How many won, what losers said, and whether what is left is whole."""
    won: list[int] = []
    said: dict[str, int] = {}
    broken: list[str] = []
    for number in range(races):
        out = folder / f"{name}-{number}"
        outcome = race(folder, RACES[name](folder, out))
        won.append(sum(code == 0 for code, _ in outcome))
        for code, line in outcome:
            if code != 0:
                line = f"{code}: {line}".replace(str(out), "OUT").replace(str(folder), "FOLDER")
                said[line] = said.get(line, 0) + 1
        left = hashes(out)
        broken += [f"{number}: {file}" for file in left if ".tmp-" in file]
        if name in ("fit", "resume", "certify") and main(["evaluate", str(out)]) != 0:
            broken.append(f"{number}: the run cannot be read")
        if name == "certify" and main(["verify", str(out)]) != 0:
            broken.append(f"{number}: the certificate does not hold")
        if name == "certify" and len(json.loads((out / "looks.json").read_text())["looks"]) != won[-1]:
            broken.append(f"{number}: a look that was not taken")
        shutil.rmtree(out)
    return {"won": won, "said": said, "broken": broken}


if __name__ == "__main__":
    folder, races = Path(sys.argv[1]), int(sys.argv[2])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = {name: run(folder, races, name) for name in sys.argv[3:]}
    print(json.dumps(found, indent=1))
