"""The mean-field Gaussian on the active weights: its gradient, its optimum, its moves.

Independent answers: torch's own normal distributions, quadrature, and Bayesian linear regression in closed form.
"""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from budget import assert_mean
from espalier import shelf
from espalier.contracts import Evidence, Move, Schedule, Topology
from espalier.guides.gaussian import GaussianGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules, scores
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from rounding import close
from tiny import DECAY, NUM_DATA, PRIOR, batch_of, case

pytestmark = pytest.mark.usefixtures("float64")


# The objective


@pytest.mark.parametrize("kl_scale", [1.0, 0.3, 0.0])
def test_one_step_s_gradient_is_that_of_the_loss_by_hand(kl_scale: float) -> None:
    model, guide = case(kl_scale=kl_scale)
    x, y = batch_of(3)
    noise = torch.Generator()
    assert guide.generator is not None
    noise.set_state(guide.generator.get_state())
    loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA
    loss.backward()
    mu, rho = (p.detach().clone().requires_grad_() for p in (guide.values, guide.log_scale))
    b1, b2 = (model.net[i].bias.detach().clone().requires_grad_() for i in (0, 2))
    active = mu + rho.exp() * torch.randn(mu.shape, generator=noise)
    dense = torch.zeros(90).index_put((guide.positions,), active)
    hidden = torch.tanh(F.linear(x, dense[:54].reshape(9, 6), b1))
    by_hand = F.cross_entropy(F.linear(hidden, dense[54:].reshape(4, 9), b2), y)
    sigma2, v = rho.exp() ** 2, PRIOR**2
    by_hand = by_hand + kl_scale / NUM_DATA * ((mu**2 + sigma2) / (2 * v) - 0.5 - rho + math.log(PRIOR)).sum()
    by_hand = by_hand + DECAY / 2 * ((b1**2).sum() + (b2**2).sum())
    by_hand.backward()
    close(loss, by_hand)
    for mine, theirs in [(guide.values, mu), (guide.log_scale, rho), (model.net[0].bias, b1), (model.net[2].bias, b2)]:
        close(mine.grad, theirs.grad)


def test_the_info_of_a_step_has_the_kl_of_torch() -> None:
    model, guide = case(kl_scale=0.7)
    q, prior = torch.distributions.Normal(guide.values, guide.log_scale.exp()), torch.distributions.Normal(0.0, PRIOR)
    kl = torch.distributions.kl_divergence(q, prior).sum().detach()
    info = Loop(model, guide, schedules.static(), rates.constant(0.01)).step(*batch_of(0))
    close(info.kl, 0.7 * kl / NUM_DATA)


TAU, WIDTH = 2.3, 4


def regression() -> tuple[BayesianNetwork, GaussianGuide, Tensor, Tensor, Tensor, Tensor]:
    """Bayesian linear regression: its posterior is N(Lambda^-1 tau X'y, Lambda^-1), Lambda = tau X'X + I/v; the best mean-field
    Gaussian has the posterior's mean and sigma_i^2 = 1 / Lambda_ii (Bishop 2006, eq. 10.12-10.15)."""
    torch.manual_seed(5)
    x = torch.randn(30, WIDTH) @ (torch.eye(WIDTH) + 0.5 * torch.randn(WIDTH, WIDTH))
    y = x @ torch.randn(WIDTH) + TAU**-0.5 * torch.randn(30)
    program = shelf.load("models", "linear")
    model = program((WIDTH,), 1, noise_precision=TAU, learn_precision=False, bias=False, prior_scale=0.6)
    model.num_data = 30
    stream = torch.Generator().manual_seed(6)
    guide = GaussianGuide(model, initial(model.shapes, 0.0), noise_scale=0.1, generator=stream)
    precision = TAU * x.T @ x + torch.eye(WIDTH) / 0.6**2
    mean = torch.linalg.solve(precision, TAU * x.T @ y)
    assert (precision.inverse().diagonal() * precision.diagonal() > 1.5).any()  # not the marginals of the posterior
    return model, guide, x, y, mean, precision.diagonal() ** -0.5


def expected_loss(
    model: BayesianNetwork, guide: GaussianGuide, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The exact expectation of a loss quadratic in the noise: the mean over all vectors of signs (mean 0, variance I)."""
    losses = []
    for signs in itertools.product([-1.0, 1.0], repeat=WIDTH):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *_, signs=signs, **__: torch.tensor(signs))
            losses.append(TraceMeanField_ELBO().differentiable_loss(model, guide, x, y))
    return torch.stack(losses).mean()


def test_the_elbo_of_the_linear_model_has_its_one_optimum_where_theory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, x, y, mean, sigma = regression()
    parameters = [guide.values, guide.log_scale]
    exact = {"tolerance_grad": 1e-12, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(parameters, max_iter=200, **exact)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = expected_loss(model, guide, x, y, monkeypatch)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(guide.values.detach(), mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(guide.log_scale.detach().exp(), sigma, rtol=1e-6, atol=0)

    guide.values.data, guide.log_scale.data = mean.clone(), sigma.log()
    for slope in torch.autograd.grad(expected_loss(model, guide, x, y, monkeypatch), parameters):
        torch.testing.assert_close(slope, torch.zeros(WIDTH), rtol=0, atol=1e-9)
    # The evidence by the normal's own density, and what the optimum falls short of it: KL(q || posterior), two normals.
    evidence = torch.distributions.MultivariateNormal(torch.zeros(30), torch.eye(30) / TAU + 0.36 * x @ x.T).log_prob(y)
    precision = TAU * x.T @ x + torch.eye(WIDTH) / 0.36
    gap = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(mean, torch.diag(sigma**2)),
        torch.distributions.MultivariateNormal(mean, precision_matrix=precision),
    )
    assert float(expected_loss(model, guide, x, y, monkeypatch).detach()) == pytest.approx(float(gap - evidence), rel=1e-9)


def test_svi_reaches_the_mean_field_optimum() -> None:
    model, guide, x, y, mean, sigma = regression()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 2e-3}), TraceMeanField_ELBO())
    for _ in range(900):
        svi.step(x, y)
    blocks, scales = [], []
    for _ in range(15):
        iterates = []
        for _ in range(100):
            svi.step(x, y)
            iterates.append(guide.values.detach().clone())
            scales.append(guide.log_scale.detach().exp())
        blocks.append(torch.stack(iterates).mean(0))
    assert_mean(torch.stack(blocks), mean)  # the gradient is linear in mu and the noise is fresh
    torch.testing.assert_close(torch.stack(scales).mean(0), sigma, rtol=0.05, atol=0)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, lambda: RenyiELBO(alpha=0.5)])
def test_every_other_elbo_is_refused(elbo: Callable[[], Any]) -> None:
    model, guide = case()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), elbo())
    with pytest.raises(ValueError, match="expected TraceMeanField_ELBO, got"):
        svi.step(*batch_of(0))


@pytest.mark.parametrize("noise_scale", [0.0, -1.0, float("nan")])
def test_an_impossible_noise_scale_is_refused(noise_scale: float) -> None:
    with pytest.raises(ValueError, match="expected a finite noise_scale above 0, got"):
        case(noise_scale=noise_scale)


# Moves


class Recorded:
    """A schedule that keeps what it saw and what it did."""

    def __init__(self, schedule: Schedule) -> None:
        self.seen: list[tuple[Topology, Evidence, Move]] = []
        self.inner = schedule.move
        self.schedule = schedule._replace(move=self._move)

    def _move(self, topology: Topology, evidence: Evidence) -> Move:
        assert evidence.scales is not None
        kept = evidence._replace(values=evidence.values.clone(), scales=evidence.scales.clone())
        self.seen.append((topology, kept, self.inner(topology, evidence)))
        return self.seen[-1][2]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_grown_weight_starts_at_zero_with_the_first_noise_and_no_moments(kind: str) -> None:
    model, guide = case(noise_scale=0.03)
    recorded = Recorded(schedules.rigl(5, 100, 0.6, scores.snr))
    loop = Loop(model, guide, recorded.schedule, rates.constant(0.05), optimizer=kind)
    for step in range(1, 5):
        loop.step(*batch_of(step))
    before = {n: (p.detach().clone(), copy.deepcopy(loop.optimizer.state[p])) for n, p in guide.named_parameters()}
    info = loop.step(*batch_of(5))
    ((_, evidence, move),) = recorded.seen
    close(evidence.values, before["values"][0])
    close(evidence.scales, before["log_scale"][0].exp())
    grown = move.source < 0
    assert info.grown == int(grown.sum()) > 4
    assert (guide.values[grown] == 0).all()
    close(guide.log_scale[grown], torch.full((int(grown.sum()),), math.log(0.03)))
    names = {"momentum_buffer"} if kind == "sgd" else {"exp_avg", "exp_avg_sq"}
    for name, parameter in guide.named_parameters():
        values, slots = before[name]
        assert torch.equal(parameter[~grown].detach(), values[move.source[~grown]])
        for key in names:
            assert (slots[key] != 0).all()
            now = loop.optimizer.state[parameter][key]
            assert (now[grown] == 0).all()
            assert torch.equal(now[~grown], slots[key][move.source[~grown]])
    dropped = torch.ones(len(before["values"][0]), dtype=torch.bool)
    dropped[move.source[~grown]] = False
    ratio = before["values"][0].abs() / before["log_scale"][0].exp()
    for part, gone in zip(ratio.split(list(guide.counts)), dropped.split(list(guide.counts)), strict=True):
        assert part[gone].max() <= part[~gone].min()  # the score that was asked for
    loop.step(*batch_of(6))
    assert (guide.log_scale[grown] != math.log(0.03)).any()
