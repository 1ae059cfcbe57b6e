"""Executes a grid: trains its runs, scores its cells, gathers the tables. Whatever is finished is not done again.

OUT/runs/RUN/                 run folders, as `espalier fit` leaves them, each with progress.json: epochs, steps, seconds
OUT/cells/CELL.json, .npz     signed scores and facts of a cell; hit, confidence, nll and brier of every example
OUT/errors/NAME.txt           tracebacks of what failed
OUT/cells.csv, differences.csv, table.md, grid.yaml    what it all comes to (cells.parquet too, where pyarrow is)
"""

from __future__ import annotations

import functools
import io
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from espalier import calibration, runs, store
from espalier.calibration import comparison
from espalier.calibration.calibrators import CALIBRATORS
from espalier.calibration.comparison import Difference, Scores, Summary
from espalier.contracts import Data, Split
from espalier.data.streamed import selected
from espalier.grids.checks import check_data, check_runs
from espalier.grids.grid import Cell, Grid
from espalier.grids.outside import detections, world
from espalier.grids.workers import Failure, Workers
from espalier.nested import plain
from espalier.prediction import costs
from espalier.prediction.ensemble import Ensemble
from espalier.prediction.evaluation import Predictions, predictions, split_of
from espalier.prediction.fit import Fit
from espalier.prediction.predictor import Predictor
from espalier.runs.recipes import Recipe
from espalier.runs.trust import told
from espalier.training.streams import find_device
from espalier.training.watch import EVERY, Watch, check_every

WRITTEN = ("table.md", "cells.csv", "differences.csv", "grid.yaml", "cells.parquet")
"""What tells the folder of a grid."""
TRAIN_ROWS = 10_000
"""Training examples, at most, that a cell's training accuracy and NLL are taken over: they tell the regime."""

DRAWN = ("pairs", "redraw")
"""The ways to predict that average several networks."""


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
    cells = tuple(cell for cell in grid.cells if not (out / "cells" / f"{cell.name}.json").is_file())
    needed = dict.fromkeys(name for cell in cells for name in cell.runs)
    return Plan({name: grid.runs[name] for name in needed if not runs.finished(out / "runs" / name)}, cells)


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


# --- Cells --------------------------------------------------------------------------------------------------------
def score(out: Path, num_samples: int, split: str, outside: str | None, cell: Cell) -> None:
    """Score one cell from its finished runs, and write it down: the arrays first, the signed facts last."""
    folders = [out / "runs" / name for name in cell.runs]
    with told():
        fits = [runs.load(folder) for folder in folders]
        loaded = _data_of(folders[0], fits[0])
    fits = [fit.to(find_device(fit.record["recipe"]["device"])) for fit in fits]
    predictor = Ensemble(fits, cell.pool) if len(fits) > 1 else fits[0]
    for fit in fits:
        _check_draws(fit, cell)
    parts = [split, "train", *(["validation"] if cell.calibrate else [])]
    probs = {part: _predicted(predictor, loaded, part, cell, num_samples) for part in parts}
    labels = {part: split_of(loaded, part).y.numpy()[: len(probs[part])] for part in parts}
    facts = cell_facts(fits, folders, cell, num_samples)
    fitted: dict[str, Any] = {}
    calibrated: Callable[[Predictions], Predictions] | None = None
    if cell.calibrate:
        calibrator = CALIBRATORS[cell.calibrate]
        parameter = calibrator.fit(probs["validation"], labels["validation"])
        calibrated = functools.partial(_applied, calibrator.apply, parameter)
        probs = {part: calibrated(p) for part, p in probs.items()}
        # One number is a column of the table; matrices and maps are kept in the record alone.
        (facts if isinstance(parameter, float) else fitted)[calibrator.parameter] = parameter
    p, y = probs[split], labels[split]
    apart: dict[str, Any] = {}
    if outside is not None:
        elsewhere = world(outside, loaded, fits[0].record["recipe"]["data_dir"])
        inside = split_of(loaded, split).x
        apart = detections(predictor, loaded, inside, elsewhere, cell.predict, num_samples, calibrated)
    arrays = {name: rows[0] for name, rows in Scores.of(p, y)._asdict().items()}
    written = io.BytesIO()
    np.savez(written, **arrays)
    path = out / "cells" / cell.name
    store.write_bytes(path.with_name(f"{cell.name}.npz"), written.getvalue())
    record = {
        "runs": list(cell.runs),
        "predict": cell.predict,
        "calibrate": cell.calibrate,
        "num_samples": num_samples,
        "split": split,
        "examples": loaded.hashes[split],
        "train_accuracy": calibration.accuracy(probs["train"], labels["train"]),
        "train_nll": calibration.nll(probs["train"], labels["train"]),
        "scores": calibration.classification_summary(p, y)
        | {f"ece_{bins}_debiased": comparison.ece_debiased(p, y, bins) for bins in (10, 15)}
        | apart,
        "facts": facts,
        **({"fitted": fitted} if fitted else {}),
        "arrays": store.sha256(written.getvalue()),
    }
    store.write_bytes(path.with_name(f"{cell.name}.json"), store.canonical(store.signed(record)).encode())


def _applied(apply: Callable[..., Predictions], parameter: Any, p: Predictions) -> Predictions:
    return apply(p, parameter)


_READ: dict[str, Data] = {}
"""The data of the last cell that this process scored: most cells of a grid are scored on the same, and reading takes longer."""


def _data_of(folder: Path, fit: Fit) -> Data:
    recipe = runs.recipe_in(folder)
    key = store.canonical(plain([recipe.data, recipe.of("data"), fit.record["data"]["hashes"]]))
    if key not in _READ:
        _READ.clear()
        _READ[key] = runs.data_of(folder)
    return _READ[key]


def _predicted(predictor: Predictor, loaded: Data, part: str, cell: Cell, num_samples: int) -> Predictions:
    """What the cell predicts before any calibrator: the average over draws, and over members."""
    way, short = cell.predict, _head(loaded, "train", TRAIN_ROWS)
    found: Predictions = predictions(predictor, short, part, ways=[way], num_samples=num_samples)[way]
    return found


def _check_draws(fit: Fit, cell: Cell) -> None:
    """Are several draws asked of what is one network? Known for sure only once there is a fit."""
    if cell.predict in DRAWN and fit.is_one(cell.predict):
        raise ValueError(f"expected draws that differ for predict {cell.predict}, but this fit is one network: `unmasked`")


def _head(loaded: Data, part: str, count: int) -> Data:
    """The data with only the first rows of one part; rows are in random order."""
    x, y = getattr(loaded, part)
    rows = torch.arange(min(count, len(y)))
    cut: dict[str, Any] = {part: Split(selected(x, rows), y[rows])}
    return loaded._replace(**cut)


def cell_facts(fits: Sequence[Fit], folders: Sequence[Path], cell: Cell, num_samples: int) -> dict[str, float]:
    """What a cell's quality was bought with; every entry is a column of the table. Summed over members.

    passes: networks evaluated for one prediction. FLOPs and bytes: `costs.costs`. seconds: of training, on its machine.
    """
    measured = [store.read_json(folder / "progress.json") for folder in folders if (folder / "progress.json").is_file()]
    facts: dict[str, float] = {
        "num_weights": sum(fit.topology.num_weights for fit in fits),
        "num_active": sum(fit.topology.num_active for fit in fits),
        "passes": len(fits) * (1 if cell.predict == "moments" else fits[0].num_draws(cell.predict, num_samples)),
        **costs.ensemble([costs.costs(fit, cell.predict, num_samples=num_samples) for fit in fits]),
    }
    if len(measured) == len(folders):
        seconds = sum(each["seconds"] for each in measured)
        facts |= {"seconds": seconds, "seconds_per_step": seconds / sum(each["step"] for each in measured)}
    return facts


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
        arm = _read_scores(out / "cells" / f"{name}.npz", cells[name]["arrays"])
        return Summary.of(arm, counts(arm.hit.shape[1]))

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


def _read_scores(path: Path, digest: str) -> Scores:
    """One cell's arrays, a row each."""
    written = path.read_bytes()
    if store.sha256(written) != digest:
        raise ValueError(
            f"expected {path} as it was written, but its SHA-256 differs: remove it and the .json beside it"
        )
    with np.load(io.BytesIO(written), allow_pickle=False) as file:
        return Scores(*(file[field][None] for field in Scores._fields))
