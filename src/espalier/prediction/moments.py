"""Numbers known by their means and variances, and what torch's functions make of them: one rule a function.

Products: with W of mean m and variance v and x of mean a and variance b, all independent,

    E[W x] = m a,        Var[W x] = v (a^2 + b) + m^2 b,

which of a mask Z ~ Bernoulli(p) times u, m = p u and v = p (1 - p) u^2, is one product with m^2. Through a ReLU the moments of a
normal number are known in closed form (Frey & Hinton 1999, *Variational learning in nonlinear Gaussian belief networks*), through
any other function of one number they are taken by Gauss-Hermite quadrature. Neighbours are not independent: positions of an
image are under the same mask, so the winner of a max pool takes its variance along, and averages of positions have averaged
deviations. That is fast dropout (Wang & Manning 2013), probabilistic backpropagation's forward pass (Hernandez-Lobato & Adams
2015) and lightweight probabilistic networks (Gast & Roth 2018).

A function that has no rule here gets one in a few lines, under its name, by `rule`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.sparse.layout import Layout
from espalier.sparse.unwritten import Unwritten, unwritten

NODES = 16
"""Of Gauss-Hermite quadrature."""
LEAST = 1e-12
"""Variance: a number that does not move is still divided by its deviation."""


class Unknown(NotImplementedError):
    """A function whose moments are not known here."""


class Moments(Tensor):
    """A tensor of independent numbers by their means `loc` and variances `variance`, of its shape. Torch's functions of it that
    are in `RULES` give another; any other raises Unknown. ratio: of masked weights of one layer variance / loc^2, which saves a
    product; of the flat vector each layer's. source: of a function of each number, whose means these were, and the function."""

    loc: Tensor
    variance: Tensor
    ratio: Any
    source: tuple[Tensor, Callable[[Tensor], Tensor]] | None

    @staticmethod
    def __new__(cls, loc: Tensor, variance: Tensor, ratio: Any = None) -> Moments:
        self: Moments = Tensor._make_wrapper_subclass(cls, loc.shape, dtype=loc.dtype, device=loc.device)
        self.loc, self.variance, self.ratio, self.source = loc, variance, ratio, None
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Moments(loc={self.loc!r}, variance={self.variance!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.__name__
        if name == "__get__" and func.__self__.__name__ in ("T", "mT"):
            return _moved(func, *args)
        if name == "__get__" or name in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = RULES.get(name.strip("_"))
        if rule is None or kwargs.get("out") is not None:
            raise Unknown(name)
        writes = _WRITING.fullmatch(name)
        if writes:  # by the function that writes nowhere
            own = f"__{writes[1]}__" if writes[1] else writes[2]
            func = getattr(Tensor, own, None) or getattr(torch, own)
        if kwargs.pop("inplace", False) | bool(writes):
            if not isinstance(args[0], Moments):
                raise Unknown(f"{name} of what is random into what is not")
            found = rule(func, *args, **kwargs)
            for what in ("loc", "variance", "ratio", "source"):  # for all who hold it
                setattr(args[0], what, getattr(found, what))
            return args[0]
        return rule(func, *args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise Unknown(str(func))


def _split(x: Any) -> tuple[Any, Any]:
    """Means and variances; a plain tensor, or a number, has no variance."""
    return (x.loc, x.variance) if isinstance(x, Moments) else (x, None)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""By a function's name how moments go through it: rule(func, *args, **kwargs)."""
_ASKED = {"dim", "size", "numel", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "__hash__", "__len__", "type"}


_WRITING = re.compile(r"__i(add|sub|mul|truediv)__|([a-z]\w*[a-z0-9])_")
"""Functions that write into what they are given, `+=` and `relu_`."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers it under these names of torch's functions, or of your own that go through `torch.overrides`."""

    def add(own: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, own))
        return own

    return add


_LAID_OUT = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "matmul", "mm",
             "bmm")  # fmt: skip
PRODUCTS = (*_LAID_OUT, "einsum")
NORMS = ("batch_norm", "layer_norm", "group_norm")


@rule(*_LAID_OUT)
def product(func: Any, x: Any, weight: Any, bias: Tensor | None = None, *rest: Any, **named: Any) -> Moments:
    """See the module."""

    def of(a: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        own: Tensor = func(a, w) if func.__name__ in ("matmul", "mm", "bmm", "__matmul__") else func(a, w, b, *rest, **named)
        return own

    return _product(of, x, weight, bias)


@rule("einsum")
def _by_letters(func: Any, equation: str, *operands: Any) -> Moments:
    """A product of two, as `ij,jk->ik` names it."""
    own = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], Sequence) else list(operands)
    if len(own) != 2:
        raise Unknown(f"einsum of {len(own)}")
    return _product(lambda a, w, _: func(equation, a, w), own[0], own[1], None)


def _product(of: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Any, weight: Any, bias: Any) -> Moments:
    """Of a masked weight the two products of variances are one."""
    if isinstance(bias, Moments):
        found, places = _product(of, x, weight, bias.loc), (-1, *[1] * (len(weight.shape) - 2))
        return Moments(found.loc, found.variance + bias.variance.view(places))
    (a, b), (m, v) = _split(x), _split(weight)
    loc = of(a, m, bias)
    if v is None:
        return Moments(loc, torch.zeros_like(loc) if b is None else of(b, m.square(), None))
    second = a.square() if b is None else torch.addcmul(b, a, a)
    if weight.ratio is not None:
        second = second * weight.ratio if b is None else second.mul_(weight.ratio).add_(b)
        return Moments(loc, of(second, _squared(m), None))
    variance = of(second, v, None)
    return Moments(loc, variance if b is None else variance + of(b, _squared(m), None))


def _squared(m: Tensor) -> Tensor:
    return unwritten(m.active.square(), m.of) if isinstance(m, Unwritten) and m.written is None else m.square()


@rule("relu")
def _relu(_: Any, x: Moments) -> Moments:
    """Of N(a, b): E = a Phi(a / s) + s phi(a / s), E of the square (a^2 + b) Phi(a / s) + a s phi(a / s) = a E + b Phi (Frey &
    Hinton 1999, app. A). In few passes over memory: beside a convolution this is not free."""
    deviation = x.variance.clamp_min(LEAST).sqrt_()
    ratio = x.loc / deviation
    below = torch.erf(ratio * math.sqrt(0.5)).add_(1.0).mul_(0.5)
    density = ratio.square_().mul_(-0.5).exp_().mul_(deviation).mul_(1 / math.sqrt(2 * math.pi))
    loc = density.addcmul_(x.loc, below)
    return Moments(loc, (x.loc - loc).mul_(loc).addcmul_(x.variance, below).clamp_min_(0.0))


@rule("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid", "softplus", "softsign", "hardtanh", "relu6",
      "hardswish", "hardsigmoid", "logsigmoid", "sin", "cos", "square", "abs", "exp", "erf", "prelu", "threshold", "hardshrink",
      "softshrink", "tanhshrink", "clamp", "clamp_min", "clamp_max", "clip")  # fmt: skip
def _of_each(func: Any, x: Moments, *args: Any, **named: Any) -> Moments:
    """A function of each number, taken for normal: Gauss-Hermite quadrature (Abramowitz & Stegun 25.4.46)."""
    deviation, nodes, weights = x.variance.sqrt(), *np.polynomial.hermite_e.hermegauss(NODES)
    values = [func(x.loc + float(node) * deviation, *args, **named) for node in nodes]
    shares = [float(weight) for weight in weights / weights.sum()]
    loc = sum(share * value for share, value in zip(shares, values, strict=True))
    variance = sum(share * (value - loc).square() for share, value in zip(shares, values, strict=True))
    found = Moments(loc, variance)
    found.source = x.loc, lambda value: func(value, *args, **named)
    return found


@rule("pow")
def _power(func: Any, x: Any, exponent: Any) -> Moments:
    if isinstance(exponent, Moments):
        raise Unknown("a power that is random")
    powers = torch.as_tensor(exponent)
    if (powers != powers.round()).any() or (powers < 0).any():  # nodes of what is never negative may lie below 0
        raise Unknown("a power that is not 0, 1, 2, ...")
    found: Moments = _of_each(func, x, exponent)
    return found


@rule("glu")
def _gated(_: Any, x: Moments, dim: int = -1) -> Moments:
    """One half times the sigmoid of the other (Dauphin et al. 2017)."""
    value, gate = torch.chunk(x, 2, dim)
    found: Moments = _scaled(None, value, _of_each(torch.sigmoid, gate))
    return found


@rule("log_softmax")
def _log_softmax(func: Any, x: Moments, *args: Any, **named: Any) -> Moments:
    """The classes' probabilities are the same whatever is taken off all their logits: off the means, what makes them logs."""
    return Moments(func(x.loc, *args, **named), x.variance)


@rule("batch_norm")
def _batch_norm(
    _: Any, x: Moments, mean: Tensor | None, var: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Moments:  # fmt: skip
    """With its statistics it is a line."""
    if training or mean is None or var is None:
        raise Unknown("batch_norm by the batch")
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    slope = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * slope if bias is None else bias - mean * slope
    return Moments(torch.addcmul(shift.view(shape), x.loc, slope.view(shape)), x.variance * slope.square().view(shape))


def _normalised(x: Moments, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """By the mean and the expected variance over `dims`."""
    centred = x.loc - x.loc.mean(dims, keepdim=True)
    slope = ((centred.square() + x.variance).mean(dims, keepdim=True) + eps).rsqrt()
    return centred * slope, x.variance * slope.square()


@rule("layer_norm")
def _layer_norm(
    _: Any, x: Moments, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Moments:
    loc, variance = _normalised(x, tuple(range(-len(shape), 0)), eps)
    if weight is not None:
        loc, variance = loc * weight, variance * weight.square()
    return Moments(loc if bias is None else loc + bias, variance)


@rule("group_norm")
def _group_norm(
    _: Any, x: Moments, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Moments:
    grouped = Moments(*(part.reshape(part.shape[0], num_groups, -1) for part in (x.loc, x.variance)))
    loc, variance = (part.reshape(x.shape) for part in _normalised(grouped, (-1,), eps))
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    if weight is not None:
        loc, variance = loc * weight.view(shape), variance * weight.square().view(shape)
    return Moments(loc if bias is None else loc + bias.view(shape), variance)


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(func: Any, x: Moments, *args: Any, **named: Any) -> Moments:
    """What one mask does to neighbours it does alike: the largest mean wins, and has its own variance."""
    dims = int(func.__name__[-2])
    loc, places = getattr(F, func.__name__)(x.loc, *args, **{**named, "return_indices": True})
    return Moments(loc, x.variance.flatten(-dims).gather(-1, places.flatten(-dims)).view_as(loc))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
      "interpolate", "mean", "sum")  # fmt: skip
def _averaged(func: Any, x: Moments, *args: Any, **named: Any) -> Moments:
    """Of numbers that move together: the deviations' average."""
    return Moments(func(x.loc, *args, **named), func(x.variance.sqrt(), *args, **named).square())


@rule("view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "t", "contiguous", "clone", "detach",
      "squeeze", "unsqueeze", "expand", "getitem", "to", "float", "double", "chunk", "unbind", "flip", "roll", "narrow", "select",
      "index_select", "pixel_shuffle", "channel_shuffle")  # fmt: skip
def _moved(func: Any, x: Moments, *args: Any, **named: Any) -> Any:
    """Only where they are changes."""
    if func is Tensor.view:
        if args == (x.shape,):
            return x
        x = Moments(x.loc.contiguous(), x.variance.contiguous(), x.ratio)  # of a sparse product they are not
    loc, variance = func(x.loc, *args, **named), func(x.variance, *args, **named)
    if isinstance(loc, Tensor):
        return Moments(loc, variance, x.ratio)
    return tuple(Moments(*pair) for pair in zip(loc, variance, strict=True))


@rule("split")
def _layers(func: Any, x: Moments, *args: Any, **named: Any) -> tuple[Moments, ...]:
    """Of the flat vector of weights every layer."""

    def of(own: Tensor) -> Any:
        whole = isinstance(own, Unwritten) and isinstance(own.of, Layout)  # whose layers have their shapes already
        return own.layers() if whole else func(own, *args, **named)  # type: ignore[attr-defined]

    parts = of(x.loc), of(x.variance)
    ratios = x.ratio if isinstance(x.ratio, tuple) and len(x.ratio) == len(parts[0]) else [None] * len(parts[0])
    return tuple(Moments(*part) for part in zip(*parts, ratios, strict=True))


@rule("pad")
def _pad(func: Any, x: Moments, pad: Any, mode: str = "constant", value: float | None = None) -> Moments:
    return Moments(func(x.loc, pad, mode, value), func(x.variance, pad, mode, None))


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(func: Any, x: Moments, p: float = 0.5, training: bool = False) -> Moments:
    if training:
        raise Unknown(f"{func.__name__} while it drops")
    return x


@rule("cat", "concat", "concatenate", "stack")
def _joined(func: Any, parts: Sequence[Any], *args: Any, **named: Any) -> Moments:
    pairs = [(part.loc, part.variance) if isinstance(part, Moments) else (part, torch.zeros_like(part)) for part in parts]
    return Moments(*(func(list(own), *args, **named) for own in zip(*pairs, strict=True)))


@rule("embedding")
def _embedding(func: Any, ids: Tensor, weight: Moments, *args: Any, **named: Any) -> Moments:
    return Moments(func(ids, weight.loc, *args, **named), func(ids, weight.variance, *args, **named))


@rule("add", "radd", "iadd", "sub", "rsub", "isub")
def _sum(func: Any, x: Any, y: Any, *, alpha: float = 1.0) -> Moments:
    """alpha: of the second one, as torch has it."""
    y = y if alpha == 1 else y * alpha
    if x is y:  # not independent
        return Moments(func(x.loc, x.loc), func(x.variance.sqrt(), x.variance.sqrt()).square())
    (a, b), (c, d) = _split(x), _split(y)
    loc = func(a, c)
    return Moments(loc, sum((part for part in (b, d) if part is not None), torch.zeros_like(loc)))


@rule("neg", "positive")
def _negative(func: Any, x: Moments) -> Moments:
    return Moments(func(x.loc), x.variance)


@rule("mul", "rmul", "imul")
def _scaled(_: Any, x: Any, y: Any) -> Moments:
    if x is y:
        squared: Moments = _of_each(torch.square, x)
        return squared
    for one, other in ((x, y), (y, x)):  # x sigmoid(x) is a function of x
        if isinstance(one, Moments) and isinstance(other, Moments) and other.source and other.source[0] is one.loc:
            gate = other.source[1]
            gated: Moments = _of_each(lambda value: value * gate(value), one)  # noqa: B023 - called at once
            return gated
    (a, b), (c, d) = _split(x), _split(y)
    parts = [] if b is None else [b * c**2]
    parts += [] if d is None else [d * a**2]
    parts += [] if b is None or d is None else [b * d]
    return Moments(a * c, sum(parts[1:], parts[0]))


@rule("div", "truediv", "true_divide", "itruediv")
def _divided(_: Any, x: Any, y: Any) -> Moments:
    if isinstance(y, Moments):
        raise Unknown("division by what is random")
    return Moments(x.loc / y, x.variance / y**2)
