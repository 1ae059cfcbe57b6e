"""Rules for numbers by mean and variance: products by enumeration, functions by quadrature, without variance what torch gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import Tensor

from espalier.prediction.moments import LEAST, RULES, Moments, Unknown


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(seed: int, *shape: int) -> Moments:
    return Moments(normal(seed, *shape), normal(seed + 100, *shape).square() + 0.1)


def masked(u: Tensor, p: float) -> Moments:
    return Moments(p * u, p * (1 - p) * u.square(), (1 - p) / p)


def enumerated(u: Tensor, p: float, x: Moments | Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all masks, and over inputs at loc +- a deviation, each as likely."""
    first, second = torch.zeros(()), torch.zeros(())
    signs = [()] if not isinstance(x, Moments) else itertools.product([-1.0, 1.0], repeat=x.loc.numel())
    for sign in signs:
        at = x if not isinstance(x, Moments) else x.loc + torch.tensor(sign).view(x.shape) * x.variance.sqrt()
        for z in itertools.product([0.0, 1.0], repeat=u.numel()):
            share = math.prod(p if kept else 1 - p for kept in z) / (2 ** len(sign))
            out = product(at, u * torch.tensor(z, dtype=u.dtype).view(u.shape))
            first, second = first + share * out, second + share * out.square()
    return first, second - first.square()


@pytest.mark.parametrize("moves", [False, True])
def test_a_linear_layer_has_the_moments_of_all_its_masks(moves: bool) -> None:
    u, p, bias = normal(0, 2, 3), 0.7, normal(1, 2)
    x = some(2, 1, 3) if moves else normal(2, 1, 3)
    loc, variance = enumerated(u, p, x, lambda at, w: F.linear(at, w, bias))
    for weight in (masked(u, p), Moments(p * u, p * (1 - p) * u.square())):  # in two products, and in three
        found = F.linear(x, weight, bias)
        torch.testing.assert_close(found.loc, loc)
        torch.testing.assert_close(found.variance, variance)


def test_a_convolution_has_the_moments_of_all_its_masks() -> None:
    u, p, x = normal(0, 2, 1, 2, 2), 0.6, normal(3, 1, 1, 3, 4)
    loc, variance = enumerated(u, p, x, lambda at, w: F.conv2d(at, w, stride=1, padding=1))
    found = F.conv2d(x, masked(u, p), stride=1, padding=1)
    torch.testing.assert_close(found.loc, loc)
    torch.testing.assert_close(found.variance, variance)


def test_a_fixed_layer_takes_the_variance_through() -> None:
    x, w = some(0, 2, 3), normal(5, 4, 3)
    found = F.linear(x, w, normal(6, 4))
    torch.testing.assert_close(found.variance, x.variance @ w.square().t())
    torch.testing.assert_close((x @ w.t()).variance, found.variance)


def test_a_gaussian_layer_has_the_moments_of_its_draws_in_closed_form() -> None:
    m, s, x = normal(0, 2, 3), normal(1, 2, 3).abs(), normal(2, 5, 3)
    found = F.linear(x, Moments(m, s.square()))
    torch.testing.assert_close(found.variance, x.square() @ s.square().t())


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu, "torch.relu": torch.relu, "leaky": lambda x: F.leaky_relu(x, 0.2), "gelu": F.gelu, "silu": F.silu,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": F.softplus, "elu": F.elu, "square": torch.square,
    "clamp": lambda x: x.clamp(-1.0, 2.0), "pow": lambda x: x**3 / 20, "erf": torch.erf,
}  # fmt: skip
KINKED = {"leaky": 2e-2, "elu": 2e-2, "clamp": 5e-2}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_number_is_integrated(name: str) -> None:
    """Of kinked ones quadrature by 16 nodes is good to hundredths; relu is exact."""
    loc, variance, function = 0.4, 1.7, FUNCTIONS[name]
    found = function(Moments(torch.tensor([loc, -loc], dtype=torch.float64), torch.tensor([variance] * 2, dtype=torch.float64)))
    close = KINKED.get(name, 2e-3)

    def at(x: float) -> float:
        return float(function(torch.tensor(x, dtype=torch.float64)))

    for place, centre in enumerate((loc, -loc)):
        law = stats.norm(centre, math.sqrt(variance))
        first, second = (
            integrate.quad(lambda x, n=power, law=law: at(x) ** n * law.pdf(x), -12, 12, points=[0.0], limit=200)[0]
            for power in (1, 2)
        )
        assert float(found.loc[place]) == pytest.approx(first, abs=close)
        assert float(found.variance[place]) == pytest.approx(second - first**2, abs=close)


def test_relu_far_from_its_kink() -> None:
    x = Moments(torch.tensor([9.0, -9.0, 0.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    found = F.relu(x)
    torch.testing.assert_close(found.loc, torch.tensor([9.0, 0.0, 0.0, 2.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.variance, torch.tensor([1.0, 0.0, 0.0, 0.0]), atol=1e-5, rtol=0)


IMAGE = (2, 4, 6, 6)
CALLS: dict[str, Callable[[Any], Any]] = {
    **FUNCTIONS,
    "conv": lambda x: F.conv2d(x, normal(1, 3, 4, 3, 3), normal(2, 3), padding=1),
    "conv_transpose": lambda x: F.conv_transpose2d(x, normal(1, 4, 3, 2, 2), stride=2),
    "linear": lambda x: F.linear(x, normal(1, 5, 6)),
    "matmul": lambda x: x @ normal(1, 6, 5),
    "batch_norm": lambda x: F.batch_norm(x, normal(1, 4), normal(2, 4).square() + 0.1, normal(3, 4), normal(4, 4)),
    "batch_norm, no affine": lambda x: F.batch_norm(x, normal(1, 4), normal(2, 4).square() + 0.1),
    "layer_norm": lambda x: F.layer_norm(x, (6, 6), normal(1, 6, 6), normal(2, 6, 6)),
    "layer_norm, no affine": lambda x: F.layer_norm(x, (6,)),
    "group_norm": lambda x: F.group_norm(x, 2, normal(1, 4), normal(2, 4)),
    "max_pool": lambda x: F.max_pool2d(x, 2),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 3, stride=2),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, stride=2, padding=1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "mean": lambda x: x.mean((2, 3)),
    "view": lambda x: x.view(2, -1).reshape(4, -1).unsqueeze(0).squeeze(0).t().contiguous(),
    "flatten": lambda x: torch.flatten(x, 1),
    "permute": lambda x: x.permute(0, 2, 3, 1).transpose(1, 2),
    "getitem": lambda x: x[:, 1:3, ..., 0],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split([1, 3], 1)[1],
    "pad": lambda x: F.pad(x, (1, 2), value=3.0),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "cat": lambda x: torch.cat([x, x, normal(1, *IMAGE)], 1),
    "stack": lambda x: torch.stack([x, x]),
    "add": lambda x: (x + x) + 1.0 + normal(1, *IMAGE),
    "radd": lambda x: 1.0 + x,
    "sub": lambda x: 2.0 - (x - normal(1, 4, 1, 1)),
    "neg": lambda x: -x,
    "mul": lambda x: 3.0 * x * normal(1, 4, 1, 1) * x,
    "div": lambda x: x / 4.0 / (normal(1, 4, 1, 1) + 9),
    "abs": torch.abs,
    "glu": lambda x: F.glu(x, 1),
    "prelu": lambda x: F.prelu(x, normal(1, 4).abs()),
    "threshold": lambda x: F.threshold(x, 0.5, 0.1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "einsum": lambda x: torch.einsum("bchw,oc->bohw", x, normal(1, 3, 4)) + torch.einsum("bchw,oc->bohw", [x, normal(2, 3, 4)]),
    "double": lambda x: x.double().clone().detach(),
    "in place": lambda x: x.clone().add_(1.0).mul_(2.0),
    "inplace=True": lambda x: F.relu(x.clone(), inplace=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_without_variance_every_rule_gives_what_torch_gives(name: str) -> None:
    plain = normal(7, *IMAGE)
    found, told = CALLS[name](Moments(plain.clone(), torch.zeros_like(plain))), CALLS[name](plain.clone())
    assert isinstance(found, Moments)
    assert found.shape == told.shape
    torch.testing.assert_close(found.loc, told, atol=1e-5, rtol=1e-5)
    assert float(found.variance.abs().max()) < 1e-5
    assert found.variance.shape == told.shape


def test_a_line_scales_the_variance_by_its_square() -> None:
    x = some(0, *IMAGE)
    var, weight = normal(2, 4).square() + 0.1, normal(3, 4)
    found = F.batch_norm(x, normal(1, 4), var, weight, normal(4, 4))
    torch.testing.assert_close(found.variance, x.variance * (weight.square() / (var + 1e-5)).view(1, 4, 1, 1))
    torch.testing.assert_close((x / 4.0 - 1.0).variance, x.variance / 16)
    torch.testing.assert_close((-x * 3.0).variance, x.variance * 9)


def test_sums_and_products_of_independent_numbers() -> None:
    x, y = some(0, 3, 4), some(1, 3, 4)
    torch.testing.assert_close((x + y).variance, x.variance + y.variance)
    torch.testing.assert_close((x - y).loc, x.loc - y.loc)
    torch.testing.assert_close((x - y).variance, x.variance + y.variance)
    second = (x.variance + x.loc.square()) * (y.variance + y.loc.square())
    torch.testing.assert_close((x * y).variance, second - (x.loc * y.loc).square())


def test_a_number_is_not_independent_of_itself() -> None:
    x = some(0, 3, 4)
    torch.testing.assert_close((x + x).variance, 4 * x.variance)
    torch.testing.assert_close((x - x).variance, torch.zeros_like(x.variance))
    torch.testing.assert_close((x * x).loc, x.loc.square() + x.variance)
    torch.testing.assert_close((x * x).variance, 2 * x.variance.square() + 4 * x.loc.square() * x.variance)  # of a normal one


def test_what_is_random_is_not_written_into_what_is_not() -> None:
    plain = torch.zeros(3, 4, dtype=torch.float64)
    for write in (lambda: plain.add_(some(0, 3, 4)), lambda: plain.__iadd__(some(0, 3, 4)), lambda: plain.mul_(some(0, 3, 4))):
        with pytest.raises(Unknown, match="into what is not"):
            write()


def test_normalisation_is_by_the_expected_variance() -> None:
    x = some(0, 3, 8)
    found = F.layer_norm(x, (8,))
    for row in range(3):
        centred = x.loc[row] - x.loc[row].mean()
        scale = ((centred.square() + x.variance[row]).mean() + 1e-5).sqrt()
        torch.testing.assert_close(found.loc[row], centred / scale)
        torch.testing.assert_close(found.variance[row], x.variance[row] / scale.square())
    wide = F.group_norm(Moments(x.loc.view(3, 4, 2), x.variance.view(3, 4, 2)), 1)
    torch.testing.assert_close(wide.loc.reshape(3, 8), found.loc)


def test_a_product_by_letters_is_the_linear_layers() -> None:
    u, x = normal(0, 2, 3), some(2, 5, 3)
    for at in (x, x.loc):
        told, found = F.linear(at, masked(u, 0.7)), torch.einsum("oi,bi->bo", masked(u, 0.7), at)
        torch.testing.assert_close(found.loc, told.loc)
        torch.testing.assert_close(found.variance, told.variance)
    with pytest.raises(Unknown, match="einsum of 3"):
        torch.einsum("i,i,i->i", some(0, 3), normal(1, 3), normal(2, 3))


def test_a_gate_multiplies_what_is_independent_of_it() -> None:
    x = some(0, 1, 2)
    (value, gate), (spread, own) = x.loc[0].tolist(), x.variance[0].sqrt().tolist()

    def of_gate(power: int) -> float:
        law = stats.norm(gate, own)
        return float(integrate.quad(lambda b: law.pdf(b) / (1 + math.exp(-b)) ** power, -20, 20)[0])

    found, second = F.glu(x, 1), (value**2 + spread**2) * of_gate(2)
    assert float(found.loc) == pytest.approx(value * of_gate(1), rel=1e-4)
    assert float(found.variance) == pytest.approx(second - (value * of_gate(1)) ** 2, rel=1e-3)


def test_logs_of_probabilities_say_what_their_logits_say() -> None:
    """Of classes, at every point that is laid out."""
    x, point = some(0, 3, 5), normal(9, 5)
    found = F.log_softmax(x, -1)
    torch.testing.assert_close(found.loc.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    told, said = ((own.loc + own.variance.sqrt() * point).softmax(-1) for own in (x, found))
    torch.testing.assert_close(said, told)


def test_the_winner_of_a_pool_takes_its_variance_along() -> None:
    x = Moments(torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]]), torch.tensor([[[[9.0, 0.5], [7.0, 8.0]]]]))
    assert float(F.max_pool2d(x, 2).variance) == 0.5
    assert float(F.max_pool2d(x, 2).loc) == 5.0
    assert float(F.avg_pool2d(x, 2).variance) == pytest.approx((3 + 0.5**0.5 + 7**0.5 + 8**0.5) ** 2 / 16)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("logsumexp", lambda x: x.logsumexp(-1)),
        ("batch_norm by the batch", lambda x: F.batch_norm(x, None, None, training=True)),
        ("dropout while it drops", lambda x: F.dropout(x, 0.5, training=True)), ("division", lambda x: 1.0 / x),
        ("cumsum", lambda x: x.cumsum(-1)), ("rpow", lambda x: 2.0**x), ("power", lambda x: torch.pow(2.0, x)),
    ],
)  # fmt: skip
def test_a_function_without_a_rule_is_refused(name: str, call: Callable[[Any], Any]) -> None:
    with pytest.raises(Unknown, match=name.split()[0] if name != "division" else "division|reciprocal|rdiv"):
        call(some(0, *IMAGE))


def test_a_rule_is_added_in_a_line() -> None:
    from espalier.prediction.moments import rule

    assert "logit" not in RULES
    rule("logit")(lambda func, x: Moments(func(x.loc), x.variance))
    try:
        assert isinstance(torch.logit(Moments(torch.tensor(0.3), torch.tensor(0.0))), Moments)
    finally:
        del RULES["logit"]


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda x: F.relu(x, inplace=True), F.relu), (lambda x: x.relu_(), F.relu), (lambda x: x.add_(1.0), lambda x: x + 1.0),
        (lambda x: x.__imul__(2.0), lambda x: x * 2.0), (lambda x: x.__iadd__(x), lambda x: x + x),
    ],
)  # fmt: skip
def test_what_is_written_into_is_changed_for_all_who_hold_it(change: Callable[[Any], Any], plain: Callable[[Any], Any]) -> None:
    """A residual block whose ReLU writes into its input adds what was left of it."""
    x, told = some(0, 2, 3), plain(some(0, 2, 3))
    first = x.loc
    kept = first.clone()
    assert change(x) is x
    torch.testing.assert_close(x.loc, told.loc)
    torch.testing.assert_close(x.variance, told.variance)
    assert torch.equal(first, kept)  # which another may be made of


def test_it_says_what_it_is() -> None:
    x = some(0, 2, 3)
    assert (x.shape, x.dim(), x.dtype, len(x)) == (torch.Size([2, 3]), 2, torch.float64, 2)
    assert "variance" in repr(x)
    assert LEAST < 1e-6
