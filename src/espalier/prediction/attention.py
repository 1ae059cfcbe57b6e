"""Rules of moments for softmax and attention: to second and first order in what goes in.

Of p = softmax(z), z_j independent of variances v_j, with p at their means and derivatives dp_i/dz_j = p_i (d_ij - p_j) and
d^2 p_i/dz_j^2 = p_i ((d_ij - p_j)^2 - p_j (1 - p_j)):

    E[p_i] = p_i (1 + 1/2 (v_i (1 - 2 p_i) + 2 sum_j p_j^2 v_j - sum_j p_j v_j)),
    Var[p_i] = p_i^2 (v_i (1 - 2 p_i) + sum_j p_j^2 v_j),

the delta method (Oehlert 1992). With v / (1 + v / 2) in place of v, which is the same to this order, no mean is below 0 whatever
the variances, and scores that vary alike keep their order; the variance is at most E[p_i] (1 - E[p_i]), a Bernoulli's. The means
sum to 1. Attention is two products with it in between, and a layer of its own to
`propagation.py`, whose factor puts right what is left.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.prediction.moments import Moments, Unknown, rule

ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


@rule("softmax")
def softmax(_: Any, z: Moments, dim: int | None = None, *rest: Any, dtype: torch.dtype | None = None, **named: Any) -> Moments:
    if dim is None:
        raise Unknown("softmax of no dim")
    dtype = next((one for one in rest if isinstance(one, torch.dtype)), dtype)  # `functional.softmax` has a _stacklevel before
    loc, variance = (part if dtype is None else part.to(dtype) for part in (z.loc, z.variance))
    p = torch.softmax(loc, dim)
    variance = variance / (1 + variance / 2)
    own = variance * (1 - 2 * p)
    all_squared, each = (p.square() * variance).sum(dim, keepdim=True), (p * variance).sum(dim, keepdim=True)
    mean = (p * (1 + 0.5 * (own + 2 * all_squared - each))).clamp_min(0.0)
    mean = mean / mean.sum(dim, keepdim=True)
    return Moments(mean, torch.minimum((p.square() * (own + all_squared)).clamp_min(0.0), mean * (1 - mean)))


@rule("scaled_dot_product_attention")
def attention(
    _: Any, query: Any, key: Any, value: Any, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p or enable_gqa:
        raise Unknown("scaled_dot_product_attention with dropout or grouped queries")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    query = query if isinstance(query, Moments) else Moments(query, torch.zeros_like(query))
    said: Any = torch.matmul(query, key.mT)
    loc, variance = said.loc * scale, said.variance * scale**2
    if is_causal:
        attn_mask = torch.ones(loc.shape[-2:], dtype=torch.bool, device=loc.device).tril()
    if isinstance(attn_mask, Moments):
        raise Unknown("scaled_dot_product_attention with a random mask")
    hard = attn_mask is not None and attn_mask.dtype == torch.bool
    if attn_mask is not None:
        loc = loc.masked_fill(~attn_mask, -torch.inf) if hard else loc + attn_mask
    shares: Any = torch.softmax(Moments(loc, variance), -1)
    if hard:  # of a row that attends to nothing torch gives zeros
        shares = Moments(shares.loc.nan_to_num(), shares.variance.nan_to_num())
    return torch.matmul(shares, value)


@rule("multi_head_attention_forward")
def multi_head(
    _: Any, query: Any, key: Any, value: Any, embed_dim: int, num_heads: int, in_proj_weight: Any, in_proj_bias: Tensor | None,
    bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float, out_proj_weight: Any, out_proj_bias: Tensor | None,
    training: bool = True, key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Any = None, k_proj_weight: Any = None, v_proj_weight: Any = None,
    static_k: Any = None, static_v: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Moments, None]:  # fmt: skip
    """Of `nn.MultiheadAttention`, inputs `(L, n, E)` or `(L, E)`. Its weights are not among what it gives."""
    odd = (bias_k, bias_v, static_k, static_v, add_zero_attn or None, (training and dropout_p) or None)
    if any(one is not None for one in odd):
        raise Unknown("multi_head_attention_forward with dropout, or keys of its own")
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    batched = query.dim() == 3
    parts = []
    for x, weight, bias in zip((query, key, value), weights, biases, strict=True):
        own: Any = F.linear(x if batched else x.unsqueeze(1), weight, bias)
        parts.append(own.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3))  # (n, heads, L, E / heads)
    mask = _additive(attn_mask, parts[0].shape[0], num_heads)
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask if batched else key_padding_mask[None], 1, 1)
        assert padding is not None
        padding = padding.view(-1, 1, 1, padding.shape[-1])
        mask = padding if mask is None else mask + padding
    found: Any = attention(None, *parts, mask)
    found = F.linear(found.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return (found if batched else found.squeeze(1)), None


def _additive(mask: Tensor | None, batch: int, heads: int) -> Tensor | None:
    """What is added to scores; True is what is left out."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf)
    return mask.view(batch, heads, *mask.shape[1:]) if mask.dim() == 3 else mask
