"""From a fit to a certificate: prune, test, say what it comes to. `runs.py` does it for run folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import runs
from espalier.certificates import certificate, pruning, risks, selection
from espalier.certificates.certificate import Decision, Promise
from espalier.certificates.pruning import By, Frozen, Structure
from espalier.certificates.unseen import check_unseen
from espalier.contracts import Data, Split
from espalier.prediction.fit import Fit, How


class Settings(NamedTuple):
    """What is asked of a certificate: all that it depends on besides the run and the data.

    risks, alphas: promises, in one order; tests: "" for the risk's own p-value. predict, num_samples: the predictor. by,
    structure, biases: the family (`pruning.family`). step: between pruning fractions. procedure: of `selection.rejected`.
    anchor: alpha and delta of a certificate of the unpruned error, for a risk without labels. abstain: confidences below
    which no answer is given, a second axis beside the pruning. weights: an .npy file of
    dQ/dP for each calibration example, at most weight_bound. seed: of redraws and of the order of the examples.
    """

    risks: tuple[str, ...] = ("error",)
    alphas: tuple[float, ...] = (0.05,)
    tests: tuple[str, ...] = ("",)
    delta: float = 0.05
    split: str = "calibration"
    predict: How = "ticket"
    num_samples: int = 16
    by: By = "magnitude"
    structure: Structure = "weights"
    biases: bool = False
    step: float = 0.01
    procedure: str = "fixed-sequence"
    anchor: tuple[float, float] | None = None
    abstain: tuple[float, ...] = ()
    weights: str | None = None
    weight_bound: float = 1.0
    seed: int = 0

    def grid(self) -> list[float]:
        """0, step, 2 step, ... below 1."""
        if not 1e-4 <= self.step < 1:
            raise ValueError(f"expected a step in [0.0001, 1), got {self.step:g}: it is between two pruning fractions")
        return [round(i * self.step, 10) for i in range(int(np.ceil(1 / self.step - 1e-9)))]

    def promises(self) -> list[Promise]:
        """Raises ValueError for a risk that is not there, or lists that do not fit each other."""
        lists = self.risks, self.alphas, self.tests, self.abstain
        if isinstance(self.risks, str) or not all(isinstance(own, Sized) for own in lists):
            got = f"{self.risks!r}, {self.alphas!r} and {self.abstain!r}"
            raise ValueError(f"expected risks, alphas and abstain in tuples, ('error',), (0.1,) and (0.5,) say, got {got}")
        tests = self.tests if len(self.tests) != 1 or self.tests[0] else self.tests * len(self.risks)  # each its own
        if not len(self.risks) == len(self.alphas) == len(tests):
            got = f"{len(self.risks)} risks, {len(self.alphas)} alphas and {len(tests)} tests"
            raise ValueError(f"expected an alpha for every risk, and a test for each or none, got {got}")
        if self.procedure not in selection.PROCEDURES:
            raise ValueError(f"expected a procedure of {', '.join(selection.PROCEDURES)}, got {self.procedure!r}")
        if not 0 <= self.seed < 2**63 or not 1 <= self.num_samples <= 10_000:
            raise ValueError(
                f"expected a seed of 0 or more and num_samples of 1 to 10,000, got {self.seed}, {self.num_samples}"
            )
        if self.anchor is not None:
            if self.risks != ("disagreement",) or self.weights:
                raise ValueError(f"expected risk disagreement alone with an anchor, got {', '.join(self.risks)}"
                                 f"{' with weights' if self.weights else ''}")  # fmt: skip
            if not all(0 < level < 1 for level in self.anchor):
                raise ValueError(
                    f"expected alpha and delta of the anchor in (0, 1), got {self.anchor[0]:g}, {self.anchor[1]:g}"
                )
        if self.abstain and self.procedure != "fixed-sequence":
            raise ValueError(f"expected no procedure with abstain, which is tested by its own, got {self.procedure!r}")
        if self.abstain and (self.risks != ("error",) or self.weights or any(self.tests)):
            raise ValueError(f"expected risk error alone, by its own test, with abstain, got {', '.join(self.risks)}")
        if not all(0 < threshold < 1 for threshold in self.abstain):
            raise ValueError(
                f"expected abstain in (0, 1), got {', '.join(map(str, self.abstain))}: they are confidences"
            )
        for threshold in self.abstain:
            selective(threshold)
        if not 0 < self.delta < 1:
            raise ValueError(f"expected delta in (0, 1), got {self.delta:g}")
        found = [
            Promise(risks.named(n), a, t or None) for n, a, t in zip(self.risks, self.alphas, tests, strict=True)
        ]
        if self.weights:
            weights = self.read_weights()
            found = [p._replace(risk=risks.shifted(p.risk, weights, self.weight_bound)) for p in found]
        for promise in found:
            promise.risk.check(promise.test or promise.risk.test)
            if not 0 < promise.alpha < promise.risk.upper:
                raise ValueError(
                    f"expected alpha in (0, {promise.risk.upper:g}) for {promise.risk.name}, got {promise.alpha:g}"
                )
        return found

    def read_weights(self, n: int | None = None) -> NDArray[np.float64]:
        """dQ/dP `(n,)`. Raises ValueError for what cannot be one: its mean under P is 1, and it exceeds its bound nowhere."""
        found = np.load(Path(self.weights or ""), allow_pickle=False)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
            got = getattr(found, "dtype", "an archive of several arrays")
            raise ValueError(f"expected an .npy file of numbers as weights, got {got}: write it with np.save(file, weights)")
        w = found.astype(np.float64)
        if w.ndim != 1 or not len(w) or (n is not None and len(w) != n) or not np.isfinite(w).all():
            raise ValueError(
                f"expected a finite weight for each of {n or 'the'} calibration examples, got shape {w.shape}"
            )
        if not 1 <= self.weight_bound < np.inf:
            raise ValueError(f"expected a finite weight_bound of 1 or more, got {self.weight_bound:g}: dQ/dP has mean 1")
        spread = 5 * np.sqrt(max(self.weight_bound - 1, 1e-12) / len(w))  # its variance is at most bound - 1
        if abs(w.mean() - 1) > spread:
            raise ValueError(
                f"expected weights of mean 1, as dQ/dP has, got {w.mean():.4g} over {len(w)}: normalise them"
            )
        return w


def selective(threshold: float) -> risks.Risk:
    """Of answers at this confidence, all its digits, or more."""
    return risks.named(f"selective:{float(threshold)!r}")


class Certified(NamedTuple):
    """A certificate and what it certifies. facts: as in certificate.json. chosen: None where nothing is certified."""

    facts: dict[str, Any]
    chosen: Frozen | None


def certify_fit(fit: Fit, calibration: Split, settings: Settings, data: Data | None = None) -> Certified:
    """Prune a fit as far as the calibration examples can certify. Nothing is written, and no ledger of looks is kept: that
    training has not seen these examples, and that they are asked one question, is up to you.

    data: the fit's own; the examples are then compared with its training inputs, and it gives the inputs for batch-norm
    statistics of pruned nets where the fit has none yet.
    """
    return certify_fits([fit], calibration, settings, data)


def certify_fits(fits: Sequence[Fit], calibration: Split, settings: Settings, data: Data | None = None) -> Certified:
    """Choose among fits of growing sparsity that were trained separately, by the same test: the grid is their sparsity."""
    if not fits:
        raise ValueError("expected a fit to certify, or several, got none")
    calibration = _labelled(calibration, settings)
    if data is not None:
        check_unseen(data, calibration)
    return decided(candidates_of(fits, settings, data), calibration, settings)


def _labelled(calibration: Split, settings: Settings) -> Split:
    """With a label for each input, of risks that look at none made up. Raises ValueError where some are missing."""
    rows, labels = len(calibration.x), len(calibration.y)
    if not rows:
        raise ValueError("expected calibration examples to certify by, got none: keep a split of them")
    unasked = not labels and settings.anchor is None and not any(own.risk.needs_labels for own in settings.promises())
    if labels != rows and not unasked:
        raise ValueError(f"expected a label for each of {rows} calibration inputs, got {labels}: disagreement needs none at all")
    return calibration._replace(y=torch.zeros(rows, dtype=torch.int64)) if unasked else calibration


Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


class Candidates(NamedTuple):
    """The grid, and how the predictor at each of its points is made. apart: were they trained apart, or pruned?"""

    points: list[tuple[float, Callable[[], Frozen]]]
    apart: bool


def candidates_of(fits: Sequence[Fit], settings: Settings, data: Data | None) -> Candidates:
    """The grid, and the predictor at each of its points, made when it is asked for. Raises ValueError for what makes no
    sense, before any loss is looked at."""
    settings.promises()
    for fit in fits if data is not None else ():
        fit.look_at(cast(Data, data))
    draws = {"num_samples": settings.num_samples, "seed": settings.seed}
    frozen = [Frozen.of(fits[place], settings.predict, **draws) for place in densest_first(fits)]
    if len(fits) > 1:
        return Candidates([(round(1 - one.topology.density, 10), partial(_itself, one)) for one in frozen], True)
    members = pruning.family(fits[0], frozen[0], settings.by, settings.structure, biases=settings.biases, data=data)
    return Candidates([(level, partial(members.at, level)) for level in settings.grid()], False)


def densest_first(fits: Sequence[Fit]) -> list[int]:
    """The order in which fits that were trained apart are tested, as places in `fits`."""
    return sorted(range(len(fits)), key=lambda place: -fits[place].topology.density)


def _itself(frozen: Frozen) -> Frozen:
    return frozen


def decided(found: Candidates, calibration: Split, settings: Settings) -> Certified:
    labels = calibration.y.numpy()
    if settings.weights:
        settings.read_weights(len(labels))
    base = found.points[0][1]()
    reference = base.predict(calibration.x)
    order = np.random.default_rng(settings.seed).permutation(len(labels))

    def predicted(place: int) -> tuple[Frozen, Floats]:
        member = found.points[place][1]() if place else base
        return member, member.predict(calibration.x) if place else reference

    if settings.abstain:
        evidence = _plane(found, predicted, labels, order, settings)
    else:
        evidence = _line(found, predicted, labels, order, settings)
    decision, stopped = evidence.decision, evidence.decision.stopped
    level = selection.strictest(settings.delta, len(found.points), settings.procedure)
    chosen = None if decision.chosen is None else found.points[evidence.members[decision.chosen]][1]()
    facts = _facts(evidence, [found.points[place][0] for place in evidence.members], settings, len(labels))
    if found.apart and settings.abstain and decision.chosen is not None:
        facts["member"] = evidence.members[decision.chosen]
    if found.apart:
        facts["pruning"] = {"by": "training each for itself", "structure": "a ready family", "biases": False}
    facts["predictor"] = {"how": settings.predict, "draws": len(base.values), "seed": settings.seed}
    facts["unpruned"] = pruning.facts(base)
    facts["chosen"] = pruning.facts(chosen) if chosen is not None else None
    facts["help"] = [
        {
            "lambda": facts["grid"][stopped], "risk": promise.risk.name, "alpha": promise.alpha,
            "observed": promise.risk.value(own), "examples": _whole(certificate.more_examples(promise, own, level), own, labels),
            "larger_alpha": certificate.larger_alpha(promise, own, level),
        }
        for promise, own in evidence.failed
        if promise.p_value(own, level) > level
    ]  # fmt: skip
    if settings.anchor is not None:
        facts["anchor"] = _anchor(reference, labels, settings)
    facts["assumptions"] = certificate.assumptions(facts)
    return Certified(facts, chosen)


class Evidence(NamedTuple):
    """A decision over candidates. members: of each, the place of its predictor in the family. failed: promises and
    losses of the candidate that stopped the sequence. extra: what else the certificate tells."""

    decision: Decision
    promises: Sequence[Promise]
    members: Sequence[int]
    failed: Sequence[tuple[Promise, Floats]]
    extra: dict[str, Any]


def _line(
    found: Candidates,
    predicted: Callable[[int], tuple[Frozen, Floats]],
    labels: Labels,
    order: Labels,
    settings: Settings,
) -> Evidence:
    """The pruning fractions, one after the other, no further than the first that fails."""
    promises, (_, reference) = settings.promises(), predicted(0)
    kept: dict[int, list[Floats]] = {}

    def losses(place: int) -> list[Floats]:
        _, probs = predicted(place)
        kept[place] = [promise.risk.losses(probs, labels, reference)[order] for promise in promises]
        return kept[place]

    decision = certificate.certify(losses, len(found.points), promises, settings.delta, settings.procedure)
    failed = [] if decision.stopped is None else list(zip(promises, kept[decision.stopped], strict=True))
    return Evidence(decision, promises, range(len(found.points)), failed, {})


def _plane(
    found: Candidates,
    predicted: Callable[[int], tuple[Frozen, Floats]],
    labels: Labels,
    order: Labels,
    settings: Settings,
) -> Evidence:
    """Pruning fractions x confidences below which no answer is given: error among the answered, by Pareto testing.

    The cost is active weights per answered example. Half of the examples finds the front and its order, half tests it.
    """
    pairs = [(place, threshold) for place in range(len(found.points)) for threshold in settings.abstain]
    promises = {t: Promise(selective(t), settings.alphas[0]) for t in settings.abstain}
    rows: list[Floats] = []
    weights = []
    for place in range(len(found.points)):
        member, probs = predicted(place)
        rows += [promises[t].risk.losses(probs, labels, probs)[order] for t in settings.abstain]
        weights += [member.topology.num_active] * len(settings.abstain)
    losses = np.stack(rows)
    any_of = promises[settings.abstain[0]]  # the losses know their threshold; p-value and value are the same for all
    first, second = selection.halves(len(labels), settings.seed)
    answered = losses[:, first, 0].mean(1)
    cost = np.array(weights) / np.maximum(answered, 1 / len(first))
    chosen, tried, p = certificate.pareto([losses], cost, [any_of], settings.delta, seed=settings.seed)
    p_values = np.full(len(pairs), np.nan)
    p_values[tried] = p
    seen = [place for place in tried if not np.isnan(p_values[place])]
    rejected = sorted(place for place in seen if p_values[place] <= settings.delta)
    stopped = next((place for place in seen if place not in rejected), None)
    observed = [[any_of.risk.value(losses[i][second])] if i in seen else None for i in range(len(pairs))]
    decision = Decision(p_values.tolist(), observed, rejected, chosen, stopped)
    extra = {"thresholds": [threshold for _, threshold in pairs], "order": tried}
    if chosen is not None:
        extra |= {"threshold": pairs[chosen][1], "answered": float(losses[chosen, :, 0].mean())}
    failed = [] if stopped is None else [(promises[pairs[stopped][1]], losses[stopped][second])]
    said = any_of._replace(risk=any_of.risk._replace(name="error", says="error among the examples answered"))
    said = said if chosen is None else promises[pairs[chosen][1]]
    return Evidence(decision, [said], [place for place, _ in pairs], failed, extra)


def _whole(examples: int | None, own: Floats, labels: Labels) -> int | None:
    """Examples in all, where only a part of them was tested."""
    return None if examples is None else round(examples * len(labels) / len(own))


def _facts(evidence: Evidence, grid: list[float], settings: Settings, n: int) -> dict[str, Any]:
    decision, promises = evidence.decision, evidence.promises
    p_values = [None if np.isnan(p) else p for p in decision.p_values]
    return {
        "alpha": settings.alphas[0],
        "delta": settings.delta,
        "risks": [
            {"name": p.risk.name, "says": p.risk.says, "alpha": p.alpha, "test": p.test or p.risk.test,
             "labels": p.risk.needs_labels}
            for p in promises
        ],
        "n": n,
        "split": settings.split,
        "procedure": "pareto" if settings.abstain else settings.procedure,
        "pruning": {"by": settings.by, "structure": settings.structure, "biases": settings.biases},
        "seed": settings.seed,
        "grid": grid,
        "p_values": p_values,
        "observed": decision.observed,
        "rejected": decision.rejected,
        "lambda": None if decision.chosen is None else grid[decision.chosen],
        "settings": runs.plain(settings._asdict()),
        "looks": [],
        "circumstances": {},
        "hashes": {},
        **evidence.extra,
    }  # fmt: skip


def _anchor(reference: NDArray[np.float64], labels: NDArray[np.int64], settings: Settings) -> dict[str, Any]:
    """R(pruned) <= R(unpruned) + P(they differ): the first, certified on labels, makes the second a promise about labels."""
    alpha, delta = settings.anchor or (0.0, 0.0)
    error = risks.named("error")
    losses = error.losses(reference, labels, reference)
    p = error.p_value(losses, alpha, delta)
    return {"alpha": alpha, "delta": delta, "observed": error.value(losses), "p_value": p, "certified": p <= delta}


def check_num_data(fits: Sequence[Fit], data: Data) -> None:
    """Raises ValueError where a record says that a fit was trained on more or fewer rows than the training split has."""
    for fit in fits:
        said = fit.record.get("num_data")
        if said is not None and said != len(data.train.y):
            raise ValueError(
                f"expected a fit of the {len(data.train.y)} training rows, but its record says {said}: its inference may have "
                "trained on the calibration split"
            )
