"""The prior N(0, scale^2) of the flat vector, and the weight decay that it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from budget import assert_mean
from espalier.distributions.masked import MaskedWeights, effective_keep_prob
from espalier.distributions.priors import FlatNormal, prior_scale_of, weight_decay_of

laws = settings(max_examples=50)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------------------ the prior


@pytest.mark.parametrize("scale", [0.03, 1.0, 7.5])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_the_log_prob_of_the_prior_is_the_sum_of_torchs(scale, batch):
    value = 2 * scale * torch.randn(*batch, 11, dtype=torch.float64, generator=stream(3))
    expected = Normal(torch.zeros((), dtype=torch.float64), scale).log_prob(value).sum(-1)
    assert torch.allclose(FlatNormal(scale, 11).log_prob(value), expected, rtol=1e-12)


def test_draws_of_the_prior_have_its_moments_and_its_dtype():
    torch.manual_seed(4)
    prior = FlatNormal(0.3, 5, torch.empty((), dtype=torch.float64))
    assert prior.event_shape == (5,)
    assert prior.batch_shape == ()
    draws = prior.rsample((20_000,))
    assert draws.dtype == torch.float64
    assert_mean(draws, np.zeros(5))
    assert_mean(draws.square(), np.full(5, 0.09))
    assert_mean(draws[:, :4] * draws[:, 1:], np.zeros(4))  # independent


@pytest.mark.parametrize("scale", [torch.tensor(1.0, requires_grad=True), 0.0, -1.0, float("nan")])
def test_a_scale_that_is_learned_or_none_is_refused(scale):
    with pytest.raises(ValueError, match="expected a scale above 0, a number that is not learned, got"):
        FlatNormal(scale, 3)
    assert FlatNormal(torch.tensor(2.0), 3).scale == 2.0


def test_a_batch_of_networks_is_refused():
    with pytest.raises(ValueError, match=r"^expected the weights of one network, got a batch of \(3,\): loop over"):
        FlatNormal(1.0, 4).expand(torch.Size([3]))
    prior = FlatNormal(1.0, 4)
    assert prior.expand(torch.Size([])) is prior


POSITIONS = torch.tensor([0, 2, 3, 6])


# ----------------------------------------------------------------------------------------- prior scale and weight decay


@pytest.mark.parametrize(
    ("weight_decay", "keep_prob", "published"),
    [(1e-4, 0.9, 0.45), (1e-4, 0.99, 0.47), (5e-4, 0.9, 0.20), (5e-4, 0.99, 0.21)],
)
def test_published_weight_decays_imply_the_prior_scales_worked_out_for_them(weight_decay, keep_prob, published):
    assert prior_scale_of(weight_decay, 45_000, keep_prob, rescale=False) == pytest.approx(published, abs=0.005)


@laws
@given(
    weight_decay=st.floats(1e-6, 1.0),
    num_data=st.integers(1, 10**6),
    keep_prob=st.floats(0.01, 1.0),
    rescale=st.booleans(),
)
def test_prior_scale_and_weight_decay_are_inverse_and_the_kl_is_the_decay(weight_decay, num_data, keep_prob, rescale):
    keep_prob = effective_keep_prob(keep_prob)
    scale = prior_scale_of(weight_decay, num_data, keep_prob, rescale=rescale)
    assert weight_decay_of(scale, num_data, keep_prob, rescale=rescale) == pytest.approx(weight_decay, rel=1e-9)
    values = torch.tensor([0.3, -1.1, 0.7, 2.0], dtype=torch.float64)
    mean = values / keep_prob if rescale else values
    kl = kl_divergence(MaskedWeights(mean, POSITIONS, 8, keep_prob), FlatNormal(scale, 8)).item()
    assert kl / num_data == pytest.approx(weight_decay / 2 * values.square().sum().item(), rel=1e-9)
