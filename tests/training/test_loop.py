"""The objective (method.md, section 4): -ELBO/N is CigL's loss, gradient by gradient and step by step; known optima.

The other side of every comparison is plain torch, written out here: the dense weights are assembled by hand, and the
forward pass, the loss and the L2 are spelled with `torch.nn.functional`.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import TraceMeanField_ELBO
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from budget import assert_mean
from espalier import shelf
from espalier.contracts import Data, Split
from espalier.distributions.masked import MaskedWeights, effective_keep_prob, kl_bound
from espalier.distributions.priors import FlatNormal, prior_scale_of, weight_decay_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Loop
from espalier.training.options import DEFAULT_WEIGHT_DECAY, Training, prepare
from espalier.training.rates import Rate, constant, cosine
from rounding import close

NUM_DATA, BATCH = 137, 24
DECAY = 0.013


pytestmark = pytest.mark.usefixtures("float64")


class Case(NamedTuple):
    """A network, and the same network by hand: `forward(u, others, x)`, with `u` the flat vector of all weights."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    others: tuple[str, ...]
    """The point-estimated parameters, by their names in the network."""
    forward: Callable[[Tensor, dict[str, Tensor], Tensor], Tensor]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))


def _mlp_by_hand(w: Tensor, o: dict[str, Tensor], x: Tensor) -> Tensor:
    first, second = w[:54].reshape(9, 6), w[54:].reshape(5, 9)
    return torch.tanh(x @ first.T + o["0.bias"]) @ second.T + o["2.bias"]


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def _conv_by_hand(w: Tensor, o: dict[str, Tensor], x: Tensor) -> Tensor:
    first, second, last = w[:72].reshape(4, 2, 3, 3), w[72:180].reshape(3, 4, 3, 3), w[180:].reshape(5, 12)

    def normalised(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # batch norm in train mode, by its definition
        mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
        return (h - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    h = F.relu(normalised(F.conv2d(x, first, o["0.bias"], padding=1), o["1.weight"], o["1.bias"]))
    h = F.relu(normalised(F.conv2d(h, second, stride=2), o["4.weight"], o["4.bias"]))
    return h.reshape(len(h), -1) @ last.T + o["7.bias"]


CASES = {
    "mlp": Case(_mlp, (6,), ("0.bias", "2.bias"), _mlp_by_hand),
    "conv": Case(_conv, (2, 6, 6), ("0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "7.bias"), _conv_by_hand),
}


def bayesian(
    case: Case,
    *,
    keep_prob: float,
    rescale: bool = False,
    kl_scale: float = 1.0,
    weight_decay: float = DECAY,
    num_data: int | None = NUM_DATA,
    density: float = 0.4,
    seed: int = 0,
    likelihood: object = "categorical",
) -> tuple[BayesianNetwork, MaskedGuide]:
    """A model and its guide, with the prior that `weight_decay` implies (formula written out, not the library's)."""
    torch.manual_seed(seed)
    net = case.net()
    with torch.no_grad():
        for parameter in net.parameters():  # biases of 0 and scales of 1 would hide their L2
            parameter.add_(0.1 * torch.randn_like(parameter))
    p = round(65536 * keep_prob) / 65536
    count = num_data or BATCH
    v = 1 / (p * count * weight_decay) if rescale else p / (count * weight_decay)
    model = BayesianNetwork(
        net, prior_scale=math.sqrt(v), num_data=num_data, weight_decay=weight_decay, likelihood=likelihood
    )
    stream = torch.Generator().manual_seed(seed + 1)
    topology = initial(model.shapes, 1 - density, generator=stream)
    return model, MaskedGuide(model, topology, keep_prob, rescale=rescale, kl_scale=kl_scale, generator=stream)


def batch_of(case: Case, seed: int = 3, size: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *case.shape, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def dense_by_hand(values: Tensor, keep: Tensor, positions: Tensor, num_weights: int, factor: float) -> Tensor:
    """Z * u (/ p), one weight at a time."""
    dense = torch.zeros(num_weights)
    dense[positions] = torch.where(keep, values, torch.zeros(())) * factor
    return dense


class Hand:
    """The hand-written loss of one guide: its own copies of u and the other parameters, nothing shared."""

    def __init__(self, case: Case, model: BayesianNetwork, guide: MaskedGuide, weight_decay: float = DECAY) -> None:
        self.case, self.positions, self.num_weights = case, guide.positions.clone(), model.num_weights
        self.factor = 1 / guide.keep_prob if guide.rescale else 1.0
        self.weight_decay, self.kl_scale = weight_decay, guide.kl_scale
        self.u = guide.values.detach().clone().requires_grad_()
        own = dict(model.net.named_parameters())
        assert sorted(own) == sorted(case.others)  # nothing trained but these, and nothing of them forgotten
        self.others = {name: own[name].detach().clone().requires_grad_() for name in case.others}

    def likelihood_loss(self, keep: Tensor, x: Tensor, y: Tensor) -> Tensor:
        dense = dense_by_hand(self.u, keep, self.positions, self.num_weights, self.factor)
        logits = self.case.forward(dense, self.others, x)
        return -F.log_softmax(logits, -1)[torch.arange(len(y)), y].sum() / len(y)

    def kl(self) -> Tensor:
        return self.kl_scale * self.weight_decay / 2 * (self.u**2).sum()

    def l2(self) -> Tensor:
        return self.weight_decay / 2 * sum((other**2).sum() for other in self.others.values())

    def loss(self, keep: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.likelihood_loss(keep, x, y) + self.kl() + self.l2()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.u, *self.others.values()]


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


def tiny_data() -> Data:
    x, y = batch_of(CASES["mlp"], size=50)
    part = Split(x, y)
    return Data("tiny", part, part, part, part, (6,), 5)


@pytest.mark.parametrize("rescale", [False, True])
def test_preparing_a_model_fills_in_the_half_that_was_not_given(rescale: bool) -> None:
    plain, believed = BayesianNetwork(_mlp()), BayesianNetwork(_mlp(), prior_scale=0.3)
    p = 0.75
    decayed = prepare(plain, tiny_data(), Training(weight_decay=DECAY, device="cpu"), keep_prob=p, rescale=rescale)
    v = 1 / (p * 50 * DECAY) if rescale else p / (50 * DECAY)
    assert (decayed.num_data, decayed.weight_decay) == (50, DECAY)
    assert decayed.prior_scale == pytest.approx(math.sqrt(v), rel=1e-14)

    implied = prepare(believed, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    expected = 1 / (p * 50 * 0.3**2) if rescale else p / (50 * 0.3**2)
    assert (implied.num_data, implied.prior_scale) == (50, 0.3)
    assert implied.weight_decay == pytest.approx(expected, rel=1e-14)

    default = prepare(plain, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    assert default.weight_decay == DEFAULT_WEIGHT_DECAY
    assert plain.prior_scale is None  # a copy was prepared
    assert plain.num_data is None


def test_prior_scale_and_weight_decay_together_are_refused() -> None:
    believed = BayesianNetwork(_mlp(), prior_scale=0.3)
    with pytest.raises(ValueError, match="expected a prior_scale or a weight_decay, got both"):
        prepare(believed, tiny_data(), Training(weight_decay=DECAY, device="cpu"))


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


class Linear(NamedTuple):
    """A linear regression with all weights active, its guide, its data, and its closed-form optimum."""

    model: BayesianNetwork
    guide: MaskedGuide
    x: Tensor
    y: Tensor
    optimum: Tensor


TAU, PRIOR = 2.3, 0.6


def optimum_of(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Where E_Z |y - X (Z u)|^2 tau/2 + p |u|^2 / 2v has no slope.

    E_Z |y - X (Z u)|^2 = |y - p X u|^2 + p (1-p) sum_j u_j^2 |x_j|^2, whose slope, over p tau, is set to 0.
    """
    gram = x.T @ x
    system = p * gram + (1 - p) * torch.diag(torch.diag(gram)) + torch.eye(x.shape[1]) / (TAU * PRIOR**2)
    return torch.linalg.solve(system, x.T @ y)


def linear(p: float, d: int = 6, n: int = 40) -> Linear:
    torch.manual_seed(5)
    x = torch.randn(n, d) @ (torch.eye(d) + 0.4 * torch.randn(d, d))  # correlated, or ridge and masks would agree
    y = x @ torch.randn(d) + TAU**-0.5 * torch.randn(n)
    program = shelf.load("models", "linear")
    model = program((d,), 1, noise_precision=TAU, learn_precision=False, bias=False, prior_scale=PRIOR)
    model.num_data = n
    guide = MaskedGuide(model, initial(model.shapes, 0.0), p, generator=torch.Generator().manual_seed(6))
    return Linear(model, guide, x, y, optimum_of(x, y, p))


@pytest.mark.parametrize("p", [0.75, 0.5])
def test_expected_gradient_of_the_linear_model_vanishes_at_its_optimum(
    p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = linear(p)
    slopes = {}
    for name, at in {"optimum": case.optimum, "ridge": optimum_of(case.x, case.y, 1.0)}.items():
        case.guide.values.data = at.clone()
        slopes[name] = torch.zeros(6)
        for bits in itertools.product([False, True], repeat=6):
            keep = torch.tensor(bits)
            monkeypatch.setattr("espalier.guides.masked.draw_keep", lambda *_, keep=keep: keep)
            loss = TraceMeanField_ELBO().differentiable_loss(case.model, case.guide, case.x, case.y) / len(case.y)
            (slope,) = torch.autograd.grad(loss, case.guide.values)
            slopes[name] += p ** sum(bits) * (1 - p) ** (6 - sum(bits)) * slope
    close(slopes["optimum"], torch.zeros(6))
    assert slopes["ridge"].abs().max() > 1e-2


def test_training_the_linear_model_reaches_its_optimum() -> None:
    """With a constant rate the iterates' mean is u* exactly (the gradient is linear in u, Z is fresh); average them."""
    case, blocks, length = linear(0.75), 20, 100
    loop = Loop(case.model, case.guide, schedules.static(), constant(0.02), momentum=0.0)
    for _ in range(300):
        loop.step(case.x, case.y)
    means = []
    for _ in range(blocks):
        iterates = []
        for _ in range(length):
            loop.step(case.x, case.y)
            iterates.append(case.guide.values.detach().clone())
        means.append(torch.stack(iterates).mean(0))
    assert_mean(torch.stack(means), case.optimum)
    with pytest.raises(AssertionError, match="standard errors"):  # sharp enough to tell the two apart
        assert_mean(torch.stack(means), optimum_of(case.x, case.y, 1.0))


def test_without_a_mask_training_reaches_ridge_regression() -> None:
    case = linear(1.0)
    loop = Loop(case.model, case.guide, schedules.static(), constant(0.05))
    for _ in range(600):
        loop.step(case.x, case.y)
    ridge = Ridge(alpha=1 / (TAU * PRIOR**2), fit_intercept=False, solver="cholesky")
    expected = ridge.fit(case.x.numpy(), case.y.numpy()).coef_
    np.testing.assert_allclose(case.guide.values.detach().numpy(), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(case.optimum.numpy(), expected, rtol=0, atol=1e-12)
