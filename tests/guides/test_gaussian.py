"""The mean-field Gaussian on the active weights: its KL, its gradient, its optimum, its moves, its scores, its fits.

Independent answers: torch's own normal distributions, quadrature, and Bayesian linear regression in closed form.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from scipy import integrate, stats
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from budget import FALSE_ALARMS, assert_mean
from espalier import shelf
from espalier.contracts import Data, Evidence, Move, Schedule, Topology
from espalier.data.sets import load
from espalier.distributions.gaussian import GaussianWeights
from espalier.distributions.priors import FlatNormal
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import WAYS, Fit, Pairs
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from espalier.training.options import Training
from rounding import close
from watches import Recorder

NUM_DATA, BATCH, DECAY, PRIOR = 90, 16, 0.02, 0.8


pytestmark = pytest.mark.usefixtures("float64")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))


def case(sparsity: float = 0.5, **options: float) -> tuple[BayesianNetwork, GaussianGuide]:
    """Scales that differ from weight to weight, as training leaves them."""
    model = BayesianNetwork(net(), prior_scale=PRIOR, num_data=NUM_DATA, weight_decay=DECAY)
    stream = torch.Generator().manual_seed(1)
    guide = GaussianGuide(model, initial(model.shapes, sparsity, generator=stream), generator=stream, **options)
    with torch.no_grad():
        guide.log_scale.add_(torch.randn(guide.log_scale.shape, generator=torch.Generator().manual_seed(2)))
    return model, guide


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, generator=stream), torch.randint(0, 4, (BATCH,), generator=stream)


def weights_of(active: int = 7, num_weights: int = 20) -> tuple[GaussianWeights, Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    mu = torch.randn(active, generator=stream).requires_grad_()
    sigma = (0.1 + torch.rand(active, generator=stream)).requires_grad_()
    positions = torch.randperm(num_weights, generator=stream)[:active].sort().values
    return GaussianWeights(mu, sigma, positions, num_weights, stream), mu, sigma, positions


# The distribution


@pytest.mark.parametrize("prior_scale", [0.3, 1.0, 2.7])
def test_the_kl_is_torch_s_over_the_active_weights(prior_scale: float) -> None:
    q, mu, sigma, _ = weights_of()
    own = torch.distributions.kl_divergence(q, FlatNormal(prior_scale, 20))
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, sigma), torch.distributions.Normal(0.0, prior_scale)
    ).sum()
    close(own, theirs)
    for mine, other in zip(torch.autograd.grad(own, [mu, sigma]), torch.autograd.grad(theirs, [mu, sigma]), strict=True):
        close(mine, other)


def test_the_kl_is_the_mean_of_the_log_ratio_of_draws() -> None:
    q, mu, sigma, positions = weights_of()
    with torch.no_grad():
        w = q.rsample((20000,))[:, positions]
        ratio = torch.distributions.Normal(mu, sigma).log_prob(w) - torch.distributions.Normal(0.0, PRIOR).log_prob(w)
        assert_mean(ratio.sum(-1), torch.distributions.kl_divergence(q, FlatNormal(PRIOR, 20)))


def test_draws_have_their_mean_and_variance_and_are_zero_elsewhere() -> None:
    q, mu, sigma, positions = weights_of()
    with torch.no_grad():
        w = q.rsample((20000,))
        assert w.shape == (20000, 20)
        elsewhere = torch.ones(20, dtype=torch.bool)
        elsewhere[positions] = False
        assert (w[:, elsewhere] == 0).all()
        standard = (w[:, positions] - mu) / sigma
        assert stats.kstest(standard.flatten().numpy(), "norm").pvalue > FALSE_ALARMS
        assert_mean(w, q.mean)
        assert_mean((w - q.mean) ** 2, q.variance)
        one, other = standard[:, :1], standard[:, 1:]
        assert_mean(one * other, torch.zeros(6))  # independent of each other
    close(q.mean[positions], mu)
    close(q.variance[positions], sigma**2)
    assert q.keep is not None
    assert q.keep.shape == (20000, 7)
    assert q.keep.all()


def test_the_sample_is_reparameterised() -> None:
    q, mu, sigma, positions = weights_of()
    w = q.rsample()
    slopes = torch.randn(20)
    by_mu, by_sigma = torch.autograd.grad((w * slopes).sum(), [mu, sigma])
    close(by_mu, slopes[positions])
    close(by_sigma, slopes[positions] * ((w[positions] - mu) / sigma))


# The objective


@pytest.mark.parametrize("kl_scale", [1.0, 0.3])
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


def test_a_density_over_all_weights_is_not_pretended() -> None:
    q, *_ = weights_of()
    with pytest.raises(NotImplementedError, match="TraceMeanField_ELBO"):
        q.log_prob(q.rsample())
    with pytest.raises(ValueError, match="loop over particles"):
        q.expand(torch.Size([3]))


@pytest.mark.parametrize("noise_scale", [0.0, -1.0, float("nan")])
def test_an_impossible_noise_scale_is_refused(noise_scale: float) -> None:
    with pytest.raises(ValueError, match="expected a noise_scale above 0, got"):
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
    recorded = Recorded(schedules.rigl(5, 100, 0.6, schedules.snr))
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


# Scores


def evidence_of(mu: Tensor, sigma: Tensor | None) -> Evidence:
    return Evidence(1, mu, torch.zeros(len(mu)), torch.Generator(), sigma)


GRID = [(mu, sigma) for mu in (0.0, 0.013, -0.3, 1.0, -4.0) for sigma in (0.01, 0.2, 1.0, 3.0)]


def test_snr_of_magnitude_is_mean_over_deviation_of_the_folded_normal() -> None:
    expected = []
    for mu, sigma in GRID:
        density = stats.norm(mu, sigma).pdf
        ends = sorted({mu - 12 * sigma, 0.0, mu + 12 * sigma})
        parts = list(itertools.pairwise(ends))
        first, second = (
            sum(integrate.quad(lambda w, k=k, d=density: abs(w) ** k * d(w), *part, epsabs=0, epsrel=1e-12)[0] for part in parts)
            for k in (1, 2)
        )
        expected.append(first / math.sqrt(second - first**2))
    mu, sigma = (torch.tensor(column) for column in zip(*GRID, strict=True))
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-7)
    single = schedules.snr_of_magnitude(evidence_of(mu.float(), sigma.float()))
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4)
    at_zero = math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)
    np.testing.assert_allclose(score[:4].numpy(), at_zero, rtol=1e-12)


def test_snr_of_magnitude_is_that_of_draws() -> None:
    mu, sigma = torch.tensor([0.4, -0.9]), torch.tensor([0.7, 0.5])
    w = (mu + sigma * torch.randn(40000, 2, generator=torch.Generator().manual_seed(0))).abs()
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    blocks = w.reshape(40, 1000, 2)
    assert_mean(blocks.mean(1) / blocks.std(1), score * (1 + 0.25 / 1000))  # a ratio's first-order bias is within the errors


def test_scores_far_from_zero_are_finite_and_ranked() -> None:
    mu, sigma = torch.logspace(-3, 5, 60), torch.full((60,), 0.1)
    score = schedules.snr_of_magnitude(evidence_of(mu, sigma))
    assert torch.isfinite(score).all()
    assert (score.diff() >= 0).all()
    far = mu / sigma > 10
    torch.testing.assert_close(score[far], (mu / sigma)[far], rtol=1e-3, atol=0)
    close(schedules.snr(evidence_of(-mu, sigma)), mu / sigma)


def test_both_ratios_rank_alike() -> None:
    """E|w| / sd|w| is an increasing function of |mu| / sigma alone, so a layer drops the same weights by either."""
    stream = torch.Generator().manual_seed(0)
    mu, sigma = torch.randn(2000, generator=stream), torch.rand(2000, generator=stream) + 0.05
    evidence = evidence_of(mu, sigma)
    assert torch.equal(schedules.snr(evidence).argsort(), schedules.snr_of_magnitude(evidence).argsort())
    assert not torch.equal(schedules.snr(evidence).argsort(), schedules.magnitude(evidence).argsort())


@pytest.mark.parametrize("score", [schedules.snr, schedules.snr_of_magnitude])
def test_a_score_that_needs_sigma_is_refused_without_it(score: schedules.DropScore) -> None:
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations for this score: use mean_field"):
        score(evidence_of(torch.ones(3), None))
    model, _ = case()
    guide = MaskedGuide(model, initial(model.shapes, 0.5))
    loop = Loop(model, guide, schedules.rigl(1, 10, 0.3, score), rates.constant(0.1))
    with pytest.raises(ValueError, match="expected a guide that learns standard deviations"):
        loop.step(*batch_of(0))


# The program


@functools.cache
def digits() -> Data:
    return load("digits", train_size=320)


def normed() -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))
    return BayesianNetwork(net.float())


def run(watch: Recorder | None = None, seed: int = 1, **options: Any) -> Fit:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=6, batch_size=32, learning_rate=0.1, device="cpu")
    settings = {"sparsity": 0.8, "noise_scale": 0.05, "delta_t": 7, "freeze": 0.5, "average_from": 0.5, **options}
    return shelf.load("inference", "mean_field")(
        normed(), digits(), training=training, seed=seed, watch=watch, **settings
    )


@functools.cache
def trained() -> tuple[Fit, Recorder]:
    watch = Recorder()
    return run(watch), watch


def test_draws_of_a_fit_have_the_learned_mean_and_deviation() -> None:
    fit, _ = trained()
    assert fit.ways == WAYS
    assert fit.topology.num_active == round(0.2 * 1480)
    mu, sigma, places = fit.pairs.values, fit.pairs.scales, fit.topology.positions
    assert mu.shape == sigma.shape == (3, 296)
    assert (sigma > 0).all()
    assert float((sigma[-1] - 0.05).abs().max()) > 1e-3  # it was learned
    collected = torch.stack([weights for weights, _ in fit.weights("pairs")])
    standard = ((collected[:, places] - mu) / sigma).numpy()
    assert stats.kstest(standard.ravel(), "norm").pvalue > FALSE_ALARMS
    assert np.abs(np.corrcoef(standard) - np.eye(3)).max() < 0.3  # 296 weights: five standard errors
    outside = torch.ones(1480, dtype=torch.bool)
    outside[places] = False
    assert (collected[:, outside] == 0).all()

    fresh = torch.stack([weights for weights, _ in fit.weights("redraw", num_samples=1500, seed=5)])
    assert (fresh[:, outside] == 0).all()
    standard = (fresh[:, places] - mu[-1]) / sigma[-1]
    assert_mean(standard, torch.zeros(296))
    assert_mean(standard**2, torch.ones(296))
    other = next(fit.weights("redraw", num_samples=1, seed=6))[0]
    assert not torch.equal(other, fresh[0])
    for how in ("mean", "unmasked"):
        assert torch.equal(next(fit.weights(how))[0], fit.dense(mu[-1]))
    torch.testing.assert_close(next(fit.weights("ticket"))[0], fit.dense(mu.mean(0)))


def test_redraw_takes_mean_and_deviation_from_the_last_pair() -> None:
    model = BayesianNetwork(net())
    topology = initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(0))
    values = torch.stack([torch.full((45,), 3.0), torch.full((45,), -1.0)])
    scales = torch.stack([torch.full((45,), 2.0), torch.linspace(0.1, 0.9, 45)])
    states = {name: torch.stack([tensor, tensor]) for name, tensor in model.state_dict().items()}
    pairs = Pairs(values, torch.ones(2, 45, dtype=torch.bool), states, scales)
    fit = Fit(model, topology, pairs, keep_prob=1.0, rescale=False, record={}, history=[])
    draws = torch.stack([w for w, _ in fit.weights("redraw", num_samples=2000)])[:, topology.positions]
    assert_mean(draws, values[-1])
    assert_mean((draws - values[-1]) ** 2, scales[-1] ** 2)


def test_statistics_of_a_pair_are_those_of_its_own_draw() -> None:
    fit, _ = trained()
    x = digits().test.x[:40]
    rows = digits().train.x[:320].split(32)
    predictions = fit.predict(x, "pairs")
    for index, (weights, state) in enumerate(fit.weights("pairs")):
        by_hand = fit.model.network(weights, state)
        update_bn([[batch] for batch in rows], by_hand)
        with torch.no_grad():
            probs = by_hand.eval()(x).softmax(-1)
        torch.testing.assert_close(predictions[index], probs, rtol=0, atol=2e-5)


def test_the_history_has_the_kl_and_the_record_what_was_asked() -> None:
    fit, _ = trained()
    assert fit.keep_prob == 1.0
    assert [row["moves"] for row in fit.history] == [1, 1, 2, 0, 0, 0]  # steps 7, 14, 21, 28 of 60, before 30
    q = torch.distributions.Normal(fit.pairs.values[-1], fit.pairs.scales[-1])
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, fit.record["prior_scale"])).sum() / 320
    assert fit.history[-1]["kl"] == pytest.approx(float(kl), rel=1e-3)  # the mean over an epoch with a rate near 0


def test_a_saved_fit_comes_back_with_its_scales(tmp_path: Path) -> None:
    fit, _ = trained()
    fit.save(tmp_path / "fit")
    other = Fit.load(tmp_path / "fit", normed())
    assert torch.equal(other.pairs.scales, fit.pairs.scales)
    other.inputs = fit.inputs
    x = digits().test.x[:40]
    for how in fit.ways:
        assert torch.equal(fit.predict(x, how, num_samples=4, seed=2), other.predict(x, how, num_samples=4, seed=2))


@pytest.mark.parametrize("epoch", [1, 2, 3, 5])
def test_a_resumed_training_gives_the_same_fit_and_needs_the_scales(epoch: int) -> None:
    whole, watch = trained()
    resumed = run(Recorder(copy.deepcopy(watch.checkpoints[epoch])))
    expected = whole.bundle().tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.bundle().tensors.items())
    assert resumed.history == whole.history
    tensors, facts = watch.checkpoints[epoch]
    slots = [name for name in tensors if name.startswith("optimizer.1.")]  # those of log_scale
    assert slots
    for name in ["log_scale", *slots]:
        stale = {**tensors, name: tensors[name] * 0.9}
        forgot = run(Recorder(Bundle(stale, copy.deepcopy(facts))))
        assert not torch.equal(forgot.bundle().tensors["scales"], expected["scales"])


def test_the_drop_score_that_is_named_is_used() -> None:
    seen = {name: run(drop_score=name, noise_scale=0.3).topology.positions.tolist() for name in schedules.DROP_SCORES}
    assert set(seen) == {"magnitude", "snr", "snr-magnitude"}
    assert seen["magnitude"] != seen["snr"] == seen["snr-magnitude"]  # see the test of their ranking
    assert run(noise_scale=0.3).topology.positions.tolist() == seen["snr-magnitude"]
