"""Rules of moments for softmax and attention: by quadrature, by loops, without variance what torch gives, beside many masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import Training
from espalier.inference import cigl
from espalier.network import BayesianNetwork
from espalier.prediction.moments import Moments, Unknown
from fitted import digits

MEAN, SPREAD = torch.tensor([0.3, -1.1, 0.8], dtype=torch.float64), torch.tensor([1.0, 0.4, 0.7], dtype=torch.float64)


def still(x: Tensor) -> Moments:
    return Moments(x, torch.zeros_like(x))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------- softmax


def by_quadrature(mean: Tensor, variance: Tensor, nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Mean and variance of softmax(z) over independent normals, by a product of Gauss-Hermite rules."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    first, second = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for places in itertools.product(range(nodes), repeat=3):
        p = torch.softmax(mean + variance.sqrt() * torch.tensor(points[list(places)]), 0)
        share = float(np.prod(weights[list(places)]))
        first, second = first + share * p, second + share * p.square()
    return first, second - first.square()


def test_softmax_is_right_to_second_order_in_its_mean_and_to_first_in_its_variance() -> None:
    """Half the variance leaves a quarter of the error, or less."""
    errors = []
    for scale in (0.1, 0.05):
        found: Any = F.softmax(Moments(MEAN, scale * SPREAD), 0)
        mean, variance = by_quadrature(MEAN, scale * SPREAD)
        assert (found.loc - mean).abs().max() < 0.1 * (torch.softmax(MEAN, 0) - mean).abs().max()
        assert torch.allclose(found.variance, variance, rtol=0.15)
        errors.append([float((found.loc - mean).abs().max()), float((found.variance - variance).abs().max())])
    for larger, smaller in zip(*errors, strict=True):
        assert smaller < 0.3 * larger


def test_means_of_a_softmax_sum_to_one_whatever_its_variances() -> None:
    z, variance = drawn(50, 7), drawn(50, 7, seed=1).exp()
    for scale in (0.01, 1.0, 100.0):
        found: Any = F.softmax(Moments(z, scale * variance), -1)
        assert torch.allclose(found.loc.sum(-1), torch.ones(50))
        assert (found.loc >= 0).all()
        assert (found.variance >= 0).all()
        assert (found.variance <= found.loc * (1 - found.loc) + 1e-7).all()


@pytest.mark.parametrize("variance", [1.0, 2.0, 5.0, 20.0])
def test_where_scores_vary_much_the_order_is_kept_and_probabilities_are_near(variance: float) -> None:
    z = torch.tensor([2.0, 0.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    noise = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = torch.softmax(z + math.sqrt(variance) * noise, -1)
    found: Any = F.softmax(Moments(z, torch.full_like(z, variance)), -1)
    assert (found.loc.diff() <= 1e-12).all()
    assert (found.loc - draws.mean(0)).abs().max() < 0.13
    assert (found.variance - draws.var(0)).abs().max() < 0.09


def test_a_softmax_of_no_dim_and_one_in_other_numbers() -> None:
    with pytest.raises(Unknown, match="softmax of no dim"):
        F.softmax(still(drawn(2, 3)), _stacklevel=5)
    found: Any = F.softmax(still(drawn(2, 3)), -1, dtype=torch.float64)
    assert torch.allclose(found.loc, torch.softmax(drawn(2, 3), -1, dtype=torch.float64), atol=1e-12)
    for own in (still(drawn(2, 3)).softmax(-1, torch.float64), torch.softmax(still(drawn(2, 3)), -1, torch.float64)):
        assert torch.equal(own.loc, found.loc)


# ------------------------------------------------------------------------------------------------------------- attention


def test_attention_of_random_values_by_a_loop() -> None:
    """Queries and keys that are known: a product with the softmax, exact."""
    q, k, v, b = (drawn(2, 4, 3, seed=seed).double() for seed in range(4))
    found: Any = F.scaled_dot_product_attention(q, k, Moments(v, b.square()))
    for n, i, d in itertools.product(range(2), range(4), range(3)):
        p = [math.exp(float(q[n, i] @ k[n, j]) / math.sqrt(3)) for j in range(4)]
        p = [one / sum(p) for one in p]
        assert float(found.loc[n, i, d]) == pytest.approx(sum(p[j] * float(v[n, j, d]) for j in range(4)), rel=1e-6)
        assert float(found.variance[n, i, d]) == pytest.approx(sum((p[j] * float(b[n, j, d])) ** 2 for j in range(4)), rel=1e-6)


def test_attention_of_random_queries_keys_and_values_beside_draws() -> None:
    q, k, v = (drawn(5, 4, seed=seed).double() for seed in range(3))
    variances = [0.01 * drawn(5, 4, seed=seed).double().exp() for seed in (3, 4, 5)]
    found: Any = F.scaled_dot_product_attention(*(Moments(*pair) for pair in zip((q, k, v), variances, strict=True)))
    stream, total = torch.Generator().manual_seed(6), 40000
    noisy = [
        one + deviation.sqrt() * torch.randn(total, 5, 4, generator=stream, dtype=torch.float64)
        for one, deviation in zip((q, k, v), variances, strict=True)
    ]
    draws = F.scaled_dot_product_attention(*noisy)
    off = (found.loc - draws.mean(0)).abs() / draws.var(0).div(total).sqrt()
    plain = (F.scaled_dot_product_attention(q, k, v) - draws.mean(0)).abs() / draws.var(0).div(total).sqrt()
    assert off.mean() < 0.6 * plain.mean()  # the second order counts
    assert off.max() < 8
    assert float((found.variance / draws.var(0)).log().mean().exp()) == pytest.approx(1, abs=0.25)


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "true is kept": {"attn_mask": torch.ones(5, 5).tril().bool()},
    "added": {"attn_mask": drawn(5, 5, seed=9)},
    "scaled": {"scale": 0.3},
}


@pytest.mark.parametrize("name", MASKS)
def test_without_variance_attention_is_what_torch_gives(name: str) -> None:
    q, k, v = (drawn(2, 3, 5, 4, seed=seed) for seed in range(3))
    found: Any = F.scaled_dot_product_attention(still(q), still(k), still(v), **MASKS[name])
    assert torch.allclose(found.loc, F.scaled_dot_product_attention(q, k, v, **MASKS[name]), atol=1e-6)
    assert found.variance.abs().max() < 1e-10


HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "by the sequence first": ({"batch_first": False}, {}),
    "padding": ({}, {"key_padding_mask": torch.tensor([[False] * 3 + [True] * 2] * 3)}),
    "a mask": ({}, {"attn_mask": torch.ones(5, 5).triu(1).bool()}),
    "a mask a head, and padding": (
        {}, {"attn_mask": drawn(6, 5, 5, seed=8), "key_padding_mask": torch.tensor([[0.0] * 4 + [-torch.inf]] * 3)},
    ),
    "others' keys": ({"kdim": 6, "vdim": 7}, {}),
    "no biases, no weights": ({"bias": False}, {"need_weights": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_without_variance_heads_are_what_torch_gives(name: str) -> None:
    built, told = HEADS[name]
    torch.manual_seed(0)
    heads = nn.MultiheadAttention(8, 2, **{"batch_first": True, **built}).eval()
    shape = (3, 5) if built.get("batch_first", True) else (5, 3)
    x = [drawn(*shape, built.get(size, 8), seed=place) for place, size in enumerate(("", "kdim", "vdim"))]
    with torch.no_grad():
        found: Any = heads(*map(still, x), **told)[0]
        assert torch.allclose(found.loc, heads(*x, **told)[0], atol=1e-6)
        if name == "none":
            one: Any = heads(*(still(part[0]) for part in x))[0]
            assert torch.allclose(one.loc, heads(*x)[0][0], atol=1e-6)


def test_what_no_rule_covers_is_named() -> None:
    x = still(drawn(2, 5, 8))
    with pytest.raises(Unknown, match="scaled_dot_product_attention with dropout"):
        F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)
    with pytest.raises(Unknown, match="multi_head_attention_forward with dropout, or keys of its own"):
        nn.MultiheadAttention(8, 2, add_bias_kv=True, batch_first=True).eval()(x, x, x)


def test_a_row_that_attends_to_nothing_is_zeros_as_in_torch() -> None:
    q, mask = drawn(2, 4, 3), torch.tensor([[True] * 4, [False] * 4, [True, False] * 2, [True] * 4])
    found: Any = F.scaled_dot_product_attention(still(q), still(q), still(q), attn_mask=mask)
    assert torch.allclose(found.loc[:, 1], torch.zeros(2, 3))
    told, others = F.scaled_dot_product_attention(q, q, q, attn_mask=mask), [0, 2, 3]
    assert torch.allclose(found.loc[:, others], told[:, others], atol=1e-6)
    with pytest.raises(Unknown, match="with a random mask"):
        F.scaled_dot_product_attention(q, q, still(q), attn_mask=still(drawn(4, 4)))


# -------------------------------------------------------------------------------------------------------------- networks


class Attentive(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.query, self.key, self.value = nn.Linear(8, 16), *(nn.Linear(16, 16) for _ in range(3))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.reshape(-1, 8, 8))
        seen = self.norm(h)
        said = torch.softmax(self.query(seen) @ self.key(seen).mT / 4, -1) @ self.value(seen)
        return self.out((h + said).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.out = nn.Linear(8, 16), nn.Linear(16, 10)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(self.lift(x.reshape(-1, 8, 8))).mean(1))


@pytest.mark.parametrize("kind", [Attentive, Encoder])
def test_one_pass_is_nearer_to_many_masks_than_32_masks_are(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    training = Training(epochs=8, batch_size=64, learning_rate=0.05, device="cpu")
    fit = cigl.infer(BayesianNetwork(kind()), digits(), sparsity=0.5, drop_rate=0.2, delta_t=10, training=training, seed=0)
    assert "factors" in fit.record["moments"], fit.record["moments"]
    many = fit.predict(digits().test.x, "redraw", num_samples=400, seed=5).mean(0)

    def apart(said: Tensor) -> float:
        return float((many * (many / said.mean(0)).log()).sum(-1).mean())

    few, one = (fit.predict(digits().test.x, way, num_samples=32) for way in ("redraw", "moments"))
    assert apart(one) < apart(few)
    assert apart(one) < 0.2 * apart(fit.predict(digits().test.x, "mean"))
