"""The two distributions of the collapsed hierarchy: the flat prior, and the masked distribution that the guide samples.

Both live over the network's maskable weights as one vector `w` of `num_weights` entries (method: CigL eq. 2-3, Lei et
al. 2023, with the random mask Z drawn for the active weights only).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from espalier.distributions.priors import FlatNormal, MixtureNormal, unbatched
from espalier.sparse import Layout, scatter

_Owner = TypeVar("_Owner")
Keep = TypeVar("Keep", float, Tensor)

KeepProb = float | tuple[float, ...]
"""P(Z = 1), of all weights, or of each layer's."""

LEVELS = 1 << 16
"""Z is drawn from 16-bit integers: nine times cheaper than `torch.bernoulli` over all weights, p off by < 8e-6."""


def effective_keep_prob(keep_prob: float) -> float:
    """The P(Z = 1) that a 16-bit draw realises: `round(65536 p) / 65536`. It is what the draw, the KL and the record use.

    Raises ValueError unless 0 < keep_prob <= 1.
    """
    if not 0.0 < keep_prob <= 1.0:
        raise ValueError(f"expected keep_prob in (0, 1], got {keep_prob}: it is P(Z = 1), one minus the drop rate")
    return max(1, round(LEVELS * keep_prob)) / LEVELS


def given_keep_prob(drop_rate: float | str) -> float:
    """`effective_keep_prob` of a rate that is given. Raises ValueError for one that is to be found, as `auto` is, and for one
    that is no rate."""
    if isinstance(drop_rate, str):
        raise ValueError(f"expected a drop_rate in [0, 1), a number for this inference, got {drop_rate!r}")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"expected a drop_rate in [0, 1), P(Z = 0) of an active weight, got {drop_rate}")
    return effective_keep_prob(1 - drop_rate)


def effective(keep_prob: KeepProb) -> KeepProb:
    """`effective_keep_prob` of each."""
    return tuple(map(effective_keep_prob, keep_prob)) if isinstance(keep_prob, tuple) else effective_keep_prob(keep_prob)


def per_weight(
    keep_prob: KeepProb, counts: Sequence[int], device: torch.device, dtype: torch.dtype | None = None
) -> float | Tensor:
    """Of layers that have `counts` active weights: one number as it is, or those of the layers for each weight, `(k,)`."""
    if not isinstance(keep_prob, tuple):
        return keep_prob
    return torch.tensor(keep_prob, device=device, dtype=dtype).repeat_interleave(torch.tensor(counts, device=device))


def mean_keep_prob(keep_prob: KeepProb, counts: Sequence[int]) -> float:
    """Over all active weights."""
    if not isinstance(keep_prob, tuple):
        return keep_prob
    return sum(p * count for p, count in zip(keep_prob, counts, strict=True)) / sum(counts)


def draw_keep(
    count: int, keep_prob: float | Tensor, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Z: `(count,)` bool, each True with probability `effective_keep_prob(keep_prob)`, or each with its own of `(count,)`.

    `ceil(count / 4)` int64 words are drawn and viewed as int16; a bit is kept if below `round(65536 p) - 32768`. With
    probability one nothing is drawn, so the generator does not move.
    """
    level: int | Tensor
    if isinstance(keep_prob, Tensor):
        level = (LEVELS * keep_prob.double()).round().clamp(min=1).int()
    elif (level := round(LEVELS * effective_keep_prob(keep_prob))) == LEVELS:
        return torch.ones(count, dtype=torch.bool, device=device)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)  # without bounds the sign bit would never be set
    return words.view(torch.int16)[:count] < level - LEVELS // 2


class Scattered(TorchDistribution):
    """Weights that are zero but at the active positions: no density over the flat vector, only a registered KL.

    positions: `(k,)`. layout: of these positions, where there is one; a single draw is not written out then.
    """

    positions: Tensor
    layout: Layout | None = None
    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Any:
        return unbatched(self, batch_shape)

    def placed(self, values: Tensor) -> Tensor:
        """values `(*batch, k)` at the active positions, `(*batch, num_weights)`."""
        return scatter(values, self.positions, self.event_shape[0], self.layout)

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "a guide over the active weights has no density over all of them: train it with pyro.infer.TraceMeanField_ELBO, "
            "which uses its registered KL"
        )

    def score_parts(self, value: Tensor, *args: Any, **kwargs: Any) -> ScoreParts:
        """What `TraceMeanField_ELBO` computes on the way and never uses; every other ELBO would use it, and is refused."""
        elbo = in_use(ELBO)
        if elbo is not None and not isinstance(elbo, TraceMeanField_ELBO):
            raise ValueError(
                f"expected TraceMeanField_ELBO, got {type(elbo).__name__}: a guide over the active weights has no "
                "density over all of them, only a KL, and that ELBO would train another objective"
            )
        unused = value.new_tensor(-math.inf)
        return ScoreParts(unused, 0.0, unused)


class MaskedWeights(Scattered):
    """The guide's distribution at noise scale s -> 0: `w = scatter(Z * mean)`, Z ~ Bernoulli(keep_prob) per active weight.

    mean: `(k,)` component means m (u, or u / p where the guide rescales); positions: `(k,)`; keep_prob: one, or `(k,)`; event
    shape `(num_weights,)`. `keep` is the last Z, `(*sample_shape, k)`. Its density at s -> 0 does not exist: `log_prob` raises,
    and the only objective that trains it is `TraceMeanField_ELBO` through the registered KL.
    """

    def __init__(
        self,
        mean: Tensor,
        positions: Tensor,
        num_weights: int,
        keep_prob: float | Tensor,
        draw: Callable[[int], Tensor] | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.mean_value, self.positions = mean, positions
        self.keep_prob = keep_prob if isinstance(keep_prob, Tensor) else effective_keep_prob(keep_prob)
        self.layout = layout
        self.keep: Tensor | None = None
        self._draw = draw or self._plain
        super().__init__(event_shape=torch.Size([num_weights]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[w] = keep_prob * mean at the active positions, `(num_weights,)`."""
        return self.placed(self.keep_prob * self.mean_value)

    @property
    def variance(self) -> Tensor:
        """Var[w] = p (1 - p) mean^2 at the active positions, `(num_weights,)`."""
        spread = self.keep_prob * (1 - self.keep_prob) * self.mean_value.square()
        return self.placed(spread)

    def _plain(self, count: int) -> Tensor:
        own = self.keep_prob
        each = own.repeat(count // len(own)) if isinstance(own, Tensor) else own
        return draw_keep(count, each, self.mean_value.device)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        shape = (*sample_shape, *self.mean_value.shape)
        if isinstance(self.keep_prob, float) and self.keep_prob == 1.0:  # no draw, no multiplication
            self.keep = torch.ones((), dtype=torch.bool, device=self.mean_value.device).expand(shape)
            return self.placed(self.mean_value.expand(shape))
        self.keep = self._draw(math.prod(shape)).view(shape)
        # A float mask multiplies twice as fast as a boolean one.
        return self.placed(self.mean_value * self.keep.to(self.mean_value.dtype))


def in_use(kind: type[_Owner]) -> _Owner | None:
    """The ELBO or the SVI that is evaluating us. Pyro hands a distribution or a guide no other sign of it, and silence would
    cost a user days."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


@register_kl(Scattered, Distribution)
def _kl_unknown(q: Scattered, p: Distribution) -> Tensor:
    """None: where no KL is registered, Pyro goes on with densities, which a guide over the active weights has not."""
    raise ValueError(
        f"expected a prior whose KL from {type(q).__name__} is known, FlatNormal or MixtureNormal (espalier.distributions), got "
        f"{type(p).__name__}: give site `weights` one of them, or register_kl yours"
    )


@register_kl(MaskedWeights, FlatNormal)
def _kl_masked_flat(q: MaskedWeights, p: FlatNormal) -> Tensor:
    """The terms of A(m) (`kl_bound`) that depend on the parameters: sum over active weights of p m^2 / 2v. In nats."""
    if isinstance(q.keep_prob, Tensor):
        return 0.5 * torch.dot(curvature(q.keep_prob, p.scale) * q.mean_value, q.mean_value)
    return 0.5 * curvature(q.keep_prob, p.scale) * torch.dot(q.mean_value, q.mean_value)


@register_kl(MaskedWeights, MixtureNormal)
def _kl_masked_mixture(q: MaskedWeights, p: MixtureNormal) -> Tensor:
    """The same bound by convexity, for components that shrink to a point: sum over active weights of p log pi(0) / pi(m), up to
    a constant. In nats."""
    return (q.keep_prob * (p.log_density(q.mean_value.new_zeros(())) - p.log_density(q.mean_value))).sum()


def curvature(keep_prob: Keep, prior_scale: float) -> Keep:
    """p / v, the second derivative of A(m) in m: what the KL of a weight is the half square of."""
    return keep_prob / prior_scale**2


def kl_bound(mean: Tensor, keep_prob: float, prior_scale: float, noise_scale: float) -> Tensor:
    """A(m) = p m^2/2v + (s^2/v - 1 - ln(s^2/v))/2 for `mean` m of any shape; in nats per weight.

    It bounds the KL of one weight's mixture p N(m, s^2) + (1-p) N(0, s^2) from N(0, v) from above (convexity of the
    KL in its first argument), and A(m) - H(p) from below, H the binary entropy (a mixture's entropy exceeds the mean of
    its components' by at most H(p)). Derived for this project in place of Lei et al. 2023, Appendix B. Training drops
    the terms in s, which diverge as s -> 0.
    """
    ratio = noise_scale**2 / prior_scale**2
    return keep_prob * mean.square() / (2 * prior_scale**2) + 0.5 * (ratio - 1 - math.log(ratio))
