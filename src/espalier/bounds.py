"""Interval bounds: how small and how large a network's units can be while its input is anywhere in a box.

A network is called on an `Interval` in its input's place, which answers torch's functions by the rules of interval arithmetic
(Gowal et al. 2018, IBP): of a map W x + b the centre goes through W and the radius through |W|, and what is monotone is taken at
both ends. So any `forward` will do, with branches and sums, as long as every function in it has a rule here; a function that
has none is refused by name. Batch norm counts by its running statistics, dropout as in prediction.

The bounds hold in exact arithmetic: in float64 rounding is some 1e-15 of a unit's size. They can be wide, and are not the
tightest that are known (CROWN's are tighter); for one linear map they are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

TINY = 1e-20
"""Added to a squared batch-norm scale (as the released code of Li et al. has it)."""
_POOLS = {f"{kind}{d}d" for kind in ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool") for d in (1, 2, 3)}
_SHAPES = {
    "flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "contiguous", "getitem",
    "cat", "pad",
}  # fmt: skip
_VIEWS = _SHAPES - {"cat", "pad"}
_MONOTONE = _POOLS | _SHAPES | {"mean", "sum", "sigmoid", "tanh"}
"""What never falls where its inputs rise."""
_CONVOLUTIONS = {f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)}


_WRITTEN = (
    "expected a network whose functions give tensors of their own, but {} has one that may have been written into through a "
    "view, or through what it is a view of: it has no bounds"
)


class Relu(NamedTuple):
    """What one layer of ReLUs is given: at least `lower`, at most `upper`, `(n, *units)` each. scale: of the batch norm before
    it, `(channels,)`. made_by: the Linear or Conv weight whose rows are the channels, where that is plain to see."""

    lower: Tensor
    upper: Tensor
    scale: Tensor | None = None
    made_by: Tensor | None = None


@final
class Interval:
    """All tensors between `lower` and `upper`. relus: those met on the way here, in order. affine: of the Linear layer that it
    has just come from the radius of its input, and the weight."""

    def __init__(
        self,
        lower: Tensor,
        upper: Tensor,
        relus: list[Relu],
        *,
        scale: Tensor | None = None,
        made_by: Tensor | None = None,
        affine: tuple[Tensor, Tensor] | None = None,
        memory: list[int] | None = None,
    ) -> None:
        self.lower, self.upper, self.relus = lower, upper, relus
        self.scale, self.made_by, self.affine = scale, made_by, affine
        # How often the memory was written into that it has with its views, and how often when it came to be.
        self.memory = [0] if memory is None else memory
        self.seen = self.memory[0]

    @property
    def centre(self) -> Tensor:
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        return (self.upper - self.lower) / 2

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _answer(func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        """A tensor's shape, and its methods, by the rules of the functions that they are."""
        if name in ("shape", "ndim", "dtype", "device", "dim", "size"):
            return getattr(self.lower, name)
        if name.startswith("_") or not callable(getattr(Tensor, name, None)):
            raise AttributeError(f"an interval has no {name}")
        return partial(_answer, getattr(Tensor, name), self)

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, index: Any) -> Interval:
        return _answer(Tensor.__getitem__, self, index)

    def __add__(self, other: Any) -> Interval:
        return _answer(torch.add, self, other)

    def __sub__(self, other: Any) -> Interval:
        return _answer(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Interval:
        return _answer(torch.add, -self, other)

    def __neg__(self) -> Interval:
        return _answer(torch.neg, self)

    def __mul__(self, other: Any) -> Interval:
        return _answer(torch.mul, self, other)

    def __truediv__(self, other: Any) -> Interval:
        return _answer(torch.div, self, other)

    __radd__, __rmul__ = __add__, __mul__

    # These write, as a tensor's do: without them Python would bind the name anew, and every alias keep what was there before.
    def __iadd__(self, other: Any) -> Interval:  # noqa: PYI034 - final
        return _answer(Tensor.add_, self, other)

    def __isub__(self, other: Any) -> Interval:  # noqa: PYI034
        return _answer(Tensor.sub_, self, other)

    def __imul__(self, other: Any) -> Interval:  # noqa: PYI034
        return _answer(Tensor.mul_, self, other)

    def __itruediv__(self, other: Any) -> Interval:  # noqa: PYI034
        return _answer(Tensor.div_, self, other)

    def __eq__(self, other: object) -> Any:
        return _answer(torch.eq, self, other)

    def __ne__(self, other: object) -> Any:
        return _answer(torch.ne, self, other)

    __hash__ = object.__hash__


class Bounds(NamedTuple):
    """What `bounds` found. lower, upper: of the outputs, `(n, ...)`. relus: of every layer of ReLUs, in order."""

    lower: Tensor
    upper: Tensor
    relus: list[Relu]
    affine: tuple[Tensor, Tensor] | None = None

    def margins(self, y: Tensor, num_classes: int | None = None) -> Tensor:
        """At least so much is z_y above every other logit of the first `num_classes` (all), `(n,)`: above 0, no input of the box
        is of another class. Of a last Linear layer by the rows' differences, which is tighter than by intervals of logits."""
        classes, rows = num_classes or self.lower.shape[-1], torch.arange(len(y), device=y.device)
        if self.affine is None:
            found = self.lower[rows, y].unsqueeze(1) - self.upper[:, :classes]
        else:
            radius, weight = self.affine
            logits, own = (self.lower + self.upper) / 2, weight[y]
            reach = torch.stack([((own - other).abs() * radius).sum(1) for other in weight[:classes]], 1)
            found = logits[rows, y].unsqueeze(1) - logits[:, :classes] - reach
        return found.scatter(1, y.unsqueeze(1), torch.inf).amin(1)


def bounds(net: Callable[[Any], Any], lower: Tensor, upper: Tensor) -> Bounds:
    """Bounds of a network's outputs and of what its ReLUs are given, for inputs in [lower, upper], `(n, *shape)`, one box a row.
    net: in evaluation mode. Differentiable in its weights.

    Raises ValueError for a network with a function that has no rule, or whose output is no tensor.
    """
    relus: list[Relu] = []
    try:
        found = net(Interval(lower, upper, relus))
    except (AttributeError, TypeError) as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"expected a network that computes with its input by torch's functions alone, but {why}") from error
    if not isinstance(found, Interval):
        raise ValueError(f"expected a network whose output is one tensor to have bounds of, got {type(found).__name__}")
    if found.seen != found.memory[0]:
        raise ValueError(_WRITTEN.format("its output"))
    return Bounds(found.lower, found.upper, relus, found.affine)


def stability(relu: Relu) -> Tensor:
    """tanh(1 + l u / (g^2 + 1e-20)) of every unit, `(n, *units)`: near 1 where l and u have one sign, the ReLU stable, and near
    -1 where 0 is far inside (Li et al. 2022; the scale g counts as given, and is 1 without batch norm: Xiao et al. 2019)."""
    product = relu.lower * relu.upper
    if relu.scale is not None:
        product = product / (_by_channel(relu.scale.detach(), product).square() + TINY)
    return torch.tanh(1 + product)


def nrs(relus: list[Relu]) -> Tensor:
    """R of each row, `(n,)`: less the mean `stability` of all units. Raises ValueError for a network without ReLUs."""
    if not relus:
        raise ValueError("expected a network with ReLUs to be stable, got none")
    each = [stability(relu).flatten(1) for relu in relus]
    return -torch.stack([one.sum(1) for one in each]).sum(0) / sum(one.shape[1] for one in each)


def unstable_ratio(relus: list[Relu]) -> Tensor:
    """Share of the ReLUs with l < 0 < u for each row, `(n,)`: those are not linear on the whole box."""
    each = [((relu.lower < 0) & (relu.upper > 0)).flatten(1) for relu in relus]
    return torch.cat(each, 1).double().mean(1)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _answer(func: Any, *args: Any, **kwargs: Any) -> Interval:
    """A function of torch's at arguments of which some are intervals; where it writes into the first, so does this."""
    name = func.__name__
    writes = kwargs.pop("inplace", False) or (name.endswith("_") and not name.endswith("__"))
    plain = name.strip("_")
    found = _answered(getattr(torch, plain, func) if writes else func, plain, *args, **kwargs)  # the ends are those of others too
    if not writes or "dropout" in name:  # of which only what changes nothing has an answer
        return found
    if not isinstance(args[0], Interval):
        raise ValueError(f"expected a function with a rule for its bounds, got {name}, which writes an interval into a tensor")
    memory = args[0].memory
    memory[0] += 1
    vars(args[0]).update(vars(found) | {"memory": memory, "seen": memory[0]})
    return args[0]


def _answered(func: Any, name: str, *args: Any, **kwargs: Any) -> Interval:
    intervals = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Interval)]
    if any(interval.seen != interval.memory[0] for interval in intervals):
        raise ValueError(_WRITTEN.format(name))
    first = intervals[0]
    alone = len(intervals) == 1 and args and args[0] is first
    if name in _MONOTONE or (name == "add" and not kwargs):
        return _monotone(func, first, args, kwargs, name in _POOLS)
    if name == "sub" and not kwargs and len(args) == 2:
        return _answer(torch.add, args[0], -args[1])
    if alone and name in ("linear", *_CONVOLUTIONS):
        return _affine(func, name, *args, **kwargs)
    if alone and name == "batch_norm":
        return _batch_norm(*args, **kwargs)
    if alone and name == "relu":
        first.relus.append(Relu(first.lower, first.upper, first.scale, first.made_by))
        return Interval(first.lower.relu(), first.upper.relu(), first.relus)
    if alone and name == "softplus":
        return _softplus(*args, **kwargs)
    if alone and name == "neg":
        return Interval(-first.upper, -first.lower, first.relus)
    if name == "mul" and len(intervals) == 1 and len(args) == 2 and not kwargs:
        return _scaled(first, args[1] if args[0] is first else args[0])
    if alone and name == "div" and len(args) == 2 and not kwargs:
        return _scaled(first, 1 / args[1])
    if alone and "dropout" in name and not kwargs.get("training", args[2] if len(args) > 2 else True):
        return first
    raise ValueError(
        "expected a network that intervals go through (Linear, Conv, batch norm in evaluation mode, ReLU, pooling, sums), got "
        f"{name} in it: it has no bounds"
    )


def _monotone(func: Any, first: Interval, args: Any, kwargs: Any, channels_stay: bool) -> Interval:
    if channels_stay and (kwargs.get("divisor_override") or 1) < 0:
        raise ValueError(f"expected a pool of a divisor_override above 0, got {kwargs['divisor_override']}: it turns bounds")
    ends = []
    for end in ("lower", "upper"):
        own, named = tree_map_only(Interval, attrgetter(end), (args, kwargs))
        ends.append(func(*own, **named))
    scale, made_by = (first.scale, first.made_by) if channels_stay else (None, None)
    # A view, in the network's own tensors or in these: what is written into one is in the other.
    memory = first.memory if func.__name__.strip("_") in _VIEWS else None
    return Interval(ends[0], ends[1], first.relus, scale=scale, made_by=made_by, memory=memory)


def _softplus(x: Interval, beta: float = 1.0, threshold: float = 20.0) -> Interval:
    """Which torch lets fall where beta x passes the threshold: from there on it is x."""
    if not beta > 0:
        raise ValueError(f"expected a softplus of a beta above 0, got {beta}: it has no bounds")
    lower, upper = (functional.softplus(end, beta, threshold) for end in (x.lower, x.upper))
    fall = math.log1p(math.exp(-threshold)) / beta
    return Interval(lower - fall, upper + fall, x.relus)


def _affine(
    func: Any, name: str, x: Interval, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any
) -> Interval:
    centre = func(x.centre, weight, bias, *rest, **options)
    before = x.radius
    radius = func(before, weight.abs(), None, *rest, **options)
    rows = name == "linear" and x.ndim == 2  # else what a Linear layer gives lies in the last dimension, not in the second
    return Interval(
        centre - radius,
        centre + radius,
        x.relus,
        made_by=weight if rows or name in ("conv1d", "conv2d", "conv3d") else None,
        affine=(before, weight) if rows else None,
    )


def _batch_norm(
    x: Interval,
    mean: Tensor | None,
    variance: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Interval:
    if training or mean is None or variance is None:
        raise ValueError("expected batch norm with running statistics, in evaluation mode, to have bounds of: call net.eval()")
    scale = torch.ones_like(mean) if weight is None else weight
    factor = scale / (variance + eps).sqrt()
    shift = -mean * factor if bias is None else bias - mean * factor
    centre = x.centre * _by_channel(factor, x.lower) + _by_channel(shift, x.lower)
    radius = x.radius * _by_channel(factor.abs(), x.lower)
    return Interval(centre - radius, centre + radius, x.relus, scale=scale, made_by=x.made_by)


def _scaled(x: Interval, factor: Any) -> Interval:
    size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
    centre, radius = x.centre * factor, x.radius * size
    return Interval(centre - radius, centre + radius, x.relus)
