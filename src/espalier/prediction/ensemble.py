"""Several fits of the same data that predict together: an even mixture of all their draws (Lakshminarayanan et al. 2017), or one
prediction by the mean of their logits (Sapkota et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, final, get_args

import pyro.distributions as dist
import torch

from espalier.contracts import Data, Rows
from espalier.likelihoods import plain
from espalier.prediction.fit import Fit, How
from espalier.prediction.predictor import Inputs, Predictor
from espalier.randomness import derived

Pool = Literal["probabilities", "logits"]


@final
class Ensemble(Predictor):
    """Members that differ in their seeds, say. It predicts in every way that all of them have, by all draws of the first, then of
    the second: a draw is held at a time. `pairs` is a way of members with equally many alone, that none counts for more.

    pool: 'probabilities', or of classes 'logits': the softmax of the mean over all draws, which is the normalised geometric mean
    of their probabilities (a logarithmic pool, Genest & Zidek 1986), and one draw.
    Raises ValueError for fewer than two, for one that is there twice, and for members of other data, cut or scaled otherwise.
    """

    def __init__(self, fits: Sequence[Fit], pool: Pool = "probabilities") -> None:
        check_members(fits)
        if pool not in get_args(Pool) or (pool == "logits" and fits[0].record.get("task") == "regression"):
            raise ValueError(f"expected a pool of {', '.join(get_args(Pool))}, the latter of classes, got {pool!r}")
        self._fits, self.pool = tuple(fits), pool
        self.record = {name: self.fits[0].record.get(name) for name in ("task", "target", "shape", "data")}

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(map(repr, self.fits))})"

    @property
    def fits(self) -> tuple[Fit, ...]:
        return self._fits

    @property
    def ways(self) -> tuple[How, ...]:
        uneven = len({len(fit.pairs.values) for fit in self.fits}) > 1
        shared = set.intersection(*(set(fit.ways) for fit in self.fits)) - ({"pairs"} if uneven else set())
        return tuple(way for fit in self.fits[:1] for way in fit.ways if way in shared)

    def to(self, device: str | torch.device) -> Self:
        for fit in self.fits:
            fit.to(device)
        return self

    def look_at(self, data: Data) -> None:
        for fit in self.fits:
            fit.look_at(data)

    def alike(self, ways: Sequence[How]) -> Mapping[How, How]:
        by_member = [fit.alike(ways) for fit in self.fits]
        first: dict[tuple[How, ...], How] = {}
        return {way: first.setdefault(tuple(own[way] for own in by_member), way) for way in ways}

    def seeds(self, seed: int) -> list[int]:
        """Of every member's draws; the first one's is the seed itself. With one for all they would drop the same units."""
        return [seed, *(derived(seed, number) for number in range(1, len(self.fits)))]

    def outcomes(
        self, x: Rows | Inputs, how: How = "ticket", *, num_samples: int = 16, seed: int = 0, on_device: bool = False
    ) -> Iterator[dist.TorchDistribution]:
        if how not in self.ways:
            raise ValueError(f"expected one of {', '.join(self.ways)}, which all members have, got {how!r}")
        options: dict[str, Any] = {"num_samples": num_samples, "on_device": on_device}
        members = zip(self.fits, self.seeds(seed), strict=True)
        every = (one for fit, own in members for one in fit.outcomes(x, how, seed=own, **options))
        yield from every if self.pool == "probabilities" else iter([_by_logits(every)])


def _by_logits(outcomes: Iterator[dist.TorchDistribution]) -> dist.TorchDistribution:
    first = plain(next(outcomes))
    total, count = first.logits, 1
    for outcome in outcomes:  # one at a time
        if type(plain(outcome)) is not type(first) or plain(outcome).logits.shape != first.logits.shape:
            said = [f"{type(one).__name__} {tuple(one.logits.shape)}" for one in (first, plain(outcome))]
            raise ValueError(f"expected logits of one kind to pool, got {' and '.join(said)}: take pool='probabilities'")
        total, count = total + plain(outcome).logits, count + 1
    return type(first)(logits=total / count)


def check_members(fits: Sequence[Fit]) -> None:
    """Raises ValueError where these make no ensemble."""
    if len(fits) < 2:
        raise ValueError(f"expected two members of an ensemble or more, got {len(fits)}")
    first, *others = (seen_by(fit.record) for fit in fits)
    for place, other in enumerate(others, 2):
        if other != first:
            what = next(name for name, value in other.items() if value != first[name])
            raise ValueError(
                f"expected members of an ensemble that were trained on the same data, got other {what} in member {place}: "
                "choose runs that differ in their seeds, say"
            )
    for place, fit in enumerate(fits):
        if any(_twins(fit, other) for other in fits[:place]):
            raise ValueError(f"expected members of an ensemble that differ, got one twice: member {place + 1}")


def seen_by(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record, what a network took for its data."""
    data = record.get("data", {})
    return {
        "tasks": record.get("task"),
        "rows or splits": data.get("hashes"),
        "classes": (record.get("num_outputs"), data.get("classes")),
        "shapes of inputs": record.get("shape"),
        "standardisation": (record.get("target"), record.get("inputs"), record.get("recipe", {}).get("standardise")),
    }


def _twins(one: Fit, other: Fit) -> bool:
    """The same draws of the same weights?"""
    pairs = (one.pairs, other.pairs)
    parts = zip((one.topology.positions, *(pairs[0][:2])), (other.topology.positions, *(pairs[1][:2])), strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in parts)
