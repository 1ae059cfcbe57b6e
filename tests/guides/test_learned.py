"""A learned keep probability: its gradient against enumeration, its KL against quadrature, its optimum, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from budget import assert_mean
from espalier.contracts import Evidence, Topology
from espalier.guides import CoupledELBO, LearnedGuide
from espalier.guides.learned import HALF_WIDTH
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training.loop import Loop

pytestmark = pytest.mark.usefixtures("float64")
ROWS, NUM_DATA, SCALE = 20, 60, 0.7
ACTIVE = 6


def case(keep_prob: float = 0.8, values: float = 1.0, **options: object) -> tuple[BayesianNetwork, LearnedGuide, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = BayesianNetwork(net, prior_scale=SCALE, num_data=NUM_DATA)
    topology = Topology(torch.tensor([0, 4, 7, 11, 13, 18]), (4, 2), model.sizes)
    guide = LearnedGuide(model, topology, keep_prob, generator=stream, **options)
    guide.values.data = values * torch.tensor([0.9, -1.4, 0.6, 1.1, -0.8, 1.7])
    x = torch.randn(ROWS, 3, generator=stream)
    return model, guide, x, (x[:, 0] > 0).long()


@torch.no_grad()
def nll(model: BayesianNetwork, weights: Tensor, x: Tensor, y: Tensor) -> float:
    """Of all the data that the rows stand for, by hand."""
    first, second = weights[:12].view(4, 3), weights[12:].view(2, 4)
    biases = [bias for name, bias in model.net.named_parameters() if name.endswith("bias")]
    logits = torch.tanh(x @ first.T + biases[0]) @ second.T + biases[1]
    return float(-logits.log_softmax(-1)[torch.arange(len(y)), y].sum() * NUM_DATA / len(y))


def enumerated(model: BayesianNetwork, guide: LearnedGuide, x: Tensor, y: Tensor, phi: float) -> float:
    """E_Z[-log p(y | x, Z u)] over all masks at the rate sin^2 phi."""
    drop, total = math.sin(phi) ** 2, 0.0
    for keep in itertools.product((0.0, 1.0), repeat=ACTIVE):
        kept = int(sum(keep))
        weights = torch.zeros(20)
        weights[guide.positions] = guide.values.detach() * torch.tensor(keep)
        total += (1 - drop) ** kept * drop ** (ACTIVE - kept) * nll(model, weights, x, y)
    return total


def test_the_slope_is_unbiased_for_the_enumerated_difference() -> None:
    model, guide, x, y = case()
    phi = float(guide.angle.detach())
    truth = [enumerated(model, guide, x, y, phi + sign * HALF_WIDTH) for sign in (1, -1)]
    draws = torch.stack([guide.slope(model, x, y) for _ in range(3000)])
    assert draws.std() > 0
    assert_mean(draws[:, None], np.array([(truth[0] - truth[1]) / (2 * HALF_WIDTH)]))


def test_the_difference_is_the_derivative_up_to_the_square_of_its_width() -> None:
    model, guide, x, y = case()
    phi = float(guide.angle.detach())

    def error(width: float) -> float:
        up, down, tiny = (enumerated(model, guide, x, y, phi + step) for step in (width, -width, 1e-5))
        slope = (tiny - enumerated(model, guide, x, y, phi - 1e-5)) / 2e-5
        return abs((up - down) / (2 * width) - slope)

    assert error(2 * HALF_WIDTH) / error(HALF_WIDTH) == pytest.approx(4, rel=0.05)


def test_the_kl_is_that_of_the_mixture_as_its_noise_goes_to_nothing() -> None:
    """Differences over the rate, so that what does not depend on it, and diverges, is out of the way; by quadrature."""
    model, guide, _, _ = case()
    noise = 1e-3

    def exact(drop: float) -> float:
        total = 0.0
        for mean in guide.values.detach().tolist():

            def density(w: float, mean: float = mean) -> float:
                return float((1 - drop) * norm.pdf(w, mean, noise) + drop * norm.pdf(w, 0, noise))

            def integrand(w: float, density=density) -> float:
                q = density(w)
                return q * (math.log(q) - norm.logpdf(w, 0, SCALE)) if q > 0 else 0.0

            total += sum(quad(integrand, at - 12 * noise, at + 12 * noise, limit=200)[0] for at in (0.0, mean))
        return total

    found = []
    for drop in (0.15, 0.35):
        guide.angle.data.fill_(math.asin(math.sqrt(drop)))
        found.append(float(guide.kl_in_angle(model).detach()))
    assert found[1] - found[0] == pytest.approx(exact(0.35) - exact(0.15), rel=1e-4)


@pytest.mark.parametrize("kl_scale", [1.0, 0.3])
def test_the_gradient_of_the_angle_is_slope_and_kl_and_that_of_the_values_is_as_ever(kl_scale: float) -> None:
    model, guide, x, y = case(kl_scale=kl_scale)
    plain = MaskedGuide(model, guide.topology, guide.keep_prob, kl_scale=kl_scale, generator=torch.Generator().manual_seed(5))
    plain.values.data = guide.values.data.clone()
    guide.generator = torch.Generator().manual_seed(5)
    other = TraceMeanField_ELBO().differentiable_loss(model, plain, x, y)
    (wanted,) = torch.autograd.grad(other, [plain.values])
    loss = CoupledELBO().differentiable_loss(model, guide, x, y)
    values, angle = torch.autograd.grad(loss, [guide.values, guide.angle])
    torch.testing.assert_close(values, wanted)
    guide.generator = torch.Generator().manual_seed(5)
    guide.distribution().rsample()  # the draw that the loss took before
    (of_kl,) = torch.autograd.grad(guide.kl_in_angle(model), [guide.angle])
    torch.testing.assert_close(angle, guide.slope(model, x, y) + of_kl)
    drop = guide.rate
    entropy = -drop * math.log(drop) - (1 - drop) * math.log(1 - drop)
    assert float((loss - other).detach()) == pytest.approx(-kl_scale * ACTIVE * entropy, rel=1e-3)  # p of 16 bits


def test_svi_ends_where_the_enumerated_objective_is_least() -> None:
    """Values that stand still: the rate alone is learned."""
    pyro.set_rng_seed(0)
    model, guide, x, _ = case(keep_prob=0.95)
    guide.values.requires_grad_(False)
    unmasked = torch.zeros(20).index_put((guide.positions,), guide.values)
    with torch.no_grad():
        y = model.evaluate(unmasked, x).argmax(-1)  # so that masks cost something
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.eval()  # else Pyro warns of what is frozen
    guide.eval()

    def objective(phi: float) -> float:
        drop = math.sin(phi) ** 2
        size = float((guide.values.detach() ** 2).sum()) / (2 * SCALE**2)
        entropy = -drop * math.log(drop) - (1 - drop) * math.log(1 - drop)
        return enumerated(model, guide, x, y, phi) + (1 - drop) * size - ACTIVE * entropy

    grid = np.linspace(0.05, 1.5, 60)
    best = grid[np.argmin([objective(phi) for phi in grid])]
    svi = SVI(model, guide, PyroOptim(torch.optim.SGD, {"lr": 0.001}), CoupledELBO())
    reached = []
    for step in range(500):
        svi.step(x, y)
        reached += [float(guide.angle.detach())] if step >= 200 else []
    assert 0.5 < best < 1  # from .23; the step's noise leaves .14 of scatter about it, and three independent looks
    assert np.mean(reached) == pytest.approx(best, abs=0.24)
    assert Predictive(model, guide=guide, num_samples=7)(x)["y"].shape == (7, ROWS)


def test_buffers_and_the_default_stream_stay_as_they_were() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = BayesianNetwork(net, prior_scale=1.0)
    guide = LearnedGuide(model, initial(model.shapes, 0.3), 0.8, generator=torch.Generator().manual_seed(0))
    before, stream = {name: t.clone() for name, t in model.state_dict().items()}, torch.random.get_rng_state()
    guide.slope(model, torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(9, dtype=torch.int64))
    assert torch.equal(torch.random.get_rng_state(), stream)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_with_batch_norm_trains_and_its_statistics_are_those_of_the_losses_alone() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    model = BayesianNetwork(net, prior_scale=1.0, num_data=9)
    guide = LearnedGuide(model, initial(model.shapes, 0.3), 0.8, generator=torch.Generator().manual_seed(0))
    x, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(9, dtype=torch.int64)
    svi, before = SVI(model, guide, PyroOptim(torch.optim.SGD, {"lr": 0.001}), CoupledELBO()), guide.values.detach().clone()
    for _ in range(2):
        svi.step(x, y)
    assert not torch.equal(guide.values, before)
    assert int(model.net[1].num_batches_tracked) == 2  # type: ignore[index]


def test_it_moves_with_its_topology_and_keeps_its_rate() -> None:
    model, guide, _, _ = case()
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.01)
    rate = guide.rate
    schedule = schedules.rigl(2, 10, 0.5)
    gradient = torch.randn(20, generator=torch.Generator().manual_seed(2))
    evidence = Evidence(2, guide.values.data, gradient, torch.Generator(), None)
    guide.move(schedule.move(guide.topology, evidence), optimizer)
    assert guide.rate == rate
    assert len(guide.values) == ACTIVE


def test_what_would_leave_it_where_it_is_is_refused() -> None:
    model, guide, x, y = case()
    with pytest.raises(ValueError, match="expected CoupledELBO for a learned keep_prob, got TraceMeanField_ELBO"):
        TraceMeanField_ELBO().differentiable_loss(model, guide, x, y)
    with pytest.raises(ValueError, match="expected CoupledELBO for a learned keep_prob"):
        Loop(model, guide, schedules.static(), lambda step: 0.1).step(x, y)
    with pytest.raises(ValueError, match=r"expected a keep_prob in \(0, 1\) to start from, got 1"):
        case(keep_prob=1.0)
    with pytest.raises(ValueError, match="expected rescale=False where keep_prob is learned"):
        case(rescale=True)


@pytest.mark.parametrize("mask", ["unit", "filter"])
def test_the_entropy_is_that_of_the_masks_there_are(mask: str) -> None:
    """One weight in, two out, one Z: its KL by quadrature of the mixture of two normals in the plane, as they get narrow."""
    torch.manual_seed(0)
    net = nn.Linear(1, 2) if mask == "unit" else nn.Conv1d(1, 1, 2)
    model = BayesianNetwork(net, prior_scale=1.0, num_data=10)
    guide = LearnedGuide(model, Topology(torch.arange(2), (2,), model.sizes), 0.7, mask=mask)
    guide.values.data = torch.tensor([0.8, -1.1])
    s, p = 0.02, float(torch.cos(guide.angle.detach()) ** 2)

    def kl(p: float) -> float:
        """Of p N(u, s^2) + (1 - p) N(0, s^2) from N(0, 1), less what the same without u has: the two parts are far apart."""
        apart = p * math.log(p) + (1 - p) * math.log(1 - p)
        u = guide.values.detach().numpy()
        grid = np.linspace(-8, 8, 401)
        x, y = np.meshgrid(grid, grid)
        means = []
        for centre in (u, np.zeros(2)):
            own = norm.pdf(x) * norm.pdf(y)
            points = centre[0] + s * x, centre[1] + s * y
            prior = norm.logpdf(points[0]) + norm.logpdf(points[1])
            parts = [norm.logpdf(points[0], c[0], s) + norm.logpdf(points[1], c[1], s) for c in (u, np.zeros(2))]
            q = np.logaddexp(math.log(p) + parts[0], math.log(1 - p) + parts[1])
            means.append(float((own * (q - prior)).sum() * (grid[1] - grid[0]) ** 2))
        constant = 2 * (-math.log(s) - 0.5 + s * s / 2)
        found = p * means[0] + (1 - p) * means[1] - constant
        assert found == pytest.approx(p * float(u @ u) / 2 + apart, abs=1e-6)
        return found

    assert float(guide.kl_in_angle(model).detach()) == pytest.approx(kl(p), abs=1e-6)


def test_what_a_loss_is_evaluated_to_is_what_a_step_takes() -> None:
    model, guide, x, y = case()
    svi = SVI(model, guide, PyroOptim(torch.optim.SGD, {"lr": 0.0}), CoupledELBO())
    found = []
    for evaluate in (svi.step, svi.evaluate_loss):
        assert guide.generator is not None
        guide.generator.manual_seed(3)
        found.append(evaluate(x, y))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(("turn", "sign"), [
    (lambda phi: -phi, -1), (lambda phi: math.pi - phi, -1), (lambda phi: phi - math.pi, 1),
])  # fmt: skip
def test_the_estimate_has_the_period_of_the_rate(turn: Any, sign: int) -> None:
    model, guide, x, y = case()
    assert guide.generator is not None
    phi, slopes = float(guide.angle.detach()), []
    for angle in (phi, turn(phi)):
        guide.angle.data.fill_(angle)
        guide.generator.manual_seed(3)
        slopes.append(float(guide.slope(model, x, y)))
    assert slopes[1] == pytest.approx(sign * slopes[0], rel=1e-9)
