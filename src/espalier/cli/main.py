"""The command line: arguments in, sentences out; no arithmetic.

Everything heavy is imported by the command that needs it, so that `espalier --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier import __version__

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.fit import Fit

HELP = """\
Bayesian sparse training for networks that know what they don't know.

  espalier fit --model NAME --inference NAME --data NAME --out RUN   train; options come from the programs named
  espalier fit --config RECIPE.yaml --out RUN                        the same from a file; see examples/
  espalier resume RUN                                                go on with a run that was stopped
  espalier evaluate RUN [RUN ...]                                    scores of every way to predict, with intervals
  espalier compare GRID.yaml --out DIR                               methods x sparsities x seeds, with paired intervals
  espalier certify RUN --risk error --alpha 0.03 --delta 0.05        prune as far as the calibration split can certify
  espalier verify CERTIFICATE                                        recompute a certificate: does it still hold?
  espalier theory                                                    check every claim behind the method; a page of pictures
  espalier models | inferences | data                                what there is
  espalier data get NAME                                             download a public data set

`espalier COMMAND --help` says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 after one sentence on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "fit": _fit,
        "resume": _resume,
        "evaluate": _evaluate,
        "compare": _compare,
        "certify": lambda words: _elsewhere("certify", words),
        "verify": lambda words: _elsewhere("verify", words),
        "theory": _theory,
        "data": _data,
        "models": _models,
        "inferences": _inferences,
    }
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        if words[0] not in commands:
            from difflib import get_close_matches

            near = get_close_matches(words[0], commands, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected a command of {', '.join(commands)}, got {words[0]!r}{hint}")
        return commands[words[0]](words[1:])
    except BrokenPipeError:  # `espalier ... | head`: the reader has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        print(f"espalier: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        how = "the same command" if words[0] == "compare" else "`espalier resume RUN`"
        print(f"espalier: stopped; {how} goes on from the last epoch", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """argparse whose errors are our one sentence."""

    def error(self, message: str) -> Any:
        raise ValueError(f"{self.prog}: {message}")


def _fit(words: list[str]) -> int:
    own = Parser(prog="espalier fit", add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path, metavar="RUN", help="new folder for the run")
    own.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    own.add_argument("--print-config", "--print_config", action="store_true", help="print what would run, and stop")
    own.add_argument("-h", "--help", action="store_true")
    mine, rest = own.parse_known_args(words)

    from espalier import distributed, recipes, runs

    if mine.help:
        return _fit_help(own, rest)
    recipe = recipes.resolve(rest)
    if mine.print_config:
        import yaml

        print(yaml.safe_dump(runs.plain(recipe.config()), sort_keys=False), end="")
        return 0
    if mine.out is None:
        raise ValueError("expected --out RUN, a new folder for the run")
    with distributed.joined() as first, _watching(recipe, first) as bar:
        fit = runs.start(recipe, mine.out, bar)
    return _conclude(mine.out, fit, mine.json) if first else 0


def _fit_help(own: argparse.ArgumentParser, rest: list[str]) -> int:
    from espalier import recipes

    own.print_help()
    written = [*rest]
    for part, default in (("model", "mlp"), ("inference", "cigl")):
        if not any(word.partition("=")[0] in (f"--{part}", "--config") for word in rest):
            written += [f"--{part}", default]
    parts = recipes.programs(written)
    print(f"\nWith --model {parts['model']} --inference {parts['inference']}:\n")
    print(recipes.build_parser(recipes.options(parts["model"], parts["inference"])).format_help())
    return 0


def _resume(words: list[str]) -> int:
    parser = Parser(prog="espalier resume", description="Go on with a run that was stopped, bit for bit.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier import distributed, runs

    with distributed.joined() as first:
        finished = runs.finished(arguments.run)
        with nullcontext() if finished else _watching(runs.recipe_in(arguments.run), first) as bar:
            fit = runs.resume(arguments.run, bar)
    if not first:
        return 0
    if finished and not arguments.json:
        print(f"{arguments.run} is finished; nothing to do")
        return 0
    return _conclude(arguments.run, fit, arguments.json)


def _watching(recipe: Any, first: bool) -> Any:
    """The bar of a run; of processes that train together, the first one shows it."""
    if not first:
        return nullcontext()
    from espalier.progress import Bar

    sparsity = recipe.options.get("sparsity", 0.0)
    names = " ".join(Path(name).stem for name in (recipe.inference, recipe.model, recipe.data))
    title = f"{names} {100 * sparsity:g} % sparse"
    return Bar(title, recipe.options["epochs"])


def _conclude(folder: Path, fit: Fit, as_json: bool) -> int:
    """After training: scores on validation. The test split waits for `espalier evaluate`."""
    from espalier import runs

    data = runs.data_of(folder)
    split = "validation" if len(data.validation.y) else "train"
    results = {str(folder): _scored(folder, fit, data, split)[0]}
    if (
        fit.topology.density < 1
        and "delta_t" in runs.recipe_in(folder).options
        and not any(r["exchanged"] for r in fit.history)
    ):
        print(
            "espalier: note: the topology never moved in this short run; a smaller --delta-t moves it", file=sys.stderr
        )
    if as_json:
        print(json.dumps(results[str(folder)]))
    else:
        _print_tables(results, split)
        print(f"\nThe run is in {folder}; `espalier evaluate {folder}` scores it on the test split.")
    return 0


def _evaluate(words: list[str]) -> int:
    parser = Parser(prog="espalier evaluate", description="Score every way to predict on a split, with intervals.")
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--split", default="test", help="train, validation, calibration or test (default)")
    parser.add_argument("--num-samples", type=int, default=16, help="fresh masks of `redraw`")
    parser.add_argument("--data-dir", help="where the data sets are; default: the run's own, then ESPALIER_DATA")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--picture", type=Path, help="also draw the reliability of all runs side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier import runs
    from espalier.streams import find_device

    device = find_device(arguments.device)
    results, panels = {}, {}
    for folder in arguments.run:
        fit, data = runs.load(folder).to(device), runs.data_of(folder, arguments.data_dir)
        results[str(folder)], ticket = _scored(folder, fit, data, arguments.split, arguments.num_samples)
        if data.num_classes is not None:
            panels[f"{folder}: ticket"] = ticket
    if panels and arguments.picture:
        from espalier import plots

        plots.save(plots.reliability(panels), arguments.picture)
    if arguments.json:
        print(json.dumps(results[str(arguments.run[0])] if len(results) == 1 else {"runs": results}))
    else:
        _print_tables(results, arguments.split)
        if arguments.picture:
            print(f"\nReliability diagram: {arguments.picture}")
    return 0


def _scored(folder: Path, fit: Fit, data: Data, split: str, num_samples: int = 16) -> tuple[dict[str, Any], Any]:
    """Evaluate, and leave the numbers and the picture in the run folder. Also returns the ticket's predictions."""
    from espalier import plots, store
    from espalier.evaluation import evaluate, predictions, split_of

    predicted = predictions(fit, data, split, num_samples=num_samples)
    scores = evaluate(fit, data, split, num_samples=num_samples, predicted=predicted)
    result = {"run": str(folder), "sparsity": 1 - fit.topology.density, **scores}
    store.write_bytes(folder / f"evaluation-{split}.json", store.canonical({**result, "run": folder.name}).encode())
    labels = split_of(data, split).y.numpy()
    if data.num_classes is not None:
        panels = {f"{folder.name}: {way}": (predicted[way], labels) for way in ("ticket", "redraw")}
        plots.save(plots.reliability(panels), folder / f"reliability-{split}.png")
    return result, (predicted["ticket"], labels)


def _print_tables(results: dict[str, dict[str, Any]], split: str) -> None:
    from espalier.tables import score_table

    print(score_table(results, split))


def _data(words: list[str]) -> int:
    parser = Parser(prog="espalier data", description="List the data sets, or download one.")
    parser.add_argument("action", nargs="?", choices=["get"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--data-dir", help="default: ESPALIER_DATA, then ~/.cache/espalier")
    arguments = parser.parse_args(words)

    from espalier import data, downloads

    if arguments.action == "get":
        if arguments.name is None:
            raise ValueError(f"expected espalier data get NAME, with a name of {', '.join(data.names())}")
        from espalier.progress import transfers

        with transfers() as seen:
            lines = downloads.get(arguments.name, arguments.data_dir, progress=seen)
        print("\n".join(lines))
        return 0
    here = set(data.available(arguments.data_dir))
    for name, about in data.names().items():
        print(f"{name:14s} {'here ' if name in here else '     '} {about}")
    print(
        "FILE.npz              arrays x, y and optionally train/test rows\nFOLDER                images, FOLDER/train/CLASS/*"
    )
    return 0


def _compare(words: list[str]) -> int:
    parser = Parser(prog="espalier compare", description="Train and score a grid of methods; see grids.py.")
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="what is finished there is kept; default: runs/GRID")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster that is there, instead of own processes")
    parser.add_argument("--dry-run", action="store_true", help="only say which runs and cells there are")
    arguments = parser.parse_args(words)

    from espalier import compare, figures, grids, report
    from espalier.progress import comparing
    from espalier.workers import workers

    grid = grids.read(arguments.grid)
    out = arguments.out or Path("runs") / arguments.grid.stem
    left = compare.plan(grid, out)
    if arguments.dry_run:
        print(report.plan_lines(grid, left))
        return 0
    hands = workers(arguments.jobs, arguments.scheduler)
    epochs = sum(recipe.options["epochs"] for recipe in left.runs.values())
    with comparing(len(left.runs), epochs, len(left.cells), lambda: compare.epochs_done(out, left.runs)) as seen:
        outcome = compare.compare(grid, out, hands, seen)
    files = report.write(grid, outcome, arguments.grid, out)
    print(report.summary(grid, outcome))
    figures.write(grid, outcome, out)
    print(f"\nThe tables are in {', '.join(str(file) for file in files)}; figures in {out / 'figures'}.")
    if outcome.failures:
        print(f"espalier: {len(outcome.failures)} cells failed; the same command tries them again", file=sys.stderr)
    return 1 if outcome.failures else 0


def _theory(words: list[str]) -> int:
    parser = Parser(prog="espalier theory", description="Check every claim behind the method against another answer.")
    parser.add_argument("claim", nargs="*", help="names of claims; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer draws and smaller grids: a minute, not ten")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/theory"), help="default: runs/theory")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--list", action="store_true", help="only say which claims there are")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier import theory

    wanted = theory.chosen(arguments.claim)
    if arguments.list:
        print("\n".join(f"{name:24s} {claim.says}" for name, claim in wanted.items()))
        return 0
    from espalier.progress import counting
    from espalier.theory import run

    lines = []
    with counting("claims", len(wanted)) as seen:
        for line in run.run(list(wanted), arguments.quick, arguments.jobs, seen):
            lines.append(line)
            if not arguments.json:
                print(run.sentence(line), flush=True)
    run.write(lines, arguments.out, arguments.quick)
    if arguments.json:
        print((arguments.out / "theory.json").read_text(), end="")
    else:
        held = sum(line.finding.verdict == "holds" for line in lines)
        print(f"\n{held} of {len(lines)} claims hold; figures and pictures: {arguments.out / 'index.html'}")
    return 0


def _elsewhere(command: str, words: list[str]) -> int:
    from espalier import cli_certify

    run: int = getattr(cli_certify, command)(words)
    return run


def _shelf(kind: Any, words: list[str]) -> int:
    from espalier import shelf

    Parser(prog=f"espalier {kind}").parse_args(words)
    for name in shelf.names(kind):
        print(f"{name:14s} {shelf.summary(kind, name)}")
    return 0


def _models(words: list[str]) -> int:
    return _shelf("models", words)


def _inferences(words: list[str]) -> int:
    return _shelf("inference", words)
