"""The guide: a Pyro guide like any other, whose whole state is as long as the number of active weights."""

import copy
import math
import warnings
from collections.abc import Callable

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import nn

from espalier.contracts import Topology
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import erk, initial, random_topology
from guided import BATCH, NUM_DATA, RATE, batch_of, dense_net, loop_of, norm_net, pair, same_parameters, tensors_in
from rounding import TOLERANCE, close

pytestmark = pytest.mark.usefixtures("float64")
# Interoperation with Pyro


# SVI minimises the sum over N, the loop the mean: the same step has 1/N of the rate, or N times Adam's eps.
PYRO_OPTIMISERS = {
    "sgd": lambda: pyro.optim.SGD({"lr": RATE / NUM_DATA, "momentum": 0.9, "nesterov": True}),
    "adam": lambda: pyro.optim.Adam({"lr": RATE, "eps": 1e-8 * NUM_DATA}),
}


@pytest.mark.parametrize("net", [dense_net, norm_net])
@pytest.mark.parametrize("kind", PYRO_OPTIMISERS)
def test_plain_svi_takes_the_steps_of_the_loop(net: Callable[[], nn.Module], kind: str) -> None:
    model, guide = pair(net)
    loop = loop_of(model, guide, kind=kind)
    losses = [float(loop.step(*batch_of(step)).loss) for step in range(15)]

    pyro.clear_param_store()
    other, twin = pair(net)
    start = twin.values.detach().clone()
    svi = pyro.infer.SVI(other, twin, PYRO_OPTIMISERS[kind](), pyro.infer.TraceMeanField_ELBO())
    for step in range(15):
        assert svi.step(*batch_of(step)) / NUM_DATA == pytest.approx(losses[step], abs=TOLERANCE)
    same_parameters(model, guide, other, twin)
    assert (twin.values - start).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_an_elbo_module_with_a_torch_optimiser_takes_the_steps_of_the_loop(kind: str) -> None:
    model, guide = pair(norm_net)
    loop = loop_of(model, guide, kind=kind)
    for step in range(15):
        loop.step(*batch_of(step))

    pyro.clear_param_store()
    other, twin = pair(norm_net)
    loss = pyro.infer.TraceMeanField_ELBO()(other, twin)
    if kind == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(loss.parameters(), lr=RATE, eps=1e-8 * NUM_DATA)
    else:
        optimiser = torch.optim.SGD(loss.parameters(), lr=RATE / NUM_DATA, momentum=0.9, nesterov=True)
    for step in range(15):
        optimiser.zero_grad()
        loss(*batch_of(step)).backward()
        optimiser.step()
    same_parameters(model, guide, other, twin)


def test_validated_training_gives_no_warning() -> None:
    model, guide = pair(norm_net)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": RATE}), pyro.infer.TraceMeanField_ELBO())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = svi.step(*batch_of(0))
    assert [str(warning.message) for warning in caught] == []
    assert math.isfinite(loss)


def test_several_particles_average_several_masks() -> None:
    model, guide = pair()
    x, y = batch_of(0)
    both = pyro.infer.TraceMeanField_ELBO(num_particles=2).loss(model, guide, x, y)
    other, twin = pair()
    single = pyro.infer.TraceMeanField_ELBO()
    first, second = (single.loss(other, twin, x, y) for _ in range(2))
    assert first != second
    assert both == pytest.approx((first + second) / 2, abs=TOLERANCE)


def test_vectorised_particles_are_refused() -> None:
    model, guide = pair()
    elbo = pyro.infer.TraceMeanField_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pytest.raises(ValueError, match="expected the weights of one network.*num_particles without vectorize_particles"):
        elbo.loss(model, guide, *batch_of(0))


@pytest.mark.parametrize(
    "elbo",
    [
        pyro.infer.Trace_ELBO,
        pyro.infer.TraceGraph_ELBO,
        pyro.infer.TraceEnum_ELBO,
        lambda: pyro.infer.RenyiELBO(num_particles=2),
        pyro.infer.ReweightedWakeSleep,
    ],
)
def test_every_other_elbo_is_refused_by_name_of_the_right_one(elbo: Callable[[], object]) -> None:
    model, guide = pair()
    before = guide.values.detach().clone()
    svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": RATE}), elbo())
    with pytest.raises((ValueError, NotImplementedError), match=r"TraceMeanField_ELBO"):
        svi.step(*batch_of(0))
    assert torch.equal(guide.values, before)


def test_predictive_samples_the_weights_and_the_outcome() -> None:
    model, guide = pair()
    x, _ = batch_of(0)
    samples = pyro.infer.Predictive(model, guide=guide, num_samples=4)(x)
    assert samples["y"].shape == (4, BATCH)
    weights = samples["weights"].squeeze(1)  # Predictive keeps a dimension for the model's plate
    assert weights.shape == (4, model.num_weights)
    assert len({tuple(draw.tolist()) for draw in weights}) == 4
    off = torch.ones(model.num_weights, dtype=torch.bool)
    off[guide.positions] = False
    assert (weights[:, off] == 0).all()
    dropped, kept = weights[:, guide.positions] == 0, weights[:, guide.positions] == guide.values
    assert (dropped ^ kept).all()
    assert dropped.any()
    assert kept.any()
    assert set(samples["y"].unique().tolist()) <= {0, 1, 2, 3}


def test_the_prior_predictive_is_dense() -> None:
    model, _ = pair()
    samples = pyro.infer.Predictive(model, num_samples=3)(batch_of(0)[0])
    assert samples["y"].shape == (3, BATCH)
    assert (samples["weights"] != 0).all()


def test_guide_has_one_site_and_one_parameter() -> None:
    model, guide = pair(norm_net)
    x, y = batch_of(0)
    trace = poutine.trace(guide).get_trace(x, y)
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["weights"]
    assert [name for name, site in trace.nodes.items() if site["type"] == "param"] == ["values"]
    assert trace.nodes["weights"]["value"].shape == (model.num_weights,)
    assert trace.nodes["weights"]["fn"].event_shape == (model.num_weights,)
    assert trace.nodes["weights"]["fn"].batch_shape == ()


# Z


@pytest.mark.parametrize("rescale", [False, True])
def test_keep_is_the_z_of_the_sampled_weights(rescale: bool) -> None:
    model, guide = pair(rescale=rescale)
    seen = []
    for _ in range(5):
        weights = guide().detach()
        assert guide.keep is not None
        assert guide.keep.shape == (guide.topology.num_active,)
        by_hand = torch.zeros(model.num_weights)
        for position, value, keep in zip(guide.positions, guide.values.detach(), guide.keep, strict=True):
            by_hand[position] = (value / guide.keep_prob if rescale else value) * keep
        close(weights, by_hand)
        seen.append(tuple(guide.keep.tolist()))
    assert len(set(seen)) == 5


def test_the_likelihood_reaches_exactly_the_weights_that_were_kept() -> None:
    model, guide = pair(kl_scale=0.0)  # what is left is the likelihood's gradient
    pyro.infer.TraceMeanField_ELBO().differentiable_loss(model, guide, *batch_of(0)).backward()
    assert guide.values.grad is not None
    assert torch.equal(guide.values.grad.abs() > 1e-200, guide.keep)


@pytest.mark.parametrize("width", [10, 200])
@pytest.mark.parametrize("active", [56, 57, 60, 61])
def test_a_draw_costs_one_word_for_four_active_weights(width: int, active: int) -> None:
    """Whatever the size of the network around them."""
    net = nn.Linear(width, 100)
    model = BayesianNetwork(net)
    topology = Topology(torch.arange(active), (active,), model.sizes)
    stream = torch.Generator().manual_seed(3)
    guide = MaskedGuide(model, topology, 0.7, generator=stream)
    default = torch.get_rng_state()
    guide()
    by_hand = torch.Generator().manual_seed(3)
    torch.empty((active + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=by_hand)
    assert torch.equal(stream.get_state(), by_hand.get_state())
    assert torch.equal(torch.get_rng_state(), default)


def test_keep_prob_one_draws_nothing_and_keeps_everything() -> None:
    model, guide = pair(keep_prob=1.0)
    assert guide.generator is not None
    own, default = guide.generator.get_state(), torch.get_rng_state()
    weights = guide()
    loop_of(model, guide).step(*batch_of(0))
    assert torch.equal(guide.generator.get_state(), own)
    assert torch.equal(torch.get_rng_state(), default)
    assert guide.keep is not None
    assert guide.keep.shape == guide.values.shape
    assert guide.keep.all()
    assert (weights != 0).sum() == guide.topology.num_active


def test_without_a_generator_pyro_s_seed_decides() -> None:
    model, _ = pair()
    guide = MaskedGuide(model, initial(model.shapes, 0.5), 0.7)
    draws = []
    for seed in (5, 5, 6):
        pyro.set_rng_seed(seed)
        draws.append(guide().detach())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# The door


def test_a_topology_of_another_network_is_refused() -> None:
    model, guide = pair()
    wrong = guide.topology._replace(sizes=(60, 41))
    with pytest.raises(ValueError, match=r"expected a topology over layers of \(60, 40\) weights, got \(60, 41\)"):
        MaskedGuide(model, wrong, 0.7)


@pytest.mark.parametrize("keep_prob", [0.0, -0.1, 1.1])
def test_an_impossible_keep_prob_is_refused(keep_prob: float) -> None:
    with pytest.raises(ValueError, match=r"expected keep_prob in \(0, 1\]"):
        pair(keep_prob=keep_prob)


def test_a_negative_kl_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a kl_scale of 0 or more, got -1.0: 0 is no KL of the weights"):
        pair(kl_scale=-1.0)


def test_kl_scale_scales_the_kl_and_nothing_else() -> None:
    infos = {}
    for scale in (0.0, 1.0, 3.0):
        model, guide = pair(kl_scale=scale)
        infos[scale] = loop_of(model, guide).step(*batch_of(0))
    _, guide = pair()
    kl = guide.keep_prob * guide.values.detach().square().sum() / (2 * 0.8**2) / NUM_DATA
    close(infos[1.0].kl, kl)
    close(infos[3.0].kl, 3 * kl)
    assert infos[0.0].kl == 0
    close(infos[1.0].loss - infos[0.0].loss, kl)
    close(infos[3.0].log_likelihood, infos[1.0].log_likelihood)
    close(infos[3.0].loss - infos[1.0].loss, 2 * kl)


def test_asking_for_a_gradient_that_was_not_tapped_is_refused() -> None:
    _, guide = pair()
    guide()
    with pytest.raises(RuntimeError, match=r"expected a tapped forward and a backward pass first"):
        guide.gradient()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_nothing_the_guide_or_its_moments_hold_is_longer_than_the_active_weights(kind: str) -> None:
    model, guide = pair(sparsity=0.9)
    loop = loop_of(model, guide, schedules.rigl(4, 100, 0.5), kind)
    for step in range(1, 10):  # moves at 4 and 8 among them
        loop.step(*batch_of(step))
        held = [tensor.numel() for tensor in tensors_in(guide)]
        moments = [tensor.numel() for tensor in tensors_in(loop.optimizer.state.get(guide.values, {}))]
        assert max(held) == guide.topology.num_active
        assert max(moments, default=0) <= guide.topology.num_active
        assert guide.topology.num_active == round(0.1 * model.num_weights)
    assert len(moments) == (1 if kind == "sgd" else 3)
    assert sorted(guide.state_dict()) == ["positions", "values"]


@pytest.mark.parametrize("last", ["step", "move"])
def test_a_trained_guide_can_be_copied_and_the_copy_goes_the_same_way(last: str) -> None:
    model, guide = pair(norm_net)
    loop = loop_of(model, guide, schedules.rigl(3, 100, 0.5))
    for step in range(1, 4 if last == "move" else 5):
        info = loop.step(*batch_of(step))
    assert (info.grown > 0) == (last == "move")
    twin = copy.deepcopy(loop)
    for step in range(5, 9):
        loop.step(*batch_of(step))
        twin.step(*batch_of(step))
    assert twin.guide is not guide
    assert torch.equal(twin.guide.values, guide.values)
    assert torch.equal(twin.guide.positions, guide.positions)


def test_a_second_guide_of_the_same_name_says_why_it_would_learn_nothing() -> None:
    pyro.clear_param_store()
    x = torch.randn(20, 1)
    for width, fresh in ((6, True), (6, False), (9, False), (9, True)):
        if fresh:
            pyro.clear_param_store()
        net = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))
        model = BayesianNetwork(net, likelihood="normal", prior_scale=1.0, num_data=20)
        guide = MaskedGuide(model, random_topology(model.shapes, erk(model.shapes, density=0.5)), 0.9)
        svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 0.01}), TraceMeanField_ELBO())
        if fresh:
            start = guide.values.detach().clone()
            svi.step(x, x[:, 0])
            assert (guide.values != start).any()
        else:
            with pytest.raises(ValueError, match=r"expected this guide's own values, .* call pyro\.clear_param_store\(\)"):
                svi.step(x, x[:, 0])
    pyro.clear_param_store()


def test_a_guide_that_loads_another_topology_knows_its_counts() -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    one, other = (
        MaskedGuide(model, Topology(torch.tensor(positions), counts, model.sizes), (0.9, 0.5))
        for positions, counts in (([0, 3, 47, 50, 79], (3, 2)), ([1, 2, 3, 4, 79], (4, 1)))
    )
    one.load_state_dict(other.state_dict())
    assert one.topology.counts == (4, 1)
    assert one.probs.tolist() == other.probs.tolist()  # type: ignore[union-attr]
