"""Claims about whose objective it is: programs with a word of their own go by Pyro, and Pyro's own tools take our draws."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from espalier.distributions.priors import FlatNormal
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.sparse import Unwritten, scatter
from espalier.topology import schedules
from espalier.training import rates
from espalier.training.loop import Loop
from espalier.training.objective import by_pyro, closed_form, is_ours
from terms import guide_of, labels, mlp, same, step, x_of
from unwritten import counted, written_out

pytestmark = pytest.mark.usefixtures("float64", "own_stream")


class Stochastic(PyroModule):
    """A network with a site of its own: a random bias."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.shift = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.shift


class Penalised(nn.Module):
    """always, or in training alone: a factor of its own."""

    def __init__(self, always: bool = True, after: int = 0) -> None:
        super().__init__()
        self.net, self.always, self.after, self.calls = mlp(), always, after, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        self.calls += 1
        if (self.always or self.training) and self.calls > self.after:
            pyro.factor("penalty", -h.square().sum() / len(x))
        return h


class Ridge(BayesianNetwork):
    def forward(self, x, y=None):
        return super().forward(x, y)


class L1(BayesianNetwork):
    def l2(self) -> Tensor:
        return self.weight_decay * sum(p.abs().sum() for p in self.net.parameters())


class Wider(BayesianNetwork):
    def prior(self) -> FlatNormal:
        return FlatNormal(3.0, self.num_weights, self.initial)


class Hotter(BayesianNetwork):
    def outcome(self, weights, x, state=None):
        return dist.Categorical(logits=0.5 * self.evaluate(weights, x, state))


class Scaled(MaskedGuide):
    def forward(self, x=None, y=None):
        with pyro.poutine.scale(scale=0.5):
            return super().forward(x, y)


def noisy(output: Tensor) -> dist.TorchDistribution:
    pyro.factor("noise", -output.square().sum() / len(output))
    return dist.Categorical(logits=output)


def hooked(model: BayesianNetwork) -> BayesianNetwork:
    model.register_forward_pre_hook(lambda module, arguments: None)
    return model


OTHERS: dict[str, Callable[[], BayesianNetwork]] = {
    "factor in the network": lambda: BayesianNetwork(Penalised(), num_data=90, weight_decay=0.02),
    "factor in training": lambda: BayesianNetwork(Penalised(False), num_data=90, weight_decay=0.02),
    "factor in the likelihood": lambda: BayesianNetwork(mlp(), likelihood=noisy, num_data=90),
    "a forward of its own": lambda: Ridge(mlp(), num_data=90),
    "a penalty of its own": lambda: L1(mlp(), num_data=90, weight_decay=0.02),
    "a prior of its own": lambda: Wider(mlp(), num_data=90),
    "an outcome of its own": lambda: Hotter(mlp(), num_data=90),
    "a hook": lambda: hooked(BayesianNetwork(mlp(), num_data=90)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_program_with_a_word_of_its_own_goes_by_pyro(name: str) -> None:
    model = OTHERS[name]()
    guide = guide_of(model)
    assert not is_ours(model, guide, x_of(), labels())
    ends = []
    for written in (False, True):
        twin = copy.deepcopy(model)
        other = guide_of(twin)
        if written:  # Pyro's own loop over dense draws, at the same rate
            pyro.clear_param_store()
            rule = pyro.optim.SGD({"lr": 0.05 / 90, "momentum": 0.9, "nesterov": True})
            with written_out():
                svi = SVI(twin, other, rule, TraceMeanField_ELBO())
                losses = [svi.step(x_of(), labels()) / 90 for _ in range(3)]
        else:
            loop = Loop(twin, other, schedules.static(), rates.constant(0.05))
            losses = [float(loop.step(x_of(), labels()).loss) for _ in range(3)]
            assert loop.closed is False
        ends.append({"losses": torch.tensor(losses), **dict(other.named_parameters()), **dict(twin.named_parameters())})
    same(*ends)


def test_a_network_with_a_random_bias_goes_by_pyro() -> None:
    model = BayesianNetwork(Stochastic(), num_data=90)
    guide = guide_of(model)
    assert not is_ours(model, guide, x_of(), labels())
    for _ in range(2):
        asked = pyro.poutine.trace(pyro.poutine.condition(model, {"weights": guide.draw()}))
        assert "net.shift" in asked.get_trace(x_of(), labels()).nodes


def test_a_guide_with_a_forward_of_its_own_goes_by_pyro() -> None:
    model = BayesianNetwork(mlp(), num_data=90)
    plain = guide_of(model)
    guide = Scaled(model, plain.topology, 0.9, generator=plain.generator)
    assert not is_ours(model, guide, x_of(), labels())
    assert is_ours(model, plain, x_of(), labels())
    plain.draw = lambda: scatter(plain.values, plain.positions, model.num_weights)
    assert not is_ours(model, plain, x_of(), labels())


def test_a_program_with_another_name_for_its_weights_trains() -> None:
    class Renamed(BayesianNetwork):
        def forward(self, x, y=None):
            weights = pyro.sample("w", self.prior())
            with pyro.plate("data", len(x)):
                return pyro.sample("y", self.outcome(weights, x), obs=y)

    class Same(MaskedGuide):
        def forward(self, x=None, y=None):
            return self._noted(pyro.sample("w", q := self.distribution()), q)

    model = Renamed(mlp(), num_data=90)
    plain = guide_of(model)
    guide = Same(model, plain.topology, 0.9, generator=plain.generator)
    before = guide.values.detach().clone()
    Loop(model, guide, schedules.static(), rates.constant(0.05)).step(x_of(), labels())
    assert not torch.equal(guide.values.detach(), before)


def test_handlers_around_the_training_are_heard() -> None:
    model = BayesianNetwork(mlp(), num_data=90)
    with pyro.poutine.scale(scale=2.0):
        assert not is_ours(model, guide_of(model), x_of(), labels())


def test_a_likelihood_that_cannot_be_sampled_is_ours_all_the_same() -> None:
    class Given(dist.Normal):
        def rsample(self, sample_shape=()):
            raise NotImplementedError

        sample = rsample

    model = BayesianNetwork(mlp(1), likelihood=lambda output: Given(output.squeeze(-1), 0.5), num_data=90)
    guide = guide_of(model)
    assert is_ours(model, guide, x_of(), x_of(20))
    same(step(closed_form, model, guide, x_of(), x_of(20)), step(by_pyro, model, guide, x_of(), x_of(20)))


def test_a_site_that_appears_later_is_refused_and_not_left_out() -> None:
    model = BayesianNetwork(Penalised(after=100), num_data=90)
    loop = Loop(model, guide_of(model), schedules.static(), rates.constant(0.05))
    for _ in range(2):
        loop.step(x_of(), labels())
    model.net.calls = 200
    with pytest.raises(RuntimeError, match="same sites at every step, but 'penalty' was not there"):
        loop.step(x_of(), labels())


@pytest.mark.parametrize("training", [True, False])
def test_asking_moves_neither_streams_nor_buffers_nor_modes(training: bool) -> None:
    net = nn.Sequential(mlp(128), nn.BatchNorm1d(128), nn.Dropout(), nn.Linear(128, 3))
    model = BayesianNetwork(net, likelihood="categorical").train(training)
    guide = guide_of(model)
    before, stream, seeds = copy.deepcopy(model.state_dict()), torch.get_rng_state(), guide.generator.get_state()
    assert is_ours(model, guide, x_of(), labels())
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(guide.generator.get_state(), seeds)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(part.training is training for part in model.modules())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *guide.parameters()])


# ------------------------------------------------------------------------------------------------------ Pyro's own tools


@pytest.mark.parametrize("kind", ["masked", "gaussian"])
def test_svi_over_unwritten_draws_is_svi_over_dense_ones(kind: str) -> None:
    ends = []
    for written in (False, True):
        pyro.clear_param_store()
        model = BayesianNetwork(mlp(), num_data=90, weight_decay=0.02)
        guide = guide_of(model, kind)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())

        def steps(svi: SVI = svi) -> list[float]:
            return [svi.step(x_of(), labels()) for _ in range(3)] + [svi.evaluate_loss(x_of(), labels())]

        with counted() as count:
            if written:
                with written_out():
                    losses = steps()
            else:
                losses = steps()
        assert (count() > 0) is not written
        ends.append({"losses": torch.tensor(losses), **dict(guide.named_parameters()), **dict(model.named_parameters())})
    same(*ends, eps=1e-9)


def both(function: Callable[[BayesianNetwork, MaskedGuide], object]) -> list[object]:
    found = []
    for written in (False, True):
        pyro.clear_param_store()
        model = BayesianNetwork(mlp(), num_data=90, weight_decay=0.02)
        guide = guide_of(model)
        torch.manual_seed(0)
        if written:
            with written_out():
                found.append(function(model, guide))
        else:
            found.append(function(model, guide))
    return found


def test_predictive_takes_unwritten_draws() -> None:
    mine, theirs = both(lambda model, guide: Predictive(model, guide=guide, num_samples=3)(x_of()))
    same(mine, theirs)
    assert mine["weights"].shape[-1] == theirs["weights"].shape[-1]
    assert type(mine["weights"]) is Tensor


def replayed(model: BayesianNetwork, guide: MaskedGuide) -> dict[str, Tensor]:
    drawn = pyro.poutine.trace(guide).get_trace(x_of())
    drawn.format_shapes()
    trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=drawn)).get_trace(x_of(), labels())
    trace.compute_log_prob()
    trace.format_shapes()
    weights = trace.nodes["weights"]["value"]
    (gradient,) = torch.autograd.grad(trace.log_prob_sum(), guide.values)
    copied = pickle.loads(pickle.dumps(weights.detach()))
    return {"sum": trace.log_prob_sum().detach(), "gradient": gradient, "weights": weights.detach(), "pickled": copied}


def conditioned(model: BayesianNetwork, guide: MaskedGuide) -> dict[str, Tensor]:
    weights = guide.draw()
    asked = pyro.poutine.condition(model, {"weights": weights})
    trace = pyro.poutine.trace(asked).get_trace(x_of(), labels())
    loss = trace.log_prob_sum(lambda name, site: name != "weights")
    (gradient,) = torch.autograd.grad(loss, guide.values)
    trace.detach_()
    return {"loss": loss.detach(), "gradient": gradient, "weights": trace.nodes["weights"]["value"].clone()}


def scaled(model: BayesianNetwork, guide: MaskedGuide) -> dict[str, Tensor]:
    with pyro.poutine.scale(scale=0.3), pyro.poutine.trace() as kept:
        weights = guide(x_of())
        loss = kept.trace.nodes["weights"]["scale"] * (weights * weights).sum()
    loss.backward()
    return {"loss": loss.detach(), "gradient": guide.values.grad}


def substituted(model: BayesianNetwork, guide: MaskedGuide) -> dict[str, Tensor]:
    done = pyro.poutine.do(model, data={"weights": guide.draw()})
    return {"y": done(x_of()).double()}


@pytest.mark.parametrize("tool", [replayed, conditioned, scaled, substituted])
def test_poutine_takes_unwritten_draws(tool: Callable[[BayesianNetwork, MaskedGuide], dict[str, Tensor]]) -> None:
    same(*both(tool))


def test_the_guides_moments_and_draws_are_those_of_its_family() -> None:
    model = BayesianNetwork(mlp(), num_data=90)
    for guide in (guide_of(model), guide_of(model, "gaussian")):
        q = guide.distribution()
        assert type(q.mean) is type(q.variance) is type(q.sample()) is Unwritten
        dense = scatter(guide.values, guide.positions, model.num_weights)
        assert torch.equal(q.mean * 1, dense * (guide.keep_prob if type(guide) is not GaussianGuide else 1))
        assert q.sample((2,)).shape == (2, model.num_weights)
        assert torch.allclose(model.prior().log_prob(q.mean), model.prior().log_prob(q.mean.clone()))
