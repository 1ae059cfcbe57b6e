"""Rows that stand in two places, in what was learnt on and in what is held out: how many, and are they more than chance makes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from espalier import nested
from espalier.contracts import Rows
from espalier.data.images import ImageFiles
from espalier.data.streamed import Streamed, in_turn

SAME = 0.01
"""Share of held-out rows that may stand elsewhere as well, above what chance makes, before they are refused."""
ERRORS = 3.0
"""Standard errors that a share may be above that besides."""
LOOKED_AT = 2000
"""Rows by which chance is judged."""


def comparable(*every: Rows) -> bool:
    """Can all these be told apart without decoding them? Folders of images by the names and sizes of their files."""
    files = [isinstance(rows, Streamed) and isinstance(rows.dataset, ImageFiles) for rows in every]
    known = [not isinstance(rows, Streamed) or rows.digests is not None for rows in every]
    return all(files) or (all(known) and not any(files))


def keys(x: Rows) -> list[bytes]:
    """SHA-256 of every row, by which equal ones are found; of several inputs, of all together; of image files their own names and
    sizes in bytes."""
    if isinstance(x, Streamed) and x.digests is not None:
        return [digest.tobytes() for digest in x.digests[x.rows]]
    if isinstance(x, Streamed) and isinstance(x.dataset, ImageFiles):
        return [f"{PurePath(x.dataset.names[row]).name}\0{x.dataset.sizes[row]}".encode(errors="replace") for row in x.rows]
    found = []
    for batch in in_turn(x, torch.arange(len(x)).split(1024)):
        parts = [leaf.contiguous().numpy() for leaf in nested.leaves(batch)]
        found += [hashlib.sha256(b"".join(part.tobytes() for part in row)).digest() for row in zip(*parts, strict=True)]
    return found


def repeated(seen: Sequence[Rows], *held: Rows) -> list[tuple[int, bool]]:
    """Of each of `held` how many of its rows are among those `seen`; and are they too many?

    Rows of few columns of few values are alike by chance. A held-out one then has its like as often as one that was seen; but
    not more often than columns would let it, were they independent: rows that stand there twice are no chance.
    """
    known = Counter(key for rows in seen for key in keys(rows))
    alike, total = sum(count for count in known.values() if count > 1), sum(known.values())
    usual = min(alike / total, chance(seen)) if alike else 0.0
    found = [(sum(key in known for key in keys(rows)), len(rows)) for rows in held]
    return [(count, too_many(count / max(1, size), usual, size, total)) for count, size in found]


def chance(seen: Sequence[Rows]) -> float:
    """P(a row has its like among those seen), by the values that each column takes, as if columns were independent; 0 of rows
    that are not held."""
    if any(isinstance(rows, Streamed) for rows in seen):
        return 0.0
    size = sum(map(len, seen))
    rows = next(rows for rows in seen if len(rows))
    first = rows[torch.arange(min(LOOKED_AT, len(rows)))]
    columns = np.concatenate([leaf.reshape(len(leaf), -1).numpy() for leaf in nested.leaves(first)], 1)
    log_match = sum(math.log(share) if (share := _collisions(column)) else -math.inf for column in columns.T)
    return -math.expm1(size * math.log1p(-min(math.exp(log_match), 1 - 1e-12)))


def _collisions(column: NDArray[np.generic]) -> float:
    """The share of pairs of values that are equal, `(n,)`."""
    counts, n = np.unique(column, return_counts=True)[1].astype(np.float64), len(column)
    return float((counts * (counts - 1)).sum() / max(1, n * (n - 1)))


def too_many(share: float, usual: float, held: int, seen: int) -> bool:
    """Is a share of the held-out rows above the usual one, by more than `SAME` and noise? usual: of the rows seen, those that
    have their like among these. Two that are alike both count, so the variance is twice a binomial's."""
    error = math.sqrt(2 * usual * (1 - usual) * (1 / max(1, held) + 1 / max(1, seen)))
    return share - usual > SAME + ERRORS * error
