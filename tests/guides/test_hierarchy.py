"""The literal guide: its four sites, their reverse, and the ELBO that trains topologies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroOptim
from scipy import special, stats
from torch import nn

from budget import assert_mean
from espalier import BayesianNetwork, MaskedGuide, Topology
from espalier.guides.hierarchy import HierarchicalGuide, LayerSubsets, LeaveOneOutELBO, reversed_model
from espalier.topology.masks import erk, random_topology

SIZES = (6, 4)


def network(**options) -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    return BayesianNetwork(net.double(), prior_scale=0.8, num_data=20, **options)


def pair(counts: tuple[int, int] = (3, 2), keep_prob: float = 0.75, **options) -> tuple[BayesianNetwork, HierarchicalGuide]:
    model = network()
    start = torch.cat([torch.arange(counts[0]), 6 + torch.arange(counts[1])])
    return model, HierarchicalGuide(model, Topology(start, counts, SIZES), keep_prob, **options)


def traced(guide, seed: int = 0):
    torch.manual_seed(seed)
    with pyro.get_param_store().scope():
        return pyro.poutine.trace(guide).get_trace()


# -------------------------------------------------------------------------------------------------------- LayerSubsets


def test_layers_are_independent_subsets_of_their_own_counts() -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    joint = LayerSubsets(logits, (2, 3), (5, 4))
    torch.manual_seed(2)
    draws = joint.sample(torch.Size([500]))
    assert (draws[:, :5].sum(1) == 2).all()
    assert (draws[:, 5:].sum(1) == 3).all()
    by_hand, entropy, inclusion = {}, 0.0, []
    for part, k in ((logits[:5], 2), (logits[5:], 3)):
        rows = np.array([row for row in itertools.product([0, 1], repeat=len(part)) if sum(row) == k])
        probs = special.softmax(rows @ part.numpy())
        by_hand[k] = {tuple(row): math.log(p) for row, p in zip(rows.tolist(), probs, strict=True)}
        entropy -= float((probs * np.log(probs)).sum())
        inclusion.append(probs @ rows)
    for draw in draws[:50]:
        expected = by_hand[2][tuple(draw[:5].int().tolist())] + by_hand[3][tuple(draw[5:].int().tolist())]
        assert float(joint.log_prob(draw)) == pytest.approx(expected, abs=1e-12)
    assert float(joint.entropy()) == pytest.approx(entropy, abs=1e-12)
    assert joint.mean.numpy() == pytest.approx(np.concatenate(inclusion), abs=1e-12)
    assert_mean(draws.numpy(), np.concatenate(inclusion))
    for part, k, mode in ((logits[:5], 2, joint.mode[:5]), (logits[5:], 3, joint.mode[5:])):
        assert set(mode.nonzero().flatten().tolist()) == set(part.topk(k).indices.tolist())


# ---------------------------------------------------------------------------------------------------------- the program


def test_the_guide_has_the_four_sites_of_eq_3() -> None:
    _, guide = pair(noise_scale=0.1, temperature=1.0)
    trace = traced(guide)
    assert trace.stochastic_nodes == ["U", "M", "Z", "weights"]
    u, m, z, w = (trace.nodes[name]["value"] for name in ("U", "M", "Z", "weights"))
    assert u.shape == m.shape == z.shape == w.shape == (10,)
    assert (m[:6].sum(), m[6:].sum()) == (3, 2)
    expected = stats.norm.logpdf(w.detach().numpy(), (z * m * u).detach().numpy(), 0.1).sum()
    assert float(trace.nodes["weights"]["fn"].log_prob(w).detach()) == pytest.approx(expected)


def test_without_noise_and_temperature_it_is_the_masked_guide() -> None:
    model, guide = pair(counts=(2, 1), keep_prob=0.75)
    collapsed = guide.collapse(model)
    assert isinstance(collapsed, MaskedGuide)
    w = traced(guide).nodes["weights"]["value"]
    outside = torch.ones(10, dtype=torch.bool)
    outside[collapsed.positions] = False
    assert (w[outside] == 0).all()
    kept = w[collapsed.positions]
    assert ((kept == 0) | (kept == collapsed.values)).all()
    assert collapsed.topology.counts == (2, 1)
    assert set(collapsed.positions.tolist()) == {
        *guide.values[:6].abs().topk(2).indices.tolist(), *(6 + guide.values[6:].abs().topk(1).indices).tolist()
    }  # fmt: skip


def test_the_reverse_of_z_is_its_exact_posterior() -> None:
    """r(Z | W, U, M) by Bayes' rule at a generic point; flat where M = 0."""
    _, guide = pair(noise_scale=0.3, temperature=1.0)
    forward = traced(guide, 3)
    u, m, w = (forward.nodes[name]["value"].detach() for name in ("U", "M", "weights"))
    with pyro.get_param_store().scope():
        backward = pyro.poutine.trace(pyro.poutine.replay(lambda: guide.reverse(w), trace=forward)).get_trace()
    probs = backward.nodes["Z"]["fn"].base_dist.probs.detach().numpy()
    p = guide.keep_prob
    on = p * stats.norm.pdf(w, (m * u).numpy(), 0.3)
    off = (1 - p) * stats.norm.pdf(w, 0, 0.3)
    assert probs == pytest.approx(on / (on + off), abs=1e-12)
    assert probs[m.numpy() == 0] == pytest.approx(p)
    assert backward.stochastic_nodes == ["U", "M", "Z"]


def test_a_keep_prob_of_one_is_certain_and_finite() -> None:
    model, guide = pair(keep_prob=1.0, noise_scale=0.1)
    assert (traced(guide).nodes["Z"]["value"] == 1).all()
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pyro.get_param_store().scope():
        assert math.isfinite(Trace_ELBO().loss(reversed_model(model, guide), guide, x, y))


def test_the_reversed_model_has_the_sites_of_both() -> None:
    model, guide = pair(noise_scale=0.1, temperature=1.0)
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pyro.get_param_store().scope():
        trace = pyro.poutine.trace(reversed_model(model, guide)).get_trace(x, y)
    latent = [name for name in trace.stochastic_nodes if trace.nodes[name]["fn"].__class__.__name__ != "_Subsample"]
    assert latent == ["weights", "U", "M", "Z"]
    assert trace.nodes["y"]["is_observed"]


# ---------------------------------------------------------------------------------------------------------- the gradient


def gradients(elbo, guide, program, x, y, count: int) -> np.ndarray:
    found = []
    with pyro.get_param_store().scope():
        for seed in range(count):
            torch.manual_seed(seed)
            guide.zero_grad()
            elbo.differentiable_loss(program, guide, x, y).backward()
            found.append(guide.values.grad.numpy().copy())
    return np.array(found)


@pytest.mark.slow
def test_leave_one_out_has_pyros_gradient_in_expectation_and_less_variance() -> None:
    """`Trace_ELBO` is unbiased without a baseline: equal means within the budget, at equal numbers of particles."""
    model, guide = pair(noise_scale=0.0, temperature=0.3)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (6,), generator=generator)
    program = reversed_model(model, guide)
    ours = gradients(LeaveOneOutELBO(4), guide, program, x, y, 120)
    pyros = gradients(Trace_ELBO(num_particles=4), guide, program, x, y, 120)
    assert_mean(ours - pyros, np.zeros(10))
    assert (ours.var(0) < 0.5 * pyros.var(0)).all()


def test_leave_one_out_needs_another_particle() -> None:
    with pytest.raises(ValueError, match=r"^expected at least 2 particles, got 1: each is the other's baseline$"):
        LeaveOneOutELBO(1)


@pytest.mark.slow
def test_svi_learns_which_weights_matter() -> None:
    """Two of eight inputs carry the target: their inclusion probabilities go to one, from anywhere."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(300, 8, generator=generator)
    y = 1.5 * x[:, 2] - 1.2 * x[:, 6] + 0.3 * torch.randn(300, generator=generator)
    torch.manual_seed(6)
    model = BayesianNetwork(nn.Linear(8, 1, bias=False), likelihood="normal", prior_scale=1.0)
    guide = HierarchicalGuide(model, Topology(torch.tensor([0, 1]), (2,), (8,)), temperature=0.1)
    before = guide.inclusion()
    with pyro.get_param_store().scope():
        svi = SVI(reversed_model(model, guide), guide, PyroOptim(torch.optim.Adam, {"lr": 0.02}), LeaveOneOutELBO(4))
        losses = [svi.step(x, y) for _ in range(300)]
    after = guide.inclusion()
    assert float(before.sum()) == pytest.approx(2, abs=1e-5)
    assert float(after.sum()) == pytest.approx(2, abs=1e-5)
    assert before[[2, 6]].min() < 0.5  # it did not know
    assert after[[2, 6]].min() > 0.95
    assert np.mean(losses[-20:]) < 0.5 * losses[0]
    assert guide.collapse(model).positions.tolist() == [2, 6]


# --------------------------------------------------------------------------------------------------------------- refusals


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    topology = random_topology(model.shapes, erk(model.shapes, 0.5))
    with pytest.raises(ValueError, match=r"^expected a topology over layers of \(6, 4\) weights, got \(5, 5\)$"):
        HierarchicalGuide(model, Topology(torch.tensor([0, 5]), (1, 1), (5, 5)))
    with pytest.raises(ValueError, match="^expected noise_scale and temperature of 0 or more, got -1 and 0"):
        HierarchicalGuide(model, topology, noise_scale=-1)
    with pytest.raises(ValueError, match="^expected one network's topology, got a batch of"):
        LayerSubsets(torch.zeros(4), (1,), (4,)).expand(torch.Size([2]))


def test_a_second_guide_beside_the_first_ones_values_is_told_to_clear_the_store() -> None:
    x, y = torch.randn(20, 8), torch.randn(20)
    with pyro.get_param_store().scope():
        for number in range(2):
            model = BayesianNetwork(nn.Linear(8, 1, bias=False), likelihood="normal", prior_scale=1.0)
            guide = HierarchicalGuide(model, Topology(torch.tensor([0, 1]), (2,), (8,)), temperature=0.1)
            svi = SVI(reversed_model(model, guide), guide, PyroOptim(torch.optim.Adam, {"lr": 0.02}), LeaveOneOutELBO(4))
            if number:
                with pytest.raises(ValueError, match=r"expected this guide's own values, .* call pyro\.clear_param_store\(\)"):
                    svi.step(x, y)
            else:
                svi.step(x, y)
