"""The certificate: how far a predictor may be pruned, at what risk, with what confidence, and the evidence; no torch.

`certify` tests candidates in a fixed order, from the least pruned on. With probability at least 1 - delta over the draw of
the calibration set, every candidate it rejects H for has all its risks at or below their alpha (Angelopoulos et al. 2021,
Learn then Test; Alvarez 2024 for pruning). It may certify nothing, and then says what would help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.certificates import pvalues, selection
from espalier.certificates.risks import Risk

Floats = NDArray[np.float64]
MOST = 128
"""Times the calibration set, at most, that `more_examples` looks ahead."""


class Promise(NamedTuple):
    """A risk and the level it shall not exceed. test: another p-value than the risk's own."""

    risk: Risk
    alpha: float
    test: str | None = None

    def p_value(self, losses: ArrayLike, delta: float) -> float:
        return self.risk.p_value(losses, self.alpha, delta, self.test)


class Decision(NamedTuple):
    """What the tests came to. p_values and observed: per candidate, NaN and None where the sequence had stopped before.

    observed: the risks in the order of the promises. rejected: places of candidates that are certified. chosen: the last of
    them, None where nothing is certified. stopped: the first place that was tested and not certified.
    """

    p_values: list[float]
    observed: list[list[float] | None]
    rejected: list[int]
    chosen: int | None
    stopped: int | None


def certify(
    losses: Callable[[int], Sequence[ArrayLike]],
    size: int,
    promises: Sequence[Promise],
    delta: float,
    procedure: str = "fixed-sequence",
) -> Decision:
    """Test `size` candidates, the least pruned first. losses(i): those of candidate i, one array per promise, in one order of
    the examples that was fixed before. Lazy: a fixed sequence looks no further than its first failure.

    Several promises hold at once by the largest of their p-values, without a correction. Raises ValueError for an empty
    grid, a level out of range or a procedure that is not there.
    """
    if not promises or size < 1:
        raise ValueError(f"expected at least one promise and one candidate, got {len(promises)} and {size}")
    if not 0 < delta < 1:
        raise ValueError(f"expected delta in (0, 1), got {delta:g}")
    observed: list[list[float] | None] = [None] * size

    def p_value(place: int) -> float:
        own = losses(place)
        observed[place] = [promise.risk.value(x) for promise, x in zip(promises, own, strict=True)]
        return float(selection.largest([p.p_value(x, delta) for p, x in zip(promises, own, strict=True)]))

    if procedure == "fixed-sequence":
        p = selection.climb(p_value, size, delta)
    else:
        p = np.array([p_value(place) for place in range(size)])
    rejected = selection.rejected(p, delta, procedure)
    failed = [place for place in range(size) if place not in set(rejected) and not np.isnan(p[place])]
    return Decision(p.tolist(), observed, rejected, max(rejected, default=None), min(failed, default=None))


def more_examples(promise: Promise, losses: ArrayLike, delta: float) -> int | None:
    """Examples that would certify a candidate if its losses went on like these, to whole calibration sets; None if no number
    up to `MOST` times as many would: its observed risk is too near alpha, or above."""
    x = np.asarray(losses, dtype=np.float64)

    def enough(times: int) -> bool:
        return promise.p_value(np.concatenate([x] * times), delta) <= delta

    if promise.risk.value(x) >= promise.alpha or not enough(MOST):
        return None
    low, high = 0, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * len(x)


def larger_alpha(promise: Promise, losses: ArrayLike, delta: float) -> float | None:
    """The smallest alpha, to a thousandth, at which these losses would have certified a candidate: to be promised on a fresh
    calibration set, for this one has been looked at. None if none would."""
    levels = np.arange(1, 1000) / 1000 * promise.risk.upper
    for level in levels[levels > promise.alpha]:
        if promise._replace(alpha=float(level)).p_value(losses, delta) <= delta:
            return float(round(level, 6))
    return None


class Anytime:
    """Certify while labels come in, independent draws in the order of their coming: look after every batch, stop when it is
    enough, or hopeless.

    Candidates stand in their fixed order. One is certified as soon as its e-process against H: risk > alpha reaches
    1 / delta, and the next has its turn with all losses so far; looking costs nothing (Ville's inequality, and the fixed
    sequence's argument). It is hopeless once the opposite bet, against H: risk <= alpha, reaches 1 / delta as well.
    """

    def __init__(self, size: int, alpha: float, delta: float) -> None:
        if size < 1 or not (0 < alpha < 1 and 0 < delta < 1):
            raise ValueError(f"expected one candidate or more, alpha and delta in (0, 1), got {size}, {alpha} and {delta}")
        self.size, self.alpha, self.delta = size, alpha, delta
        self.losses: Floats = np.zeros((size, 0))
        self.certified = 0
        self.labels: list[int] = []

    def update(self, losses: ArrayLike) -> Literal["certified", "hopeless", "more"]:
        """losses: of new examples, `(size, b)` in [0, 1]. `certified`: all candidates are; `labels[i]` says after how many."""
        new = np.asarray(losses, dtype=np.float64)
        if new.shape == (self.size, 0) and not self.losses.size:
            return "more"
        if new.ndim != 2 or len(new) != self.size or not ((new >= 0) & (new <= 1)).all():
            raise ValueError(f"expected losses ({self.size}, b) in [0, 1], got {new.shape}: one of each candidate per label")
        self.losses = np.concatenate([self.losses, new], axis=1)
        target = math.log(1 / self.delta)
        while self.certified < self.size:
            own = self.losses[self.certified]
            path = pvalues.wsr_path(own, self.alpha, self.delta)
            reached = np.flatnonzero(path >= target)
            if not len(reached):
                against = pvalues.wsr_path(1 - own, 1 - self.alpha, self.delta)
                return "hopeless" if against.max() >= target else "more"
            self.labels.append(max(int(reached[0]) + 1, self.labels[-1] if self.labels else 0))
            self.certified += 1
        return "certified"


def pareto(
    losses: Sequence[Floats],
    costs: ArrayLike,
    promises: Sequence[Promise],
    delta: float,
    *,
    seed: int = 0,
    share: float = 0.5,
) -> tuple[int | None, list[int], list[float]]:
    """Pareto testing over any grid: per-layer ratios, pruning x abstention (Laufer-Goldshtein et al. 2023).

    losses: one `(m, n)` or `(m, n, k)` per promise; costs `(m,)`, known, never tested. On a random share of the examples the
    front of (p-value, cost) is found and ordered from the safest; the rest of the examples tests it as a fixed sequence.
    Returns the cheapest certified candidate or None, the order, and its p-values (NaN after the stop).
    """
    if not len(promises) == len(losses) > 0:
        raise ValueError(f"expected losses of each promise, one or more, got {len(losses)} and {len(promises)} promises")
    if np.shape(costs) != (len(losses[0]),) or not np.isfinite(np.asarray(costs, np.float64)).all():
        raise ValueError(f"expected a finite cost for each of {len(losses[0])} candidates, got shape {np.shape(costs)}")
    if not 0 < delta < 1:
        raise ValueError(f"expected delta in (0, 1), got {delta:g}")
    first, second = selection.halves(losses[0].shape[1], seed, share)

    def p_value(place: int, rows: NDArray[np.int64]) -> float:
        return max(promise.p_value(own[place][rows], delta) for promise, own in zip(promises, losses, strict=True))

    guessed = [p_value(place, first) for place in range(len(losses[0]))]
    order = selection.pareto_order(guessed, costs)
    p = selection.climb(lambda step: p_value(order[step], second), len(order), delta)
    passed = [order[step] for step in selection.rejected(p, delta)]
    cost = np.asarray(costs, dtype=np.float64)
    return min(passed, key=lambda place: float(cost[place]), default=None), order, p.tolist()


def assumptions(facts: dict[str, Any]) -> list[str]:
    """What the promise rests on, in plain words."""
    said = [
        f"The {facts['n']} calibration examples and those of deployment are independent draws of one distribution. Frames of "
        "one video or images of one patient are not independent: then use one of each, or the mean loss of each.",
        "Nothing looked at them before: not training, the choice of the mask or of the network, batch-norm statistics, nor "
        "the choice of alpha, delta, loss, grid or order.",
        "The predictor is used as it is certified: the same draws, precision and preparation of inputs.",
    ]
    if any(entry["test"] in ("wsr", "anytime") for entry in facts["risks"]):
        said.append(
            f"The examples were put into one random order beforehand (seed {facts['seed']}): betting depends on it."
        )
    if facts["settings"]["weights"]:
        said.append(
            "The weights are dQ/dP itself, known before, of mean 1 and nowhere above their bound; an estimate is no such."
        )
    return said


def notes(facts: dict[str, Any]) -> list[str]:
    """What speaks against the assumptions, in words: `circumstances` as `certify` found them."""
    found, said = facts["circumstances"], []
    if found.get("repeated"):
        said.append(f"{found['repeated']} of {facts['n']} calibration inputs equal a training input.")
    if found.get("searched"):
        said.append(
            f"The drop rate was found on {found['searched']} rows of the validation split, none of which are certified on."
        )
    if found.get("evaluated"):
        said.append(
            f"`espalier evaluate` has scored the {facts['split']} split before: a choice made after that is not covered."
        )
    if found.get("siblings"):
        said.append(f"{_others(found['siblings'])} in the same folder had certificates on these examples: choosing among them "
                    "after the fact is not covered; certify them together, with --out.")  # fmt: skip
    return said


def shared(facts: dict[str, Any]) -> list[str]:
    """What several looks at one calibration split have cost them together, in words; nothing for the only one."""
    looks = facts["looks"]
    if len(looks) < 2:
        return []
    total = sum(look["spent"] for look in looks)
    return [
        f"**Look {len(looks)} at this calibration split.** All certificates from it hold together with probability at least "
        f"{max(0.0, 1 - total):g} = 1 - the sum of their deltas; picking one of them after the fact has that confidence, not its "
        "own."
    ]


def caveats(facts: dict[str, Any]) -> list[str]:
    """What is to be read beside the `sentence`, wherever it stands."""
    return [line.replace("**", "") for line in (*shared(facts), *notes(facts))]


def sentence(facts: dict[str, Any]) -> str:
    """What is certified, in one or two sentences."""
    promised = " and ".join(f"{entry['says']} is at most {entry['alpha']:g}" for entry in facts["risks"])
    if facts["lambda"] is None:
        return f"Nothing certified: that {promised} could not be shown with confidence {1 - facts['delta']:g}."
    chosen = facts["chosen"]
    said = (
        f"With confidence {1 - facts['delta']:g} over the draw of {facts['n']} calibration examples: {promised}, at "
        f"lambda {facts['lambda']:g}, {chosen['num_active']:,} of {chosen['num_weights']:,} weights active "
        f"({100 * chosen['density']:.3g} %), {chosen['bytes']:,} bytes."
    )
    if "threshold" in facts:
        confidence, share = float(facts["threshold"]), 100 * facts["answered"]
        said += f" It answers at confidence {confidence!r} or more: {share:.3g} % of these examples."
    if anchor := facts.get("anchor"):
        total, spent = anchor["alpha"] + facts["alpha"], anchor["delta"] + facts["delta"]
        said += (
            f" The unpruned error is at most {anchor['alpha']:g} (confidence {1 - anchor['delta']:g}): so the pruned one is at "
            f"most {total:g} with confidence {1 - spent:g}."
            if anchor["certified"]
            else f" The anchor failed: that the unpruned error is at most {anchor['alpha']:g} could not be shown "
            f"(p {anchor['p_value']:.4g}), so nothing follows for labels."
        )
    return said


def help_sentences(facts: dict[str, Any]) -> list[str]:
    """What would have certified the first candidate that failed."""
    said = []
    for entry in facts["help"]:
        where = (
            f"lambda {entry['lambda']:g}, {entry['risk']} (observed {entry['observed']:.4g}, alpha {entry['alpha']:g})"
        )
        more, level = entry["examples"], entry["larger_alpha"]
        said.append(
            f"{where}: "
            + (f"about {more:,} examples like these would do" if more else "more examples alone would not do")
            + (f"; alpha {level:g}, on a fresh calibration set, would." if level else ".")
        )
    return said


def page(facts: dict[str, Any]) -> str:
    """The certificate for people, in Markdown."""
    names = [entry["name"] for entry in facts["risks"]]
    rows = [
        [f"{level:g}", *([f"{value:.4g}" for value in seen] if seen else [""] * len(names)), "" if p is None else f"{p:.4g}",
         "certified" if place in facts["rejected"] else "not certified" if p is not None else "not looked at"]
        for place, (level, seen, p) in enumerate(zip(facts["grid"], facts["observed"], facts["p_values"], strict=True))
        if p is not None
    ]  # fmt: skip
    header = ["lambda", *names, "p", ""]
    if "thresholds" in facts:  # the order in which they were tried, and the second axis
        header.insert(1, "answers from confidence")
        shown = [place for place, p in enumerate(facts["p_values"]) if p is not None]
        pairs = dict(zip(shown, rows, strict=True))
        rows = [
            [pairs[place][0], repr(float(facts['thresholds'][place])), *pairs[place][1:]]
            for place in facts["order"]
            if place in pairs
        ]
    lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    parts = [
        "# Certificate", "", sentence(facts), "", *(f"- {line}" for line in help_sentences(facts)), "",
        f"Predictor: `{facts['predictor']['how']}` ({facts['predictor']['draws']} draws), pruned by {facts['pruning']['by']}, "
        f"{facts['pruning']['structure']}. Tests: {', '.join(entry['test'] for entry in facts['risks'])}; {facts['procedure']}, "
        "in the order below, which was fixed beforehand. Costs were not tested.", "",
        "## Assumptions", "", *(f"- {line}" for line in facts["assumptions"]), "",
        *(f"**Note:** {line}\n" for line in notes(facts)),
    ]  # fmt: skip
    parts += [line for said in shared(facts) for line in (said, "")]
    hashes = [f"- {name}: `{value}`" for name, value in sorted(facts["hashes"].items())]
    return "\n".join([*parts, "## Evidence", "", *lines, "", "## Hashes (SHA-256)", "", *hashes, ""])


def _others(count: int) -> str:
    return f"{count} other run{'' if count == 1 else 's'}"
