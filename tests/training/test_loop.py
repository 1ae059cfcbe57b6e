"""The objective (method.md, section 4): -ELBO/N is CigL's loss, gradient by gradient and step by step.

The other side of every comparison is plain torch, written out here: the dense weights are assembled by hand, and the
forward pass, the loss and the L2 are spelled with `torch.nn.functional`.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from by_hand import BATCH, CASES, DECAY, NUM_DATA, Case, Hand, batch_of, bayesian, dense_by_hand
from espalier.distributions.masked import MaskedWeights, effective_keep_prob, kl_bound
from espalier.distributions.priors import FlatNormal, prior_scale_of, weight_decay_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Loop
from espalier.training.rates import Rate, constant, cosine
from rounding import close

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("keep_prob", "kl_scale"), [(0.713, 1.0), (0.713, 0.37), (0.4, 2.9), (1.0, 1.0)])
def test_gradient_of_the_elbo_is_that_of_the_hand_written_loss(
    name: str, rescale: bool, keep_prob: float, kl_scale: float
) -> None:
    case = CASES[name]
    model, guide = bayesian(case, keep_prob=keep_prob, rescale=rescale, kl_scale=kl_scale)
    hand = Hand(case, model, guide)
    x, y = batch_of(case)

    (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA).backward()
    assert guide.keep is not None
    assert keep_prob == 1 or 0 < guide.keep.sum() < len(guide.keep)
    hand.loss(guide.keep, x, y).backward()

    assert guide.values.grad is not None
    assert guide.values.grad.abs().min() > 0  # the L2 acts on every active weight, also where Z = 0
    close(guide.values.grad, hand.u.grad)
    for other, parameter in model.net.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, hand.others[other].grad)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [2, 7, NUM_DATA])
def test_likelihood_of_a_batch_stands_for_all_data(name: str, size: int) -> None:
    case = CASES[name]
    model, guide = bayesian(case, keep_prob=0.8)
    hand = Hand(case, model, guide)
    x, y = batch_of(case, size=size)
    (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA).backward()
    assert guide.keep is not None
    hand.loss(guide.keep, x, y).backward()
    close(guide.values.grad, hand.u.grad)


def test_without_num_data_each_batch_is_the_whole_data_set() -> None:
    case = CASES["mlp"]
    model, guide = bayesian(case, keep_prob=0.8, num_data=None)
    hand = Hand(case, model, guide)
    x, y = batch_of(case)
    info = Loop(model, guide, schedules.static(), constant(0.1)).step(x, y)
    close(info.loss, hand.loss(guide.keep, x, y))


def _log_normal(f: Tensor, y: Tensor, others: dict[str, Tensor]) -> Tensor:
    precision = others["log_precision"].exp()
    return 0.5 * others["log_precision"] - 0.5 * math.log(2 * math.pi) - 0.5 * precision * (y - f[:, 0]) ** 2


def _log_bernoulli(f: Tensor, y: Tensor, others: dict[str, Tensor]) -> Tensor:
    probability = 1 / (1 + (-f[:, 0]).exp())
    return y * probability.log() + (1 - y) * (1 - probability).log()


@pytest.mark.parametrize(("likelihood", "log_prob"), [("normal", _log_normal), ("bernoulli", _log_bernoulli)])
def test_gradient_holds_for_other_likelihoods_and_the_noise_has_no_l2(
    likelihood: str, log_prob: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
) -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 1)
    model = BayesianNetwork(net, prior_scale=0.7, num_data=NUM_DATA, weight_decay=DECAY, likelihood=likelihood)
    guide = MaskedGuide(model, initial(model.shapes, 0.2), 0.6, generator=torch.Generator().manual_seed(1))
    x, y = torch.randn(BATCH, 6), torch.randint(0, 2, (BATCH,)).to(torch.float64)
    extra = {name: p.detach().clone().requires_grad_() for name, p in model.likelihood.named_parameters()}
    (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA).backward()

    u, b = guide.values.detach().clone().requires_grad_(), model.net.bias.detach().clone().requires_grad_()
    f = x @ dense_by_hand(u, guide.keep, guide.positions, 6, 1.0)[:, None] + b
    kl = guide.keep_prob / (2 * 0.7**2 * NUM_DATA) * (u**2).sum()
    (kl + DECAY / 2 * (b**2).sum() - log_prob(f, y, extra).mean()).backward()
    close(guide.values.grad, u.grad)
    close(model.net.bias.grad, b.grad)
    for name, parameter in model.likelihood.named_parameters():
        close(parameter.grad, extra[name].grad)


HAND_OPTIMISERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
}


def loop_of(kind: str, model: BayesianNetwork, guide: MaskedGuide, rate: Rate) -> Loop:
    optimizer, momentum = ("adam", 0.9) if kind == "adam" else ("sgd", 0.0 if kind == "sgd" else 0.9)
    loop = Loop(model, guide, schedules.static(), rate, optimizer=optimizer, momentum=momentum)
    if kind == "momentum":  # the loop's own sgd is Nesterov's; heavy-ball momentum is a user's optimiser
        loop.optimizer = torch.optim.SGD([guide.values, *model.parameters()], lr=1.0, momentum=0.9)
    return loop


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", HAND_OPTIMISERS)
def test_thirty_steps_of_the_loop_are_those_of_torch_on_the_hand_written_loss(
    name: str, rescale: bool, kind: str
) -> None:
    case = CASES[name]
    model, guide = bayesian(case, keep_prob=0.713, rescale=rescale, kl_scale=1.7)
    hand, rates = Hand(case, model, guide), cosine(0.05, 40, 5)
    loop, optimiser = loop_of(kind, model, guide, rates), HAND_OPTIMISERS[kind](hand.parameters)
    start, draws = hand.u.detach().clone(), []
    for step in range(1, 31):
        x, y = batch_of(case, seed=step, size=BATCH - step % 3)
        loop.step(x, y)
        draws.append(guide.keep)
        optimiser.zero_grad()
        hand.loss(guide.keep, x, y).backward()
        optimiser.param_groups[0]["lr"] = rates(step)
        optimiser.step()
        close(guide.values, hand.u)
        for other, parameter in model.net.named_parameters():
            close(parameter, hand.others[other])
    assert (hand.u.detach() - start).abs().max() > 0.01
    assert len({tuple(keep.tolist()) for keep in draws}) == 30  # a fresh Z every step


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_info_splits_the_loss_into_its_terms(name: str, rescale: bool) -> None:
    case = CASES[name]
    model, guide = bayesian(case, keep_prob=0.713, rescale=rescale, kl_scale=1.7)
    loop = Loop(model, guide, schedules.static(), constant(0.05))
    for step in range(1, 6):
        hand, (x, y) = Hand(case, model, guide), batch_of(case, seed=step)  # before the step
        info = loop.step(x, y)
        assert (info.step, info.grown) == (step, 0)
        close(info.log_likelihood, -hand.likelihood_loss(guide.keep, x, y))
        close(info.kl, hand.kl())
        close(info.loss, info.kl + hand.l2() - info.log_likelihood)
        assert not any(term.requires_grad for term in (info.loss, info.log_likelihood, info.kl))


@pytest.mark.parametrize("keep_prob", [1.0, 0.9, 0.37])
@pytest.mark.parametrize("rescale", [False, True])
def test_prior_scale_and_weight_decay_imply_each_other(keep_prob: float, rescale: bool) -> None:
    v = 1 / (keep_prob * NUM_DATA * DECAY) if rescale else keep_prob / (NUM_DATA * DECAY)
    scale = prior_scale_of(DECAY, NUM_DATA, keep_prob, rescale=rescale)
    assert scale == pytest.approx(math.sqrt(v), rel=1e-14)
    assert weight_decay_of(scale, NUM_DATA, keep_prob, rescale=rescale) == pytest.approx(DECAY, rel=1e-14)


def test_registered_kl_has_the_gradient_of_the_bound_whatever_z_is() -> None:
    torch.manual_seed(0)
    mean, positions, v, p = torch.randn(9, requires_grad=True), torch.arange(0, 27, 3), 0.83, effective_keep_prob(0.713)
    q, prior = MaskedWeights(mean, positions, 27, p), FlatNormal(math.sqrt(v), 27)
    for _ in range(3):
        q.rsample()
        (gradient,) = torch.autograd.grad(torch.distributions.kl_divergence(q, prior), mean)
        close(gradient, p * mean / v)
    (of_bound,) = torch.autograd.grad(kl_bound(mean, p, math.sqrt(v), 1e-3).sum(), mean)
    close(of_bound, p * mean / v)


def _bare() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9, bias=False), nn.Tanh(), nn.Linear(9, 5, bias=False))


def _bare_by_hand(w: Tensor, o: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ w[:54].reshape(9, 6).T) @ w[54:].reshape(5, 9).T


def test_rescaling_is_a_reparametrisation() -> None:
    """init * p, rate * p^2, decay / p^2 and the same Z: equal weights W at every one of 200 Nesterov steps."""
    case = Case(_bare, (6,), (), _bare_by_hand)
    p = effective_keep_prob(0.713)
    model, guide = bayesian(case, keep_prob=p)
    other, rescaled = bayesian(case, keep_prob=p, rescale=True, weight_decay=DECAY / p**2)
    assert model.prior_scale == pytest.approx(other.prior_scale, rel=1e-14)  # the same belief about W in both arms
    with torch.no_grad():
        rescaled.values.mul_(p)
    first = Loop(model, guide, schedules.static(), cosine(0.2, 200))
    second = Loop(other, rescaled, schedules.static(), cosine(0.2 * p**2, 200))
    start = guide.values.detach().clone()
    for step in range(1, 201):
        x, y = batch_of(case, seed=step % 7)
        first.step(x, y)
        second.step(x, y)
        assert guide.keep is not None
        assert rescaled.keep is not None
        assert torch.equal(guide.keep, rescaled.keep)
        close(rescaled.values / p * rescaled.keep, guide.values * guide.keep)
        close(rescaled.values / p, guide.values)
    assert (guide.values - start).abs().max() > 0.1

    naive, unscaled = bayesian(case, keep_prob=p, rescale=True)  # at equal rates and decays the arms do differ
    Loop(naive, unscaled, schedules.static(), constant(0.2)).step(*batch_of(case))
    fresh, plain = bayesian(case, keep_prob=p)
    Loop(fresh, plain, schedules.static(), constant(0.2)).step(*batch_of(case))
    assert (unscaled.values / p - plain.values).abs().max() > 1e-3


class Rooted(torch.autograd.Function):
    """Whose value is a number, and whose gradient is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9, bias=False), nn.Linear(9, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Rooted.apply(self.first(x)))  # type: ignore[no-untyped-call]


def test_a_topology_does_not_move_by_a_gradient_that_is_no_number() -> None:
    """It would lose weights: at a move there is no step whose loss would show it."""
    case = Case(Broken, (6,), (), _bare_by_hand)
    model, guide = bayesian(case, keep_prob=0.9)
    loop = Loop(model, guide, schedules.rigl(1, 10, 0.3), constant(0.1))
    before = guide.topology.positions.clone()
    with pytest.raises(RuntimeError, match="the gradient stopped being finite at step 1: lower the learning_rate"):
        loop.step(*batch_of(case))
    assert torch.equal(guide.topology.positions, before)
