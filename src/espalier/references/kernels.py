"""The infinitely wide network: the prior covariance of `models/deep_gp` as a GPyTorch kernel, and the finite net's own.

Every width of the network has the kernel's variances. Its covariances between inputs are the kernel's at every width for
one hidden layer; for more the relu acts on a kernel that fluctuates with variance 1/K, and since it is not linear there,
they approach the kernel with a bias of order 1/K. The last hidden layer's width never enters.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espalier.contracts import Topology
from espalier.distributions.masked import draw_keep, effective_keep_prob
from espalier.distributions.priors import FlatNormal
from espalier.network import BayesianNetwork
from espalier.randomness import seeded
from espalier.sparse import scatter

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated")  # linear_operator does so when it is imported
    from gpytorch.constraints import Positive
    from gpytorch.kernels import Kernel

PerLayer = float | Sequence[float]
_CHUNK = 1 << 22  # numbers held at once, weights and activations together: 16 MiB in float32


def arc_cosine_1(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """E[relu(f) relu(g)] of zero-mean normal f, g with variances a, b and covariance c; any shapes that broadcast.

    With cos t = c / sqrt(ab): (sqrt(ab) sin t + c (pi - t)) / 2 pi, so c / 2 at t = 0 and sqrt(ab) / 2 pi at c = 0.
    Source: Cho & Saul 2009, sec. 2.1 (their k_1 is twice this). Derivatives by Price's theorem: (pi - t) / 2 pi in c,
    sqrt(ab) sin t / (4 pi a) in a; unlike acos's they are finite at t = 0 and pi. Second ones exist in between only.
    """
    value: Tensor = _ArcCosine1.apply(*torch.broadcast_tensors(a, b, c))  # type: ignore[no-untyped-call]
    return value


class _ArcCosine1(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        a, b, c = inputs
        root, angle = _root_and_angle(a, b, c)
        return root / (2 * math.pi) + c * (0.5 - angle / (2 * math.pi))  # exactly c / 2 at angle 0

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = ctx.saved_tensors
        root, angle = _root_and_angle(a, b, c)
        in_a, in_b = (root / (4 * math.pi * v.clamp(min=torch.finfo(v.dtype).tiny)) for v in (a, b))
        return grads[0] * in_a, grads[0] * in_b, grads[0] * (0.5 - angle / (2 * math.pi))


def _root_and_angle(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(ab) sin t and t. At small t the value feels the root by its cube only, so that its rounding does no harm."""
    root = (a * b - c * c).clamp(min=0).sqrt()
    return root, torch.atan2(root, c)


class DeepArcCosine(Kernel):
    """The arc-cosine (NNGP) kernel: the covariance of `models/deep_gp` under its prior, at infinite width.

    For y = sqrt(1/K_L) w relu(... sqrt(1/K_1) W_2 relu(W_1 x + b_1)), weights N(0, v), hidden biases N(0, s):

        k_0 = r_0 v x.x' + s,    k_l = r_l v E[relu(f) relu(g)] + s  with (f, g) ~ N(0, k_{l-1}),    no s in k_L,

    where E is `arc_cosine_1`. There is no 1/d in k_0: the network has none. Source: Neal 1996; Cho & Saul 2009; Lee et
    al. 2018, sec. 2.3. Without biases the factors r_l multiply: k_L = v^(L+1) r_0 ... r_L k_L(v = 1, all r = 1).

    r_l is what masks leave of a layer's variance: density * p (E[Z^2] = p), or density / p for Z / p, rescaled. Below 1,
    r_0 is for many inputs: masked W_1 x over d inputs mixes normals, which moves the covariances by O(1/d), no variance.

    depth: hidden layers L; 0 is gpytorch's `LinearKernel`.
    weight_variance: v, where it starts; parameter `raw_weight_variance`, kept positive.
    bias_variance: s, where it starts; parameter `raw_bias_variance` unless it is 0, the point-estimated biases' own prior.
    keep_prob: p = P(Z = 1) of the L + 1 weight layers, input first, or one for all; the effective value is used.
    density: of a layer's topology, one or L + 1. Leave it 1 where the net scales by sqrt(1 / (density K)), equal fan-in.
    rescale: is W divided by p; one or L + 1.
    **kwargs: gpytorch's own, such as `batch_shape` and `active_dims`. Parameters have shape `(*batch_shape, 1, 1)`.
    """

    def __init__(
        self,
        depth: int,
        *,
        weight_variance: float = 1.0,
        bias_variance: float = 0.0,
        keep_prob: PerLayer = 1.0,
        density: PerLayer = 1.0,
        rescale: bool | Sequence[bool] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth < 0:
            raise ValueError(f"expected a depth of 0 or more hidden layers, got {depth}")
        if not weight_variance > 0 or not bias_variance >= 0:
            raise ValueError(f"expected variances above 0 (biases: or 0), got {weight_variance} and {bias_variance}")
        densities = _per_layer("density", density, depth + 1)
        if not all(0 < each <= 1 for each in densities):
            raise ValueError(f"expected a density in (0, 1], got {density}: it is the fraction of active weights")
        keeps = _masks(keep_prob, rescale, depth + 1)
        self.depth = depth
        self.factors = tuple(each * p * scale**2 for each, (p, scale) in zip(densities, keeps, strict=True))
        """r_0 ... r_L."""
        for name, start in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
            if start > 0:
                self.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.zeros(*self.batch_shape, 1, 1)))
                self.register_constraint(f"raw_{name}", Positive())
                self._set(name, start)

    def _set(self, name: str, value: float | Tensor) -> None:
        if not hasattr(self, f"raw_{name}"):
            raise ValueError(f"expected a kernel with a {name}: it was made with 0, so it has no such parameter")
        value = torch.as_tensor(value).to(getattr(self, f"raw_{name}"))
        self.initialize(**{f"raw_{name}": getattr(self, f"raw_{name}_constraint").inverse_transform(value)})

    def _get(self, name: str) -> Tensor:
        if not hasattr(self, f"raw_{name}"):
            return torch.zeros_like(self.raw_weight_variance)
        variance: Tensor = getattr(self, f"raw_{name}_constraint").transform(getattr(self, f"raw_{name}"))
        return variance

    @property
    def weight_variance(self) -> Tensor:
        """v, `(*batch_shape, 1, 1)`."""
        return self._get("weight_variance")

    @weight_variance.setter
    def weight_variance(self, value: float | Tensor) -> None:
        self._set("weight_variance", value)

    @property
    def bias_variance(self) -> Tensor:
        """s, `(*batch_shape, 1, 1)`; a constant zero where the kernel was made without."""
        return self._get("bias_variance")

    @bias_variance.setter
    def bias_variance(self, value: float | Tensor) -> None:
        self._set("bias_variance", value)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **_: Any) -> Tensor:
        """`(..., n, m)` for x1 `(..., n, d)` and x2 `(..., m, d)`; `(..., n)` if diag; a `d` before it if last_dim_is_batch."""
        weight, bias = self.weight_variance, self.bias_variance
        if last_dim_is_batch:
            x1, x2 = x1.mT.unsqueeze(-1), x2.mT.unsqueeze(-1)
            weight, bias = weight.unsqueeze(-3), bias.unsqueeze(-3)
        a, b = x1.square().sum(-1, keepdim=True), x2.square().sum(-1, keepdim=True)
        c = (x1 * x2).sum(-1, keepdim=True) if diag else x1 @ x2.mT
        b = b if diag else b.mT
        for layer, factor in enumerate(self.factors):
            if layer > 0:
                a, b, c = a / 2, b / 2, arc_cosine_1(a, b, c)
            shift = bias if layer < self.depth else torch.zeros_like(bias)
            a, b, c = (factor * weight * each + shift for each in (a, b, c))
        return c.squeeze(-1) if diag else c


def empirical_covariance(
    model: BayesianNetwork,
    x: Tensor,
    num_draws: int,
    seed: int,
    *,
    topology: Topology | None = None,
    keep_prob: PerLayer = 1.0,
    rescale: bool | Sequence[bool] = False,
    bias_variance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The prior's E[y y'] at x `(n, *shape)` by Monte Carlo: means `(n, n)` and their standard errors `(n, n)`, float64.

    Weights are drawn from the model's `FlatNormal` and masked: by `topology`, and by Z as `keep_prob` and `rescale` have
    it, for all layers or one by one. Parameters called bias are drawn from N(0, bias_variance), whatever they are in the
    model: 0 leaves none. Several outputs are averaged within a draw, which counts once. torch's stream is put back.
    """
    if num_draws < 2:
        raise ValueError(f"expected at least 2 draws for a standard error, got {num_draws}")
    active = torch.ones_like(model.initial)
    if topology is not None:
        active = scatter(active[: topology.num_active], topology.positions, model.num_weights)
    keeps = _masks(keep_prob, rescale, len(model.sizes))
    biases = {f"net.{name}": p for name, p in model.net.named_parameters() if name.split(".")[-1] == "bias"}
    prior = FlatNormal(model.prior_scale or 1.0, model.num_weights, model.initial)
    chunk = max(1, _CHUNK // (model.num_weights + len(x) * (len(x) + sum(shape[0] for shape in model.shapes))))
    first, second = torch.zeros(2, len(x), len(x), dtype=torch.float64).unbind()
    with torch.no_grad(), seeded(seed, model.initial.device):
        for start in range(0, num_draws, chunk):
            count = min(chunk, num_draws - start)
            weights = prior.rsample(torch.Size([count])) * active
            for part, (p, scale) in zip(weights.split(model.sizes, -1), keeps, strict=True):
                if p < 1:
                    part *= scale * draw_keep(part.numel(), p, part.device).view_as(part)
            state = {name: bias_variance**0.5 * torch.randn(count, *p.shape).to(p) for name, p in biases.items()}
            output = torch.vmap(lambda w, s: model.evaluate(w, x, s))(weights, state).view(count, len(x), -1).double()
            outer = output @ output.mT / output.shape[-1]
            first, second = first + outer.sum(0), second + outer.square().sum(0)
    mean = first / num_draws
    return mean, ((second / num_draws - mean.square()).clamp(min=0) / (num_draws - 1)).sqrt()


def _masks(keep_prob: PerLayer, rescale: PerLayer, layers: int) -> list[tuple[float, float]]:
    """Of each layer the effective p = P(Z = 1) and what multiplies Z: 1 / p or 1."""
    keeps = [effective_keep_prob(p) for p in _per_layer("keep_prob", keep_prob, layers)]
    return [(p, 1 / p if each else 1.0) for p, each in zip(keeps, _per_layer("rescale", rescale, layers), strict=True)]


def _per_layer(name: str, value: PerLayer, layers: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * layers
    if len(values) != layers:
        raise ValueError(f"expected {name} for all layers or for each of {layers} weight layers, got {len(values)}")
    return values
