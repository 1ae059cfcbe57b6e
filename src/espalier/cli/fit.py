"""`espalier fit`, `resume` and `distil`."""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.cli.parser import Parser

if TYPE_CHECKING:
    from espalier.prediction.fit import Fit


def fit(words: list[str]) -> int:
    own = Parser(prog="espalier fit", add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path, metavar="RUN", help="new folder for the run")
    own.add_argument("--checkpoint-every", type=float, default=30.0, metavar="SECONDS",
                     help="at least so long between checkpoints: what a kill may cost (default 30)")  # fmt: skip
    _of_logs(own)
    own.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    own.add_argument("--print-config", "--print_config", action="store_true", help="print what would run, and stop")
    own.add_argument("-h", "--help", action="store_true")
    mine, rest = own.parse_known_args(words)

    from espalier import runs
    from espalier.runs import lines, recipes
    from espalier.training import distributed

    if mine.help:
        return _fit_help(own, rest)
    recipe = recipes.resolve(rest)
    if mine.print_config:
        print(lines.dump(runs.plain(recipe.config())), end="")
        return 0
    if mine.out is None:
        raise ValueError("expected --out RUN, a new folder for the run")
    logs = _logs(mine.log)
    with distributed.joined() as first, _watching(recipe, first) as bar:
        reached = runs.start(recipe, mine.out, [bar, *logs] if first else None, every=mine.checkpoint_every)
    return _conclude(mine.out, reached, mine.json) if first else 0


def _fit_help(own: argparse.ArgumentParser, rest: list[str]) -> int:
    from espalier.runs import recipes

    own.print_help()
    written = [*rest]
    for part, default in (("model", "mlp"), ("inference", "cigl")):
        if not any(word.partition("=")[0] in (f"--{part}", "--config") for word in rest):
            written += [f"--{part}", default]
    parts = recipes.programs(written)
    print(f"\nWith --model {parts['model']} --inference {parts['inference']}:\n")
    print(recipes.build_parser(recipes.options(parts["model"], parts["inference"])).format_help())
    return 0


def resume(words: list[str]) -> int:
    parser = Parser(prog="espalier resume", description="Go on with a run that was stopped, bit for bit.")
    parser.add_argument("run", type=Path)
    parser.of_data()
    parser.add_argument("--checkpoint-every", type=float, default=30.0, metavar="SECONDS", help="as of fit")
    _of_logs(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier import runs
    from espalier.training import distributed

    logs = _logs(arguments.log)
    with distributed.joined() as first:
        finished = runs.finished(arguments.run)
        with nullcontext() if finished else _watching(runs.recipe_in(arguments.run), first) as bar:
            watches = [bar, *logs] if bar is not None else None
            reached = runs.resume(
                arguments.run, watches, data_dir=arguments.data_dir, source=arguments.data, every=arguments.checkpoint_every
            )
    if not first:
        return 0
    if finished and not arguments.json:
        print(f"{arguments.run} is finished; nothing to do")
        return 0
    return _conclude(arguments.run, reached, arguments.json, arguments.data_dir, arguments.data)


def distil(words: list[str]) -> int:
    parser = Parser(prog="espalier distil", description="Teach one sparse net what the networks of finished runs predict.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="on whose topology it stands; and others of the same data, that teach too")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="NEW", help="new folder: the run, with the net in it")
    parser.add_argument("--epochs", type=int, default=0,
                        help="passes over the training inputs (default 0: 4 %% of training, 10 %% with --masks)")  # fmt: skip
    parser.add_argument("--rate", type=float, help="peak of their learning rate (default 0.1, or 0.02 with --masks)")
    parser.add_argument("--masks", type=int, default=0,
                        help="draws whose mean it is told at a step (default 0: what all of them say, by moments)")  # fmt: skip
    parser.add_argument("--inputs", metavar="X",
                        help="rows without labels that it learns on too: an .npz with x, or a folder of images")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    parser.of_data()
    arguments = parser.parse_args(words)

    from espalier import runs
    from espalier.cli.progress import Bar

    trained = runs.recipe_in(arguments.runs[0]).options["epochs"]
    with Bar(f"distil {arguments.runs[0].name}", trained + max(1, arguments.epochs)) as bar:
        fit = runs.distil(
            arguments.runs[0], arguments.out, others=arguments.runs[1:], epochs=arguments.epochs, learning_rate=arguments.rate,
            masks=arguments.masks, inputs=arguments.inputs, data_dir=arguments.data_dir, source=arguments.data, watch=bar,
        )  # fmt: skip
    return _conclude(arguments.out, fit, arguments.json, arguments.data_dir, arguments.data)


def _of_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", action="append", default=[], metavar="KIND:PLACE",
                        help="the history as csv:FILE or tensorboard:DIR too; may be said several times")  # fmt: skip


def _logs(places: list[str]) -> list[Any]:
    if not places:
        return []
    from espalier.adapters.listeners import log_to

    return [log_to(place) for place in places]


def _watching(recipe: Any, first: bool) -> Any:
    """The bar of a run; of processes that train together, the first one shows it."""
    if not first:
        return nullcontext()
    from espalier.cli.progress import Bar

    sparsity = recipe.options.get("sparsity") or 0.0
    names = " ".join(Path(name).stem for name in (recipe.inference, recipe.model, recipe.data))
    title = f"{names} {100 * sparsity:g} % sparse"
    taught = max(1, recipe.options["distill_epochs"]) if "distill_epochs" in recipe.options else 0
    return Bar(title, recipe.options["epochs"] + taught)


def _conclude(folder: Path, fit: Fit, as_json: bool, data_dir: str | None = None, source: str | None = None) -> int:
    """After training: scores on validation. The test split waits for `espalier evaluate`."""
    from espalier import runs
    from espalier.cli.evaluate import scored
    from espalier.cli.tables import score_table

    data = runs.data_of(folder, data_dir, source)
    split = "validation" if len(data.validation.y) else "train"
    results = {str(folder): scored(folder, fit, data, split)[0]}
    if as_json:
        print(json.dumps(results[str(folder)]))
    else:
        print(score_table(results, split))
        print(f"\nThe run is in {folder}; `espalier evaluate {folder}` scores it on the test split.")
    return 0
