"""Laws of the distribution over subsets: against enumeration, closed forms, finite differences and counts of draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import special

from enumeration import enumerated, normal
from espalier.distributions import subsets
from espalier.distributions.subsets import KSubset, log_normaliser, overlap_with_mode
from soon import soon

# ---------------------------------------------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("scale", [0.05, 1.0, 8.0])
@pytest.mark.parametrize("n", range(1, 13))
def test_enumeration_agrees_at_every_k(n, scale, route):
    logits = normal(n, n, scale=scale)
    for k in range(n + 1):
        values, log_probs, log_z = enumerated(logits, k)
        subset = KSubset(logits, k)
        assert torch.equal(subset.enumerate_support(), values)
        assert subset.log_prob(values).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
        assert torch.allclose(subset.log_prob(values), log_probs, rtol=0, atol=1e-10)
        assert torch.allclose(subset.mean, log_probs.exp() @ values, rtol=0, atol=1e-10)
        assert subset.mean.sum().item() == pytest.approx(k, abs=1e-10)
        assert subset.entropy().item() == pytest.approx(-(log_probs.exp() * log_probs).sum().item(), abs=1e-10)
        assert log_normaliser(logits, k, route).item() == pytest.approx(log_z.item(), abs=1e-10)
        assert torch.equal(subset.mode, values[log_probs.argmax()])


def test_a_batch_is_its_rows(route):
    logits = normal(1, 2, 3, 7, scale=2.0)
    subset = KSubset(logits, 3)
    values = subset.enumerate_support()
    assert (subset.batch_shape, subset.event_shape) == ((2, 3), (7,))
    assert values.shape == (35, 2, 3, 7)
    assert subset.enumerate_support(expand=False).shape == (35, 1, 1, 7)
    for row in itertools.product(range(2), range(3)):
        single = KSubset(logits[row], 3)
        assert torch.allclose(subset.log_prob(values)[:, *row], single.log_prob(values[:, *row]), rtol=0, atol=1e-12)
        assert torch.allclose(subset.mean[row], single.mean, rtol=0, atol=1e-12)
        assert torch.allclose(subset.entropy()[row], single.entropy(), rtol=0, atol=1e-12)
        assert torch.equal(subset.mode[row], single.mode)


def test_an_expanded_subset_is_a_subset_of_repeated_logits(route):
    torch.manual_seed(0)
    logits = normal(2, 3, 6)
    subset, plain = KSubset(logits, 2).expand((4, 3)), KSubset(logits.expand(4, 3, 6).clone(), 2)
    assert (subset.batch_shape, subset.event_shape) == ((4, 3), (6,))
    draws = subset.sample((5,))
    assert draws.shape == (5, 4, 3, 6)
    assert draws.flatten(0, 1).unique(dim=0).shape[0] > 10  # the repeats are drawn on their own
    for one, other in [
        (subset.log_prob(draws), plain.log_prob(draws)),
        (subset.log_prob(draws[0, 0, 0]), plain.log_prob(draws[0, 0, 0])),
        (subset.mean, plain.mean),
        (subset.mode, plain.mode),
        (subset.entropy(), plain.entropy()),
        (subset.enumerate_support(), plain.enumerate_support()),
    ]:
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_every_dtype_comes_back_and_bools_are_values(dtype, route):
    logits = normal(3, 9).to(dtype)
    subset, exact = KSubset(logits, 4), KSubset(logits.double(), 4)
    draw = subset.sample()
    assert draw.dtype == subset.mean.dtype == subset.mode.dtype == subset.entropy().dtype == dtype
    assert subset.log_prob(draw).dtype == subset.log_prob(draw.bool()).dtype == dtype
    assert torch.equal(subset.log_prob(draw.bool()), exact.log_prob(draw.double()).to(dtype))


def test_ties_of_the_mode_go_to_the_lower_position():
    assert KSubset(torch.tensor([[0.0, 1, 0, 0], [2, 2, 2, 2]]), 2).mode.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("k", [0, 1, 3, 5, 6])
def test_gradients_agree_with_finite_differences(k, route):
    logits = normal(4, 2, 6, scale=1.5).requires_grad_()
    value = KSubset(logits.detach(), k).mode.roll(1, -1)
    assert torch.autograd.gradcheck(lambda x: KSubset(x, k).log_prob(value), logits)
    assert torch.autograd.gradcheck(lambda x: KSubset(x, k).mean, logits)
    assert torch.autograd.gradcheck(lambda x: KSubset(x, k).entropy(), logits)


def test_the_mean_is_the_gradient_and_the_covariance_the_second_derivative(route):
    logits = normal(5, 7).requires_grad_()
    (slope,) = torch.autograd.grad(log_normaliser(logits, 3, route), logits)
    assert torch.allclose(slope, KSubset(logits, 3).mean, rtol=0, atol=1e-12)
    values, log_probs, _ = enumerated(logits.detach(), 3)
    centred = values - log_probs.exp() @ values
    covariance = centred.T @ (log_probs.exp().unsqueeze(-1) * centred)
    hessian = torch.autograd.functional.hessian(lambda x: log_normaliser(x, 3, route), logits.detach())
    assert torch.allclose(hessian, covariance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_moments_need_no_graph(mode, route):
    logits = normal(6, 8).requires_grad_()
    with mode():
        subset = KSubset(logits.exp(), 3)
        mean, entropy = subset.mean, subset.entropy()
        subset.log_prob(subset.sample((2,)))
    assert not mean.requires_grad
    assert mean.sum().item() == pytest.approx(3)
    assert entropy.item() == pytest.approx(KSubset(logits.exp(), 3).entropy().item())
    assert KSubset(logits, 3).mean.requires_grad


# -------------------------------------------------------------------------------------------- extremes and closed forms


@pytest.mark.parametrize("offset", [0.0, 500.0, -500.0, 1e8])
@pytest.mark.parametrize(("n", "k"), [(12, 0), (12, 5), (12, 12), (300, 17), (300, 290)])
def test_equal_logits_are_the_uniform_distribution(n, k, offset, route):
    subset = KSubset(torch.full((n,), offset, dtype=torch.float64), k)
    log_count = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    assert subset.log_prob(subset.mode).item() == pytest.approx(-log_count, abs=1e-10)
    assert subset.entropy().item() == pytest.approx(log_count, abs=1e-10)
    assert torch.allclose(subset.mean, torch.full_like(subset.mean, k / n), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(13))
def test_logits_of_500_leave_a_uniform_choice(k, route):
    """Six items at +500, six at -500: the excess over six, or what is missing, is a uniform choice."""
    logits = torch.tensor([500.0, -500.0] * 6, dtype=torch.float64).requires_grad_()
    subset, certain = KSubset(logits, k), min(k, 6)
    log_count = math.log(math.comb(6, certain) * math.comb(6, k - certain))
    assert subset.log_prob(subset.mode).item() == pytest.approx(-log_count, abs=1e-12)
    assert subset.entropy().item() == pytest.approx(log_count, abs=1e-12)
    assert subset.mean.tolist() == pytest.approx([certain / 6, (k - certain) / 6] * 6, abs=1e-12)
    (slope,) = torch.autograd.grad(subset.log_prob(subset.mode) + subset.entropy(), logits)
    assert torch.allclose(slope, (subset.mode - subset.mean).detach(), atol=1e-10)
    if 1 <= k <= 5:  # one swap across costs 1000 nats
        value = subset.mode.clone()
        value[0], value[1] = 0.0, 1.0
        assert subset.log_prob(value).item() == pytest.approx(-1000 - log_count, abs=1e-9)


@pytest.mark.parametrize(("n", "k"), [(2_000, 100), (2_000, 1_900), (100_000, 5_000), (100_000, 60_000)])
@pytest.mark.parametrize("gap", [0.3, 4.0])
def test_two_values_of_logits_are_fishers_hypergeometric(n, k, gap):
    """log Z = log sum_j C(n1, j) C(n2, k - j) exp(gap j): an independent answer at any n."""
    high = n // 4
    logits = gap * (torch.arange(n) < high).double()
    j = np.arange(max(0, k - n + high), min(high, k) + 1)

    def choose(top, bottom):
        return special.gammaln(top + 1) - special.gammaln(bottom + 1) - special.gammaln(top - bottom + 1)

    terms = choose(high, j) + choose(n - high, k - j) + gap * j
    log_z = special.logsumexp(terms)
    assert log_normaliser(logits, k).item() == pytest.approx(log_z, abs=1e-7)  # gammaln(1e5) has 1e6 * 2e-16
    mean = KSubset(logits, k).mean
    assert mean[:high].sum().item() == pytest.approx((np.exp(terms - log_z) * j).sum(), rel=1e-7)
    assert mean[:high].max() - mean[:high].min() < 1e-12


def test_temperature_to_zero_is_the_top_k_and_large_temperature_uniform(route):
    u = normal(7, 40).abs()
    mode = KSubset(u, 8).mode
    overlaps = [overlap_with_mode(u / temperature, 8).item() for temperature in (1e6, 10, 1, 0.1, 1e-6)]
    assert overlaps == sorted(overlaps)
    assert overlaps[0] == pytest.approx(8 / 40, abs=1e-5)
    cold = KSubset(u / 1e-6, 8)
    assert torch.allclose(cold.mean, mode, rtol=0, atol=1e-12)
    assert torch.equal(cold.sample((3,)), mode.expand(3, 40))
    assert cold.log_prob(mode).item() == pytest.approx(0, abs=1e-12)
    assert cold.entropy().item() == pytest.approx(0, abs=1e-12)


def test_at_temperature_one_a_draw_of_usual_weights_shares_a_twentieth_with_the_mode():
    """The project's claim: about 0.05 at sd .05 and 5 % density. First order in e^u: density * mean over top / mean."""
    u = normal(8, 100_000, scale=0.05).abs()
    overlap = overlap_with_mode(u, 5_000).item()
    assert overlap == pytest.approx(0.0537, abs=5e-4)
    top = u.topk(5_000).values.exp().mean() / u.exp().mean()
    assert overlap == pytest.approx(0.05 * top.item(), abs=5e-4)
    assert overlap_with_mode(u[:2_000], 100).item() == pytest.approx(overlap, abs=1e-3)  # by the tree
    assert overlap_with_mode(torch.stack([u, u / 1e-9]), 5_000).tolist() == pytest.approx([overlap, 1.0])


# ----------------------------------------------------------------------------------------------------- beyond the limit


@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("k", [20, 100, 1_000, 1_990])
def test_the_contour_is_the_tree_to_rounding(k, scale, monkeypatch):
    logits = normal(17, 2_000, scale=scale).abs()
    tree, contour = log_normaliser(logits, k, "tree"), log_normaliser(logits, k, "contour")
    assert contour.item() == pytest.approx(tree.item(), abs=1e-10)
    monkeypatch.setattr(subsets, "EXACT_LIMIT", 10**9)
    exact = KSubset(logits, k)
    mean, entropy = exact.mean, exact.entropy()
    monkeypatch.setattr(subsets, "EXACT_LIMIT", 0)
    assert torch.allclose(KSubset(logits, k).mean, mean, rtol=0, atol=1e-12)
    assert KSubset(logits, k).entropy().item() == pytest.approx(entropy.item(), abs=1e-10)


@pytest.mark.parametrize(("k", "scale"), [(100, 0.05), (100, 1.0), (1_000, 0.05), (1_000, 2.0)])
def test_the_saddle_point_errs_by_less_than_a_millionth_at_two_thousand(k, scale):
    logits = normal(18, 2_000, scale=scale).abs().requires_grad_()
    exact, approximate = log_normaliser(logits, k, "tree"), log_normaliser(logits, k, "saddlepoint")
    assert abs(approximate.item() - exact.item()) < 1e-6  # 5e-8 at k = 100 and scale 1
    (mean,), (slope,) = torch.autograd.grad(exact, logits), torch.autograd.grad(approximate, logits)
    assert slope.sum().item() == pytest.approx(k, abs=1e-9)
    corrected = ((slope - mean).abs() / mean).max().item()
    bits = torch.sigmoid(subsets._frame(logits.detach(), k)[0])
    plain = ((bits - mean).abs() / mean).max().item()
    assert corrected < 1e-7  # 2e-8, where sigmoid(logit + t) without Hajek's correction is off by 2e-3
    assert 1e-5 < plain < 1e-2


def test_the_error_of_the_saddle_point_falls_with_the_square_of_the_variance():
    logits = normal(19, 250, scale=2.0).abs()
    errors = []
    for copies in (1, 4, 16, 64):
        exact = log_normaliser(logits.repeat(copies), 12 * copies, "tree" if copies < 64 else "contour")
        errors.append(log_normaliser(logits.repeat(copies), 12 * copies, "saddlepoint").item() - exact.item())
    assert abs(errors[0]) < 1e-4
    for error, four_times in itertools.pairwise(errors):
        assert error / four_times == pytest.approx(16, rel=0.08)  # 16.95, 16.25, 16.06


def test_a_hundred_thousand_items_take_seconds():
    torch.manual_seed(20)
    with soon(30):  # 0.5 s on one idle core
        subset = KSubset(normal(21, 100_000, scale=0.05).abs().requires_grad_(), 5_000)
        draws = subset.sample((3,))
        assert draws.sum(-1).eq(5_000).all()
        subset.log_prob(draws).sum().backward()
        assert subset.mean.sum().item() == pytest.approx(5_000, abs=1e-8)
        assert 0 < subset.entropy().item() < 100_000 * 0.2
        cold = KSubset(subset.logits.detach() / 1e-9, 5_000)
        assert torch.equal(cold.sample(), cold.mode)
        assert torch.allclose(cold.mean, cold.mode, rtol=0, atol=1e-9)


def test_two_thousand_items_take_less_than_a_second():
    logits = normal(22, 2_000).requires_grad_()
    with soon(1):  # 0.02 s on one idle core
        subset = KSubset(logits, 100)
        subset.log_prob(subset.mode).backward()


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("k", [-1, 5, 2.5, math.nan])
def test_a_k_that_is_none_is_refused(k):
    with pytest.raises(ValueError, match=r"^expected a whole k in 0\.\.4, got .*: it is how many items a subset has$"):
        KSubset(torch.zeros(4), k)
    with pytest.raises(ValueError, match=r"^expected a whole k in 0\.\.4"):
        log_normaliser(torch.zeros(4), k)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="^expected finite logits, got a NaN or an infinity: for temperature 0 take"):
        KSubset(torch.tensor([0.0, bad]), 1)
    with pytest.raises(ValueError, match="^expected finite logits, got a NaN"):
        overlap_with_mode(torch.tensor([0.0, bad]), 1)


@pytest.mark.parametrize("logits", [torch.tensor(1.0), torch.zeros(2, 0), torch.zeros(3, dtype=torch.int64)])
def test_logits_of_no_items_or_whole_numbers_are_refused(logits):
    with pytest.raises(ValueError, match=r"^expected floating-point logits \(\.\.\., n\), got torch\..* of shape \("):
        KSubset(logits, 0)


@pytest.mark.parametrize("value", [[1.0, 0, 0, 0], [1, 1, 1, 0], [0.5, 0.5, 1, 0], [2, 0, 0, 0], [1, 1, 1, -1]])
def test_a_value_that_is_no_subset_has_no_probability(value):
    value = torch.tensor(value)
    with pytest.raises(ValueError, match="to be within the support"):
        KSubset(torch.zeros(4), 2, validate_args=True).log_prob(value)
    lenient = KSubset(torch.zeros(4), 2, validate_args=False).expand((2,))
    assert lenient.log_prob(value).tolist() == [-math.inf] * 2
    assert lenient.support.check(value).item() is False


@pytest.mark.parametrize("validate_args", [True, False])
def test_a_value_of_another_length_is_refused(validate_args):
    with pytest.raises(ValueError, match=r"^expected a value of shape \(\.\.\., 4\), got \(3,\)$"):
        KSubset(torch.zeros(4), 2, validate_args=validate_args).log_prob(torch.ones(3))


def test_too_many_subsets_are_not_listed():
    with pytest.raises(NotImplementedError, match=r"^expected at most 100000 subsets to enumerate, got C\(40, 20\)$"):
        KSubset(torch.zeros(40), 20).enumerate_support()


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="^expected method auto, tree, contour or saddlepoint, got 'exact'$"):
        log_normaliser(torch.zeros(4), 2, "exact")
