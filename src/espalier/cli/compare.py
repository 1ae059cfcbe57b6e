"""`espalier compare`: a grid of methods."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from espalier.cli.parser import Parser


def compare(words: list[str]) -> int:
    parser = Parser(prog="espalier compare", description="Train and score a grid of methods; see grids/grid.py.")
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="what is finished there is kept; default: runs/GRID")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster that is there, instead of own processes")
    parser.add_argument("--checkpoint-every", type=float, default=30.0, metavar="SECONDS",
                        help="of every run: what a kill may cost (default 30)")  # fmt: skip
    parser.add_argument("--wait", type=float, default=30.0, metavar="SECONDS", help="for the scheduler, for a worker, and for "
                        "its answer that it has this package and the data (default 30)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say which runs and cells there are")
    arguments = parser.parse_args(words)

    from espalier import store
    from espalier.cli.progress import comparing
    from espalier.grids import figures, report
    from espalier.grids.checks import check_data
    from espalier.grids.compare import WRITTEN, epochs_done, plan
    from espalier.grids.compare import compare as execute
    from espalier.grids.grid import read
    from espalier.grids.workers import workers

    source, grid = arguments.grid.read_bytes() if arguments.grid.is_file() else b"", read(arguments.grid)
    hands = workers(arguments.jobs, arguments.scheduler, arguments.wait, functools.partial(check_data, grid))
    out = arguments.out or Path("runs") / arguments.grid.stem
    left = plan(grid, out)
    if arguments.dry_run:
        print(report.plan_lines(grid, left))
        return 0
    epochs = sum(recipe.options["epochs"] for recipe in left.runs.values())
    with comparing(len(left.runs), epochs, len(left.cells), lambda: epochs_done(out, left.runs)) as seen:
        outcome = execute(grid, out, hands, seen, every=arguments.checkpoint_every)
    with store.owned(out, WRITTEN):
        files = report.write(grid, outcome, source, out)
        print(report.summary(grid, outcome))
        figures.write(grid, outcome, out)
    print(f"\nThe tables are in {', '.join(str(file) for file in files)}; figures in {out / 'figures'}.")
    if outcome.failures:
        print(f"espalier: {len(outcome.failures)} cells failed; the same command tries them again", file=sys.stderr)
    return 1 if outcome.failures else 0
