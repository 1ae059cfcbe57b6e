"""`espalier evaluate`: every way to predict, every score, with intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.cli.parser import Parser, check_samples

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.prediction.predictor import Predictor


def evaluate(words: list[str]) -> int:
    parser = Parser(prog="espalier evaluate", description="Score every way to predict on a split, with intervals.")
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--split", default="test", help="train, validation, calibration or test (default)")
    parser.of_samples()
    parser.of_data()
    parser.of_device()
    parser.add_argument("--picture", type=Path, help="also draw the reliability of all runs side by side")
    parser.add_argument("--calibrate", nargs="+", default=[], metavar="NAME", help="also calibrated by maps fitted on validation")
    parser.add_argument("--compile", action="store_true", help="networks by torch.compile: of many draws and rows, where it pays")
    parser.of_ensembles()
    parser.of_groups()
    parser.add_argument("--robust", type=float, nargs="+", default=[], metavar="EPS", help="also robustness when every input may "
                        "move by EPS, of images a share of white: certified, under attack, under noise")  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="DIR.zarr", help="also write all draws as labelled arrays, runs as chains")
    parser.add_argument("--ways", nargs="+", default=["pairs"], metavar="WAY", help="of --save: ways to predict (default: pairs)")
    parser.add_argument("--layers", nargs="+", default=[], metavar="NAME", help="of --save: tensors whose weights are kept")
    parser.add_argument("--prior", type=int, default=0, metavar="N", help="of --save: so many draws from the prior, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else, on stdout")
    arguments = parser.parse_args(words)

    from espalier import compiled, runs
    from espalier.cli.tables import group_tables, robust_tables, score_table
    from espalier.data import groupings
    from espalier.pictures import plots
    from espalier.prediction import grouped, labelled, recalibration, robustness
    from espalier.training.streams import find_device

    check_samples(arguments.num_samples)
    if arguments.save is None and (arguments.layers or arguments.prior or arguments.ways != ["pairs"]):
        raise ValueError("expected --save DIR.zarr with --ways, --layers or --prior, which are of what it keeps: it is missing")
    if not arguments.ensemble and arguments.pool != "probabilities":
        raise ValueError("expected --ensemble with --pool, which is of its members: it is missing")
    if arguments.picture is not None:
        plots.check_free(arguments.picture)
    if arguments.save is not None:
        labelled.check_new(arguments.save)
    if arguments.robust and arguments.ensemble:
        raise ValueError("expected single networks with --robust, got an ensemble: evaluate it apart")
    columns = groupings.read(arguments.by[0], arguments.by[1:]) if arguments.by else {}
    for folder in arguments.run:
        runs.check_finished(folder)
    device = find_device(arguments.device)
    fits = [runs.load(folder) for folder in arguments.run]
    predictors: list[Predictor] = [*fits, *(runs.ensemble(folders, pool=arguments.pool) for folders in arguments.ensemble)]
    if arguments.compile:
        for fit in (fit for predictor in predictors for fit in predictor.fits):
            compiled.check(fit.model.net)
            fit.model.compiled = "prediction"
    arms = [[folder] for folder in arguments.run] + arguments.ensemble
    together = [runs.name_of(folders) for folders in arguments.ensemble]
    names = [str(folder) for folder in arguments.run] + together
    if len(set(together)) < len(together) or set(together) & set(names[: len(fits)]):
        raise ValueError("expected ensembles of different names: one has that of its first run, and its size")
    loaded = [runs.data_of(folders[0], arguments.data_dir, arguments.data) for folders in arms]
    for data in loaded:
        recalibration.check(data, arguments.split, arguments.calibrate)
        if columns:
            grouped.check(data, arguments.split)
            groupings.groups_of(data, arguments.split, columns, arguments.by[0])
    if arguments.robust:
        for fit, data in zip(fits, loaded, strict=True):
            robustness.check(fit, data, arguments.robust)
    if arguments.picture and not any(_has_diagram(data, arguments.split) for data in loaded):
        raise ValueError("expected runs of one label an example for --picture, a reliability diagram: leave it out")
    if arguments.save is not None:
        if len(different := {data.hashes[arguments.split] for data in loaded[: len(fits)]}) > 1:
            raise ValueError(f"expected runs of one {arguments.split} split for --save, got {len(different)} different ones")
        labelled.check(fits, loaded[0], [arguments.split], arguments.ways, arguments.layers, arguments.prior)
    results, panels = {}, {}
    for name, folders, predictor, data in zip(names, arms, predictors, loaded, strict=True):
        groups = groupings.groups_of(data, arguments.split, columns) if columns else {}
        kept = folders[0] if len(folders) == 1 else None
        results[name], ticket = scored(
            kept, predictor.to(device), data, arguments.split, arguments.num_samples, arguments.calibrate, groups,
            arguments.robust,
        )  # fmt: skip
        if kept is None:
            results[name] |= {"run": name, "members": [str(folder) for folder in folders]}
        if _has_diagram(data, arguments.split):
            panels[f"{name}: ticket"] = ticket
    if arguments.save is not None:
        options = {"splits": [arguments.split], "ways": arguments.ways, "layers": arguments.layers, "prior": arguments.prior}
        labelled.save_tree(arguments.save, fits, loaded[0], num_samples=arguments.num_samples, **options)
    if panels and arguments.picture:
        plots.save(plots.reliability(panels), arguments.picture)
    if arguments.json:
        print(json.dumps(results[str(arguments.run[0])] if len(results) == 1 else {"runs": results}))
    else:
        print(score_table(results, arguments.split))
        for run, result in results.items():
            print("".join(f"\n{table}\n" for table in group_tables(run, result) + robust_tables(run, result)), end="")
        if arguments.picture:
            print(f"\nReliability diagram: {arguments.picture}")
        if arguments.save:
            print(f"\nLabelled results: {arguments.save}, by xarray.open_datatree")
    return 0


def _has_diagram(data: Data, split: str) -> bool:
    """Is there a label for each example of this split, one bar of confidence?"""
    from espalier.prediction.evaluation import split_of

    return data.num_classes is not None and split_of(data, split).y.dim() == 1


def scored(
    folder: Path | None, fit: Predictor, data: Data, split: str, num_samples: int = 16, calibrate: Sequence[str] = (),
    groups: Mapping[str, Any] | None = None, robust: Sequence[float] = (),
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """Evaluate, and leave the numbers and the picture in the run folder, with the calibrators where some are fitted; an ensemble
    has none. groups: of the split's rows, by name of the grouping. robust: how far inputs may move, for a single fit. Also
    returns the ticket's predictions."""
    from espalier import store
    from espalier.pictures import plots
    from espalier.prediction import evaluation, grouped, recalibration
    from espalier.prediction.robustness import robustness_of

    predicted = evaluation.predictions(fit, data, split, num_samples=num_samples)
    scores = evaluation.evaluate(fit, data, split, num_samples=num_samples, predicted=predicted)
    parameters = None
    if calibrate:
        mapped, parameters = recalibration.recalibrated(
            fit, data, split, calibrate, num_samples=num_samples, predicted=predicted
        )
        scores["predict"] |= evaluation.score(mapped, data, split)
    if groups:
        main = {way: predicted[way] for way in grouped.main_ways(fit)}
        scores["by_group"] = grouped.by_groups(main, data, groups, split)
    if robust:
        (own,) = fit.fits
        ways = [way for way in ("ticket", "distilled") if way in own.ways]
        scores["robust"] = {way: robustness_of(own, data, robust, split=split, how=way) for way in ways}
    result = {"run": str(folder), "sparsity": 1 - scores["density"], **scores}
    labels = evaluation.split_of(data, split).y.numpy()
    if folder is None:
        return result, (predicted["ticket"], labels)
    try:
        if parameters is not None:
            store.write_bytes(folder / recalibration.KEPT, store.canonical(parameters).encode())
        store.write_bytes(folder / f"evaluation-{split}.json", store.canonical({**result, "run": folder.name}).encode())
        if _has_diagram(data, split):
            panels = {f"{folder.name}: {way}": (predicted[way], labels) for way in ("ticket", fit.posterior)}
            plots.save(plots.reliability(panels), folder / f"reliability-{split}.png")
    except OSError as error:  # a disk that is read-only, or full: what was computed is shown all the same
        print(f"espalier: the scores are not kept in {folder}: {error.strerror or error}", file=sys.stderr)
    return result, (predicted["ticket"], labels)
