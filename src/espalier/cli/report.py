"""`espalier report`: what runs came to, in one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.cli.parser import Parser, check_samples

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.prediction.predictor import Predictor


def report(words: list[str]) -> int:
    parser = Parser(prog="espalier report", description="What runs came to, in one page that needs nothing else.")
    parser.add_argument(
        "run", type=Path, nargs="+", help="finished runs on the same data; the first is what others are compared with"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PAGE.html")
    parser.add_argument("--split", default="test", help="train, validation, calibration or test (default)")
    parser.add_argument(
        "--ood", action="append", default=[], metavar="NAME|FOLDER|FILE.npz", help="inputs of another world"
    )
    parser.add_argument("--corrupt", nargs="+", default=[], metavar="KIND", help="corruptions of the images, or `all`")
    parser.add_argument(
        "--replicates", type=int, default=100, help="data sets drawn for model criticism; 0 leaves it out"
    )
    parser.add_argument(
        "--calibrate", nargs="+", default=[], metavar="NAME",
        help="calibrators fitted for the page (default: those that the run keeps, or a temperature)",
    )  # fmt: skip
    parser.of_ensembles()
    parser.of_groups()
    parser.of_samples()
    parser.of_data()
    parser.of_device()
    arguments = parser.parse_args(words)

    from espalier import data, runs
    from espalier.data import groupings
    from espalier.data.worlds import inputs_of
    from espalier.prediction import recalibration
    from espalier.reports import calibrators, groups, report, worlds
    from espalier.reports.look import look_with, runs_of
    from espalier.training.streams import find_device

    check_samples(arguments.num_samples)
    if not 0 <= arguments.replicates <= 10_000:
        raise ValueError(f"expected --replicates of 0 to 10,000, got {arguments.replicates}")
    report.check_free(arguments.out)
    for folder in arguments.run:
        runs.check_finished(folder)
    options = {"data_dir": arguments.data_dir, "source": arguments.data, "num_samples": arguments.num_samples}
    device = find_device(arguments.device)
    columns = groupings.read(arguments.by[0], arguments.by[1:]) if arguments.by else {}

    kinds = [kind.replace("_", " ").replace("-", " ") for kind in arguments.corrupt]
    known: dict[tuple[str, str], Any] = {}

    def other(name: str, own: Data) -> Any:
        """Inputs of another world, as a run takes its own; read once for all that take them alike."""
        key = name, inputs_of(own)
        if key not in known:
            known[key] = data.out_of_distribution(name, own, data_dir=arguments.data_dir)
        return known[key]

    def check(own: Data) -> None:
        recalibration.check(own, arguments.split, arguments.calibrate)
        worlds.check_shift(own, arguments.split, kinds)
        for name in arguments.ood:
            other(name, own)
        if columns:
            groupings.groups_of(own, arguments.split, columns, arguments.by[0])

    arms: list[tuple[list[Path], Predictor]] = [([folder], runs.load(folder)) for folder in arguments.run]
    arms += [(folders, runs.ensemble(folders, pool=arguments.pool)) for folders in arguments.ensemble]
    looks = [look_with(arm.to(device), folders, arguments.split, check=check, **options) for folders, arm in arms]
    report.check(looks)
    own = looks[0].data
    by = groupings.groups_of(own, arguments.split, columns) if columns else {}
    for look in looks:
        calibrators.check(look, arguments.calibrate)
    extras = groups.sections(looks, by)
    extras += [worlds.criticism(runs_of(looks), arguments.replicates)] if arguments.replicates else []
    stems = [Path(name).stem for name in arguments.ood]
    for name, stem in zip(arguments.ood, stems, strict=True):
        title = stem if stems.count(stem) == 1 else name
        extras.append(worlds.other_world(looks, title, partial(other, name), arguments.num_samples))
    extras += [worlds.shift(looks, kinds, arguments.num_samples)] if arguments.corrupt else []
    report.write(arguments.out, looks, extras, arguments.calibrate)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**20:.1f} MiB, opens anywhere")
    return 0
