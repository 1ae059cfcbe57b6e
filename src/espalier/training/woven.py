"""The distilled net, taught while its teacher still trains: no epochs of its own, and no forward pass of the teacher's.

Late, when the topology stands still and pairs are collected, every training step has drawn a Z, or several, and computed what
the network says of its batch under each (of a program that goes by Pyro it is computed again). A second net on the same support
takes a step towards that, as in `distillation.py`:

    w <- w - rate * grad CE( softmax f(x; Z_t * u_t), softmax f(x; w) )

One Z that a whole batch shares is a noisy teacher. Of several masks a step it is told the mean: those that the training has not
drawn cost a forward pass each.

The draws that it learns from are those of one optimum's neighbourhood, over Z and over the late path of u at once: as the
ticket averages weights over both, this averages predictions over both. Derived for this project; measured beside distillation
after training in `examples/benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from espalier import nested
from espalier.contracts import Data
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide, draw_mask
from espalier.network import BayesianNetwork, under
from espalier.prediction.fit import Fit
from espalier.randomness import forked, own_stream, seeded
from espalier.store import Bundle
from espalier.training import objective, rates
from espalier.training.distillation import Diverged, Lessons, Student, close_enough, hand_out, in_full, settle
from espalier.training.options import Training
from espalier.training.teachers import Teachers, copied
from espalier.training.train import check_average_from

BEGINS = 0.9
"""The fraction of training after which there is enough to learn from. Earlier is no better and costs more: measured there too."""
STREAM = 14
"""Of random numbers, apart from those of training."""


class Woven(Follower):
    """A student that follows a training. first: the last step before it begins, when the topology moves no more. steps: of the
    whole training. lessons: masks at least so many. seed: of those that are not the training's."""

    def __init__(
        self, first: int, steps: int, lessons: Lessons = Lessons(), precision: str = "float32", *, seed: int = 0  # noqa: B008
    ) -> None:
        self.first, self.lessons, self.precision, self.seed = first, lessons, precision, seed
        self.rate = rates.cosine(lessons.learning_rate, steps - first)
        self.student: Student | None = None
        self.losses: list[torch.Tensor] = []
        self.told, self.lost, self.heard = float("nan"), "", 1

    @classmethod
    def of(
        cls, training: Training, data: Data, average_from: float, lessons: Lessons = Lessons(), *, seed: int = 0  # noqa: B008
    ) -> Woven:
        """One that begins at `BEGINS`, or later, where pairs are. Raises ValueError where that leaves it no step."""
        check_average_from(average_from)
        # As `train` has it: within an epoch where that is no whole number of them, and the topology may move until then.
        begins = max(average_from, BEGINS)
        first = math.ceil(round(begins * training.epochs, 9) * training.steps_per_epoch(data))
        if not first < training.steps(data):
            raise ValueError(
                f"expected steps to distill in after {begins:g} of training (average_from, and at least {BEGINS}), got none of "
                f"{training.steps(data)}: train longer or lower it, or say distill_epochs"
            )
        return cls(first, training.steps(data), lessons, training.precision, seed=seed)

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.stream, self.heard = own_stream(self.seed, STREAM, guide.values.device), guide.num_particles

    def hears(self, taken: int) -> bool:
        return taken > self.first and not self.lost

    def after(self, taken: int, x: Any, outputs: Sequence[Any], model: BayesianNetwork, guide: MaskedGuide) -> None:
        if not self.hears(taken):
            return
        student = self.student = self.student or self._born(model, guide)
        own = own_stream(self.seed, STREAM, step=taken).initial_seed()
        with seeded(own, guide.values.device):  # a network's own dropout: the training goes as it would without a student
            with torch.no_grad():
                every = [*outputs, *(self._more(x, model, guide) for _ in range(self.lessons.masks - len(outputs)))]
                told = [model.says(nested.each(in_full, output)) for output in every]
            try:
                self.losses.append(student.learn(x, told, guide.placed))
            except Diverged as error:  # the training that it goes along with is not to end for that
                self.lost = str(error)

    def _more(self, x: Any, model: BayesianNetwork, guide: MaskedGuide) -> Any:
        """What the network says of x, each of its parts under a mask that the training has not drawn; no buffer of it moves."""
        said = []
        for (rows,) in objective.parts(guide.microbatches, x):
            keep = draw_mask(guide.positions, guide.shapes, guide.mask, guide.keep_prob, self.stream)
            with objective.cast(self.precision, guide.values.device):
                weights = guide.placed(guide.values * (keep * guide.scale))
                said.append(model.evaluate(weights, rows, copied(model.state_dict())))
        return nested.joined(said)

    def asked(self) -> dict[str, Any]:
        return {**self.lessons.asked(), "distill_from": self.first}

    def row(self) -> dict[str, float]:
        """The cross-entropy from teacher to student, the mean over the epoch's steps, nats per example."""
        losses, self.losses = self.losses, []
        try:
            if self.student is not None:
                self.student.finite.settle()
        except Diverged as error:
            self.lost = str(error)
        if self.lost:  # of a GPU that step's own is among them
            losses = [loss for loss in losses if torch.isfinite(loss)]
        if losses:
            self.told = float(torch.stack(losses).mean())
        return {"distill_loss": self.told} if losses else {}

    def bundle(self) -> Bundle:
        if self.student is None:
            return Bundle({}, {})
        tensors, facts = self.student.bundle()
        tensors = {f"student.{name}": tensor for name, tensor in tensors.items()}
        if self.lessons.masks > 1:
            tensors["student.stream"] = self.stream.get_state()
        return Bundle(tensors, {"student": {**facts, "loss": self.told, "lost": self.lost}})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        if "student" in saved.facts:
            self.student = self._born(model, guide)
            self.told, self.lost = (saved.facts["student"][name] for name in ("loss", "lost"))
            self.student.restore(Bundle(under("student.", saved.tensors), saved.facts["student"]))
            if self.lessons.masks > 1:
                self.stream.set_state(saved.tensors["student.stream"])

    def end(self, fit: Fit, data: Data) -> None:
        """Hand the student out, unless it is farther from the masked networks than their ticket: then it is said, and the fit has
        all but that."""
        if self.student is None:  # its training was ended before
            self._regret(f"its training ended at step {fit.history[-1]['step']}, and it would have begun at {self.first + 1}")
            return
        teachers = Teachers([fit])
        with forked(fit.topology.positions.device):
            reached, ticket = (float("nan"),) * 2 if self.lost else settle(teachers, data, self.student)
        if close_enough(reached, ticket):
            masks = max(self.lessons.masks, self.heard)
            facts = {**self.lessons._asdict(), "masks": masks, "woven_steps": self.student.taken, "loss": self.told}
            hand_out(fit, data, self.student, facts, teachers)
            return
        why = self.lost or (
            f"it ended farther from its teacher than the ticket, {reached:.4g} against {ticket:.4g} nats: lower the distill_rate"
        )
        self._regret(why)

    def _regret(self, why: str) -> None:
        warnings.warn(f"the fit has no distilled net: {why}", stacklevel=3)

    def _born(self, model: BayesianNetwork, guide: MaskedGuide) -> Student:
        """As the mean network of the moment."""
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        return Student(model, guide.values * (guide.scale * guide.probs), state, self.rate, self.precision)
