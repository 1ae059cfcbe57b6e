"""What a certificate may promise: losses of a pruned predictor on calibration examples, from arrays; no torch.

A risk is the mean of its losses, each in [0, 1] (in [-1, 1] for `gap`), so that a p-value of `pvalues.py` applies to them.

    error             1{argmax p != y}                                             labels
    disagreement      1{argmax p != argmax of the unpruned}                        no labels
    gap               error minus the unpruned's error: -1, 0 or 1                 labels
    brier             half of sum_c (p_c - 1{y = c})^2                             labels
    selective:T       (error - alpha) 1{max p >= T} + alpha, or counts among the accepted: P(error | accepted)
    miscoverage:Q     1{y not in the fewest classes whose probabilities sum to Q}  labels
    ece               binned calibration error of the top label, 15 fixed bins     labels
    dice              1 - Dice of the predicted mask                               labels (n, ...)
    dice-change       1 - Dice between the masks of the pruned and the unpruned    no labels

Sources: Alvarez 2024 (labelled, unlabelled, selective); Jazbec et al. 2024 (gap); Angelopoulos et al. 2021 (selective);
Romano et al. 2020 (sets by cumulated probability); `calibration/scores.py` for the ECE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier import calibration
from espalier.calibration.scores import NUM_BINS
from espalier.certificates import pvalues

Floats = NDArray[np.float64]
Losses = Callable[[Floats, NDArray[np.int64], Floats], NDArray[np.float64]]


_OWN = ("mcdiarmid", "selective")
"""p-values of risks that are no mean over examples."""


class Risk(NamedTuple):
    """A loss, and the p-value that goes with it.

    loss: of probabilities `(n, ..., C)`, labels `(n, ...)` and the unpruned predictor's probabilities: `(n,)`, or `(n, k)`
    where the risk is no mean over examples. test: binomial, wsr, selective or mcdiarmid (`p_value`). upper: of one loss.
    signed: may a loss be below 0? compares: with the unpruned predictor?
    """

    name: str
    says: str
    loss: Losses
    test: str = "wsr"
    needs_labels: bool = True
    upper: float = 1.0
    signed: bool = False
    compares: bool = False

    def losses(self, probs: ArrayLike, labels: ArrayLike | None, reference: ArrayLike | None) -> Floats:
        """The losses of examples, `loss` of arrays that were looked at: NumPy or torch alike. labels may be None for a risk
        without, reference (the unpruned predictor's probabilities) for one that does not compare.

        Raises ValueError where there are no examples, what is given are no probabilities, or labels are not whole numbers, one
        for each, of the classes there are.
        """
        p = _probabilities(probs)
        if self.compares and (reference is None or np.shape(reference) != p.shape):
            got = "none" if reference is None else f"shape {np.shape(reference)}"
            raise ValueError(f"expected the unpruned predictor's probabilities {p.shape} for the risk {self.name}, got {got}")
        if p.ndim > 2 and not self.name.startswith("dice"):
            raise ValueError(f"expected one label an example for the risk {self.name}, got probabilities {p.shape}: use dice")
        y = np.zeros(p.shape[:-1], np.int64) if labels is None else np.asarray(labels)
        if labels is None and self.needs_labels:
            raise ValueError(f"expected labels for the risk {self.name}, got none: disagreement needs none")
        if self.needs_labels:
            if y.dtype.kind not in "iu" or y.shape != p.shape[:-1]:
                raise ValueError(
                    f"expected whole numbers as labels, of shape {p.shape[:-1]}, got {y.dtype} {y.shape}: one class for each"
                )
            if y.min() < 0 or y.max() >= p.shape[-1]:
                wrong = y[(y < 0) | (y >= p.shape[-1])].flat[0]
                raise ValueError(f"expected labels in 0..{p.shape[-1] - 1}, got {wrong}: drop or renumber such examples")
        return self.loss(p, y.astype(np.int64), _probabilities(cast(ArrayLike, reference)) if self.compares else p)

    def value(self, losses: ArrayLike) -> float:
        """The observed risk: what a deployment would see on average, estimated."""
        x = np.asarray(losses, dtype=np.float64)
        if self.test == "mcdiarmid":
            return float(np.abs(x.mean(0)).sum())
        if self.test == "selective":
            return float(x[:, 1].sum() / max(1.0, x[:, 0].sum()))
        return float(x.mean())

    def check(self, test: str) -> None:
        """Raises ValueError for a p-value that does not apply to this risk, whatever the losses."""
        if test == self.test:
            return
        if self.test in _OWN or test in _OWN:
            raise ValueError(f"expected {self.name} to be tested by {self.test}, got {test!r}")
        if test not in ("binomial", "wsr", "anytime", *pvalues.OF_SUMS):
            raise ValueError(f"expected a test of binomial, wsr, anytime, {', '.join(pvalues.OF_SUMS)}, got {test!r}")
        if test == "binomial":
            raise ValueError(f"expected losses of 0 or 1 for the binomial p-value, but {self.name} has others: use wsr")
        if test not in ("wsr", "anytime") and (self.upper != 1 or self.signed):
            kind = "signed" if self.signed else "weighted"
            raise ValueError(f"expected losses in [0, 1] for {test}, but {self.name} is {kind}: use wsr")

    def p_value(self, losses: ArrayLike, alpha: float, delta: float, test: str | None = None) -> float:
        """Of H: the risk is above alpha. losses: `(n,)`, or `(n, k)` as `losses` gives them. test: another p-value than the
        risk's own: hinge, hb, hoeffding, wsr, or anytime, that of an e-process. Raises ValueError where it does not apply."""
        x, chosen = np.asarray(losses, dtype=np.float64), test or self.test
        self.check(chosen)
        if x.ndim != (2 if self.test in _OWN else 1):
            raise ValueError(
                f"expected one loss of {self.name} per example, got shape {x.shape}: one label for each, or dice"
            )
        n = len(x)
        if chosen == "wsr":
            return float(pvalues.wsr(x, alpha, delta, self.upper))
        if chosen == "anytime":
            return float(np.exp(-max(0.0, float(pvalues.wsr_path(x, alpha, delta, self.upper).max()))))
        if chosen == "mcdiarmid":
            return float(pvalues.mcdiarmid(self.value(x), n, alpha))
        if chosen == "selective":
            accepted = int(np.count_nonzero(x[:, 0]))
            return float(pvalues.selective(int(np.count_nonzero(x[:, 1])), accepted, alpha))
        if chosen == "binomial":
            if not np.isin(x, (0, 1)).all():
                raise ValueError(
                    f"expected losses of 0 or 1 for the binomial p-value, but {self.name} has others: use wsr"
                )
            return float(pvalues.binomial(int(np.count_nonzero(x)), n, alpha))
        return float(pvalues.OF_SUMS[chosen](x.sum(), n, alpha))


def _probabilities(probs: ArrayLike) -> Floats:
    """`(n, ..., C)`. Raises ValueError for what they cannot be."""
    p = np.asarray(probs, dtype=np.float64)
    if p.ndim < 2 or not p.size:
        raise ValueError(f"expected probabilities (n, ..., C) of at least one example, got shape {p.shape}")
    return calibration.scores.probabilities(p.reshape(-1, p.shape[-1])).reshape(p.shape)


def named(name: str) -> Risk:
    """The risk of a name, `selective:0.8` and `miscoverage:0.95` with their number. Raises ValueError for another."""
    kind, _, number = name.partition(":")
    if kind in _PARAMETRISED and number:
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 < value < 1:
            raise ValueError(f"expected a number in (0, 1) after {kind}:, got {number!r}")
        return _PARAMETRISED[kind](name, value)
    if name not in RISKS:
        known = [*RISKS, *(f"{kind}:NUMBER" for kind in _PARAMETRISED)]
        raise ValueError(f"expected a risk of {', '.join(known)}, got {name!r}")
    return RISKS[name]


def selective_losses(error: ArrayLike, accepted: ArrayLike, alpha: float) -> Floats:
    """(error - alpha) 1{accepted} + alpha, in [0, 1]: its mean is above alpha just where E[error | accepted] is. For `wsr`,
    with losses that are no 0 or 1; else `selective:T` counts, which is tighter (Angelopoulos et al. 2021)."""
    loss, taken = np.asarray(error, dtype=np.float64), np.asarray(accepted, dtype=np.float64)
    return np.asarray((loss - alpha) * taken + alpha)


def shifted(risk: Risk, weights: ArrayLike, bound: float) -> Risk:
    """The same risk where inputs come from Q instead of P: losses times w = dQ/dP `(n,)`, known and at most `bound`.

    E_P[w L] = E_Q[L] and E_P[w] = 1, so `wsr` with upper limit `bound` applies. With estimated weights the promise is as
    good as they are.
    """
    w = np.asarray(weights, dtype=np.float64)
    if not (w.min() >= 0 and w.max() <= bound):
        raise ValueError(f"expected weights in [0, {bound:g}], got {w.min():g}..{w.max():g}: name their upper bound")
    if risk.test not in ("binomial", "wsr"):
        raise ValueError(
            f"expected a risk that is a mean over examples, got {risk.name}: {risk.test} has no weighted form"
        )

    def losses(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
        return np.asarray(w * risk.losses(probs, labels, reference))

    says = f"{risk.says}, under covariate shift with known weights of at most {bound:g}"
    return Risk(risk.name, says, losses, "wsr", risk.needs_labels, bound * risk.upper, risk.signed, risk.compares)


def _error(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    return np.asarray(probs.argmax(-1) != labels, dtype=np.float64)


def _disagreement(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    return np.asarray(probs.argmax(-1) != reference.argmax(-1), dtype=np.float64)


def _gap(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    return _error(probs, labels, reference) - _error(reference, labels, reference)


def _brier(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    return np.asarray(np.clip(0.5 * calibration.brier_scores(probs, labels), 0.0, 1.0))


def _ece(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    return calibration.bin_gaps(np.clip(probs.max(-1), 0, 1), probs.argmax(-1) == labels)


def _dice_loss(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Floats:
    """1 - 2 |A and B| / (|A| + |B|) of each image; 0 where both are empty."""
    axes = tuple(range(1, one.ndim))
    both, sizes = (one & other).sum(axes), one.sum(axes) + other.sum(axes)
    return np.where(sizes > 0, 1 - 2 * both / np.maximum(sizes, 1), 0.0)


def _masks(probs: Floats) -> None:
    if probs.ndim < 3 or probs.shape[-1] != 2:
        raise ValueError(
            f"expected masks of two classes for dice, probabilities (n, ..., 2), got {probs.shape}: use error"
        )


def _dice(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    _masks(probs)
    return _dice_loss(probs.argmax(-1) == 1, np.asarray(labels) == 1)


def _dice_change(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
    _masks(probs)
    return _dice_loss(probs.argmax(-1) == 1, reference.argmax(-1) == 1)


def _selective(name: str, threshold: float) -> Risk:
    def losses(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
        accepted = probs.max(-1) >= threshold
        return np.stack([accepted, accepted & (probs.argmax(-1) != labels)], -1).astype(np.float64)

    return Risk(name, f"error among the examples answered with confidence {threshold!r} or more", losses, "selective")


def _miscoverage(name: str, mass: float) -> Risk:
    def losses(probs: Floats, labels: NDArray[np.int64], reference: Floats) -> Floats:
        order = np.argsort(-probs, axis=-1, kind="stable")
        ranked = np.take_along_axis(probs, order, -1)
        before = ranked.cumsum(-1) - ranked  # a class belongs to the set if those above it do not fill it yet
        own = np.take_along_axis(before, (order == labels[:, None]).argmax(-1)[:, None], -1)[:, 0]
        return (own >= mass).astype(np.float64)

    says = f"true class outside the smallest set of classes of predicted probability {mass:g}"
    return Risk(name, says, losses, "binomial")


_PARAMETRISED: dict[str, Callable[[str, float], Risk]] = {"selective": _selective, "miscoverage": _miscoverage}
RISKS: dict[str, Risk] = {
    risk.name: risk
    for risk in (
        Risk("error", "classification error", _error, "binomial"),
        Risk("disagreement", "disagreement with the unpruned predictor", _disagreement, "binomial", False, compares=True),
        Risk("gap", "error beyond the unpruned predictor's", _gap, signed=True, compares=True),
        Risk("brier", "half the Brier score", _brier),
        Risk("ece", f"binned calibration error of the top label, {NUM_BINS} bins", _ece, "mcdiarmid"),
        Risk("dice", "1 - Dice, one loss per image", _dice),
        Risk("dice-change", "1 - Dice between the pruned and the unpruned mask", _dice_change, needs_labels=False, compares=True),
    )
}
