"""Draws of subsets: counted against their probabilities, moments and seeds; plates and enumeration in Pyro."""

from __future__ import annotations

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats

from budget import FALSE_ALARMS, assert_mean
from enumeration import enumerated, normal
from espalier.distributions import subsets
from espalier.distributions.subsets import KSubset

# ------------------------------------------------------------------------------------------------------------ the draws


@pytest.mark.parametrize(("n", "k"), [(8, 3), (8, 6), (7, 1), (5, 2)])
def test_every_subset_is_drawn_at_its_probability(n, k, route):
    torch.manual_seed(9)
    subset = KSubset(normal(10, 2, n, scale=0.8), k)
    draws, values = subset.sample((20_000,)), KSubset(torch.zeros(n), k).enumerate_support()
    for row in range(2):
        code = 2.0 ** torch.arange(n, dtype=torch.float64)
        order = (values.double() @ code).sort().values
        counts = torch.bincount(torch.searchsorted(order, draws[:, row] @ code), minlength=len(order))
        assert torch.equal(order[torch.searchsorted(order, draws[:, row] @ code)], draws[:, row] @ code)  # k ones
        expected = subset.log_prob(values.double().unsqueeze(1))[:, row].exp()[(values.double() @ code).argsort()]
        rare = expected * 20_000 < 10  # pooled, as the chi-square law asks
        observed, expected = counts.double(), expected * 20_000
        if rare.any():
            observed = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
            expected = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
        statistic = ((observed - expected).square() / expected).sum().item()
        assert stats.chi2.sf(statistic, len(expected) - 1) >= FALSE_ALARMS / 2


@pytest.mark.parametrize(("n", "k"), [(2_000, 100), (20_000, 1_000), (20_000, 19_000)])
def test_large_draws_have_the_mean_and_the_entropy(n, k):
    torch.manual_seed(11)
    subset = KSubset(normal(12, n).sort().values, k)
    draws = subset.sample((150,))
    assert draws.sum(-1).eq(k).all()
    assert_mean(draws.view(150, -1, n // 20).sum(-1), subset.mean.view(-1, n // 20).sum(-1))  # neighbours in logit
    assert_mean(-subset.log_prob(draws), subset.entropy())


def test_draws_of_a_batch_follow_their_own_row(monkeypatch):
    torch.manual_seed(13)
    monkeypatch.setattr(subsets, "EXACT_LIMIT", 1_000)
    monkeypatch.setattr(subsets, "CORE", 16)
    monkeypatch.setattr(subsets, "_CHUNK", 5_000)  # many rounds of few rows
    for n in (30, 100):  # the tree, and rejection
        subset = KSubset(normal(14, 3, n, scale=1.5), 20)
        draws = subset.sample((2_000, 2))
        assert draws.shape == (2_000, 2, 3, n)
        assert_mean(draws.sum(-1), np.full((2, 3), 20.0))
        assert_mean(draws, subset.mean.expand(2, 3, n))


def test_draws_are_decided_by_the_seed_and_calls_differ(route):
    def draw():
        torch.manual_seed(15)
        subset = KSubset(normal(16, 30), 10)
        return subset.sample(), subset.sample()

    first, second = draw()
    assert not torch.equal(first, second)
    assert torch.equal(draw()[0], first)
    assert torch.equal(draw()[1], second)


# ----------------------------------------------------------------------------------------------------------------- Pyro


def test_pyro_traces_batches_and_plates():
    logits = normal(23, 3, 6)

    def model(k=2):
        with pyro.plate("copies", 4, dim=-2), pyro.plate("layers", 3, dim=-1):
            return pyro.sample("m", KSubset(logits, k))

    with pyro.plate("rows", 5):
        assert pyro.sample("m", KSubset(logits[0], 2)).shape == (5, 6)
    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["m"]
    assert site["value"].shape == (4, 3, 6)
    assert site["log_prob"].shape == (4, 3)
    assert torch.allclose(site["log_prob"], KSubset(logits, 2).log_prob(site["value"]))
    observed = poutine.trace(poutine.condition(model, {"m": site["value"]})).get_trace()
    assert observed.log_prob_sum().item() == pytest.approx(site["log_prob_sum"].item())
    masked = KSubset(logits, 2).mask(torch.tensor([True, False, True])).to_event(1)
    assert masked.log_prob(site["value"][0]).item() == pytest.approx(site["log_prob"][0, [0, 2]].sum().item())
    assert torch.equal(copy.deepcopy(site["fn"]).logits, site["fn"].logits)


def test_pyro_enumerates_the_subsets():
    logits, other, slope = normal(24, 6), normal(25, 6), normal(26, 6)

    def model():
        m = pyro.sample("m", KSubset(other, 2))
        pyro.sample("y", dist.Normal((m * slope).sum(-1), 1.0), obs=torch.tensor(0.3, dtype=torch.float64))

    def guide():
        pyro.sample("m", KSubset(logits, 2), infer={"enumerate": "parallel"})

    values, log_q, _ = enumerated(logits, 2)
    log_p = enumerated(other, 2)[1] - 0.5 * (0.3 - values @ slope).square() - 0.5 * math.log(2 * math.pi)
    exact = (log_q.exp() * (log_q - log_p)).sum().item()
    assert TraceEnum_ELBO(max_plate_nesting=0).loss(model, guide) == pytest.approx(exact, abs=1e-10)
