"""What calibrators make of a run: scores and reliability before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier import calibration
from espalier.contracts import Data
from espalier.pages import Block, Figure, Section, Table, Text
from espalier.pictures import plots
from espalier.prediction import evaluation, recalibration
from espalier.prediction.grouped import main_ways
from espalier.prediction.mixture import Mixture
from espalier.reports.figures import reliability_rows
from espalier.reports.look import Look
from espalier.reports.tables import REGRESSION, TITLES, entry, interval
from espalier.reports.targets import pit_figure, told_of

DRAWN = 3
"""Calibrators whose pictures are shown, of more those of the least NLL."""


def check(look: Look, names: Sequence[str]) -> None:
    """Raises ValueError, before any work, for calibrators that cannot be fitted for the page."""
    recalibration.check(look.data, look.split, names)
    if names and any(isinstance(said, Mixture) for said in look.predicted.values()):
        raise ValueError("expected class probabilities or one normal target to calibrate, got another likelihood's mixture")


def sections(looks: Sequence[Look], names: Sequence[str] = ()) -> list[Section]:
    """One of all runs, or none where there is nothing to calibrate. names: fitted for the page; else what a run keeps, or, where
    it keeps nothing, a temperature, or the factor of a variance."""
    blocks: list[Block] = []
    for look in looks:
        blocks += _of_run(look, names)
    if not blocks:
        return []
    told = Text(
        "A calibrator is a map of the predictions, fitted on the validation split alone and applied to the "
        f"{looks[0].split} split here. It mends what a network says of its answers; temperature and variance leave the answers "
        "themselves as they are."
    )
    return [Section("Calibrators, before and after", [told, *blocks], "calibrators")]


def _of_run(look: Look, names: Sequence[str]) -> list[Block]:
    one = look.scores[look.way] == look.scores["redraw"]  # a network without masks
    ways = main_ways(look.predictor)[: 1 if one else 2]
    mapped, source = _mapped(look, names, ways)
    if not mapped:
        return []
    scores = evaluation.score(mapped, look.data, look.split)
    shown = ("accuracy", "nll", "ece_15", "ece_15_floor") if look.classes else REGRESSION
    header = ["way", *(TITLES[name] for name in shown), "NLL, after less before"]
    rows: list[list[str]] = []
    for way in ways:
        own = {arm: said for arm, said in mapped.items() if arm.startswith(f"{way} + ")}
        if own:
            rows.append([way, *(entry(look.scores[way], name) for name in shown), ""])
        for arm, said in own.items():
            rows.append([arm, *(entry(scores[arm], name) for name in shown), _difference(look, look.predicted[way], said)])
    blocks: list[Block] = [Text(f"{look.name}: {source}"), Table(f"Scores of {look.name} before and after", header, rows)]
    arms = sorted((arm for arm in mapped if arm.startswith(f"{look.way} + ")), key=lambda arm: scores[arm]["nll"])[:DRAWN]
    return blocks + [_pair(look, arm, mapped[arm], scores[arm]) for arm in arms]


def _mapped(look: Look, names: Sequence[str], ways: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """By `way + calibrator` what it predicts, and where the calibrators are from."""
    options: dict[str, Any] = {"num_samples": look.num_samples, "predicted": look.predicted}
    if any(isinstance(said, Mixture) for said in look.predicted.values()) or look.split == recalibration.FITTED_ON:
        return {}, ""
    kept = {} if names or len(look.folders) != 1 else recalibration.read_kept(look.folders[0], look.fit, look.data)
    of_ways = {arm: own for arm, own in kept.items() if arm.partition(" + ")[0] in ways}
    if of_ways:
        found = recalibration.apply_kept(look.predictor, look.data, look.split, of_ways, **options)
        return found, f"as `espalier evaluate --calibrate` fitted and kept them in {recalibration.KEPT}."
    if not len(look.data.validation.y):
        return {}, ""
    wanted = names or default(look.data)
    found = recalibration.recalibrated(look.predictor, look.data, look.split, wanted, ways=ways, **options)[0]
    return found, f"fitted for this page on {len(look.data.validation.y):,} validation examples."


def default(data: Data) -> tuple[str, ...]:
    """What is fitted where nobody said what."""
    return ("temperature",) if data.num_classes is not None else ("variance",)


def _difference(look: Look, before: Any, after: Any) -> str:
    """In NLL, paired by example."""
    y = look.labels
    if look.classes:
        gap = calibration.nll_scores(after, y) - calibration.nll_scores(before, y)
    else:
        pair = [calibration.gaussian_nll_scores(said[..., 0], said[..., 1], y) for said in (after, before)]
        gap = pair[0] - pair[1]
    return f"{gap.mean():+.4f} {interval(calibration.bootstrap_interval(gap))}"


def _pair(look: Look, arm: str, after: Any, scores: Any) -> Figure:
    """Before and after, side by side."""
    before, title = look.predicted[look.way], f"{look.name}: {arm}"
    if not look.classes:
        return pit_figure({name: told_of(said, look.labels).pit for name, said in (("before", before), ("after", after))}, title)
    own = look.scores[look.way]
    says = (
        f"{title}: ECE (15 bins) {own['ece_15']:.4f} {interval(own['ece_15_interval'])} before, "
        f"{scores['ece_15']:.4f} {interval(scores['ece_15_interval'])} after, whose floor is {scores['ece_15_floor']:.4f}."
    )
    panels = {"before": (before, look.labels), "after": (after, look.labels)}
    rows = [[name, *row] for name, (probs, labels) in panels.items() for row in reliability_rows(probs, labels)]
    header = ["", "low", "high", "examples", "accuracy", "confidence"]
    drawn = plots.png(plots.reliability({f"{arm.partition(' + ')[2]}, {name}": each for name, each in panels.items()}))
    return Figure(drawn, title, says, (header, rows))
