"""The posterior predictive projected back onto one sparse net: one forward pass, as calibrated as its own draws.

From the mean network, on the ticket's frozen support, minimise over w

    L(w) = (1/N) sum_n CE( E_Z softmax f(x_n; Z * u),  softmax f(x_n; w) )

(of several labels a row, their mean). What a student is told at a step is the teacher's expectation itself, by one pass of means
and variances (`Teacher.together`), at the rate that was found last; a teacher without noise allows long steps, and 4 % of the
training's are enough. Or it is told draws of Z: cross-entropy is linear in its first argument, so that one gives an unbiased
gradient, and the mean of several a less noisy one, at a forward pass each. Measured beside each other, and beside a student that
learned from the training's own masks on the way, in `examples/benchmarks/RESULTS.md`. Who may teach, teachers.py says.

It learns on training inputs only, without labels; how sure it may be elsewhere it is told at inputs of the validation split
(`tempered.py`), without labels too. Sources: Korattikara et al. 2015, *Bayesian dark knowledge*; Bulo
et al. 2016, *Dropout distillation*. Related: Malinin et al. 2020, *Ensemble distribution distillation* (the spread of the draws
too); Vejendla et al. 2025 (arXiv 2505.11731: a Bayesian language model on its training set alone). Ours: sparse, on the teacher's
own support, from moments or from fresh masks at every step, at a rate found on the way.

For a regression both are normal, and the cross-entropy teaches the one net the spread between the masked ones too, as far as
its likelihood has a variance to learn. Each step is then taken in units of the student's own variance: the loss times it,
held fixed, has the same optimum, and its gradient does not grow with the precision, from which plain SGD runs away. One learned
precision ends at its optimum given the means, the inverse mean of (f_Z - f)^2 + 1 / tau (moment matching).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from espalier import nested, store
from espalier.contracts import Data, Rows, Split, number
from espalier.data.unlabelled import check_rows, digest_of
from espalier.guides.masked import MOST_PARTICLES
from espalier.network import BayesianNetwork, evaluating, under
from espalier.prediction import batchnorm, one_pass
from espalier.prediction.ensemble import check_members
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import State
from espalier.prediction.predict import NUMBERS, outcome_of, to_device
from espalier.randomness import forked, own_stream
from espalier.store import Bundle
from espalier.training import distributed, rates
from espalier.training.batches import batches
from espalier.training.loop import Info
from espalier.training.options import MOST_EPOCHS, Training
from espalier.training.stopping import ending
from espalier.training.streams import Streams, find_device, one_at_a_time
from espalier.training.student import Refused, Student
from espalier.training.teachers import Teachers, cross_entropy
from espalier.training.tempered import temper
from espalier.training.train import check_asked, prepared_as, validation_scores
from espalier.training.watch import Watch, Watches, as_one

STREAM = 12
"""Of random numbers: those of a distillation do not depend on where the training's stand, so that it can begin later as well."""
SHARE, RATE = (0.04, 0.1), (0.1, 0.02)
"""Of a training's steps, and of learning: told by moments, and by draws."""
FEWEST, MOST = 40, 0.2
"""Steps at least, but for a short training: a share of it at most."""
TOGETHER = 1024
"""Rows that a student is told of at once."""
SHOWN = 512
"""Training rows by which the end of distillation is compared with its beginning."""
WORSE = 0.05
"""Nats, or share of them, by which a student may end farther from its teacher than its ticket: more is no noise."""


class Lessons(NamedTuple):
    """How a student is taught. masks: draws whose mean it is told, at every step; 0 is by what all of them say together, or where
    a network has no moments one. epochs: passes over the training inputs; 0 is a share of the training's steps (`SHARE`).
    learning_rate: its peak, of Nesterov SGD under a cosine; None is `RATE`."""

    epochs: int = 0
    learning_rate: float | None = None
    masks: int = 0

    def plain(self) -> Lessons:
        """In Python's own numbers. Raises ValueError for what is none."""
        rate = None if self.learning_rate is None else number(self.learning_rate, float, "distill_rate")
        return Lessons(number(self.epochs, int, "distill_epochs"), rate, number(self.masks, int, "distill_masks"))

    def of(self, teachers: Teachers) -> Lessons:
        """With these teachers."""
        return self._replace(masks=teachers.masks, learning_rate=self.learning_rate or RATE[teachers.masks > 0])

    def steps(self, per_epoch: int, trained: int) -> int:
        """How many there are, after a training of so many."""
        share = min(max(SHARE[self.masks > 0] * trained, FEWEST), MOST * trained)
        return self.epochs * per_epoch or max(1, math.ceil(share))

    def asked(self) -> dict[str, Any]:
        """By the names of options."""
        return {"distill_epochs": self.epochs, "distill_rate": self.learning_rate, "distill_masks": self.masks}


def distill(
    fit: Fit,
    data: Data,
    *,
    training: Training,
    seed: int,
    epochs: int = 0,
    learning_rate: float | None = None,
    microbatches: int = 1,
    masks: int = 0,
    others: Sequence[Fit] = (),
    inputs: Rows | None = None,
    watch: Watches = None,
) -> Fit:
    """Add the distilled network to `fit`, as its way to predict `distilled`; returns the same fit.

    epochs, learning_rate, masks: of `Lessons`; batches and augmentation are those of `training`. microbatches: parts of a
    batch, each told of under a draw of its own. others: fits of the same data, of whatever network, that teach too: the draws are
    of their even mixture, as an `Ensemble`'s. inputs: rows without labels, as the network takes them (`data.inputs(x)` of one's
    own), that it learns on too: an epoch passes over these as well, in batches of their own, in a random order.
    Raises ValueError where all that there is to learn from is one network, where members make no ensemble, or for a likelihood
    that is not categorical, Bernoulli or normal, for inputs of another shape, and for a checkpoint of another distillation.
    """
    lessons, inputs = Lessons(epochs, learning_rate, masks).plain(), None if inputs is None else nested.rows_of(inputs)
    teachers = check_later(fit, data, lessons, microbatches, others, inputs)
    return teach(teachers, data, lessons, training=training, seed=seed, inputs=inputs, watch=watch)


@one_at_a_time
def teach(
    teachers: Teachers,
    data: Data,
    lessons: Lessons,
    *,
    training: Training,
    seed: int,
    inputs: Rows | None = None,
    watch: Watches = None,
) -> Fit:
    """`distill`, where `check_later` has said who teaches."""
    for teacher in teachers.all:
        teacher.fit.look_at(data)
    streams = Streams([seed, STREAM], find_device(training.device))
    with forked(streams.device), pyro.validation_enabled(False):  # a loss that is not finite gets our own sentence
        return _distill(teachers, data, lessons, training, streams, inputs, as_one(watch))


def check_later(
    fit: Fit, data: Data, lessons: Lessons, microbatches: int = 1, others: Sequence[Fit] = (), inputs: Rows | None = None
) -> Teachers:
    """Can this be distilled now? Who teaches. Raises ValueError where it cannot."""
    if inputs is not None:
        check_rows(inputs, data)
    if others:
        check_members([fit, *others])
    microbatches = number(microbatches, int, "microbatches")
    if microbatches < 1:
        raise ValueError(f"expected at least 1 of microbatches, parts of a batch, got {microbatches}")
    teachers = Teachers([fit, *others], microbatches, lessons.masks)
    check(fit.model, data, teachers.differ, lessons)
    teachers.check(to_device(data.train.x[torch.arange(min(2, len(data.train.y)))], teachers.device))
    return teachers


@torch.no_grad()
def check(model: BayesianNetwork, data: Data, several: bool, lessons: Lessons) -> None:
    """Can this be distilled? several: is there more than one network to learn from? Raises ValueError before any work where it
    cannot."""
    if not several:
        raise ValueError(
            "expected a drop_rate above 0, or several runs: without random masks there is one network and nothing to distill"
        )
    epochs, learning_rate, masks = lessons
    if not 0 <= epochs <= MOST_EPOCHS or not (learning_rate is None or 0 < learning_rate < math.inf):
        raise ValueError(f"expected whole distill_epochs of at least 0 and a rate above 0, got {epochs} and {learning_rate}")
    if not 0 <= masks <= MOST_PARTICLES:
        raise ValueError(
            f"expected distill_masks of 0, by moments, to {MOST_PARTICLES}, draws whose mean a student is told, got {masks}"
        )
    with evaluating(model):
        rows = to_device(data.train.x[torch.arange(min(2, len(data.train.y)))], model.initial.device)
        outcome = model.outcome(model.initial, rows)
    cross_entropy(outcome, outcome)


def _distill(
    teachers: Teachers, data: Data, lessons: Lessons, training: Training, streams: Streams, inputs: Rows | None, watch: Watch
) -> Fit:
    fit, asked_for, lessons = teachers.first.fit, lessons.asked(), lessons.of(teachers)
    sources = [data] if inputs is None else [data, unlabelled(data, inputs)]
    earlier = fit.record.get("distilled", {}).get("epochs", 0)  # rows of another student
    own = fit.history[: len(fit.history) - earlier]
    trained = [{name: value for name, value in row.items() if name != "distill_loss"} for row in own]  # of an earlier version
    before = trained[-1]
    per_epoch = sum(training.steps_per_epoch(source) for source in sources)
    steps = lessons.steps(per_epoch, before["step"])
    asked = {"kind": "distillation", **training.said(), **asked_for, "microbatches": teachers.microbatches,
             "seed": streams.default, "inputs": "" if inputs is None else digest_of(inputs), "teachers": len(teachers.all),
             "data": store.sha256(store.canonical(data.hashes).encode())[:12], "preparation of the data": prepared_as(data),
             "taught_by": [store.tensor_digest(teacher.values)[:12] for teacher in teachers.all]}  # fmt: skip
    assert lessons.learning_rate is not None
    student = Student(fit.model, *teachers.first.mean(), rates.cosine(lessons.learning_rate, steps), training.precision)
    history: list[dict[str, Any]] = []
    stopped = ""
    streams.seed_default()
    saved = watch.resume()
    if saved is not None:
        check_asked(saved.facts, asked)
        history, stopped = saved.facts["history"], saved.facts.get("stopped", "")
        student.restore(saved)
        streams.restore(under("stream.", saved.tensors))
    watch.on_begin(history)
    together = batches_at_once(data, training)
    while student.taken < steps and not stopped:
        losses, number = [], before["epoch"] + len(history) + 1
        streams.part_ways(number)
        with ExitStack() as nets:
            nets.enter_context(teachers.training())  # batch norm by the batch, for the student, and for draws alike
            for teacher in teachers.all:
                nets.enter_context(distributed.synchronised(teacher.fit.model.net, streams.device))
            running = islice(mingled(sources, training, streams), steps - student.taken)
            while some := [*islice(running, together)]:
                with _refused(teachers):
                    every = teachers.tell(some, streams.mask, student.taken)
                for x, told in zip(some, every, strict=True):
                    losses.append(student.learn(x, told, fit.dense))
                    watch.on_step(Info(before["step"] + student.taken, losses[-1], -losses[-1], torch.zeros(()), 0))
        student.finite.settle()
        row = {"epoch": number, "step": before["step"] + student.taken, "loss": float(torch.stack(losses).mean()),
               "learning_rate": student.rate(student.taken), "density": fit.topology.density, "exchanged": 0}  # fmt: skip
        history.append(row | _validate(fit, data, *student.network()))
        stopped = distributed.first_said(watch.on_epoch(history[-1]))
        watch.keep(partial(_checkpoint, student, streams, history, stopped, asked))
    with _refused(teachers):
        reached, ticket = settle(teachers, data, student)
    if not reached <= ticket + WORSE * max(1.0, abs(ticket)):
        raise Refused(
            f"the distilled net ended farther from its teacher than the ticket, {reached:.4g} against {ticket:.4g} nats: "
            "lower the distill_rate"
        )
    fit.history = [*trained, *history]
    facts = {**lessons._asdict(), "epochs": len(history), "loss": history[-1]["loss"], "steps": student.taken,
             "num_teachers": len(teachers.all)}  # fmt: skip
    facts |= {"unlabelled": len(inputs)} if inputs is not None else {}
    hand_out(fit, data, student, facts | ending(history, stopped, math.ceil(steps / per_epoch)), teachers)
    return fit


def batches_at_once(data: Data, training: Training) -> int:
    """Batches that a student is told of at once: of `TOGETHER` rows, and no more numbers than a prediction takes."""
    numbers = sum(int(leaf.numel()) for leaf in nested.leaves(data.example()))
    return max(1, min(TOGETHER, NUMBERS // max(1, numbers)) // training.batch_size)


@contextmanager
def _refused(teachers: Teachers) -> Iterator[None]:
    """Raises Refused where moments fail: a network may go by the number of rows."""
    try:
        yield
    except (ValueError, RuntimeError) as why:
        if teachers.masks:
            raise
        raise Refused(f"moments of a batch failed ({why}): say how many draws it is told of, in distill_masks") from why


def unlabelled(data: Data, inputs: Rows) -> Data:
    """The data with these inputs in the place of its training rows: labels are not looked at."""
    return data._replace(train=Split(inputs, data.train.y.new_zeros(len(inputs), *data.train.y.shape[1:])))


def mingled(sources: Sequence[Data], training: Training, streams: Streams) -> Iterator[Any]:
    """Inputs of an epoch: batches of training, or of several sources each its own, in a random order."""
    running = [batches(source, training, streams) for source in sources]
    steps = [torch.full((training.steps_per_epoch(source),), place) for place, source in enumerate(sources)]
    turns = torch.cat(steps)
    if len(sources) > 1:
        turns = turns[torch.randperm(len(turns), generator=streams.order)]
    for place in turns.tolist():
        yield next(running[place])[0]


def settle(teachers: Teachers, data: Data, student: Student) -> tuple[float, float]:
    """Give a learned precision its optimum; the cross-entropy from the teachers to the student and to the ticket, nats, at
    the first training rows."""
    rows = to_device(data.train.x[torch.arange(min(SHOWN, len(data.train.y)))], teachers.device)
    with ExitStack() as nets:  # no dropout of the networks' own, which no prediction has
        for teacher in teachers.all:
            nets.enter_context(batchnorm.by_the_batch(teacher.fit.model))
        told = [*teachers.each(rows)]
        student.match_precision(told, rows, teachers.first.fit.dense)
        reached, ticket = teachers.distances(told, rows, student.network(), teachers.first.ticket())
    return reached, ticket


def hand_out(fit: Fit, data: Data, student: Student, facts: dict[str, Any], teachers: Teachers) -> None:
    """The student as the fit's way to predict `distilled`; of classes, no surer than its teachers, and with what its logits say
    of their disagreement."""
    fit.record.pop("refused", None)
    fit.record |= {"distilled": facts}
    values, state = student.network()
    fit.student = (values, batchnorm.estimate(fit.model, fit.dense(values), state, fit.inputs) if fit.inputs else state)
    if one_pass.has_level(fit.model):
        facts["temperature"] = temper(fit, data, teachers, own_stream(0, STREAM))
        rows = data.train.x[torch.arange(min(SHOWN, len(data.train.y)))]
        facts["information"] = list(one_pass.fitted(one_pass.energy(fit, rows), teachers.probs(rows), sampled=teachers.sampled))


def _checkpoint(
    student: Student, streams: Streams, history: list[dict[str, Any]], stopped: str, asked: dict[str, Any]
) -> Bundle:
    tensors, facts = student.bundle()
    tensors |= {f"stream.{name}": state for name, state in streams.state().items()}
    return Bundle(tensors, {**facts, "history": history, "stopped": stopped, "asked": asked})


def _validate(fit: Fit, data: Data, values: Tensor, state: State) -> dict[str, float]:
    if not len(data.validation.y):
        return {}
    try:
        return validation_scores(outcome_of(fit.model, fit.dense(values), data.validation.x, state), data)
    except RuntimeError as why:
        raise Refused("the distilled net's outputs stopped being finite: lower the distill_rate") from why
