"""Made-up class probabilities, for scores."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

Array = np.ndarray


def draw_probs(n: int = 500, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return softmax(1.5 * logits, axis=1), labels


def as_probs(confidence: Array, hit: Array, classes: int = 10) -> tuple[Array, Array]:
    """Rows whose top label is class 0 with this confidence, and labels that hit or miss it."""
    probs = np.repeat(((1 - confidence) / (classes - 1))[:, None], classes, axis=1)
    probs[:, 0] = confidence
    return probs, np.where(hit, 0, 1)
