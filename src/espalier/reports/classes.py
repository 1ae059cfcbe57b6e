"""What a classifier knows and what it does not: the sections of a report on runs with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier import calibration
from espalier.calibration.selective import COVERAGE, RISK
from espalier.contracts import Data
from espalier.data.worlds import Levels, levels_of
from espalier.pages import Block, Example, Figure, Gallery, Section, Table, Text
from espalier.pictures import plots
from espalier.pictures.data import Curve, Picture
from espalier.reports import promises
from espalier.reports.figures import figure, grid, image_of, reliability_rows
from espalier.reports.look import Look, runs_of
from espalier.reports.tables import interval

SHOWN = 8
"""Examples of a gallery."""
MOST_CLASSES = 30
"""That a confusion matrix shows one by one."""
POINTS = 100
"""Of a risk-coverage curve."""


def sections(looks: Sequence[Look]) -> list[Section]:
    """All of them, in their order."""
    return [
        reliability(looks),
        selective(looks),
        certainty(looks),
        *(per_class(look) for look in looks),
        examples(looks[0]),
    ]


def reliability(looks: Sequence[Look]) -> Section:
    blocks: list[Block] = []
    for look in looks:
        scores, probs = look.scores[look.way], look.probs
        confidence, hit = np.clip(probs.max(1), 0, 1), probs.argmax(1) == look.labels
        gap = float(confidence.mean() - hit.mean())
        smooth = calibration.smooth_ece_interval(probs, look.labels)
        test = calibration.spiegelhalter(probs, look.labels)
        said = (
            f"{look.name}, {look.way}: mean confidence {confidence.mean():.3f}, accuracy {hit.mean():.3f}: "
            f"{'over' if gap > 0 else 'under'}-confident by {abs(gap):.3f}. ECE (15 bins) {scores['ece_15']:.4f} "
            f"{interval(scores['ece_15_interval'])}, of which {scores['ece_15_floor']:.4f} is what a calibrated net would show; "
            f"smooth ECE {smooth[0]:.4f} {interval(smooth[1])}; Spiegelhalter's z {test.statistic:.2f}, p {test.p_value:.3g}."
        )
        data = (["low", "high", "examples", "accuracy", "confidence"], reliability_rows(probs, look.labels))
        drawn = plots.png(plots.reliability({f"{look.name}: {look.way}": (probs, look.labels)}))
        blocks += [Text(said), Figure(drawn, f"Reliability of {look.name}", said, data)]
    return Section("Reliability", blocks, "reliability")


def selective(looks: Sequence[Look]) -> Section:
    """Risk against coverage, where a network may decline to answer."""
    curves, rows = [], []
    for look in looks:
        wrong = (look.probs.argmax(1) != look.labels).astype(float)
        by = {"confidence": 1 - look.probs.max(1)}
        if look.unsure["mutual_information"].any():  # there are masks to differ
            by["mutual information"] = look.unsure["mutual_information"]
        for name, unsure in by.items():
            steps = calibration.risk_coverage(unsure, wrong)
            at = np.unique(np.linspace(0, len(wrong) - 1, POINTS).astype(int))
            curves.append(Curve(f"{look.name}: {name}", steps.coverage[at], steps.risk[at]))
            found = calibration.selective_summary(unsure, wrong)
            rows.append(
                [
                    f"{look.name}: {name}",
                    *(_with(found, key) for key in ("aurc", "augrc", "risk_at_coverage", "coverage_at_risk")),
                ]
            )
    certified = promises.promised(runs_of(looks))
    for own in certified:
        if own.answered:
            label = f"{own.look.name}, certified: at most {own.alpha:g}"
            curves.append(Curve(label, [own.answered / len(own.look.labels)], [own.alpha], style="dots"))
    picture = Picture("Risk against coverage", "share of examples answered", "errors among them", tuple(curves))
    best = min(rows, key=lambda row: float(row[1].split()[0]))
    says = f"Errors among the examples that are answered; the smallest area under the curve, {best[1]}, is that of {best[0]}."
    header = ["by", "AURC", "AUGRC", f"risk at {COVERAGE:.0%} coverage", f"coverage at {RISK:.0%} risk"]
    told = Text(
        "The most uncertain examples are left unanswered first. Read off these examples, the curves are no guarantee: that is "
        + (
            "the certificate, for the network that it pruned, here as a point."
            if certified
            else "what `espalier certify --risk selective:T` gives."
        )
    )
    blocks: list[Block] = [told, figure(picture, says), Table("Selective prediction", header, rows)]
    return Section("Selective prediction", blocks + ([promises.table(certified)] if certified else []), "selective")


def _with(found: Any, name: str) -> str:
    return f"{found[name]:.4f} {interval(found[f'{name}_interval'])}"


def certainty(looks: Sequence[Look]) -> Section:
    """How confident in answers that are right, and that are wrong."""
    edges, curves, said = np.linspace(0, 1, 21), [], []
    for look in looks:
        confidence, hit = look.probs.max(1), look.probs.argmax(1) == look.labels
        for name, chosen in (("right", hit), ("wrong", ~hit)):
            if chosen.any():
                share = np.histogram(confidence[chosen], edges)[0] / chosen.sum()
                curves.append(
                    Curve(
                        f"{look.name}: {name}",
                        (edges[:-1] + edges[1:]) / 2,
                        share,
                        style="line" if name == "right" else "dashed",
                    )
                )
        if not hit.any():
            said.append(f"No answer of {look.name} is right.")
        elif (~hit).any():
            said.append(
                f"{look.name} is {confidence[hit].mean():.2f} confident where right, {confidence[~hit].mean():.2f} where wrong; "
                f"{np.mean(confidence[~hit] > 0.9):.0%} of its errors are made with more than 0.9."
            )
    picture = Picture("Confidence where right and where wrong", "confidence", "share of the answers", tuple(curves))
    says = " ".join(said) or "Every answer is right."
    return Section("Confidence of right and wrong answers", [Text(says), figure(picture, says)], "confidence")


def per_class(look: Look) -> Section:
    """Accuracy, precision and calibration of each class, and what is taken for what."""
    labels, probs, names = look.labels, look.probs, look.named
    answers, count = probs.argmax(1), probs.shape[-1]
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (labels, answers), 1)
    rows = []
    for place, name in enumerate(names):
        own, said = int(confusion[place].sum()), int(confusion[:, place].sum())
        right = int(confusion[place, place])
        believed = float(probs[:, place].mean() - (labels == place).mean())
        rows.append([name, f"{own:,}", _share(right, own), _share(right, said), f"{believed:+.4f}"])
    header = ["class", "examples", "recall (95 %)", "precision (95 %)", "mean probability - frequency"]
    blocks: list[Block] = [Table(f"Classes, {look.name}", header, rows)]
    mistakes = confusion - np.diag(np.diag(confusion))
    says = "No class is taken for another."
    if mistakes.any():
        true, taken = np.unravel_index(mistakes.argmax(), mistakes.shape)
        says = (
            f"Most often {names[true]} is taken for {names[taken]}: {mistakes.max()} of {confusion[true].sum()} times."
        )
    if count <= MOST_CLASSES:
        shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
        blocks.append(
            grid(shares, says, f"Confusion of {look.name}", "answer", "true class", names, "share of the class")
        )
    else:
        blocks.append(Text(says))
    return Section(f"Classes: {look.name}", blocks, f"classes-{look.name}")


def _share(hits: int, of: int) -> str:
    """With a Clopper-Pearson interval (1934)."""
    if not of:
        return "none"
    return f"{hits / of:.3f} {interval(calibration.clopper_pearson(hits, of), 3)}"


def examples(look: Look) -> Section:
    """The most and the least certain, and those that were most confidently wrong, with what the draws say of them."""
    probs, labels, unsure = look.probs, look.labels, look.unsure["predictive_entropy"]
    levels = _levels(look.data)
    wrong = np.flatnonzero(probs.argmax(1) != labels)
    groups = {
        "Most confidently wrong": wrong[np.argsort(-probs[wrong].max(1), kind="stable")][:SHOWN],
        "Least certain": _most(unsure),
        "Draws differ most": _most(look.unsure["mutual_information"]),
        "Most certain": np.argsort(unsure, kind="stable")[:SHOWN],
    }
    told = Text(
        f"Probabilities are the mean over the draws of {look.name} (`{look.predictor.posterior}`), with the standard deviation "
        "between them; MI is the mutual information of label and draw, in nats: what they disagree in."
    )
    return Section(
        "Examples",
        [told, *(Gallery(title, _shown(look, rows, levels)) for title, rows in groups.items() if len(rows))],
        "examples",
    )


def _most(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The rows of the largest scores above 0."""
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    return order[scores[order] > 0]


def _shown(look: Look, rows: NDArray[np.int64], levels: Levels | None) -> list[Example]:
    inputs, names = look.x(rows), look.named
    draws = look.predictor.predict(inputs, look.predictor.posterior, num_samples=look.num_samples).numpy()
    shown = []
    for place, row in enumerate(rows):
        mean, spread = draws[:, place].mean(0), draws[:, place].std(0)
        top = np.argsort(-mean, kind="stable")[:3]
        answer, label = names[int(look.probs[row].argmax())], names[int(look.labels[row])]
        lines = [
            f"{label}, answered {answer}" if answer != label else f"{label}, right",
            f"row {row}, MI {look.unsure['mutual_information'][row]:.3f}",
        ]
        lines += [f"{names[c]}: {mean[c]:.3f} ± {spread[c]:.3f}" for c in top]
        shown.append(
            Example(
                _image(look, inputs, place, levels), f"Row {row}: {label}, answered {answer}",
                lines + _features(look, inputs, place),
            )
        )
    return shown


def _image(look: Look, inputs: Any, place: int, levels: Levels | None) -> bytes | None:
    if not hasattr(inputs, "dim") or inputs.dim() != 4 or inputs.shape[1] not in (1, 3):
        return None
    return image_of(inputs[place].cpu().numpy(), levels, look.data.input_scale)


def _levels(data: Data) -> Levels | None:
    try:
        return levels_of(data)
    except ValueError:  # no images, or such as do not tell which level is white
        return None


def _features(look: Look, inputs: Any, place: int) -> list[str]:
    """The first features of a row that is no image, in the data's units."""
    if not hasattr(inputs, "dim") or inputs.dim() != 2:
        return []
    by, row = look.data.input_scale, inputs[place].double().cpu()
    if by is not None:
        row = row * by[1].double().view(-1) + by[0].double().view(-1)
    return ["x: " + ", ".join(f"{value:.4g}" for value in row[:6].tolist()) + (" …" if len(row) > 6 else "")]
