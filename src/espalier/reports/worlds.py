"""How the runs do elsewhere: inputs of another world, corrupted images; and whether data like these could have come from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import calibration
from espalier.contracts import Data, Split
from espalier.data.corruptions import SEVERITIES, corruptions
from espalier.data.worlds import inputs_of, shifted
from espalier.pages import Block, Figure, Section, Table, Text
from espalier.pictures import plots
from espalier.pictures.data import Curve, Picture
from espalier.prediction import evaluation
from espalier.prediction.criticism import check_pictures, posterior_check
from espalier.prediction.features import OnePass, few, gives_logits
from espalier.prediction.uncertainty import uncertainties
from espalier.reports.figures import figure
from espalier.reports.look import Look
from espalier.reports.tables import interval

REPLICATES = 100
SCORES = {"accuracy": calibration.accuracy, "nll": calibration.nll, "ece_15": calibration.ece}
DETECTED = {"auroc": "AUROC", "aupr_in": "AUPR, in", "aupr_out": "AUPR, out", "false_positive_rate": "FPR at 95 % TPR"}


def other_world(looks: Sequence[Look], name: str, read: Callable[[Data], Any], num_samples: int) -> Section:
    """Inputs that are not of the runs' world: how well does each uncertainty tell them from the split's own? read: these inputs,
    as a run's data have theirs."""
    rows: list[list[str]] = []
    left: list[Block] = []
    best: tuple[float, str] = (0.0, "")
    for look in looks:
        if not look.classes and not look.unsure:
            left.append(Text(f"{look.name}: its likelihood has no variance, so nothing that tells."))
            continue
        x, in_one_pass = read(look.data), _in_one_pass(look)
        way = look.predictor.posterior
        outside = {**uncertainties(look.predictor, x, way, num_samples=num_samples), **in_one_pass(x)}
        own = {**look.unsure, **in_one_pass(evaluation.split_of(look.data, look.split).x)}
        for score, inside in own.items():
            if not inside.any() and not outside[score].any():
                continue  # one network has no draws that differ
            found = calibration.detection_summary(inside, outside[score])
            rows.append(
                [
                    f"{look.name}: {score.replace('_', ' ')}",
                    *(f"{found[key]:.3f} {interval(found[f'{key}_interval'], 3)}" for key in DETECTED),
                ]
            )
            best = max(best, (float(np.asarray(found["auroc"])), f"{score.replace('_', ' ')} of {look.name}"))
    says = f"{name} is told from the {looks[0].split} split best by the {best[1]}: AUROC {best[0]:.3f}. Intervals are of 95 %."
    told: list[Block] = [Text(says), Table(f"Detection of {name}", ["by", *DETECTED.values()], rows)] if rows else []
    return Section(f"Another world: {name}", [*told, *left], f"world-{name}")


def _in_one_pass(look: Look) -> Callable[[Any], dict[str, NDArray[np.float64]]]:
    """The doubts of the run's single networks: of the ticket, and of the distilled one what its masked teachers would disagree
    by too. Of an ensemble, of a regression, and of networks without a last layer of their own, none."""
    (fit, *others), known = look.predictor.fits, list[OnePass]()
    if look.classes and not others and look.data.train.y.dim() == 1:
        fit.look_at(look.data)
        x = few(look.data.train.x)
        ways = [way for way in ("ticket", "distilled") if way in fit.ways and gives_logits(fit, x, way)]
        known = [OnePass(fit, look.data, way) for way in ways]

    def scores(x: Any) -> dict[str, NDArray[np.float64]]:
        found = {f"{name}, {own.way}": score for own in known for name, score in own.uncertainties(x).items()}
        if look.classes and look.way == "distilled":
            told = uncertainties(look.predictor, x, "distilled", names=["mutual_information"])
            found["mutual information, one pass"] = told["mutual_information"]
        if look.classes and "moments" in look.predictor.ways:
            told = uncertainties(look.predictor, x, "moments", names=["mutual_information", "predictive_entropy"])
            found |= {f"{score.replace('_', ' ')}, moments": values for score, values in told.items()}
        return found

    return scores


def check_shift(data: Data, split: str, names: Sequence[str]) -> None:
    """Raises ValueError, before any work, where a run's inputs cannot be corrupted so."""
    if names and data.num_classes is None:
        raise ValueError("expected runs on labelled images for corruptions, got a regression")
    part = evaluation.split_of(data, split)
    few = Split(part.x[torch.arange(min(2, len(part.y)))], part.y[:2])
    for kind in names if list(names) != ["all"] else ["contrast"]:
        shifted(_with(data, split, few), kind, 1, split)


def _with(data: Data, split: str, part: Split) -> Data:
    """The data with another split in place of the one that is looked at."""
    changed: dict[str, Any] = {split: part}
    return data._replace(**changed)


def shift(looks: Sequence[Look], names: Sequence[str], num_samples: int) -> Section:
    """Corrupted images of the split, in five severities: scores of every way to predict, the mean over the corruptions."""
    kinds = list(names) if list(names) != ["all"] else list(corruptions(looks[0].data.shape[0]))
    found: dict[str, dict[str, list[list[float]]]] = {
        f"{look.name}: {way}": {name: [[] for _ in (0, *SEVERITIES)] for name in SCORES} for look in looks for way in look.scores
    }
    for alike in _by_inputs(looks):
        for severity, kind in product(SEVERITIES, kinds):
            part = shifted(alike[0].data, kind, severity, alike[0].split)
            for look in alike:
                changed = _with(look.data, look.split, part)
                predicted = evaluation.predictions(look.predictor, changed, look.split, num_samples=num_samples)
                for way, probs in predicted.items():
                    for name, score in SCORES.items():
                        found[f"{look.name}: {way}"][name][severity].append(score(probs, look.labels))
    for look in looks:
        for arm, own in look.scores.items():
            for name, by_severity in found[f"{look.name}: {arm}"].items():
                by_severity[0].append(own[name])
    blocks: list[Block] = [Text(f"Mean over {', '.join(kinds)}; severity 0 is the split as it is.")]
    for name, label in (("accuracy", "accuracy"), ("nll", "NLL"), ("ece_15", "ECE (15 bins)")):
        curves = tuple(
            Curve(arm, [0, *SEVERITIES], [float(np.mean(values)) for values in scores[name]])
            for arm, scores in found.items()
        )
        worst = {curve.label: float(np.asarray(curve.y)[-1]) for curve in curves}
        best = (max if name == "accuracy" else min)(worst, key=lambda arm: worst[arm])
        says = f"{label} against severity; at severity 5 the best is {best} with {worst[best]:.3f}."
        blocks.append(figure(Picture(f"{label} under corruption", "severity", label, curves), says))
    return Section("Corrupted images", blocks, "corruptions")


def _by_inputs(looks: Sequence[Look]) -> list[list[Look]]:
    """The looks whose networks take the same inputs: a page has equal rows, which may be standardised otherwise."""
    found: dict[str, list[Look]] = {}
    for look in looks:
        found.setdefault(inputs_of(look.data), []).append(look)
    return list(found.values())


def criticism(looks: Sequence[Look], replicates: int = REPLICATES) -> Section:
    """Would these runs have made outcomes like these? Posterior predictive checks on the split."""
    blocks: list[Block] = [
        Text(
            "Data sets drawn from the posterior predictive, one network each (of a chain its draws in turn), beside the data "
            "that came: a p-value near 0 says that the run would hardly have made them. "
            f"{'The rows they were trained on' if looks and looks[0].split == 'train' else 'Held-out rows'}; many are tested, so "
            "one in twenty below 0.05 is to be expected."
        )
    ]
    for look in looks:
        part = evaluation.split_of(look.data, look.split)
        y = part.y if look.classes else look.data.in_units(part.y)
        if not look.classes and not look.unsure:
            blocks.append(Text(f"{look.name}: its likelihood has no variance, which the statistics here need: not checked."))
            continue
        checks = posterior_check(look.fit, part.x, y, how=look.fit.posterior, replicates=replicates)
        rows = []
        for one in checks:
            low, high = np.nanquantile(one.replicated, [0.025, 0.975])
            rows.append(
                [
                    one.name,
                    f"{one.observed:.4g}",
                    f"{np.nanmean(one.replicated):.4g} {interval((low, high))}",
                    f"{one.p_value:.3f} ± {one.error:.3f}",
                ]
            )
        blocks.append(Table(f"Checks of {look.name}", ["statistic", "observed", "replicated (95 %)", "p"], rows))
        worst = min(range(len(checks)), key=lambda place: checks[place].p_value)
        picture = check_pictures([checks[worst]])[0]
        says = f"{look.name}: the statistic it fits worst is {checks[worst].name}, p {checks[worst].p_value:.3f}."
        blocks.append(
            _drawn(
                plots.png(plots.replicated([picture])),
                f"Worst statistic of {look.name}",
                says,
                checks[worst].replicated,
            )
        )
    return Section("Model criticism", blocks, "criticism")


def _drawn(png: bytes, title: str, says: str, replicated: object) -> Block:
    return Figure(png, title, says, (["replicated"], [[value] for value in np.asarray(replicated).tolist()]))
