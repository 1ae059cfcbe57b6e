"""Laws of the masked distribution, its draws and the bound on their KL."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from scipy import integrate
from torch import nn
from torch.distributions import Normal, kl_divergence

from budget import assert_mean, assert_rate
from espalier.distributions.masked import LEVELS, MaskedWeights, draw_keep, effective_keep_prob, kl_bound
from espalier.distributions.priors import FlatNormal, prior_scale_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import scatter
from espalier.topology.masks import initial

laws = settings(max_examples=50)
CPU = torch.device("cpu")


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------ the random mask


@pytest.mark.parametrize("keep_prob", [0.001, 0.1, 0.5, 0.9])
def test_weights_are_kept_at_the_effective_rate_in_every_lane_of_a_word(keep_prob):
    keep = draw_keep(400_000, keep_prob, CPU, stream(1))
    assert keep.dtype == torch.bool
    rate = effective_keep_prob(keep_prob)
    assert_rate(keep.sum(), 400_000, rate)
    for lane in range(4):  # four draws share one 64-bit word
        assert_rate(keep[lane::4].sum(), 100_000, rate, looks=4)


def test_the_lowest_level_keeps_one_weight_in_65536():
    # one level more or less would double the rate or leave nothing
    assert_rate(draw_keep(4_000_000, 1 / 65536, CPU, stream(3)).sum(), 4_000_000, 1 / 65536)


@pytest.mark.parametrize("apart", [1, 2, 3, 4])
def test_neighbours_are_kept_independently(apart):
    keep = draw_keep(400_000, 0.5, CPU, stream(2))
    first, second = keep[0::8], keep[apart::8]  # disjoint couples
    assert_rate((first & second).sum(), len(first), 0.25)
    assert_rate((first ^ second).sum(), len(first), 0.5)


def test_a_draw_is_decided_by_its_generator():
    same = [draw_keep(1001, 0.3, CPU, stream(seed)) for seed in (5, 5, 6)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    generator = stream(5)
    assert torch.equal(draw_keep(1001, 0.3, CPU, generator), same[0])
    assert not torch.equal(draw_keep(1001, 0.3, CPU, generator), same[0])  # a stream moves on


@laws
@given(count=st.integers(1, 40), keep_prob=st.floats(0.0001, 0.9999), seed=st.integers(0, 10_000))
def test_a_draw_is_the_written_convention(count, keep_prob, seed):
    # ceil(k / 4) int64 words viewed as int16, kept if below round(65536 p) - 32768
    words = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(2**63), None, generator=stream(seed))
    lanes = words.numpy().view(np.int16)[:count].astype(int)
    expected = lanes < max(1, round(65536 * keep_prob)) - 32768
    assert draw_keep(count, keep_prob, CPU, stream(seed)).tolist() == expected.tolist()


def test_keeping_all_draws_nothing_and_does_not_move_the_generator():
    generator = stream(7)
    before = generator.get_state()
    assert draw_keep(9, 1.0, CPU, generator).all()
    assert torch.equal(generator.get_state(), before)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    MaskedWeights(torch.randn(3, generator=stream(0)), torch.tensor([0, 2, 5]), 6, 1.0).rsample()
    assert torch.equal(torch.get_rng_state(), before)


@laws
@given(keep_prob=st.floats(1e-12, 1.0, exclude_min=True))
def test_the_effective_keep_prob_is_the_nearest_level_of_sixteen_bits(keep_prob):
    effective = effective_keep_prob(keep_prob)
    assert (effective * LEVELS).is_integer()
    assert 0 < effective <= 1
    assert abs(effective - keep_prob) <= (0.5 if keep_prob >= 0.5 / LEVELS else 1) / LEVELS
    assert effective_keep_prob(effective) == effective


@pytest.mark.parametrize(("keep_prob", "level"), [(0.9, 58982), (0.5, 32768), (1e-9, 1), (1.0, 65536)])
def test_the_effective_keep_prob_at_cases_by_hand(keep_prob, level):
    assert effective_keep_prob(keep_prob) == level / 65536


@pytest.mark.parametrize("keep_prob", [0.0, -0.1, 1.0001, math.nan])
def test_a_keep_prob_that_is_none_is_refused(keep_prob):
    with pytest.raises(ValueError, match=r"^expected keep_prob in \(0, 1\], got .*: it is P\(Z = 1\), one minus"):
        effective_keep_prob(keep_prob)


# -------------------------------------------------------------------------------------------------------------- scatter


@st.composite
def sparse_vectors(draw):
    size = draw(st.integers(1, 15))
    positions = sorted(draw(st.sets(st.integers(0, size - 1), min_size=1)))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 3)]))
    values = torch.randn(*batch, len(positions), dtype=torch.float64, generator=stream(draw(st.integers(0, 999))))
    return values, positions, size


@laws
@given(case=sparse_vectors())
def test_scatter_puts_values_at_their_positions_and_gathers_the_gradient(case):
    values, positions, size = case
    leaf = values.clone().requires_grad_()
    dense = scatter(leaf, torch.tensor(positions), size)
    slope = torch.randn(dense.shape, dtype=torch.float64, generator=stream(0))
    (dense * slope).sum().backward()
    naive = torch.zeros(*values.shape[:-1], size, dtype=torch.float64)
    gathered = torch.zeros_like(values)
    for index, position in enumerate(positions):
        naive[..., position] = values[..., index]
        gathered[..., index] = slope[..., position]
    assert torch.equal(dense, naive)
    assert torch.equal(leaf.grad, gathered)


def test_two_scattered_vectors_share_no_memory():
    values, positions = torch.ones(2), torch.tensor([0, 1])
    first = scatter(values, positions, 3)
    scatter(2 * values, positions, 3)
    assert first.tolist() == [1, 1, 0]


# ---------------------------------------------------------------------------------------------- the masked distribution

MEAN = torch.tensor([1.5, -0.3, 0.0, -2.0], dtype=torch.float64)
POSITIONS = torch.tensor([0, 2, 3, 6])


@pytest.mark.parametrize("keep_prob", [0.1, 0.75, 1.0])
def test_the_masked_moments_are_those_of_its_draws(keep_prob):
    keep_prob, generator = effective_keep_prob(keep_prob), stream(8)
    q = MaskedWeights(MEAN, POSITIONS, 8, keep_prob, lambda count: draw_keep(count, keep_prob, CPU, generator))
    draws = q.rsample((40_000,))
    assert_mean(draws, q.mean)
    assert_mean((draws - q.mean).square(), q.variance)
    assert q.mean.tolist() == pytest.approx([1.5 * keep_prob, 0, -0.3 * keep_prob, 0, 0, 0, -2 * keep_prob, 0])
    assert q.variance[0].item() == pytest.approx(keep_prob * (1 - keep_prob) * 2.25)


def test_every_draw_is_the_mean_or_zero_and_zero_off_the_topology():
    torch.manual_seed(0)
    q = MaskedWeights(MEAN, POSITIONS, 8, 0.5)
    draws = q.rsample((4, 3))
    assert draws.shape == (4, 3, 8)
    assert q.keep.shape == (4, 3, 4)
    assert torch.equal(draws, scatter(MEAN * q.keep, POSITIONS, 8))
    assert draws[..., [1, 4, 5, 7]].eq(0).all()
    assert 0 < q.keep.double().mean() < 1
    assert not torch.equal(q.rsample((4, 3)), draws)  # each call is a new draw
    assert q.rsample().shape == (8,)


def test_keeping_all_is_the_mean_at_every_sample():
    q = MaskedWeights(MEAN, POSITIONS, 8, 1.0)
    assert torch.equal(q.rsample((2,)), scatter(MEAN.expand(2, 4), POSITIONS, 8))
    assert q.keep.shape == (2, 4)
    assert q.keep.all()


def test_the_gradient_of_a_draw_reaches_only_the_weights_it_keeps():
    torch.manual_seed(1)
    mean = MEAN.clone().requires_grad_()
    q = MaskedWeights(mean, POSITIONS, 8, 0.5)
    slope = torch.arange(1.0, 9, dtype=torch.float64)
    (q.rsample() * slope).sum().backward()
    assert 0 < q.keep.sum() < 4
    assert torch.equal(mean.grad, slope[POSITIONS] * q.keep)


def test_the_masked_distribution_has_no_density():
    with pytest.raises(NotImplementedError, match="^a guide over the active weights has no density over all"):
        MaskedWeights(MEAN, POSITIONS, 8, 0.5).log_prob(torch.zeros(8))
    with pytest.raises(ValueError, match="loop over particles"):
        MaskedWeights(MEAN, POSITIONS, 8, 0.5).expand(torch.Size([2]))


# ------------------------------------------------------------------------------------------------------------ the ELBOs


def program_and_guide(keep_prob=0.8, num_data=40, **options):
    torch.manual_seed(6)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model = BayesianNetwork(net, num_data=num_data, **options)
    guide = MaskedGuide(model, initial(model.shapes, 0.5, generator=stream(0)), keep_prob, generator=stream(1))
    return model, guide, torch.randn(10, 4).double(), torch.randint(0, 3, (10,))


NO_DENSITY = "a guide over the active weights has no density over all of them"


@pytest.mark.parametrize(
    ("elbo", "sentence"),
    [
        (Trace_ELBO, f"expected TraceMeanField_ELBO, got Trace_ELBO: {NO_DENSITY}, only a KL"),
        (TraceGraph_ELBO, f"expected TraceMeanField_ELBO, got TraceGraph_ELBO: {NO_DENSITY}, only a KL"),
        (RenyiELBO, f"expected TraceMeanField_ELBO, got RenyiELBO: {NO_DENSITY}, only a KL"),
        (TraceEnum_ELBO, f"{NO_DENSITY}: train it with pyro.infer.TraceMeanField_ELBO"),  # asks log_prob first
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
@pytest.mark.parametrize("method", ["loss", "loss_and_grads"])
def test_any_other_elbo_is_refused_in_one_sentence(elbo, sentence, method):
    model, guide, x, y = program_and_guide()
    evaluate = getattr(elbo(), method)
    with pyro.get_param_store().scope(), pytest.raises((ValueError, NotImplementedError), match=sentence):
        evaluate(model, guide, x, y)
    assert guide.values.grad is None


@pytest.mark.parametrize("prior", [pyro.distributions.Normal, pyro.distributions.Laplace])
def test_a_prior_whose_kl_is_not_known_is_refused(prior):
    """Pyro would go on with densities, which this family has not, at a loss of minus infinity."""
    network, guide, x, y = program_and_guide()

    def model(x, y):
        weights = pyro.sample("weights", prior(0.0, 1.0).expand([network.num_weights]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", network.outcome(weights, x), obs=y)

    with pyro.get_param_store().scope(), pytest.raises(ValueError, match="expected a prior whose KL from MaskedWeights is known"):
        TraceMeanField_ELBO().loss_and_grads(model, guide, x, y)
    assert guide.values.grad is None


@pytest.mark.parametrize("keep_prob", [0.8, 1.0])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_mean_field_elbo_is_cross_entropy_and_coupled_weight_decay(keep_prob, rescale):
    """method.md, section 4: -(1/N) grad ELBO = grad (mean cross-entropy + wd/2 sum u^2), for the same Z and batch."""
    num_data, decay, keep_prob = 40, 0.03, effective_keep_prob(keep_prob)
    scale = prior_scale_of(decay, num_data, keep_prob, rescale=rescale)
    model, guide, x, y = program_and_guide(keep_prob, num_data, prior_scale=scale, weight_decay=decay)
    guide.rescale = rescale
    with pyro.get_param_store().scope():
        (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / num_data).backward()
    elbo = [parameter.grad.clone() for parameter in [guide.values, *model.parameters()]]
    guide.values.grad = None
    model.zero_grad()
    factor = 1 / keep_prob if rescale else 1.0
    weights = scatter(factor * guide.values * guide.keep, guide.positions, model.num_weights)
    squares = guide.values.square().sum() + sum(parameter.square().sum() for parameter in model.parameters())
    (nn.functional.cross_entropy(model.evaluate(weights, x), y) + decay / 2 * squares).backward()
    for ours, plain in zip(elbo, [guide.values, *model.parameters()], strict=True):
        assert torch.allclose(ours, plain.grad, rtol=0, atol=1e-12)
    assert keep_prob == 1 or 0 < guide.keep.sum() < len(guide.keep)


# --------------------------------------------------------------------------------------------------------------- the KL


def entropy(keep_prob: float) -> float:
    """H(p), in nats."""
    return -sum(p * math.log(p) for p in (keep_prob, 1 - keep_prob) if p)


def mixture_kl(mean: float, keep_prob: float, prior_scale: float, noise_scale: float) -> float:
    """KL(p N(m, s^2) + (1-p) N(0, s^2) || N(0, v)) by quadrature, from the definition."""

    def normal(x, m, s):
        return math.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))

    def integrand(x):
        q = keep_prob * normal(x, mean, noise_scale) + (1 - keep_prob) * normal(x, 0.0, noise_scale)
        log_p = -0.5 * (x / prior_scale) ** 2 - math.log(prior_scale) - 0.5 * math.log(2 * math.pi)
        return q * (math.log(q) - log_p) if q > 0 else 0.0

    edges = sorted({-12 * noise_scale, 0.0, mean / 2, mean, mean + 12 * noise_scale, 12 * noise_scale})
    return sum(integrate.quad(integrand, a, b, limit=200)[0] for a, b in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("keep_prob", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("prior_scale", [0.3, 1.0, 2.0])
def test_the_bound_is_above_the_kl_by_at_most_the_binary_entropy(keep_prob, prior_scale):
    for noise_scale in (0.02, 0.1, 0.7):
        for mean in (0.0, 0.02, 0.1, 0.5, 2.0):
            upper = kl_bound(torch.tensor(mean, dtype=torch.float64), keep_prob, prior_scale, noise_scale).item()
            exact = mixture_kl(mean, keep_prob, prior_scale, noise_scale)
            assert upper - entropy(keep_prob) - 1e-7 <= exact <= upper + 1e-7


def test_the_bound_is_tight_where_the_theory_says_so():
    at_zero = kl_bound(torch.zeros((), dtype=torch.float64), 0.9, 1.0, 0.05).item()
    assert mixture_kl(0.0, 0.9, 1.0, 0.05) == pytest.approx(at_zero, abs=1e-7)  # above: at m = 0
    far = kl_bound(torch.tensor(2.0, dtype=torch.float64), 0.9, 1.0, 0.05).item() - entropy(0.9)
    assert mixture_kl(2.0, 0.9, 1.0, 0.05) == pytest.approx(far, abs=1e-7)  # below: for |m| >> s


@pytest.mark.parametrize(
    ("mean", "exact", "lower"),
    [(0.0, 2.497, 2.172), (0.05, 2.455, 2.173), (0.1, 2.359, 2.176), (0.3, 2.215, 2.212), (1.0, 2.622, 2.622)],
)
def test_the_bound_at_the_values_that_were_worked_out_before(mean, exact, lower):
    # p = .9, s = .05, v = 1
    assert mixture_kl(mean, 0.9, 1.0, 0.05) == pytest.approx(exact, abs=6e-4)
    upper = kl_bound(torch.tensor(mean, dtype=torch.float64), 0.9, 1.0, 0.05).item()
    assert upper - entropy(0.9) == pytest.approx(lower, abs=6e-4)


def test_without_a_random_mask_the_bound_is_the_kl_of_two_normals():
    mean = torch.tensor([0.0, 0.4, -1.7], dtype=torch.float64)
    expected = kl_divergence(Normal(mean, 0.2), Normal(torch.zeros_like(mean), 0.6))
    assert torch.allclose(kl_bound(mean, 1.0, 0.6, 0.2), expected, rtol=1e-10)


@laws
@given(
    keep_prob=st.floats(0.01, 1.0),
    scale=st.floats(0.05, 5.0),
    mean=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
)
def test_the_registered_kl_is_the_bounds_part_that_depends_on_the_mean(keep_prob, scale, mean):
    mean = torch.tensor(mean, dtype=torch.float64)
    kl = kl_divergence(MaskedWeights(mean, POSITIONS, 8, keep_prob), FlatNormal(scale, 8)).item()
    keep_prob = effective_keep_prob(keep_prob)
    assert kl == pytest.approx(sum(keep_prob * m * m / (2 * scale**2) for m in mean.tolist()), rel=1e-9, abs=1e-12)
    part = kl_bound(mean, keep_prob, scale, 0.01) - kl_bound(torch.zeros_like(mean), keep_prob, scale, 0.01)
    assert kl == pytest.approx(part.sum().item(), rel=1e-6, abs=1e-9)


def test_a_probability_for_each_weight_goes_with_any_number_of_draws() -> None:
    each = torch.linspace(0.2, 1, len(POSITIONS))
    q = MaskedWeights(MEAN, POSITIONS, 8, each)
    drawn = q.rsample((4000, 2))
    assert drawn.shape == (4000, 2, 8)
    assert q.keep is not None
    kept = q.keep.double().mean((0, 1))
    assert ((kept - each).abs() <= 5 * (each * (1 - each) / 8000).sqrt() + 1 / 65536).all()
