"""How long, how fast and where: the options that every inference shares, and the prior they imply."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from espalier import compiled, losses, nested
from espalier.contracts import Data, number
from espalier.data.streamed import seeded
from espalier.distributions.priors import prior_scale_of, weight_decay_of
from espalier.likelihoods import Categorical
from espalier.network import BayesianNetwork, copied, evaluating
from espalier.prediction.predict import to_device
from espalier.randomness import forked
from espalier.training import rates
from espalier.training.checks import check_buffers, check_fit, check_single
from espalier.training.stopping import check_patience
from espalier.training.streams import Streams, find_device, one_at_a_time

DEFAULT_WEIGHT_DECAY = 1e-4
MOST_EPOCHS = 10**6

# Options that inferences share, beside those of `topology/options.py`.
AverageFrom = Annotated[float, "fraction of training after which pairs are collected"]
Seed = Annotated[int, "of everything random"]


def words_of(hint: Any) -> tuple[str, ...]:
    """The words that an option may be, where it is a choice of words."""
    return tuple(word for part in (hint, *get_args(hint)) if get_origin(part) is Literal for word in get_args(part))


@dataclass(frozen=True)
class Training:
    """How long, how fast and where: the options that every inference shares.

    epochs: passes over the training split. batch_size: examples of a step; an incomplete last batch is left out.
    optimizer: sgd (Nesterov momentum; plain under a sampler's noise) or adam. learning_rate: its peak. momentum: of sgd.
    rate: cosine, stepwise, constant, or swa (constant, then linear to a twentieth at 75 %).
    warmup: steps of linear increase before it.
    decay_every: steps between the decays of stepwise. decay_factor: what each multiplies the rate by.
    weight_decay: coupled L2, per datum; None takes it from the model's prior_scale, or 1e-4 where it has none.
    augment: none, or crop-flip (pad by an eighth, crop at random, flip). In Python also a callable of yours, from a batch
    `(b, *shape)` on the device to one like it; its draws from torch, NumPy and `random` are seeded. device: auto, cpu,
    cuda, cuda:1.
    loss: what pulls the weights, in place of the likelihood: gradient-decay:B[:WARMUP], gradient-decay-pid, dro:TEMPERATURE,
    dro-released:TEMPERATURE, moon[:EPOCHS], nrs:EPS[:RHO] (`espalier.losses`). In Python also a function of yours, `(logits,
    labels, progress) -> (m,)`.
    label_smoothing: mass that a label gives away to all classes alike (Szegedy et al. 2016). mixup: alpha of the
    Beta(alpha, alpha) weight by which pairs of examples and their labels are mixed (Zhang et al. 2018), 0 is none.
    precision: float32, or bf16 autocast. bn_batches: training batches that batch-norm statistics are re-estimated on.
    batchnorm: re-estimate for every weight vector that predicts, or running (what training left, as an ablation; a distilled
        net's are re-estimated all the same, since no training has run over its own).
    compile: networks by torch.compile, for convolutions: a minute or two before the first step, no weights unwritten after it.
    patience: epochs without a lower validation NLL after which training ends, 0 is never.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    rate: Literal["cosine", "stepwise", "constant", "swa"] = "cosine"
    warmup: int = 0
    decay_every: int = 20000
    decay_factor: float = 0.5
    weight_decay: float | None = None
    augment: Literal["none", "crop-flip"] | Callable[[Tensor], Tensor] = "none"
    loss: str | losses.Function = losses.LIKELIHOOD
    label_smoothing: float = 0.0
    mixup: float = 0.0
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    bn_batches: int = 16
    batchnorm: Literal["re-estimate", "running"] = "re-estimate"
    compile: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            words = words_of(hint)
            if words and not callable(getattr(self, name)) and getattr(self, name) not in words:
                raise ValueError(f"expected {name} of {', '.join(words)}, got {getattr(self, name)!r}")
            self._number(name, hint)
        if self.warmup < 0 or self.decay_every < 1:
            raise ValueError(
                f"expected warmup of at least 0 and decay_every of at least 1, got {self.warmup}, {self.decay_every}"
            )
        for name, most in (("epochs", MOST_EPOCHS), ("batch_size", 10**7), ("bn_batches", 10**5)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"expected {name} of at least 1 and at most {most:,}, got {getattr(self, name)}")
        if self.patience < 0:
            raise ValueError(f"expected patience of 0 or more epochs, got {self.patience}: 0 trains to the end")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"expected a learning_rate above 0, got {self.learning_rate}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"expected a decay_factor in (0, 1], got {self.decay_factor}: the rate is multiplied by it")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {self.momentum}")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.mixup < math.inf:
            raise ValueError(
                f"expected label_smoothing in [0, 1) and mixup of 0 or more, got {self.label_smoothing} and {self.mixup}"
            )
        if losses.named(self.loss) is not None and (self.label_smoothing or self.mixup):
            raise ValueError("expected hard labels for a loss other than the likelihood: leave label_smoothing and mixup at 0")
        if self.weight_decay is not None and not self.weight_decay > 0:
            raise ValueError(
                f"expected a weight_decay above 0, got {self.weight_decay}: it is the precision of the prior"
            )

    def _number(self, name: str, hint: Any) -> None:
        """Keep a number as Python's own: NumPy's are none in a record. Raises ValueError for what is no number."""
        kinds, value = (hint, *get_args(hint)), getattr(self, name)
        kind = int if int in kinds else float if float in kinds else None
        if kind is None or value is None:
            return
        object.__setattr__(self, name, number(value, kind, name))

    def steps_per_epoch(self, data: Data) -> int:
        """Whole batches of the training split; a split smaller than a batch is one batch."""
        return max(1, len(data.train.y) // self.batch_size)

    def steps(self, data: Data) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch(data)

    def step_at(self, fraction: float, data: Data) -> int:
        """The step at which this fraction of training is over. Raises ValueError outside [0, 1]."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"expected a fraction of training in [0, 1], got {fraction}")
        return int(round(fraction * self.steps(data), 9))  # .29 of 100 is 29

    def said(self) -> dict[str, Any]:
        """What was said of it, JSON-able, but for where it runs and when it is to be ended early: for who resumes."""
        names = [field.name for field in fields(self) if field.name not in ("device", "compile", "patience")]
        return {name: _named(value) if callable(value) else value for name in names for value in [getattr(self, name)]}

    def check_with(self, data: Data) -> None:
        """Raises ValueError for what these data make impossible: for programs of several trainings, before the first."""
        check_patience(self.patience, data)
        self.learning_rates(self.steps(data))

    def learning_rates(self, steps: int) -> rates.Rate:
        """The learning rate of every step, counted from 1. Raises ValueError where all of them are warm-up."""
        if self.warmup >= steps:
            raise ValueError(f"expected a warmup of fewer steps than the {steps} of this training, got {self.warmup}: lower it")
        if self.rate == "cosine":
            return rates.cosine(self.learning_rate, steps, self.warmup)
        if self.rate == "stepwise":
            return rates.stepwise(self.learning_rate, self.decay_every, self.decay_factor, self.warmup)
        if self.rate == "swa":
            return rates.swa(self.learning_rate, steps, self.warmup)
        return rates.constant(self.learning_rate, self.warmup)


def _named(own: Callable[..., Any]) -> str:
    """Of a function of one's own, where it is from."""
    return f"{own.__module__}.{getattr(own, '__qualname__', type(own).__qualname__)}"


def augmented(augment: Callable[[Any], Any], x: Any, seed: int, index: int) -> Any:
    """A user's own augmentation of a batch x `(b, *shape)`; what it draws on the CPU is decided by seed and index.

    Raises ValueError where it does not give back a batch like the one it was given.
    """
    with seeded(seed, index):
        result = augment(x)
    if nested.each(_kind, x) != nested.each(_kind, result):
        before, after = (nested.each(_told, batch) for batch in (x, result))
        raise ValueError(f"expected augment to give back a batch like the one it gets, {before}, got {after}")
    return result


def _kind(tensor: Any) -> Any:
    return (tensor.shape, tensor.dtype) if isinstance(tensor, Tensor) else type(tensor)


def _told(tensor: Any) -> str:
    """Kind and shape of a tensor, in words."""
    return f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__


def opened(model: BayesianNetwork, data: Data, training: Training, seed: int) -> Streams:
    """What every program begins with: its random numbers, on the device that is asked for. Raises ValueError for a model, data or
    options that are none."""
    _check_kinds(model, data, training)
    return Streams(seed, find_device(training.device))


def _check_kinds(model: Any, data: Any, training: Any) -> None:
    if not isinstance(model, BayesianNetwork):
        raise ValueError(f"expected a BayesianNetwork, got {type(model).__name__}: wrap it, BayesianNetwork(net)")
    if not isinstance(data, Data):
        raise ValueError(
            f"expected Data, got {type(data).__name__}: load_data(name), or espalier.data.from_arrays(x, y) with your own"
        )
    if not isinstance(training, Training):
        raise ValueError(f"expected a Training, got {type(training).__name__}: Training(epochs=30, batch_size=128)")


@one_at_a_time
def prepare(
    model: BayesianNetwork, data: Data, training: Training, *, keep_prob: float = 1.0, rescale: bool = False
) -> BayesianNetwork:
    """A copy of the model, on its device, that knows N and the prior; weight_decay and prior_scale made to agree.

    Raises ValueError where both are given, or where the likelihood cannot be asked about these targets.
    """
    _check_kinds(model, data, training)
    data.check()
    check_patience(training.patience, data)
    new = model.num_data is None  # one that was prepared before has both, and they agree
    if model.prior_scale is not None and (training.weight_decay is not None or (new and model.weight_decay)):
        raise ValueError("expected a prior_scale or a weight_decay, got both: one implies the other")
    if training.augment == "crop-flip" and (len(data.shape) != 3 or not isinstance(data.shape[0], int)):
        raise ValueError(
            f"expected images (channels, height, width) for augment {training.augment}, got shape {data.shape}"
        )
    if training.augment != "none" and data.train.y.dim() > 1:
        raise ValueError(
            f"expected one label per example to augment, got targets of shape {tuple(data.train.y.shape)}: "
            "images would be moved and their masks would not; turn both yourself"
        )
    if extra := [name for name, value in model.net.state_dict().items() if not isinstance(value, Tensor)]:
        raise ValueError(f"expected a network whose state is tensors, but {extra[0]} is none: take get_extra_state out of it")
    if training.mixup and not all(leaf.is_floating_point() for leaf in nested.leaves(data.example())):
        raise ValueError(f"expected inputs that are real numbers to mix, but {data.name} has whole ones: leave mixup at 0")
    if min(training.batch_size, len(data.train.y)) == 1:
        check_single(model, data)
    check_buffers(model, data)
    for name, module in model.net.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f"expected a network of dense gradients, but {name} gives sparse ones: build it with sparse=False")
    if data.num_classes is None and (training.label_smoothing or training.mixup):
        raise ValueError(f"expected labels to smooth or to mix, but {data.name} has real-valued targets")
    check_fit(model, data, soft=bool(training.label_smoothing or training.mixup))
    if training.compile:
        compiled.check(model.net)
    loss = losses.named(training.loss)
    if loss is not None and not isinstance(model.likelihood, Categorical):
        said = type(model.likelihood).__name__
        raise ValueError(f"expected the categorical likelihood for loss {training.loss}, got {said}: leave loss at likelihood")
    if isinstance(loss, losses.Remembering):
        loss = copy.deepcopy(loss)  # one's own may be given to several trainings, and each remembers its own
        loss.meet(model, data, find_device(training.device))
    if callable(training.augment):
        augmented(training.augment, data.train.x[torch.arange(min(2, len(data.train.y)))], 0, 0)
    model = copied(model)
    model.num_data = len(data.train.y)
    if model.prior_scale is None:
        if training.weight_decay and model.weight_decay and training.weight_decay != model.weight_decay:
            raise ValueError(
                f"expected one weight_decay, got {model.weight_decay} of the model and {training.weight_decay} of the training"
            )
        model.weight_decay = training.weight_decay or model.weight_decay or DEFAULT_WEIGHT_DECAY
        model.prior_scale = prior_scale_of(model.weight_decay, model.num_data, keep_prob, rescale=rescale)
    else:
        model.weight_decay = weight_decay_of(model.prior_scale, model.num_data, keep_prob, rescale=rescale)
    if not (0 < model.prior_scale < math.inf and 0 < model.weight_decay < math.inf):
        raise ValueError(
            f"expected a prior that float64 can hold, got scale {model.prior_scale:g} and weight_decay {model.weight_decay:g}"
        )
    model.compiled = "training" if training.compile else "no"
    model.loss = None if loss is None else losses.Loss(training.loss, loss, training.steps(data), training.epochs)
    if callable(training.loss) and model.loss is not None:
        rows = torch.arange(min(2, len(data.train.y)))
        with forked(model.initial.device), evaluating(model):
            x, y = (to_device(part[rows], model.initial.device) for part in data.train)
            with torch.no_grad():
                output = model.evaluate(model.initial, x)
            with torch.enable_grad():  # a loss may ask for gradients itself
                model.loss.check(output.requires_grad_() if isinstance(output, Tensor) else output, y)
    return model.to(find_device(training.device))  # type: ignore[no-any-return]
