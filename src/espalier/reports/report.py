"""The page on one or several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from espalier import __version__, calibration, pages, store
from espalier.calibration.comparison import Scores
from espalier.calibration.comparison import verdict as verdict_of
from espalier.certificates import certificate
from espalier.contracts import Data
from espalier.pages import Block, Details, Page, Section, Table, Text
from espalier.prediction import recalibration
from espalier.prediction.predictor import Predictor
from espalier.reports import calibrators, classes, targets, topology, worlds
from espalier.reports.look import Look, look_of, runs_of
from espalier.reports.promises import certificates_in
from espalier.reports.tables import CLASSIFICATION, REGRESSION, TITLES, entry, interval, ways_of

KEPT = ("versions", "data", "programs")
"""Of a record, what says where numbers came from."""
LITTLE = 0.001
"""A drop rate at which a mask is hardly one."""
MADE = "<footer>Made by Espalier."
CITE = """\
@software{espalier, title = {Espalier: Bayesian sparse training for networks that know what they don't know}, version = {%s}}
@inproceedings{lei2023calibrating, title = {Calibrating the Rigged Lottery: Making All Tickets Reliable},
  author = {Lei, Bowen and Zhang, Ruqi and Xu, Dongkuan and Mallick, Bani}, booktitle = {ICLR}, year = {2023}}
@inproceedings{evci2020rigging, title = {Rigging the Lottery: Making All Tickets Winners},
  author = {Evci, Utku and Gale, Trevor and Menick, Jacob and Castro, Pablo Samuel and Elsen, Erich},
  booktitle = {ICML}, year = {2020}}
"""


def report(looks: Sequence[Look], extras: Sequence[Section] = (), calibrate: Sequence[str] = ()) -> str:
    """The whole document. calibrate: calibrators that are fitted for it, in place of those that runs keep.

    Raises ValueError for runs that cannot stand beside each other.
    """
    check(looks)
    own, arms = runs_of(looks), classes.sections(looks) if looks[0].classes else targets.sections(looks)
    sections = [
        headline(looks),
        *comparison(looks),
        *arms,
        *calibrators.sections(looks, calibrate),
        *extras,
        *([topology.topology(own), topology.training(own)] if own else []),
        *certificates(own),
        provenance(looks),
    ]
    names = ", ".join(look.name for look in looks)
    return pages.html(Page(f"Espalier: {names}", names, lead(looks), sections))


def check(looks: Sequence[Look]) -> None:
    """Raises ValueError, before any page is made, where runs are of different data or share a name."""
    if not looks:
        raise ValueError("expected at least one run to report on, got none")
    if len({look.data.hashes.get(look.split) for look in looks}) > 1:
        raise ValueError(f"expected runs of one {looks[0].split} split, got different ones: report on them apart")
    if len({look.name for look in looks}) < len(looks):
        raise ValueError("expected folders of different names: a page tells runs and ensembles apart by them")


def check_free(path: Path) -> None:
    """Raises ValueError where `path` is no name for a page, or holds a file that is not Espalier's."""
    if path.is_dir() or not path.name:
        raise ValueError(f"expected the name of an HTML file for the report, got {str(path)!r}")
    if path.exists() and MADE.encode() not in path.read_bytes():
        raise ValueError(
            f"expected a new file for the report, but {path} is there and not Espalier's: choose another name"
        )


def write(path: Path, looks: Sequence[Look], extras: Sequence[Section] = (), calibrate: Sequence[str] = ()) -> None:
    """The page as a file, atomically."""
    store.write_bytes(path, report(looks, extras, calibrate).encode())


def write_page(
    path: Path | str,
    fits: Mapping[str, Predictor],
    data: Data,
    split: str = "test",
    *,
    num_samples: int = 16,
    replicates: int = 100,
    calibrate: Sequence[str] = (),
) -> Path:
    """The page on fits (or ensembles) that are at hand, by the names that they shall have on it, and the data that they were
    fitted to; returns its file. replicates: data sets drawn for model criticism, 0 leaves it out.

    Raises ValueError, before any work, for a file that is not Espalier's and for data of several targets an example.
    """
    path = Path(path)
    check_free(path)
    if not isinstance(fits, Mapping) or not all(isinstance(fit, Predictor) for fit in fits.values()):
        raise ValueError(f"expected fits by their names, {{'mine': fit}}, got {type(fits).__name__}")
    looks = [
        look_of(name, fit, data, split, num_samples=num_samples, check=lambda own: recalibration.check(own, split, calibrate))
        for name, fit in fits.items()
    ]
    check(looks)
    own = runs_of(looks) if replicates else []
    write(path, looks, [worlds.criticism(own, replicates)] if own else [], calibrate)
    return path


def lead(looks: Sequence[Look]) -> str:
    """What was run, in a sentence for every run and ensemble."""
    said = []
    for look in looks:
        if len(look.predictor.fits) > 1:
            members = ", ".join(folder.resolve().name for folder in look.folders) or f"{len(look.predictor.fits)} fits"
            said.append(f"{look.name}: {members}, whose predictions are averaged in every way that all of them have.")
            continue
        recipe, topology_ = look.fit.record.get("recipe", {}), look.fit.topology
        said.append(
            f"{look.name}: {recipe.get('model', 'a network')} trained by {recipe.get('inference', 'an inference')} on "
            f"{look.data.name} ({len(look.data.train.y):,} examples, {len(look.fit.history)} epochs), "
            f"{topology_.num_active:,} of {topology_.num_weights:,} weights active ({topology_.density:.1%}), "
            f"{len(look.fit.pairs.values)} collected pairs."
        )
    return " ".join(said) + f" Scored on the {len(looks[0].labels):,} examples of the {looks[0].split} split."


def headline(looks: Sequence[Look]) -> Section:
    names = CLASSIFICATION if looks[0].classes else REGRESSION
    rows = [
        [f"{look.name}: {way}", *(entry(scores, name) for name in names)]
        for look in looks
        for way, scores in ways_of(look.scores).items()
    ]
    told = Text(
        "Intervals are of 95 %, over examples. "
        + (
            "The floor is what a perfectly calibrated network of these confidences would show by chance."
            if looks[0].classes
            else "Scores are in the units of the target."
        )
    )
    rates = [Text(sentence) for look in runs_of(looks) if (sentence := rate_found(look))]
    scores = Table("Scores", ["run: way", *(TITLES[name] for name in names)], rows)
    return Section("Every way to predict", [told, *rates, scores], "scores")


def rate_found(look: Look) -> str:
    """What a search for the drop rate came to, and what that says of the run; nothing of a rate that was given."""
    found = look.fit.record.get("drop_rate")
    if not found:
        return ""
    rows = f"{found['validation_rows']:,} validation rows"
    if not found["forward_examples"]:
        return (
            f"{look.name}: the drop rate was to be found on {rows} while training, which ended before the first look: it is "
            f"{found['found']:.2g}, where it begins, and says nothing. Train longer, in larger batches, or give a number."
        )
    ended, followed = (f"{found.get(name, found['found']):.2g}" for name in ("found", "followed"))
    looked = "" if followed == ended else f" (it had come to {followed} when training ended, and had a last look)"
    said = f"{look.name}: the drop rate was found on {rows} while training: {ended}{looked}."
    if found["found"] > LITTLE:
        return said
    return (
        f"{said} That is next to none: masks cost more here than they give, as they do where a network is far from fitting its "
        "training rows, and in small regressions; or there were too few looks to tell, as in a "
        "training of a thousand steps. The draws hardly differ, and what they disagree by says little; RigL is the "
        "same network at less work."
    )


def comparison(looks: Sequence[Look]) -> list[Section]:
    """Every run, and every ensemble, less the first, paired by example."""
    if len(looks) < 2:
        return []
    rows: list[list[str]] = []
    for look in looks[1:]:
        rows += [[f"{look.name} ({look.way}): {name}", *cells] for name, *cells in _differences(look, looks[0])]
    told = Text(
        f"Each less {looks[0].name} ({looks[0].way}), on the same examples. One run, or ensemble, of each: the interval is over "
        "examples and does not know how other seeds would come out; `espalier compare` does."
    )
    table = Table(f"Difference from {looks[0].name}", ["run: score", "difference", "95 % interval", "verdict"], rows)
    return [Section("Comparison", [told, table], "comparison")]


def _differences(look: Look, first: Look) -> Iterator[list[str]]:
    """Score by score, what it is called, the mean difference, its interval and the verdict; of a regression in units of the
    target, of whatever size."""
    if look.classes:
        arm, baseline = (Scores.of(each.probs, each.labels) for each in (look, first))
        for name, found in calibration.differences(arm, baseline).items():
            yield [TITLES[name], f"{found.mean:+.4f}", interval(found.crossed), found.verdict]
        return
    for (name, own), other in zip(targets.losses(look).items(), targets.losses(first).values(), strict=True):
        low, high = calibration.bootstrap_interval(own - other)
        yield [name, f"{(own - other).mean():+.4g}", f"[{low:+.4g}, {high:+.4g}]", verdict_of((low, high), -1)]


def certificates(looks: Sequence[Look]) -> list[Section]:
    """What the run was certified for."""
    blocks: list[Block] = []
    for look in looks:
        for path, facts in certificates_in(*look.folders).items():
            blocks += [
                Text(" ".join([f"{look.name}: {certificate.sentence(facts)}", *certificate.caveats(facts)])),
                Text(f"{path}; `espalier verify {path}` recomputes it.", "source"),
            ]
    return [Section("Certificate", blocks, "certificate")] if blocks else []


def provenance(looks: Sequence[Look]) -> Section:
    """All that is needed to do it again."""
    told: dict[Path | tuple[str, int], list[Block]] = {}
    for look in looks:
        for place, fit in enumerate(look.predictor.fits):
            name = look.name if len(look.predictor.fits) == 1 else f"{look.name}, {place + 1}"
            source: list[Block] = []
            key: Path | tuple[str, int] = (look.name, place)
            if look.folders:
                folder = look.folders[place].resolve()
                key, name = folder, folder.name
                source = [
                    Text(f"{name}: espalier fit --config config.yaml --out {name}"),
                    Details(f"config.yaml of {name}", (folder / "config.yaml").read_text(encoding="utf-8")),
                ]
            facts = store.canonical({key: fit.record[key] for key in KEPT if key in fit.record})
            told[key] = [*source, Details(f"Versions and hashes of {name}", facts)]
    blocks = [block for own in told.values() for block in own]
    blocks += [Details("How to cite", CITE % __version__)]
    return Section("How it was made", blocks, "provenance")
