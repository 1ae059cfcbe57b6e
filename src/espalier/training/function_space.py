"""Function-space variational inference: the KL of the functions at context points in place of that of the weights.

    ELBO = E_q[log p(y | f)] - E_C[KL(q(f_C) || p(f_C))]            (Rudner, Chen, Teh & Gal 2022, NeurIPS, arXiv:2312.17199)

Linearised in Gaussian weights w ~ N(mu, diag(sigma^2)), of prior N(0, s^2), the outputs at |C| context points are Gaussian under
both, and of output k with Jacobian J_k `(|C|, weights)`

    q: mean J_k mu, covariance J_k diag(sigma^2) J_k^T         p: mean 0, covariance s^2 J_k J_k^T

up to a mean that they share: what does not depend on w. To both the same small noise is added, independent at every point: KL of
Gaussians whose covariances have a rank below |C|, as those of few active weights do, would be no number, and the KL of noisy
values is one that is never above it (data processing). A KL of as many points as make J_k injective, or of more, is that of the
weights: it knows no more than the prior of the weights does.

`last-layer`, as released: w are the active weights of the last layer, J_k the features that it is given under one draw of the
others; what they share is its bias, a point estimate with an L2 of its own. `all`: every active weight, at its mean; for small
networks, and the answer that the other is tested against. Gradients go through J, too. (The released code adds each covariance to
itself, in prior and posterior alike; that is not done here.)

The functions are pure; `FunctionSpaceKL` draws context points and adds the gradient to that of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from espalier import store
from espalier.compiled import uncompiled
from espalier.contracts import Data, Rows
from espalier.data import SEVERITIES, Shifted, out_of_distribution
from espalier.data.corruptions import corruptions
from espalier.data.worlds import levels_of
from espalier.followers import Follower
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.prediction.features import layer_of
from espalier.prediction.fit import Fit
from espalier.prediction.predict import to_device
from espalier.randomness import own_stream
from espalier.sparse import scatter
from espalier.store import Bundle
from espalier.training import distributed

STREAM = 13
"""Of random numbers, apart from those of training."""
NOISE = 1e-10
"""Variance of the noise over the mean variance of the function values: far above the rounding of float64."""
MOST_WEIGHTS = 10_000
"""Of a network that is linearised in all of them."""
POOL = 10_000
"""Rows of another data set that context points are taken from."""
MOST_POINTS = 1000

Linearised = Literal["last-layer", "all"]
"""In which weights is the network linearised?"""


class Functions(NamedTuple):
    """f = J w + what all share, at C points and of K outputs, and two Gaussians over w: N(mean, diag(variance)) and
    N(0, diag(prior)). jacobian: `(K or 1, C, D)`. mean, variance, prior: `(K or 1, D)`, zeros where w has no active weight."""

    jacobian: Tensor
    mean: Tensor
    variance: Tensor
    prior: Tensor


def covariance(jacobian: Tensor, variance: Tensor) -> Tensor:
    """J diag(variance) J^T, `(K, C, C)`, of J `(K or 1, C, D)` and variance `(K or 1, D)`."""
    return (jacobian * variance.unsqueeze(-2)) @ jacobian.mT


def kl(functions: Functions) -> Tensor:
    """KL(q(f_C) || p(f_C)) summed over the outputs, nats; float64."""
    jacobian, mean, variance, prior = (part.double() for part in functions)
    shift = (jacobian @ mean.unsqueeze(-1)).squeeze(-1)
    return gaussian_kl(shift, covariance(jacobian, variance), covariance(jacobian, prior))


def gaussian_kl(shift: Tensor, q: Tensor, p: Tensor, noise: float = NOISE) -> Tensor:
    """The sum over K of KL(N(shift, q + e I) || N(0, p + e I)), nats: e is `noise` times the mean of q + p's diagonal, 1 where
    that is 0. shift: `(K, C)`; q, p: `(K, C, C)`."""
    size = (q + p).diagonal(dim1=-2, dim2=-1).mean(-1)
    own = torch.where(size > 0, noise * size, torch.ones_like(size))[:, None, None]
    added = own * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    lower_q, lower_p = torch.linalg.cholesky(q + added), torch.linalg.cholesky(p + added)
    # The squares of both are tr(p^-1 q) and shift' p^-1 shift.
    whitened = torch.linalg.solve_triangular(lower_p, torch.cat([lower_q, shift.unsqueeze(-1)], -1), upper=False)
    log_ratio = (lower_p.diagonal(dim1=-2, dim2=-1).log() - lower_q.diagonal(dim1=-2, dim2=-1).log()).sum()
    found: Tensor = 0.5 * (whitened.square().sum() - shift.numel()) + log_ratio
    return found


def last_layer(model: BayesianNetwork, guide: GaussianGuide, x: Any, generator: torch.Generator | None = None) -> Functions:
    """The network linearised (it is linear) in the active weights of its last layer, under one draw of the others."""
    noise = torch.randn(guide.values.shape, generator=generator, dtype=guide.values.dtype).to(guide.values.device)
    drawn = guide.values + guide.log_scale.exp() * noise
    features = features_of(model, guide.placed(drawn), x)
    shape, first = model.shapes[-1], len(guide.values) - guide.counts[-1]
    places = guide.positions[first:] - (model.num_weights - model.sizes[-1])
    means, scales = guide.values[first:], guide.log_scale[first:].exp()

    def placed(values: Tensor) -> Tensor:
        return scatter(values, places, model.sizes[-1]).view(shape)

    prior = torch.full_like(means, model.prior().scale**2)
    return Functions(features.unsqueeze(0), placed(means), placed(scales.square()), placed(prior))


def every_layer(model: BayesianNetwork, guide: GaussianGuide, x: Any) -> Functions:
    """The network linearised in all active weights, at their means."""

    def output(values: Tensor) -> Tensor:
        found: Tensor = model.evaluate(scatter(values, guide.positions, model.num_weights), x)
        return found

    with _settled(model):
        jacobian = torch.func.jacrev(output)(guide.values)  # (C, K, k)
    prior = torch.full_like(guide.values, model.prior().scale**2)
    rows = (guide.values, guide.log_scale.exp().square(), prior)
    return Functions(jacobian.transpose(0, 1), *(row.unsqueeze(0) for row in rows))


def features_of(model: BayesianNetwork, weights: Tensor, x: Any) -> Tensor:
    """What the last masked layer is given of x, `(n, D)`, at a flat weight vector: batch norm by the batch's own statistics, its
    buffers unwritten, all else as in prediction."""
    seen: list[Tensor] = []
    with _settled(model) as state, layer_of(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        model.evaluate(weights, x, state)
    return seen[-1]  # before it, of a trial perhaps


@contextmanager
def _settled(model: BayesianNetwork) -> Iterator[dict[str, Tensor] | None]:
    """For the while, as `batchnorm.by_the_batch` has it, and eager: a compiled network is no place for a hook. Yields buffers to
    write into."""
    with batchnorm.by_the_batch(model), uncompiled(model):
        yield {f"net.{name}": buffer.clone() for name, buffer in model.net.named_buffers()} or None


def check(model: BayesianNetwork, x: Any, linearised: Linearised) -> int:
    """K. Raises ValueError where the network has not this form: outputs `(n, K)`; for `last-layer` those of a Linear layer whose
    weight is the last masked tensor; for `all` few weights."""
    layer, name = layer_of(model), model.weights[-1].name
    seen: list[Any] = []
    with torch.no_grad(), _settled(model) as state, layer.register_forward_hook(lambda *call: seen.append(call[1:])):
        output = model.evaluate(model.initial, x, state)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ValueError("expected a network whose output is a tensor (n, K), functions of one row each: use another inference")
    if linearised == "all":
        if model.num_weights > MOST_WEIGHTS or batchnorm.has_batchnorm(model):
            what = f"{model.num_weights:,} weights" if model.num_weights > MOST_WEIGHTS else "batch norm"
            raise ValueError(
                f"expected a network of at most {MOST_WEIGHTS:,} weights and without batch norm to linearise in all of them, got "
                f"one of {what}: say linearised last-layer"
            )
        return output.shape[1]
    names = model.weights[-1].names
    is_weight = type(layer) is nn.Linear and len(names) == 1 and names[0].endswith("weight")  # and not its bias
    alone = is_weight and len(seen) == 1 and len(seen[0][0]) == 1
    if not (alone and torch.equal(seen[0][1].to(output.dtype), output)):
        raise ValueError(
            f"expected a network whose last masked tensor is that of a Linear layer that gives its output, got {name} of "
            f"{type(layer).__name__}: say which are masked by maskable, or use another inference"
        )
    return output.shape[1]


class Context(NamedTuple):
    """Where context points come from. name: for the record. size: rows. draw: so many inputs `(count, *shape)`, by a generator on
    the CPU. digest: of rows of one's own."""

    name: str
    size: int
    draw: Callable[[int, torch.Generator], Any]
    digest: str = ""


def context_of(source: str | Tensor, data: Data) -> Context:
    """Context points for a training on `data`, drawn with replacement. source: train, its rows; corrupted, these under one of
    `CORRUPTIONS` in one severity, drawn anew with the points; a data set, as `out_of_distribution` takes it: its first ten
    thousand training rows; or a tensor of inputs as the network takes them, `(n, *shape)`.

    Raises ValueError where there are no such inputs.
    """
    if not isinstance(source, str | Tensor):
        raise ValueError(f"expected context as train, corrupted, a data set or a tensor of inputs, got a {type(source).__name__}")
    if isinstance(source, Tensor):
        like = getattr(data.example(), "dtype", source.dtype)
        if source.dtype != like:
            raise ValueError(f"expected context points of {like}, as inputs are, got {source.dtype}: convert them, .to({like})")
        if not len(source) or tuple(source.shape[1:]) != tuple(data.shape) or not torch.isfinite(source).all():
            raise ValueError(f"expected finite context points, rows of shape {data.shape}, got a tensor {tuple(source.shape)}")
        return Context("own", len(source), _from(source), store.tensor_digest(source)[:12])
    if source == "train":
        return Context(source, len(data.train.y), _from(data.train.x))
    if source != "corrupted":
        rows = out_of_distribution(source, data, part="train", count=POOL)
        return Context(source, len(rows), _from(rows))
    levels = levels_of(data)
    kinds = [
        # A seed of its own: noise is decided by row numbers, and test rows have these, too.
        _from(Shifted(data.train.x, levels, name, severity, STREAM))
        for name in corruptions(data.shape[0])
        for severity in SEVERITIES
    ]

    def draw(count: int, generator: torch.Generator) -> Any:
        return kinds[int(torch.randint(len(kinds), (), generator=generator))](count, generator)

    return Context(source, len(data.train.y), draw)


def _from(rows: Rows) -> Callable[[int, torch.Generator], Any]:
    return lambda count, generator: rows[torch.randint(len(rows), (count,), generator=generator)]


class FunctionSpaceKL(Follower):
    """Adds the gradient of kl_scale KL(q(f_C) || p(f_C)) / N to that of every step, with context points C of its own each time.

    points: |C|. linearised: see the module. The guide's own kl_scale is to be 0, or both KLs count.
    Raises ValueError for points or a kl_scale out of range and, as the training begins, for a network or guide of another form.
    """

    def __init__(
        self, context: Context, points: int, *, linearised: Linearised = "last-layer", kl_scale: float = 1.0, seed: int = 0
    ) -> None:
        if points != int(points) or not 1 <= points <= MOST_POINTS:
            raise ValueError(f"expected 1 to {MOST_POINTS:,} context_points, got {points}: the work grows with their square")
        if not 0 < kl_scale < math.inf:
            raise ValueError(f"expected a kl_scale above 0, got {kl_scale}")
        if linearised not in get_args(Linearised):
            raise ValueError(f"expected linearised of {', '.join(get_args(Linearised))}, got {linearised!r}")
        self.context, self.points, self.linearised, self.kl_scale = context, int(points), linearised, kl_scale
        self.generator = own_stream(seed, STREAM)
        self.seen: list[Tensor] = []
        self.outputs = 0

    def asked(self) -> dict[str, Any]:
        context = f"{self.context.name} {self.context.digest}".strip()
        return {"context": context, "context_points": self.points, "linearised": self.linearised, "kl_scale": self.kl_scale}

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        if not isinstance(guide, GaussianGuide):
            raise ValueError(f"expected a GaussianGuide, whose weights have variances, got {type(guide).__name__}")
        if self.points == 1 and batchnorm.has_batchnorm(model):
            raise ValueError("expected 2 context_points or more of a network with batch norm, got 1: it has no statistics")
        self.outputs = check(model, self._inputs(2, guide, torch.Generator().manual_seed(0)), self.linearised)

    def before(self, taken: int, x: Any, y: Tensor, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """The batch is not looked at."""
        assert isinstance(guide, GaussianGuide)
        points = self._inputs(self.points, guide, self.generator)
        with torch.enable_grad():
            if self.linearised == "all":
                functions = every_layer(model, guide, points)
            else:
                functions = last_layer(model, guide, points, self.generator)
            if not all(torch.isfinite(part).all() for part in functions):
                raise RuntimeError(f"outputs at context points stopped being finite at step {taken}: lower the learning_rate")
            loss = self.kl_scale * kl(functions) / (model.num_data or len(y))
        trained = [parameter for parameter in (*guide.parameters(), *model.parameters()) if parameter.requires_grad]
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            if gradient is not None:
                gradient = distributed.mean(gradient)
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.seen.append(loss.detach())

    def _inputs(self, count: int, guide: MaskedGuide, generator: torch.Generator) -> Any:
        return to_device(self.context.draw(count, generator), guide.values.device)

    def row(self) -> dict[str, float]:
        """The mean over the epoch's steps, nats per training example as the history's `kl` is."""
        seen, self.seen = self.seen, []
        return {"function_space_kl": float(torch.stack(seen).mean())} if seen else {}

    def bundle(self) -> Bundle:
        return Bundle({"function_space.stream": self.generator.get_state()}, {})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.generator.set_state(saved.tensors["function_space.stream"])

    def end(self, fit: Fit, data: Data) -> None:
        """What was used, and what it cost: examples in forward passes (a backward pass is two), and multiply-adds of the KLs."""
        steps = fit.history[-1]["step"] - sum(row["moves"] for row in fit.history)
        whole, outputs = self.linearised == "all", self.outputs
        active = outputs * fit.topology.num_active if whole else fit.topology.counts[-1]
        fit.record["function_space"] = {
            "context": self.context.name,
            "context_rows": self.context.size,
            "context_points": self.points,
            "linearised": self.linearised,
            "kl_scale": self.kl_scale,
            "kl": next((row["function_space_kl"] for row in reversed(fit.history) if "function_space_kl" in row), None),
            "forward_examples": 3 * steps * self.points * (1 + 2 * outputs if whole else 1),
            "multiply_adds": 3 * steps * self.points**2 * (2 * active + outputs * self.points),
        }
