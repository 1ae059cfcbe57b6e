"""Who a distilled network learns from: the networks that one fit draws, or several, a fresh one for every part of a batch.

Of random masks these are the average over the pairs under a fresh Z; of a fit that has none, one of its pairs: a draw of its
Gaussian (mean-field), a state of its chain (Korattikara et al. 2015, *Bayesian dark knowledge*). Of several fits the draws are of
their even mixture; without masks that is Hinton et al. 2015, *Distilling the knowledge in a neural network*, at temperature 1.

Or not from draws: from what all of a fit's networks say `together`, by one pass of means and variances (`propagation.py`). Such a
teacher has no noise, so that a student may take longer steps, and fewer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier import nested
from espalier.contracts import Rows
from espalier.guides.masked import draw_mask
from espalier.likelihoods import plain
from espalier.network import evaluating
from espalier.prediction import propagation
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import State, gaussian
from espalier.prediction.predict import at_once, sent
from espalier.training import objective

MASKS = 8
"""Draws by which networks are compared with their teachers."""
POINTS = 4
"""Outputs that are laid out evenly for what a teacher's networks say together: other ones at every step."""


class Teacher:
    """The networks of one fit."""

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self.factor = 1 / fit.keep_prob if fit.rescale and isinstance(fit.keep_prob, float) else 1.0
        self.values, self.state = fit.pairs.values.mean(0) * self.factor, fit.pairs.mean_state()

    @property
    def differ(self) -> bool:
        """Has it more than one?"""
        return self.fit.masked or not self.fit.pairs.equal

    def ticket(self) -> tuple[Tensor, State]:
        """The network that a student is to be better than."""
        pairs = self.fit.pairs
        return (pairs.values * pairs.keep).mean(0).mul(self.factor), self.state

    def mean(self) -> tuple[Tensor, State]:
        """The network that a student begins as: of the mean weights under all masks."""
        return self.values * self.fit.probs, self.state

    @torch.no_grad()
    def says(self, x: Any, stream: torch.Generator) -> dist.TorchDistribution:
        """Of x, by one draw."""
        values, state = self.draw(stream)
        return self.fit.model.outcome(self.fit.dense(values), x, copied(state))

    @torch.no_grad()
    def together(self, batches: Sequence[Any], seed: int = 0) -> list[dist.TorchDistribution]:
        """Of all rows of these batches, by all of its networks at once: distributions whose even mixture it is; of labels one, of
        their mean chances. seed: of the points at which outputs are laid out."""
        return even([*propagation.outcomes(self.fit, batches, count=POINTS, seed=seed, on_device=True)])

    def plainly(self, x: Any) -> dist.TorchDistribution:
        """The kind of thing that it says of rows x."""
        values, state = self.ticket()
        return plain(self.fit.model.outcome(self.fit.dense(values), x, copied(state)))

    def draw(self, stream: torch.Generator) -> tuple[Tensor, State]:
        """Values `(k,)` and other state of one network."""
        fit, device = self.fit, self.values.device
        if fit.masked:
            positions = fit.topology.positions.to(stream.device)
            keep = draw_mask(positions, fit.model.shapes, fit.mask, fit.keep_prob, stream)
            return self.values * sent(keep, device), self.state
        index = _one_of(len(fit.pairs.values), stream)
        pair = fit.pairs.pair(index)
        if pair.scales is None:
            return pair.values, pair.state
        noise = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (), generator=stream, device=stream.device)))
        return gaussian(pair.values, pair.scales, noise), pair.state


class Teachers:
    """Those of several fits, evenly. microbatches: parts of a batch, each told of by a draw of its own. masks: draws whose mean
    is told; 0: by moments, or one where a network has none."""

    def __init__(self, fits: Sequence[Fit], microbatches: int = 1, masks: int = 1) -> None:
        self.all, self.microbatches = [Teacher(fit) for fit in fits], microbatches
        self.masks = masks or int(not all("moments" in fit.ways for fit in fits))
        self.first = self.all[0]
        """Whose support the student stands on, and whose mean it begins as."""

    @property
    def differ(self) -> bool:
        """Is there more than one network to learn from?"""
        return len(self.all) > 1 or self.first.differ

    @property
    def device(self) -> torch.device:
        return self.first.values.device

    @contextmanager
    def training(self) -> Iterator[None]:
        """Networks in training mode, which batch norm looks at; and out of it, whatever happens."""
        try:
            for teacher in self.all:
                teacher.fit.model.train()
            yield
        finally:
            for teacher in self.all:
                teacher.fit.model.eval()

    def tell(self, batches: Sequence[Any], stream: torch.Generator, step: int) -> list[list[dist.TorchDistribution]]:
        """What a student is told of each of these batches, an even mixture: draws, or what all networks say together, of all
        batches at once."""
        if self.masks:
            return [[self.says(x, stream) for _ in range(self.masks)] for x in batches]
        rows, fewer = [nested.num_rows(batch) for batch in batches], regrouped(batches, self.device)
        told = [parted(told, rows) for teacher in self.all for told in teacher.together(fewer, step)]
        return [*map(list, zip(*told, strict=True))]

    def says(self, x: Any, stream: torch.Generator) -> dist.TorchDistribution:
        """Of x, each of its parts by one draw of one of them: evenly, as far as there are parts."""
        cuts = objective.parts(self.microbatches, x)
        turns = [0] if len(self.all) == 1 else torch.randperm(len(self.all), generator=stream, device=stream.device).tolist()
        return joined([self.all[turns[place % len(turns)]].says(rows, stream) for place, (rows,) in enumerate(cuts)])

    def each(self, x: Any) -> Iterator[dist.TorchDistribution]:
        """Of x, by `MASKS` draws or as many as there are of them, evenly, the same draws whenever it is asked; or what each of
        them says together."""
        if not self.masks:
            for teacher in self.all:
                yield from teacher.together([x])
            return
        stream = torch.Generator().manual_seed(0)
        for place in range(len(self.all) * math.ceil(MASKS / len(self.all))):
            yield self.all[place % len(self.all)].says(x, stream)

    @torch.no_grad()
    def check(self, x: Any) -> None:
        """Raises ValueError where not all say the same kind of thing of rows x, or what nothing is known of."""
        told = []
        for teacher in self.all:
            with evaluating(teacher.fit.model):
                told.append(teacher.plainly(x))
        for place, one in enumerate(told, 1):
            cross_entropy(one, one)
            if type(one) is not type(told[0]) or one.batch_shape != told[0].batch_shape:
                what = [f"{type(each).__name__} of shape {tuple(each.batch_shape)}" for each in (told[0], one)]
                raise ValueError(f"expected teachers of one kind of outcome, {what[0]}, but run {place} has {what[1]}")

    @torch.no_grad()
    def distances(
        self, told: Sequence[dist.TorchDistribution], x: Any, *networks: tuple[Tensor, State]
    ) -> list[float]:
        """Mean cross-entropy, nats, from what is told of rows x to what each network says there, on the first one's support."""
        fit = self.first.fit
        outcomes = [fit.model.outcome(fit.dense(values), x, copied(state)) for values, state in networks]
        found = [torch.stack([cross_entropy(one, outcome).mean() for outcome in outcomes]) for one in told]
        return [float(each) for each in torch.stack(found).mean(0)]

    @property
    def sampled(self) -> bool:
        """Are their draws a random sample, and not all that there are, or laid out?"""
        return self.masks > 0 and not all(teacher.fit.is_one("redraw") for teacher in self.all)

    def probs(self, x: Rows | Any) -> Tensor:
        """Of classes, `(S, n, C)` at rows x, as they predict: as many draws of each; of a chain, states from all of it; or of
        moments outputs that are laid out."""
        share, draws = math.ceil(MASKS / len(self.all)), []
        for fit in (teacher.fit for teacher in self.all):
            if not self.masks:
                draws.append(fit.predict(x, "moments", num_samples=share))
                continue
            if not fit.is_one("redraw"):
                draws.append(fit.predict(x, "redraw", num_samples=share))
                continue
            states = fit.predict(x, "pairs")
            draws.append(states[torch.arange(share) * len(states) // share])
        return torch.cat(draws)


def _one_of(count: int, stream: torch.Generator) -> int:
    """Drawn where there is a choice."""
    return int(torch.randint(count, (), generator=stream, device=stream.device)) if count > 1 else 0


def cross_entropy(teacher: dist.TorchDistribution, student: dist.TorchDistribution) -> Tensor:
    """-E log student(y) under y ~ teacher, `(n, ...)`, nats: a sum over classes, or the closed form of two normals."""
    teacher, student = plain(teacher), plain(student)
    if isinstance(student, dist.Categorical) and isinstance(teacher, dist.Categorical):
        ruled_out = teacher.probs == 0  # of which a student may be as sure: 0 log 0 is 0
        loss: Tensor = -(teacher.probs * student.logits.masked_fill(ruled_out, 0)).sum(-1)
        return loss
    if isinstance(student, dist.Normal) and isinstance(teacher, dist.Normal):
        square = teacher.scale.square() + (teacher.loc - student.loc).square()
        loss = 0.5 * square / student.scale.square() + student.scale.log() + 0.5 * math.log(2 * math.pi)
        return loss
    if isinstance(student, dist.Bernoulli) and isinstance(teacher, dist.Bernoulli):
        return torch.nn.functional.binary_cross_entropy_with_logits(student.logits, teacher.probs, reduction="none")
    odd = student if type(student) not in (dist.Categorical, dist.Normal, dist.Bernoulli) else teacher
    raise ValueError(f"expected a categorical, Bernoulli or normal likelihood to distill, got {type(odd).__name__}")


def even(outcomes: Sequence[dist.TorchDistribution]) -> list[dist.TorchDistribution]:
    """The even mixture of several outcomes, as few as it takes: of labels one, of normals all."""
    every = [plain(outcome) for outcome in outcomes]
    if isinstance(every[0], dist.Categorical | dist.Bernoulli):
        chances = torch.stack([one.probs for one in every]).mean(0)
        if isinstance(every[0], dist.Categorical):  # of a class that is ruled out the log is -inf, and is to stay so
            return [dist.Categorical(logits=chances.log(), validate_args=False)]
        return [dist.Bernoulli(probs=chances, validate_args=False)]
    return every


def regrouped(batches: Sequence[Any], device: torch.device) -> list[Any]:
    """The same rows, as few batches as a pass takes at once."""
    rows = nested.num_rows(batches[0])
    numbers = sum(leaf.numel() for leaf in nested.leaves(batches[0])) // rows
    size = max(1, at_once(numbers, device) // rows)
    return [nested.joined(batches[first : first + size]) for first in range(0, len(batches), size)]


def joined(outcomes: Sequence[dist.TorchDistribution]) -> dist.TorchDistribution:
    """Of several batches' rows, one behind another."""
    if len(outcomes) == 1:
        return outcomes[0]
    every = [plain(outcome) for outcome in outcomes]
    parameters = {name: torch.cat([getattr(one, name) for one in every]) for name in _parameters(every[0])}
    return type(every[0])(**parameters, validate_args=False)


def parted(outcome: dist.TorchDistribution, rows: Sequence[int]) -> list[dist.TorchDistribution]:
    """One's rows, so many each: what `joined` puts together."""
    outcome = plain(outcome)
    parts = {name: getattr(outcome, name).split([*rows]) for name in _parameters(outcome)}
    each = [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    return [type(outcome)(**parameters, validate_args=False) for parameters in each]


def _parameters(outcome: dist.TorchDistribution) -> tuple[str, ...]:
    return ("loc", "scale") if isinstance(outcome, dist.Normal) else ("logits",)


def copied(state: State) -> State:
    """Batch norm writes into the buffers that it is given."""
    return {name: tensor.clone() for name, tensor in state.items()}
