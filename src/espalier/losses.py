"""Losses in the likelihood's place: what pulls the weights, while predictions stay the likelihood's.

The Pyro model has one as `factor("y", -loss)`, so that what is fitted is a Gibbs posterior (Bissiri, Holmes & Walker 2016), by
every inference, topology and mask alike. A new one is a function `(logits (m, C), labels (m,), progress) -> (m,)`, in nats per
label; see `Progress`. Of several processes each sees its own share of a batch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed

from espalier import nested
from espalier.bounds import Bounds, bounds, nrs
from espalier.compiled import uncompiled
from espalier.data.balls import Ball, ball_of
from espalier.data.streamed import some
from espalier.followers import Follower
from espalier.likelihoods import WithUnknown
from espalier.sparse import Unwritten
from espalier.sparse.trial import evaluating
from espalier.store import Bundle

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.guides.masked import MaskedGuide
    from espalier.network import BayesianNetwork
    from espalier.prediction.fit import Fit


class Progress(NamedTuple):
    """How far a training is: `taken` of `steps` steps, in `epochs` epochs."""

    taken: int
    steps: int
    epochs: int

    @property
    def fraction(self) -> float:
        """In [0, 1)."""
        return self.taken / self.steps

    @property
    def epoch(self) -> int:
        """Counted from 1."""
        return 1 + self.taken * self.epochs // self.steps


Function = Callable[[Tensor, Tensor, Progress], Tensor]
LIKELIHOOD = "likelihood"
SMALL = 0.01
"""Where the warm-up of `gradient-decay` begins; ours, the paper's schedule is not public."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(z)_y of each label, nats. Raises RuntimeError for a label that is no class."""
    return -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def gradient_decay(logits: Tensor, y: Tensor, b: float) -> Tensor:
    """J_b = log(sum_{i != y} e^{z_i} + b e^{z_y}) - z_y (Zhang & Xie 2024): the larger b > 0, the sooner right answers
    stop pulling.

    Computed as the cross-entropy of z + log(b) onehot(y), plus log b, which it equals; b = 1 is the cross-entropy.
    """
    margin = torch.zeros_like(logits).scatter_(-1, y.unsqueeze(-1), math.log(b))
    return cross_entropy(logits + margin, y) + math.log(b)


def robust(logits: Tensor, y: Tensor, temperature: float, *, through: bool = False) -> Tensor:
    """m p_i l_i, l the cross-entropies of m labels and p_i proportional to exp(l_i / temperature): their mean is sum p_i l_i, the
    worst case that a KL of price `temperature` allows (Sapkota et al. 2023).

    The gradient is p_i grad l_i (Danskin); `through` lets it run through p too, as the paper's released code does, which
    multiplies it by 1 + (l_i - sum p l) / temperature.
    """
    losses = cross_entropy(logits, y)
    shares = (losses / temperature).softmax(0)
    return len(losses) * (shares if through else shares.detach()) * losses


def _gradient_decay(b: float, warmup: float = 0.0) -> Function:
    if not b > 0 or not 0 <= warmup <= 1:
        raise ValueError(f"expected a b above 0 and a warmup in [0, 1], a fraction of training, got {b:g} and {warmup:g}")

    def loss(logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        reached = min(1.0, progress.fraction / warmup) if warmup else 1.0
        start = min(SMALL, b)
        return gradient_decay(logits, y, start + (b - start) * reached)

    return loss


def _robust(through: bool) -> Callable[[float], Function]:
    def of(temperature: float) -> Function:
        if not temperature > 0:
            raise ValueError(f"expected a temperature above 0, got {temperature:g}: large is the mean, small the worst label")

        def loss(logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
            return robust(logits, y, temperature / 2 * (1 + math.cos(math.pi * progress.fraction)), through=through)

        return loss

    return of


def abstaining(logits: Tensor, y: Tensor, alpha: float) -> Tensor:
    """w l, l the cross-entropy of the classes and one more output, "unknown", of probability a: w is 1 where the largest of all
    outputs is the label, else 1 + alpha / (1 + alpha a), which mass on "unknown" lowers (Lei et al. 2024, MOON).

    The gradient runs through a, which is at most 1 - 1e-7, and through l.
    """
    losses, unknown = cross_entropy(logits, y), logits.softmax(-1)[..., -1].clamp(max=1 - 1e-7)
    return losses * torch.where(logits.argmax(-1) == y, 1.0, 1 + alpha / (1 + alpha * unknown))


def over_processes(number: Tensor) -> float:
    """Its mean over the processes that train together."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(number)
        number /= distributed.get_world_size()
    return float(number)


class Remembering:
    """A loss with a state of its own, `memory`, which checkpoints have. outputs: of a network beyond one for each class.
    least_epochs: of a training, for there to be anything of it."""

    outputs, least_epochs = 0, 1

    def __init__(self) -> None:
        self.memory = dict[str, float]()

    def __call__(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        raise NotImplementedError

    def meet(self, model: BayesianNetwork, data: Data, device: torch.device) -> None:
        """Before any work. Raises ValueError where the loss cannot be had of this model and these data."""

    def beside(self, weights: Tensor, x: Any, model: BayesianNetwork) -> Tensor | None:
        """What each example's loss has beside that of the outputs, `(n,)`, under a draw of the weights: None is nothing."""
        return None

    def told(self, progress: Progress, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """A step is taken."""

    def row(self) -> Mapping[str, float]:
        """What the history keeps of the epoch that ends."""
        return {}


class Moon(Remembering):
    """`abstaining`, its alpha as the authors' code has it: none in the first epochs, in which the running mean of (1 - a) l is
    kept; then a 64th of that, and in equal steps, one an epoch, up to 1 in the last."""

    outputs = 1
    DECAY, SHARE = 0.95, 1 / 64

    def __init__(self, epochs: float = 5) -> None:
        if epochs < 1 or epochs != int(epochs):
            raise ValueError(f"expected a whole number of epochs of plain cross-entropy, at least 1, got {epochs:g}")
        super().__init__()
        self.epochs = int(epochs)
        self.least_epochs = self.epochs + 1
        self.seen: Tensor | None = None

    def meet(self, model: BayesianNetwork, data: Data, device: torch.device) -> None:
        if not isinstance(model.likelihood, WithUnknown):
            raise ValueError(
                "expected a network with one output more than classes and likelihood categorical-unknown for loss moon, got "
                f"{type(model.likelihood).__name__}: BayesianNetwork(net, likelihood='categorical-unknown')"
            )

    def alpha(self, progress: Progress) -> float:
        """Of a step in an epoch after the first ones."""
        start = self.memory["mean"] * self.SHARE
        first, last = self.epochs + 1, progress.epochs
        return start + (1 - start) * (progress.epoch - first) / max(1, last - first)

    def __call__(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        if progress.epoch > self.epochs:
            return abstaining(logits, y, self.alpha(progress))
        losses = cross_entropy(logits, y)
        if self.seen is None and torch.is_grad_enabled():  # the step's own, and nothing asked before or after it
            self.seen = ((1 - logits.detach().softmax(-1)[..., -1]) * losses.detach()).mean()
        return losses

    def told(self, progress: Progress, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """What the step has seen counts. (A loss may be asked for more often than there are steps.)"""
        if self.seen is None:
            return
        new, self.seen = over_processes(self.seen), None
        self.memory = {"mean": self.DECAY * self.memory.get("mean", new) + (1 - self.DECAY) * new}


class Controlled(Remembering):
    """`gradient_decay`, b set once an epoch by a PID controller on validation rows, so that a network is as sure as it is right:

        log b = kp e + ki (sum of all e) + kd (e - the last one),  e = (mean confidence - accuracy) / accuracy

    of the posterior mean, log b within [0, log 1000]; and the loss times b's effect on the size of the gradient, so that steps
    stay as large. After the idea of Zhang & Xie's follow-up (NeurIPS 2024), whose constants are not public: these are ours.
    """

    MOST, ROWS = math.log(1000.0), 1000

    def __init__(self, kp: float = 5.0, ki: float = 2.0, kd: float = 0.0) -> None:
        if min(kp, ki, kd) < 0 or kp + ki == 0:
            raise ValueError(f"expected gains of 0 or more, not all 0, got {kp:g}, {ki:g} and {kd:g}")
        super().__init__()
        self.gains = kp, ki, kd
        self.memory = {"log_b": 0.0, "sum": 0.0, "last": 0.0}
        self.rows: tuple[Any, Tensor] | None = None

    def meet(self, model: BayesianNetwork, data: Data, device: torch.device) -> None:
        x, y = data.validation
        if not len(y) or y.dim() > 1:
            raise ValueError("expected a validation split with one label per example for loss gradient-decay-pid: keep one")
        rows = some(len(y), self.ROWS)
        self.rows = nested.each(lambda part: part.to(device), x[rows]), y[rows].to(device)

    def told(self, progress: Progress, model: BayesianNetwork, guide: MaskedGuide) -> None:
        if progress.taken * progress.epochs % progress.steps == 0:
            error = torch.tensor(self.look(model, guide), dtype=torch.float64, device=guide.values.device)
            self.step(over_processes(error))  # batch norm has not yet the same statistics in all of them

    def row(self) -> Mapping[str, float]:
        return {"b": math.exp(self.memory["log_b"])}

    def __call__(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        b = math.exp(self.memory["log_b"])
        wrong = 1 - logits.detach().softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        left = (wrong / (1 + (b - 1) * (1 - wrong))).mean()  # of the pull on the label's logit
        return gradient_decay(logits, y, b) * (wrong.mean() / left.clamp(min=torch.finfo(left.dtype).tiny)).clamp(1.0, b)

    def step(self, error: float) -> None:
        """One step of the controller."""
        kp, ki, kd = self.gains
        total, last = self.memory["sum"] + error, self.memory["last"]
        free = kp * error + ki * total + kd * (error - last)
        log_b = min(max(free, 0.0), self.MOST)
        # What a bound holds back is not saved up (anti-windup).
        self.memory = {"log_b": log_b, "sum": total if log_b == free else self.memory["sum"], "last": error}

    @torch.no_grad()
    def look(self, model: BayesianNetwork, guide: MaskedGuide) -> float:
        """e, on the validation rows that `meet` chose."""
        assert self.rows is not None
        with evaluating(model):
            x, y = self.rows
            p: Tensor = model.evaluate(guide.distribution().mean, x).softmax(-1)
            accuracy = float((p.argmax(-1) == y).double().mean())
            confidence = float(p.max(-1).values.double().mean())
            return (confidence - accuracy) / max(accuracy, 1 / len(p[0]))


class Stable(Remembering):
    """Cross-entropy plus rho R, R of `bounds.nrs` for inputs within eps (`data.balls`): ReLUs that keep their side there make a
    network's robustness easier to certify (Li et al. 2022, NRS). Batch norm counts by its running statistics, as in the released
    code, and the network's own dropout as in prediction."""

    def __init__(self, eps: float, rho: float = 0.01) -> None:
        if not 0 < eps < math.inf or not 0 < rho < math.inf:
            raise ValueError(f"expected an eps and a rho above 0, got {eps:g} and {rho:g}")
        super().__init__()
        self.eps, self.rho = eps, rho
        self.ball: Ball | None = None

    def meet(self, model: BayesianNetwork, data: Data, device: torch.device) -> None:
        self.ball = ball_of(data, self.eps)
        with torch.no_grad():
            rows = data.train.x[torch.arange(min(2, len(data.train.y)))]
            nrs(self.bounds(model.initial, rows.to(model.initial.device), model).relus)

    def bounds(self, weights: Tensor, x: Tensor, model: BayesianNetwork) -> Bounds:
        assert self.ball is not None
        dense = weights.dense() if isinstance(weights, Unwritten) else weights
        with evaluating(model), uncompiled(model), torch.autocast(x.device.type, enabled=False):
            return bounds(lambda box: model.evaluate(dense, box), *self.ball.box(x))

    def beside(self, weights: Tensor, x: Any, model: BayesianNetwork) -> Tensor:
        return self.rho * nrs(self.bounds(weights, x, model).relus)

    def __call__(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        return cross_entropy(logits, y)


LOSSES: Mapping[str, tuple[Callable[..., Function], str]] = {
    "gradient-decay": (_gradient_decay, "gradient-decay:B or gradient-decay:B:WARMUP"),
    "dro": (_robust(through=False), "dro:TEMPERATURE"),
    "dro-released": (_robust(through=True), "dro-released:TEMPERATURE"),
    "gradient-decay-pid": (Controlled, "gradient-decay-pid or gradient-decay-pid:KP:KI:KD"),
    "moon": (Moon, "moon or moon:EPOCHS"),
    "nrs": (Stable, "nrs:EPS or nrs:EPS:RHO"),
}
"""By name: what makes one of its numbers, and how they are written. The temperature of dro falls to 0 by half a cosine."""


def built(factory: Callable[..., Any], shape: Sequence[int], num_outputs: int, spec: str | Function, **options: Any) -> Any:
    """The model of a program, `factory(shape, num_outputs, **options)`, as a loss needs it: for moon with one output more and
    the likelihood that knows it."""
    loss = named(spec)
    if not isinstance(loss, Remembering) or not loss.outputs:
        return factory(shape, num_outputs, **options)
    model = factory(shape, num_outputs + loss.outputs, **options)
    model.likelihood = WithUnknown()
    return model


def named(spec: str | Function) -> Function | None:
    """The function that is meant by `NAME:NUMBER...`, or one's own; None for the likelihood.

    Raises ValueError for a name that none has, and for numbers that it does not take.
    """
    if callable(spec):
        return spec
    if spec == LIKELIHOOD:
        return None
    name, *numbers = spec.split(":") if isinstance(spec, str) else [""]
    if name not in LOSSES:
        raise ValueError(f"expected a loss of {LIKELIHOOD}, {', '.join(form for _, form in LOSSES.values())}, got {spec!r}")
    make, form = LOSSES[name]
    try:
        given = [float(number) for number in numbers]
        if not all(map(math.isfinite, given)):
            raise ValueError("expected finite numbers")
        return make(*given)
    except (TypeError, ValueError) as error:
        why = str(error) if str(error).startswith("expected") else "other numbers than it takes"
        raise ValueError(f"expected a loss {form}, got {spec!r}: {why}") from error


class Loss(Follower):
    """One loss of one training, which it follows: its state is in the checkpoints."""

    def __init__(self, spec: str | Function, function: Function, steps: int, epochs: int) -> None:
        self.name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
        self.function, self.progress = function, Progress(0, steps, epochs)

    def __call__(self, logits: Any, y: Tensor) -> Tensor:
        """Of each example `(n,)`, the sum over its labels `(n, ...)`. Raises ValueError for logits that are not `(n, ..., C)`."""
        if not isinstance(logits, Tensor) or logits.shape[:-1] != y.shape or y.is_floating_point():
            said = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"expected a tensor of logits, one row for each of the labels {tuple(y.shape)}, for loss {self.name}, got {said}"
            )
        at = self.progress._replace(taken=min(self.progress.taken, self.progress.steps - 1))  # afterwards, as at the last step
        each = self.function(logits.flatten(0, -2), y.flatten().long(), at)
        if each.shape != (y.numel(),):
            of = tuple(each.shape)
            raise ValueError(f"expected loss {self.name} to give one number for each of {y.numel()} labels, got {of}")
        return each.view(len(y), -1).sum(1)

    def check(self, logits: Any, y: Tensor) -> None:
        """Raises ValueError where a function of one's own fails on these: before a training, not in its first step."""
        try:
            self(logits, y)
        except (TypeError, AttributeError, LookupError, RuntimeError) as error:
            raise ValueError(
                f"expected a loss of (logits (m, C), labels (m,), progress) that gives (m,), but {self.name} fails on "
                f"{len(y)} rows: {str(error).splitlines()[0]}"
            ) from error

    def beside(self, weights: Tensor, x: Any, model: BayesianNetwork) -> Tensor | None:
        """See `Remembering`."""
        return self.function.beside(weights, x, model) if isinstance(self.function, Remembering) else None

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.progress = self.progress._replace(taken=taken)
        if isinstance(self.function, Remembering):
            self.function.told(self.progress, model, guide)

    def row(self) -> Mapping[str, float]:
        return self.function.row() if isinstance(self.function, Remembering) else {}

    def bundle(self) -> Bundle:
        return Bundle({}, {"loss": self.function.memory} if isinstance(self.function, Remembering) else {})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.progress = self.progress._replace(taken=saved.facts["step"])
        if isinstance(self.function, Remembering):
            self.function.memory = saved.facts["loss"]

    def end(self, fit: Fit, data: Data) -> None:
        fit.record["loss"] = self.name
        least = getattr(self.function, "least_epochs", 1)
        if self.progress.epochs < least:
            warnings.warn(f"loss {self.name} never began: it wants {least} epochs, and had {self.progress.epochs}", stacklevel=2)
