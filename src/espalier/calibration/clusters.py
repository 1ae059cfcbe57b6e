"""Several labels per example: the pixels of a mask, the words of a sentence. They are not independent; examples are.

`probs` `(n, ..., C)`, `labels` `(n, ...)`. Every value is the score of all labels taken alike. Every interval is over
examples: means by the bootstrap of each example's mean; binned errors as in `scores.ece_interval`, each bin's variance times
its design effect (Kish 1965, sec. 5.4), by how much labels of one example err together, and bins as correlated as examples
make them: one that errs alike in all of them is not averaged out between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from espalier.calibration import scores
from espalier.calibration.proportions import of_all_or_none
from espalier.calibration.scores import LEVEL, MANY_CLASSES, NUM_BINS, NUM_WORLDS, SEED, Floats, Ints, Summary
from espalier.calibration.summaries import bootstrap_interval


def flattened(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints, int]:
    """`probs` `(n m, C)`, `labels` `(n m,)` of n examples, and n. Raises ValueError where shapes do not fit."""
    p, y = scores.array(probs), scores.array(labels)
    if p.ndim < 2 or y.shape != p.shape[:-1] or not y.size:
        raise ValueError(
            f"expected probs (n, ..., C) and labels (n, ...), got {p.shape} and {y.shape}; average over draws"
        )
    return *scores.classification(p.reshape(-1, p.shape[-1]), y.ravel()), len(y)


def dependence(residual: Floats, index: Ints, num_bins: int, num_examples: int) -> tuple[Floats, Floats]:
    """Of bins' sums of residuals `(n m,)` over examples: the design effect `(B,)`, at least 1, their variance by what it would be
    if all labels were independent, 1 for a bin that fewer than two examples reach; and a root `(B, B)` of their correlation."""
    example = np.repeat(np.arange(num_examples), len(residual) // num_examples)
    centre = np.bincount(index, residual, num_bins) / np.maximum(np.bincount(index, minlength=num_bins), 1)
    gap = residual - centre[index]
    cells = np.bincount(example * num_bins + index, gap, num_examples * num_bins).reshape(num_examples, num_bins)
    alone = np.bincount(index, gap**2, num_bins)
    together = cells.T @ cells
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.diag(together) / alone
    sd = np.sqrt(np.diag(together))
    correlation = together / np.outer(np.where(sd > 0, sd, 1), np.where(sd > 0, sd, 1))
    np.fill_diagonal(correlation, 1)
    values, vectors = np.linalg.eigh(correlation)
    return np.maximum(np.where(alone > 0, effect, 1.0), 1.0), vectors * np.sqrt(np.maximum(values, 0))


def floor(confidence: Floats, index: Ints, effect: Floats) -> float:
    """`scores.ece_floor` of labels that err together: the sum of the bins' half-normal means, none above that of as many labels
    that never make up for each other, 2 c (1 - c) each, where hardly one is expected to err. effect: of `dependence`."""
    variance = np.bincount(index, confidence * (1 - confidence), len(effect))
    return float(np.minimum(np.sqrt(2 * effect * variance / np.pi), 2 * variance).sum() / len(confidence))


def clustered_summary(probs: ArrayLike, labels: ArrayLike, *, level: float = LEVEL, seed: int = SEED) -> Summary:
    """`summaries.classification_summary` of several labels per example; `num_examples` are examples, `num_labels` labels."""
    p, y, count = flattened(probs, labels)
    named: dict[str, Callable[[ArrayLike, ArrayLike], Floats]] = {
        "accuracy": scores.accuracy_scores, "nll": scores.nll_scores, "brier": scores.brier_scores}  # fmt: skip
    given = scores.array(probs).reshape(p.shape)  # in their own precision
    means = {name: score(given, y).reshape(count, -1).mean(1) for name, score in named.items()}
    out: Summary = {"num_examples": count, "num_labels": len(y), **{name: float(m.mean()) for name, m in means.items()}}
    for name, mean in means.items():
        bounds = 0.0, 1.0 if name == "accuracy" else np.inf
        out[f"{name}_interval"] = list(bootstrap_interval(mean, level, seed=seed, bounds=bounds))
    if (rate := float(means["accuracy"].mean())) in (0.0, 1.0):  # no resample differs; an example that is not so may be all wrong
        out["accuracy_interval"] = list(of_all_or_none(rate, count, level))
    confidence, hit = p.max(1), (p.argmax(1) == y).astype(np.float64)
    for bins in (10, 15):
        index = scores.equal_width(confidence, bins)
        effect, _ = dependence(hit - confidence, index, bins, count)
        out |= {f"ece_{bins}": scores.ece(p, y, bins), f"ece_{bins}_floor": floor(confidence, index, effect),
                f"ece_{bins}_interval": _interval(confidence, hit, index, bins, count, level, seed)}  # fmt: skip
    index = scores.equal_mass(confidence, NUM_BINS)
    out["adaptive_ece"] = scores.adaptive_ece(p, y)
    out["adaptive_ece_interval"] = _interval(confidence, hit, index, NUM_BINS, count, level, seed)
    out["classwise_ece"] = scores.classwise_ece(p, y)
    if p.shape[1] <= MANY_CLASSES:
        own = functools.partial(dependence, num_bins=NUM_BINS, num_examples=count)
        out["classwise_ece_interval"] = list(scores.classwise_ece_interval(p, y, NUM_BINS, level, seed, own))
    return out


def _interval(
    confidence: Floats, hit: Floats, index: Ints, bins: int, count: int, level: float, seed: int
) -> list[float]:
    effect, root = dependence(hit - confidence, index, bins, count)
    worlds = max(NUM_WORLDS, int(16 / (1 - level)))  # eight in either tail
    return list(scores.gap_interval(confidence, hit, index, bins, level, seed, worlds, effect, root))
