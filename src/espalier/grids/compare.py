"""Executes a grid: trains its runs, has its cells scored, gathers the tables. Whatever is finished is not done again.

OUT/runs/RUN/                 run folders, as `espalier fit` leaves them, each with progress.json: epochs, steps, seconds
OUT/cells/CELL.json, .npz     signed scores and facts of a cell; what `cells.score` keeps of every example
OUT/errors/NAME.txt           tracebacks of what failed
OUT/cells.csv, differences.csv, table.md, grid.yaml    what it all comes to (cells.parquet too, where pyarrow is)
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from espalier import runs, store
from espalier.calibration import comparison
from espalier.calibration.comparison import Difference, Summary
from espalier.grids.cells import read_scores, score
from espalier.grids.checks import check_data, check_runs
from espalier.grids.grid import Cell, Grid
from espalier.grids.workers import Failure, Workers
from espalier.runs.recipes import Recipe
from espalier.runs.trust import told
from espalier.training.watch import EVERY, Watch, check_every

WRITTEN = ("table.md", "cells.csv", "differences.csv", "grid.yaml", "cells.parquet")
"""What tells the folder of a grid."""
class Pair(NamedTuple):
    """A method set against a baseline at one point of the grid."""

    method: str
    baseline: str
    variant: tuple[str, ...]
    sparsity: float


class Outcome(NamedTuple):
    """What a grid came to.

    cells: facts by cell name, for those that are finished. differences: with the seeds that both arms have. failures:
    sentences by cell name.
    """

    cells: dict[str, dict[str, Any]]
    differences: dict[Pair, tuple[tuple[int, ...], dict[str, Difference]]]
    failures: dict[str, str]


class Plan(NamedTuple):
    """What is left to do of a grid: runs to train, by name, and cells to score."""

    runs: dict[str, Recipe]
    cells: tuple[Cell, ...]


def plan(grid: Grid, out: Path) -> Plan:
    """What is not finished in OUT: a finished cell needs its runs no more."""
    cells = tuple(cell for cell in grid.cells if not _is_scored(out, cell))
    needed = dict.fromkeys(name for cell in cells for name in cell.runs)
    return Plan({name: grid.runs[name] for name in needed if not runs.finished(out / "runs" / name)}, cells)


def _is_scored(out: Path, cell: Cell) -> bool:
    """Its facts and its arrays."""
    return all((out / "cells" / f"{cell.name}.{ending}").is_file() for ending in ("json", "npz"))


def compare(
    grid: Grid,
    out: Path,
    workers: Workers,
    seen: Callable[[str, str, str | None], None] = lambda what, name, why: None,
    *,
    every: float = EVERY,
) -> Outcome:
    """Train what is not trained, score each cell when its runs are, gather. A failure is kept for the table, and tried again by
    the next call. seen: told, after each "run" and "cell", its name, and why it failed if it did. every: seconds between a run's
    checkpoints, at least.

    Raises ValueError before any work where the data do not suit the grid.
    """
    check_every(every)
    out = out.resolve()  # workers stand elsewhere
    store.check_free(out, WRITTEN)
    check_runs(grid, out)
    if plan(grid, out).cells:
        check_data(grid)
    for path in filter(Path.is_file, (out / "cells" / f"{cell.name}.json" for cell in grid.cells)):
        store.check_signed(path)
    with store.owned(out, WRITTEN):
        for part in ("cells", "errors", "figures"):
            store.remove_orphans(out / part)
        for name in grid.runs:
            runs.tidy(out / "runs" / name)
        return _executed(grid, out, workers, seen, every)


def _executed(
    grid: Grid, out: Path, workers: Workers, seen: Callable[[str, str, str | None], None], every: float
) -> Outcome:
    left, failed = plan(grid, out), dict[str, str]()

    def note(what: str, name: str, failure: Failure | None) -> None:
        trace = out / "errors" / f"{name}.txt"
        if failure is None:
            trace.unlink(missing_ok=True)
        else:
            failed[name] = failure.sentence
            store.write_bytes(trace, failure.traceback.encode())
        seen(what, name, failed.get(name))

    if left.cells:
        untrained = set(left.runs)
        tasks: deque[Task] = deque(cell for cell in left.cells if untrained.isdisjoint(cell.runs))
        tasks.extend(left.runs.items())
        with workers as each:
            for task, failure in each(functools.partial(do, out, every, (grid.num_samples, grid.split, grid.outside)), tasks):
                if isinstance(task, Cell):
                    note("cell", task.name, failure)
                    continue
                name, _ = task
                note("run", name, failure)
                if failure is None:  # its cells before the next run: what is scored is kept, whenever we are stopped
                    untrained.remove(name)
                    tasks.extendleft(cell for cell in left.cells if name in cell.runs and untrained.isdisjoint(cell.runs))
    return gather(grid, out, failed)


Task = tuple[str, Recipe] | Cell
"""A run to train, by name, or a cell to score."""


def do(out: Path, every: float, how: tuple[int, str, str | None], task: Task) -> None:
    """What a worker is given. how: draws, split and world of the grid's cells."""
    if isinstance(task, Cell):
        score(out, *how, task)
    else:
        train(out, every, task)


# --- Runs ---------------------------------------------------------------------------------------------------------
class Meter(Watch):
    """Writes down, after every epoch, how far a run is: epochs, steps and the seconds they took, through all that stopped
    it. A run of several trainings counts them all."""

    def __init__(self, path: Path) -> None:
        self.path, self.began, self.steps, self.epochs = path, 0.0, 0, 0
        self.before = store.read_json(path) if path.is_file() else {"epoch": 0, "step": 0, "seconds": 0.0}

    def on_step(self, info: Any) -> None:
        self.began = self.began or time.perf_counter()
        self.steps += 1

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self.epochs += 1
        new = {"epoch": self.epochs, "step": self.steps, "seconds": time.perf_counter() - self.began}
        facts = {name: self.before[name] + value for name, value in new.items()}
        store.write_bytes(self.path, store.canonical(facts).encode())


def train(out: Path, every: float, task: tuple[str, Recipe]) -> None:
    """Begin a run, or go on with it bit for bit where it was stopped."""
    name, recipe = task
    folder = out / "runs" / name
    meter = Meter(folder / "progress.json")
    try:
        with told():  # the grid's programs were looked at where it was read
            if (folder / "config.yaml").is_file():
                runs.resume(folder, meter, every=every)
            else:
                runs.start(recipe, folder, meter, every=every)
    except Exception:
        if not runs.finished(folder):  # by a worker that was given up and yet lives, say: the files are equal
            raise


def epochs_done(out: Path, names: Mapping[str, Recipe]) -> float:
    """Epochs behind the runs of these names, finished or under way."""
    done = 0.0
    for name, recipe in names.items():
        path = out / "runs" / name / "progress.json"
        if runs.finished(out / "runs" / name):
            done += recipe.options["epochs"]
        elif path.is_file():
            done += min(recipe.options["epochs"], dict(store.read_json(path)).get("epoch", 0))
    return done


# --- Gathering ----------------------------------------------------------------------------------------------------
def gather(grid: Grid, out: Path, failures: Mapping[str, str] | None = None) -> Outcome:
    """Read the finished cells, and set every method against every baseline, seed by seed and example by example.

    Seeds that are missing in either arm are left out of a difference. Raises ValueError for an altered file, and where two
    arms were scored on different examples.
    """
    failures = failures or {}
    cells: dict[str, dict[str, Any]] = {}
    scores: dict[tuple[str, tuple[str, ...], float], dict[int, tuple[str, str]]] = {}
    errors = {}
    for cell in grid.cells:
        path = out / "cells" / f"{cell.name}.json"
        if path.is_file():
            cells[cell.name] = store.check_signed(path)
            seeds = scores.setdefault((cell.method, cell.variant, cell.sparsity), {})
            seeds[cell.seed] = cell.name, cells[cell.name]["examples"]
        else:
            known = [failures[name] for name in (cell.name, *cell.runs) if name in failures]
            errors[cell.name] = known[0] if known else "not run yet"
    counts = functools.lru_cache(2)(comparison.example_counts)

    @functools.cache
    def summary(name: str) -> Summary:
        arm = read_scores(out / "cells" / f"{name}.npz", cells[name]["arrays"])
        return Summary.of(arm, counts(arm.nll.shape[1]))

    differences = {}
    for (point, own), baseline in product(scores.items(), grid.baselines):
        pair = Pair(point[0], baseline, *point[1:])
        reference = scores.get((baseline, pair.variant, 0.0 if grid.is_dense(baseline) else pair.sparsity), {})
        shared = tuple(sorted(own.keys() & reference.keys()))
        if pair.method == baseline or not shared:
            continue
        if len({examples for arm in (own, reference) for seed, (_, examples) in arm.items() if seed in shared}) > 1:
            raise ValueError(f"expected {pair.method} and {baseline} scored on the same examples, at every seed")
        arm, other = (Summary.stack([summary(each[seed][0]) for seed in shared]) for each in (own, reference))
        differences[pair] = shared, comparison.between(arm, other)
    return Outcome(cells, differences, errors)
