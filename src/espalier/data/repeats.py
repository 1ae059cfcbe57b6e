"""Rows that stand in two places, in what was learnt on and in what is held out: how many, and are they more than chance makes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import torch

from espalier import nested
from espalier.contracts import Rows
from espalier.data.streamed import Streamed, in_turn

SAME = 0.01
"""Share of held-out rows that may stand elsewhere as well, above what chance makes, before they are refused."""
ERRORS = 3.0
"""Standard errors that a share may be above that besides."""


def keys(x: Rows) -> list[bytes]:
    """SHA-256 of every row, by which equal ones are found; of several inputs, of all together."""
    if isinstance(x, Streamed) and x.digests is not None:
        return [digest.tobytes() for digest in x.digests[x.rows]]
    found = []
    for batch in in_turn(x, torch.arange(len(x)).split(1024)):
        parts = [leaf.contiguous().numpy() for leaf in nested.leaves(batch)]
        found += [hashlib.sha256(b"".join(part.tobytes() for part in row)).digest() for row in zip(*parts, strict=True)]
    return found


def repeated(seen: Sequence[bytes], held: Sequence[bytes]) -> tuple[int, bool]:
    """How many of the `held` rows are among those `seen`; and are they too many, where so many of the latter are alike?"""
    known = Counter(seen)
    found = sum(key in known for key in held)
    alike = sum(count for count in known.values() if count > 1)
    return found, too_many(found / max(1, len(held)), alike / max(1, len(seen)), len(held), len(seen))


def too_many(share: float, usual: float, held: int, seen: int) -> bool:
    """Is a share of the held-out rows above the usual one, that of the rows seen which have their like among these, by more than
    `SAME` and noise? Of few columns many rows are alike. Two that are alike both count, so the variance is twice a binomial's."""
    error = math.sqrt(2 * usual * (1 - usual) * (1 / max(1, held) + 1 / max(1, seen)))
    return share - usual > SAME + ERRORS * error
