"""A distribution over topologies: subsets of exactly k of n items, P(M) proportional to exp(sum_i M_i logit_i).

It is q(M | U) of CigL's eq. 3 (Lei et al. 2023) with `logits = |u| / T`: T = 1 is eq. 3, T -> 0 the top-k limit that the
collapsed guide takes. In survey statistics: conditional Poisson sampling (Hajek 1964), normalised by an elementary
symmetric polynomial (Chen, Dempster & Liu 1994). M is what independent bits with log odds x_i = logit_i + t become once
their sum S is known to be k: P(M) = prod_i Bernoulli(M_i; x_i) / P(S = k) for any t, and no factor under- or overflows
where E S = k. Three ways to log P(S = k), in float64:
* `tree`: the polynomials prod_i (1 - p_i + p_i z) multiplied in pairs in log space, up to degree min(k, n - k): O(n k)
  work in log2(n) steps, up to `EXACT_LIMIT`. The same tree, from its root down, draws exact samples.
* `contour`, beyond: the saddle-point integral of Daniels (1954), not expanded but summed: all digits, O(30 n).
* `saddlepoint`: its second-order expansion, O(n), with an error of order (Var S)^-2: for comparison.
"""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, pad

from espalier.topology.masks import keep_top

EXACT_LIMIT = 400_000  # `KSubset` uses the tree for n * min(k, n - k) up to this: n = 2,000 at k = 200
SUPPORT_LIMIT = 100_000  # the most subsets that `enumerate_support` lists
CORE = 512  # items that the sampler beyond `EXACT_LIMIT` leaves open so as to reach a sum of k
_NEVER = -1e30  # log of zero, with finite differences and gradients
_CHUNK = 1 << 22  # entries that the sampler handles at a time


def _frame(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """x = logits + t in float64 and t `(..., 1)`, bisected to E S = k, without a gradient: any t serves."""
    n, logits = logits.shape[-1], logits.double()
    target = min(max(float(k), 0.5), n - 0.5)  # t is infinite for k = 0 and n
    with torch.no_grad():
        origin = logits.kthvalue(min(n - k + 1, n), dim=-1, keepdim=True).values
        y, odds = logits - origin, math.log(target / (n - target))  # a large common offset cancels exactly
        low, high = odds - y.amax(-1, keepdim=True), odds - y.amin(-1, keepdim=True)
        for _ in range(16 + math.ceil(math.log2(max(1.0, float((high - low).max()))))):
            t = (low + high) / 2
            over = torch.sigmoid(y + t).sum(-1, keepdim=True) > target
            low, high = torch.where(over, low, t), torch.where(over, t, high)
    return (logits - origin) + t, t - origin


def _tree(x: Tensor, degree: int) -> list[Tensor]:
    """Log distributions of the sums of blocks of 1, 2, 4, ... bits, `(..., blocks, min(block, degree) + 1)` each."""
    x = pad(x, (0, (1 << (x.shape[-1] - 1).bit_length()) - x.shape[-1]), value=_NEVER)
    levels = [torch.stack([logsigmoid(-x), logsigmoid(x)], dim=-1)]
    while levels[-1].shape[-2] > 1:
        left, right = levels[-1][..., 0::2, :], levels[-1][..., 1::2, :]
        d = left.shape[-1] - 1  # window 2d - s of the reversed, padded right factor holds right[s - i], i = 0..d
        windows = pad(right.flip(-1), (d, d), value=_NEVER).unfold(-1, d + 1, 1)[..., 2 * d - min(2 * d, degree) :, :]
        levels.append(torch.logsumexp(left.unsqueeze(-2) + windows, dim=-1).flip(-1))
    return levels


def _descend(levels: list[Tensor], which: Tensor, counts: Tensor) -> Tensor:
    """Bits `(R, leaves)` with sums `counts (R,)`, row r by tree `which[r]`: a block's count is split between its halves."""
    counts = counts.unsqueeze(-1)
    for level in reversed(levels[:-1]):
        halves, top = level[which], level.shape[-1] - 1
        rest = counts.unsqueeze(-1) - torch.arange(top + 1, device=counts.device)
        fit = halves[:, 0::2] + halves[:, 1::2].gather(-1, rest.clamp(0, top))
        fit = fit.masked_fill((rest < 0) | (rest > top), -math.inf)
        taken = torch.multinomial((fit - fit.amax(-1, keepdim=True)).exp().flatten(0, -2), 1).view(counts.shape)
        counts = torch.stack([taken, counts - taken], dim=-1).flatten(-2)
    return counts


def _contour(x: Tensor, k: int) -> Tensor:
    """log P(S = k) = log (1/N) sum_j phi(theta_j) exp(-i k theta_j), theta_j = 2 pi j / N, phi = E exp(i theta S).

    The sum is P(S = k modulo N), and P(|S - E S| >= N - 1) < 2 exp(-45) by Bernstein's inequality. |phi| is at most
    exp(-Var S (1 - cos theta)): left out are terms below exp(-45), and 15 to 30 remain at any n.
    """
    p = torch.sigmoid(x)
    v = p * torch.sigmoid(-x)
    variance = v.detach().sum(-1)
    points = 2 * (8 + (225 + 90 * variance).sqrt() / 2).ceil() + 1  # odd: at theta = pi phi may vanish
    last = ((points - 1) / 2).minimum(points / (2 * math.pi) * (1 - 45 / variance).clamp(min=-1).arccos())
    total = torch.ones_like(variance)
    for j in range(1, int(last.max()) + 1):
        theta = (2 * math.pi * j / points).unsqueeze(-1)
        versine = 2 * (theta / 2).sin().square()  # 1 - cos theta
        modulus = (0.5 * torch.log1p(-2 * v * versine).sum(-1)).exp()
        angle = torch.atan2(p * theta.sin(), 1 - p * versine).sum(-1) - k * theta.squeeze(-1)
        total = total + 2 * (j <= last) * modulus * angle.cos()
    return total.log() - points.log()


def _saddlepoint(x: Tensor, k: int) -> Tensor:
    """log P(S = k) by Daniels' (1954) expansion to second order, for Var S well above 1."""
    p, shift = torch.sigmoid(x), torch.zeros_like(x[..., :1])
    for _ in range(2):  # Newton steps: they polish t and give it its gradient
        shift = shift + (k - p.sum(-1, keepdim=True)) / (p * (1 - p)).sum(-1, keepdim=True)
        p = torch.sigmoid(x + shift)
    v = p * (1 - p)
    k2, k3, k4 = v.sum(-1), (v * (1 - 2 * p)).sum(-1), (v * (1 - 6 * v)).sum(-1)  # cumulants of S
    exponent = (logsigmoid(-x) - logsigmoid(-x - shift)).sum(-1) - k * shift.squeeze(-1)
    return exponent - 0.5 * (2 * math.pi * k2).log() + k4 / (8 * k2**2) - 5 * k3**2 / (24 * k2**3)


def _log_count(x: Tensor, k: int, method: str = "auto") -> Tensor:
    n = x.shape[-1]
    x, k = (-x, n - k) if 2 * k > n else (x, k)  # of ones and zeros, the fewer are counted
    if method == "tree" or (method == "auto" and n * k <= EXACT_LIMIT):
        return _tree(x, k)[-1][..., 0, k]
    return _saddlepoint(x, k) if method == "saddlepoint" else _contour(x, k)


def log_normaliser(logits: Tensor, k: int, method: str = "auto") -> Tensor:
    """log e_k(exp(logits)) = log sum over k-subsets of exp(sum of their logits); `(..., n)` -> `(...)`, float64.

    method: see the module; 'auto' is what `KSubset` uses. The gradient is the vector of inclusion probabilities.
    """
    if method not in ("auto", "tree", "contour", "saddlepoint"):
        raise ValueError(f"expected method auto, tree, contour or saddlepoint, got {method!r}")
    x, t = _frame(_checked(logits, k), k)
    return _log_count(x, k, method) - logsigmoid(-x).sum(-1) - k * t.squeeze(-1)


def _checked(logits: Tensor, k: int) -> Tensor:
    if logits.dim() == 0 or logits.numel() == 0 or not logits.is_floating_point():
        raise ValueError(f"expected floating-point logits (..., n), got {logits.dtype} of shape {tuple(logits.shape)}")
    if not isinstance(k, int) or not 0 <= k <= logits.shape[-1]:
        raise ValueError(f"expected a whole k in 0..{logits.shape[-1]}, got {k}: it is how many items a subset has")
    if not logits.isfinite().all():
        raise ValueError("expected finite logits, got a NaN or an infinity: for temperature 0 take the mode")
    return logits


class _Subsets(constraints.Constraint):
    is_discrete, event_dim = True, 1

    def __init__(self, k: int) -> None:
        self.k = k

    def check(self, value: Tensor) -> Tensor:
        return ((value == 0) | (value == 1)).all(-1) & (value.sum(-1) == self.k)


class KSubset(TorchDistribution):
    """P(M) proportional to exp(sum_i M_i logit_i) over 0/1 vectors M with exactly k ones (see the module).

    logits: `(*batch, n)`, finite; k: one for the batch. Event shape `(n,)`; draws have the logits' dtype, `log_prob` takes
    bools too. `log_prob`, `mean` and `entropy` are differentiable; draws are not.
    """

    arg_constraints: dict[str, Any] = {"logits": constraints.real_vector}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, k: int, validate_args: bool | None = None) -> None:
        self.logits, self.k = _checked(logits, k), k
        self._compact = logits  # without the repeats of `expand`
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> KSubset:
        new: KSubset = self._get_checked_instance(KSubset, _instance)
        new.logits, new.k, new._compact = self.logits.expand(*batch_shape, -1), self.k, self._compact
        super(KSubset, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return _Subsets(self.k)

    def log_prob(self, value: Tensor) -> Tensor:
        """`-inf` for a value that is no 0/1 vector of k ones, or ValueError where arguments are validated."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"expected a value of shape (..., {self.event_shape[0]}), got {tuple(value.shape)}")
        if self._validate_args:
            self._validate_sample(value)
        x, _ = _frame(self._compact, self.k)
        log_prob = logsigmoid((2 * value.double() - 1) * x).sum(-1) - _log_count(x, self.k)
        log_prob = log_prob.masked_fill(~_Subsets(self.k).check(value), -math.inf).to(self.logits.dtype)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _moments(self) -> Tensor:
        graph = torch.is_grad_enabled() and self._compact.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            x, _ = _frame(self._compact if graph else self._compact.detach().clone().requires_grad_(), self.k)
            log_count = _log_count(x, self.k)
            (slope,) = torch.autograd.grad(log_count.sum(), x, create_graph=graph)
            mean = (torch.sigmoid(x) + slope).clamp(0, 1)
            entropy = log_count - (mean * logsigmoid(x) + (1 - mean) * logsigmoid(-x)).sum(-1)
            both = torch.cat([mean, entropy.unsqueeze(-1)], dim=-1).to(self.logits.dtype)
        return both if graph else both.detach()

    @property
    def mean(self) -> Tensor:
        """The inclusion probabilities P(M_i = 1), the gradient of the log normaliser: `(*batch, n)`, summing to k."""
        return self._moments()[..., :-1].expand(self._extended_shape())

    @property
    def mode(self) -> Tensor:
        """The k largest logits, ties to the lower position."""
        rows = [keep_top(row, self.k) for row in self._compact.detach().reshape(-1, self.event_shape[0])]
        return torch.stack(rows).view(self._compact.shape).to(self.logits.dtype).expand(self._extended_shape())

    def entropy(self) -> Tensor:
        """-E log P(M) in nats, `(*batch)`."""
        return self._moments()[..., -1].expand(self.batch_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All C(n, k) subsets in lexicographic order of their items, `(C(n, k), *batch or ones, n)`."""
        n, count = self.event_shape[0], math.comb(self.event_shape[0], self.k)
        if count > SUPPORT_LIMIT:
            raise NotImplementedError(f"expected at most {SUPPORT_LIMIT} subsets to enumerate, got C({n}, {self.k})")
        items = torch.tensor(list(itertools.combinations(range(n), self.k)), dtype=torch.long).view(count, self.k)
        values = torch.zeros(count, n).scatter_(-1, items, 1.0).view(count, *(1,) * len(self.batch_shape), n)
        return values.to(self.logits).expand(count, *(self.batch_shape if expand else values.shape[1:-1]), n)

    @cached_property
    def _plan(self) -> tuple[Tensor, Tensor, list[Tensor], Tensor, int]:
        """What draws share: bit probabilities `(B, n)`, open items `(B, m)`, their tree, its fit to each count, count."""
        n = self.event_shape[0]
        x, _ = _frame(self._compact.detach().reshape(-1, n), self.k)
        x, k = (-x, n - self.k) if 2 * self.k > n else (x, self.k)
        m = n if n * k <= EXACT_LIMIT else min(n, CORE)
        core = x.abs().topk(m, largest=False, sorted=False).indices  # the least certain
        levels = _tree(x.gather(-1, core), k if m == n else m)
        fit = (levels[-1] - levels[-1].amax(-1, keepdim=True))[:, 0] * (m < n)  # nothing to reject where all is open
        return torch.sigmoid(x).scatter(-1, core, 0.0), core, levels, fit, k

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Exact draws `(*sample_shape, *batch, n)`: within `EXACT_LIMIT` the count k is passed down the tree.

        Beyond, all bits but the `CORE` least certain are drawn independently, and accepted in proportion to P(the core
        makes up the count), sqrt(Var S of the core / Var S) of the tries, without a core 1 / sqrt(2 pi Var S).
        """
        shape, n = self._extended_shape(torch.Size(sample_shape)), self.event_shape[0]
        probs, core, levels, fits, k = self._plan
        tree = torch.arange(len(probs), device=probs.device).view(self._compact.shape[:-1])
        tree = tree.expand(shape[:-1]).flatten()  # of each draw
        draws = probs.new_zeros(len(tree), n, dtype=torch.bool)
        waiting = torch.arange(len(tree), device=probs.device)
        while len(waiting):
            rows, later = waiting[: 1 + _CHUNK // n], waiting[1 + _CHUNK // n :]
            draw = torch.rand(len(rows), n, dtype=probs.dtype, device=probs.device) < probs[tree[rows]]
            rest = k - draw.sum(-1)  # what the core has to make up
            fit = fits[tree[rows], rest.clamp(0, fits.shape[-1] - 1)]
            kept = (rest >= 0) & (rest < fits.shape[-1]) & (torch.rand_like(fit).log() <= fit)
            done, waiting = rows[kept], torch.cat([rows[~kept], later])
            bits = _descend(levels, tree[done], rest[kept])[:, : core.shape[-1]].bool()
            draws[done] = draw[kept].scatter(-1, core[tree[done]], bits)
        return (draws ^ (k != self.k)).to(self.logits.dtype).view(shape)


def overlap_with_mode(logits: Tensor, k: int) -> Tensor:
    """E|M intersect top-k| / k, `(..., n)` -> `(...)`: 1 as T -> 0; k / n is what subsets blind to the logits have."""
    subset = KSubset(logits, k)
    return (subset.mean * subset.mode).sum(-1) / max(k, 1)
