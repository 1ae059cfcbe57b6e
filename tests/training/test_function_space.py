"""The KL of functions at context points, and the gradient of it that a step gets.

Independent answers: torch's multivariate normals of covariances by a double loop, draws of the network itself, the KL of the
weights, which it is where the points tell all weights apart, central differences, and the full linearisation.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import by_hand
from budget import assert_mean
from espalier.guides.gaussian import GaussianGuide
from espalier.network import BayesianNetwork
from espalier.sparse import scatter
from espalier.topology.masks import initial
from espalier.training.function_space import (
    NOISE,
    Context,
    Functions,
    FunctionSpaceKL,
    check,
    covariance,
    every_layer,
    features_of,
    gaussian_kl,
    kl,
    last_layer,
)
from rounding import close
from tiny import NUM_DATA, PRIOR, batch_of, case, points, stream

pytestmark = pytest.mark.usefixtures("float64")


def wide(**options: Any) -> tuple[BayesianNetwork, GaussianGuide]:
    """The tiny network with scales of the size of its values."""
    model, guide = case(noise_scale=0.3, **options)
    return model, guide


def by_loop(jacobian: Tensor, variance: Tensor) -> Tensor:
    """Of one output: sum_d J_cd v_d J_ed, an entry at a time."""
    count = len(jacobian)
    rows = [[sum(a * v * b for a, v, b in zip(jacobian[c], variance, jacobian[e], strict=True)) for e in range(count)]
            for c in range(count)]  # fmt: skip
    return torch.stack([torch.stack([torch.as_tensor(entry) for entry in row]) for row in rows])


def by_torch(shift: Tensor, q: Tensor, p: Tensor, noise: float = NOISE) -> Tensor:
    """Of one output, by torch's multivariate normals."""
    added = noise * (q + p).diagonal().mean() * torch.eye(len(p))
    return kl_divergence(MultivariateNormal(shift, q + added), MultivariateNormal(torch.zeros(len(p)), p + added))


# The pure functions


@pytest.mark.parametrize("noise", [NOISE, 0.01])
def test_the_kl_of_gaussians_is_that_of_torch_summed_over_outputs(noise: float) -> None:
    a, b = torch.randn(2, 3, 5, 7, generator=stream())
    shift, q, p = torch.randn(3, 5, generator=stream(1)), a @ a.mT, 2 * b @ b.mT
    theirs = sum(by_torch(shift[k], q[k], p[k], noise) for k in range(3))
    assert float(gaussian_kl(shift, q, p, noise)) == pytest.approx(float(theirs), rel=1e-9)


def test_a_covariance_is_added_up_once() -> None:
    """The released code has twice this, in prior and posterior alike: then a shift counts half."""
    jacobian, variance = torch.randn(1, 4, 6, generator=stream()), torch.rand(3, 6, generator=stream(1))
    for own, of in zip(covariance(jacobian, variance), variance, strict=True):
        close(own, by_loop(jacobian[0], of))


@pytest.mark.parametrize("count", [9, 30])
def test_points_that_tell_all_weights_apart_have_the_kl_of_the_weights(count: int) -> None:
    """Also where covariances have no inverse: more points than active weights. Fewer points know less; covariances that are
    added twice, as in the released code, say something else."""
    model, guide = wide()
    with torch.no_grad():
        guide.values.mul_(3)
    functions = Functions(*(part.detach() for part in last_layer(model, guide, points(count), stream())))
    tail = guide.positions >= 54
    q = Normal(guide.values[tail].detach(), guide.log_scale[tail].detach().exp())
    weights = float(kl_divergence(q, Normal(0.0, PRIOR)).sum())
    assert float(kl(functions)) == pytest.approx(weights, rel=1e-4)
    assert 0 < float(kl(functions._replace(jacobian=functions.jacobian[:, :2]))) < 0.5 * weights
    twice = functions._replace(variance=2 * functions.variance, prior=2 * functions.prior)
    assert float(kl(twice)) < 0.9 * weights


def test_an_output_without_active_weights_has_no_kl() -> None:
    model, guide = wide()
    functions = last_layer(model, guide, points(), stream())
    empty = torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None]
    without = functions._replace(mean=functions.mean * empty, variance=functions.variance * empty, prior=functions.prior * empty)
    others = [k for k in range(4) if k != 1]
    kept = functions._replace(mean=functions.mean[others], variance=functions.variance[others], prior=functions.prior[others])
    close(kl(without), kl(kept))


# The two linearisations


def test_draws_of_the_last_layer_have_the_mean_and_covariance_that_are_computed() -> None:
    """Of the network itself: under one draw of the other weights, its outputs at five points."""
    model, guide = wide()
    x, noise, draws = points(), stream(), stream(3)
    functions = last_layer(model, guide, x, stream())
    drawn = guide.values.detach() + guide.log_scale.detach().exp() * torch.randn(guide.values.shape, generator=noise)
    tail = guide.positions >= 54
    said = []
    for _ in range(4000):
        fresh = guide.values.detach() + guide.log_scale.detach().exp() * torch.randn(guide.values.shape, generator=draws)
        weights = scatter(torch.where(tail, fresh, drawn), guide.positions, 90)
        said.append(model.evaluate(weights, x).detach() - model.net[2].bias.detach())
    outputs = torch.stack(said).transpose(1, 2)  # draws, outputs, points
    mean = (functions.jacobian @ functions.mean.unsqueeze(-1)).squeeze(-1).detach()
    assert_mean(outputs, mean)
    products = (outputs - mean).unsqueeze(-1) * (outputs - mean).unsqueeze(-2)
    assert_mean(products, covariance(functions.jacobian, functions.variance).detach())


def test_the_jacobian_is_that_of_central_differences() -> None:
    model, guide = wide()
    functions = Functions(*(part.detach() for part in every_layer(model, guide, points())))
    assert functions.jacobian.shape == (4, 5, 45)
    for place in (0, 17, 44):
        step = torch.zeros(45)
        step[place] = 1e-5
        above, below = (model.evaluate(scatter(guide.values + side * step, guide.positions, 90), points()) for side in (1, -1))
        torch.testing.assert_close(functions.jacobian[:, :, place], ((above - below) / 2e-5).T.detach(), atol=1e-8, rtol=1e-7)
    theirs = 0.0
    for own in functions.jacobian:
        q, p = (by_loop(own, variance[0]) for variance in (functions.variance, functions.prior))
        theirs += float(by_torch(own @ guide.values.detach(), q, p))
    assert float(kl(functions)) == pytest.approx(theirs, rel=1e-9)


def test_of_a_network_whose_last_layer_alone_is_gaussian_both_forms_are_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    found = []
    for form in (last_layer, every_layer):
        model = BayesianNetwork(net, maskable=["2.weight"], prior_scale=0.8)
        guide = GaussianGuide(model, initial(model.shapes, 0.4, generator=stream()), noise_scale=0.2)
        with torch.no_grad():
            guide.log_scale.add_(torch.randn(guide.log_scale.shape, generator=stream(2)))
        loss = kl(form(model, guide, points()))
        loss.backward()
        found.append((loss, guide.values.grad, guide.log_scale.grad, model.net[0].weight.grad, model.net[0].bias.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_features_are_those_of_the_batch_norm_of_the_batch_and_nothing_is_moved() -> None:
    own = by_hand.CASES["conv"]
    model, guide = by_hand.bayesian(own, keep_prob=1.0)
    x, _ = by_hand.batch_of(own)
    model.train()
    before = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    weights = guide.distribution().mean.detach()
    features = features_of(model, weights, x)
    others = dict(model.net.named_parameters())
    close(features @ weights[180:].view(5, 12).T + others["7.bias"], own.forward(weights, others, x))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.net.named_buffers())
    assert model.net.training
    assert model.net[1].training
    assert check(model, x, "last-layer") == 5


def test_features_of_unwritten_weights_are_those_of_weights_written_out() -> None:
    """And of a model that is compiled, those of eager torch: it has the hook."""
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(160, 130), nn.ReLU(), nn.Linear(130, 130), nn.ReLU(), nn.Linear(130, 4)))
    guide = GaussianGuide(model, initial(model.shapes, 0.9, generator=stream()))
    assert guide.layout is not None
    x = torch.randn(20, 160)
    found = []
    for layout in (guide.layout, None):
        model.compiled = "training"
        features = features_of(model, scatter(guide.values, guide.positions, model.num_weights, layout), x)
        assert model.compiled == "training"
        gradient = torch.autograd.grad(features.square().sum(), guide.values)[0]
        found.append((features, gradient))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# What a step gets


def added(follower: FunctionSpaceKL, model: BayesianNetwork, guide: GaussianGuide) -> dict[str, Tensor]:
    """The gradient that the follower adds, by name."""
    parameters = {"values": guide.values, "log_scale": guide.log_scale, **dict(model.net.named_parameters())}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    follower.begin(model, guide)
    follower.before(1, *batch_of(0), model, guide)
    return {name: parameter.grad - 1 for name, parameter in parameters.items() if parameter.grad is not None}


def test_the_gradient_is_that_of_the_loss_by_hand_and_by_differences() -> None:
    """Network, draw, covariances and KL written out; kl_scale / N times it. The last bias is shared by q and p: nothing."""
    model, guide = wide()
    pool = torch.randn(30, 6, generator=stream(4))
    context = Context("own", 30, lambda n, g: pool[torch.randint(30, (n,), generator=g)])
    follower = FunctionSpaceKL(context, 5, kl_scale=0.7, seed=3)
    twin = torch.Generator()
    twin.set_state(follower.generator.get_state())
    x = pool[torch.randint(30, (5,), generator=twin)]
    noise = torch.randn(45, generator=twin)
    tail = guide.positions >= 54

    def loss(mu: Tensor, rho: Tensor, bias: Tensor) -> Tensor:
        dense = torch.zeros(90).index_put((guide.positions,), mu + rho.exp() * noise)
        h = torch.tanh(F.linear(x, dense[:54].reshape(9, 6), bias))
        mean, variance, prior = (
            torch.zeros(36).index_put((guide.positions[tail] - 54,), of).view(4, 9)
            for of in (mu[tail], (2 * rho[tail]).exp(), torch.full((int(tail.sum()),), PRIOR**2))
        )
        own = [by_torch(h @ m, by_loop(h, v), by_loop(h, p)) for m, v, p in zip(mean, variance, prior, strict=True)]
        return 0.7 * torch.stack(own).sum() / NUM_DATA

    mine = added(follower, model, guide)
    leaves = [t.detach().clone().requires_grad_() for t in (guide.values, guide.log_scale, model.net[0].bias)]
    theirs = torch.autograd.grad(loss(*leaves), leaves)
    for name, gradient in zip(("values", "log_scale", "0.bias"), theirs, strict=True):
        assert gradient.abs().max() > 1e-4
        torch.testing.assert_close(mine[name], gradient, rtol=1e-5, atol=1e-7)
    assert torch.equal(mine["2.bias"], torch.zeros(4))
    assert follower.row() == {"function_space_kl": pytest.approx(float(loss(*leaves).detach()), rel=1e-8)}
    with torch.no_grad():
        for index, name in enumerate(("values", "log_scale", "0.bias")):
            way = torch.randn(leaves[index].shape, generator=stream(index))
            ends = []
            for side in (1e-4, -1e-4):
                moved = [leaf + side * way if place == index else leaf for place, leaf in enumerate(leaves)]
                ends.append(float(loss(*moved)))
            assert float((mine[name] * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4)


def test_the_full_form_adds_its_gradient_too() -> None:
    model, guide = wide()
    x = points()
    follower = FunctionSpaceKL(Context("own", 5, lambda n, g: x[:n]), 5, linearised="all")
    mine = added(follower, model, guide)
    for name, parameter in (("values", guide.values), ("log_scale", guide.log_scale)):
        way, ends = torch.randn(45, generator=stream()), []
        for side in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(way, alpha=side)
                ends.append(float(kl(every_layer(model, guide, x))) / NUM_DATA)
                parameter.sub_(way, alpha=side)
        assert float((mine[name] * way).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_the_seed_decides_points_and_draws_and_they_are_new_at_every_step() -> None:
    model, guide = wide()
    context = Context("own", 40, lambda n, g: torch.randn(n, 6, generator=g))
    first, again, other = (FunctionSpaceKL(context, 5, seed=seed) for seed in (3, 3, 4))
    mine, theirs = (added(follower, model, guide) for follower in (first, again))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not torch.equal(added(again, model, guide)["values"], added(other, model, guide)["values"])
    assert len({float(loss) for loss in again.seen}) == 2


@pytest.mark.parametrize("broken", ["values", "log_scale"])
def test_weights_that_are_no_numbers_any_more_end_the_training_in_a_sentence(broken: str) -> None:
    model, guide = wide()
    with torch.no_grad():
        getattr(guide, broken).fill_(1e3 if broken == "log_scale" else torch.nan)
    with pytest.raises(RuntimeError, match="^outputs at context points stopped being finite at step 1: lower the learning_rate"):
        added(FunctionSpaceKL(Context("own", 5, lambda n, g: points(n)), 5), model, guide)


@pytest.mark.parametrize("scale", [1e-12, 1e-2, 1e3, 1e12])
def test_scales_far_from_the_priors_have_a_finite_kl_and_gradient(scale: float) -> None:
    """More points than weights, so that the covariances have no inverse of their own."""
    model, guide = wide()
    with torch.no_grad():
        guide.log_scale.fill_(math.log(scale))
    gradients = torch.autograd.grad(kl(last_layer(model, guide, points(30), stream())), [guide.values, guide.log_scale])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if scale == 1e-2:  # not so far that the noise hides it
        slope = gradients[1][-guide.counts[-1] :]
        torch.testing.assert_close(slope, torch.full_like(slope, scale**2 / PRIOR**2 - 1), rtol=0.05, atol=0.0)
