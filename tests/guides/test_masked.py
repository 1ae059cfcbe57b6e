"""The guide: a Pyro guide like any other, whose whole state is as long as the number of active weights."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from espalier.contracts import Evidence, Move, Schedule, Topology
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.loop import Loop
from rounding import TOLERANCE, close

NUM_DATA, BATCH, RATE = 90, 16, 0.05


pytestmark = pytest.mark.usefixtures("float64")


def dense_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 4))


def pair(
    net: Callable[[], nn.Module] = dense_net, *, keep_prob: float = 0.7, sparsity: float = 0.5, seed: int = 1, **options
) -> tuple[BayesianNetwork, MaskedGuide]:
    """A model and its guide; equal arguments give equal ones, that will draw the same Z."""
    model = BayesianNetwork(net(), prior_scale=0.8, num_data=NUM_DATA, weight_decay=0.02)
    stream = torch.Generator().manual_seed(seed)
    topology = initial(model.shapes, sparsity, generator=stream)
    return model, MaskedGuide(model, topology, keep_prob, generator=stream, **options)


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 6, generator=generator), torch.randint(0, 4, (BATCH,), generator=generator)


def loop_of(
    model: BayesianNetwork, guide: MaskedGuide, schedule: Schedule | None = None, kind: str = "sgd", rate: float = RATE
) -> Loop:
    return Loop(model, guide, schedule or schedules.static(), rates.constant(rate), optimizer=kind)


def same_parameters(model: BayesianNetwork, guide: MaskedGuide, other: BayesianNetwork, twin: MaskedGuide) -> None:
    close(guide.values, twin.values)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        close(mine, theirs)


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
    with pytest.raises(ValueError, match="expected the weights of one network.*loop over particles"):
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
    model, guide = pair(kl_scale=1e-300)  # next to no KL: what is left is the likelihood's gradient
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
    with pytest.raises(ValueError, match="expected a kl_scale above 0"):
        pair(kl_scale=-1.0)


def test_a_kl_scale_that_is_accepted_can_be_trained_with() -> None:
    try:
        model, guide = pair(kl_scale=0.0)
    except ValueError:
        return  # refusing it at the door is as good
    assert math.isfinite(loop_of(model, guide).step(*batch_of(0)).loss)


def test_kl_scale_scales_the_kl_and_nothing_else() -> None:
    infos = {}
    for scale in (1.0, 3.0):
        model, guide = pair(kl_scale=scale)
        infos[scale] = loop_of(model, guide).step(*batch_of(0))
    _, guide = pair()
    kl = guide.keep_prob * guide.values.detach().square().sum() / (2 * 0.8**2) / NUM_DATA
    close(infos[1.0].kl, kl)
    close(infos[3.0].kl, 3 * kl)
    close(infos[3.0].log_likelihood, infos[1.0].log_likelihood)
    close(infos[3.0].loss - infos[1.0].loss, 2 * kl)


def test_asking_for_a_gradient_that_was_not_tapped_is_refused() -> None:
    _, guide = pair()
    guide()
    with pytest.raises(RuntimeError, match=r"expected a tapped forward and a backward pass first"):
        guide.gradient()


# What it holds


def tensors_in(thing: object) -> Iterator[Tensor]:
    """Every tensor below an object's attributes, items and dictionary values."""
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad is not None:
            yield thing.grad
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_in(value)
    elif isinstance(thing, MaskedGuide):
        yield from tensors_in(vars(thing))


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


# Moves


class Recorded:
    """A schedule that keeps what it saw and what it did."""

    def __init__(self, schedule: Schedule) -> None:
        self.evidence: list[Evidence] = []
        self.before: list[Topology] = []
        self.moves: list[Move] = []
        self.schedule = schedule._replace(move=self._move)
        self._inner = schedule.move

    def _move(self, topology: Topology, evidence: Evidence) -> Move:
        self.evidence.append(evidence._replace(values=evidence.values.clone(), gradient=evidence.gradient.clone()))
        self.before.append(topology)
        self.moves.append(self._inner(topology, evidence))
        return self.moves[-1]


def moments_of(loop: Loop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loop.optimizer.state[loop.guide.values].items()}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("rule", [schedules.rigl, schedules.set_])
def test_grown_weights_start_at_zero_and_survivors_keep_their_moments(kind: str, rule: Callable[..., Schedule]) -> None:
    model, guide = pair()
    recorded = Recorded(rule(5, 100, 0.6))
    loop = loop_of(model, guide, recorded.schedule, kind)
    for step in range(1, 5):
        loop.step(*batch_of(step))
    values, positions, moments = guide.values.detach().clone(), guide.positions.clone(), moments_of(loop)
    info = loop.step(*batch_of(5))

    (move,) = recorded.moves
    grown, after = move.source < 0, moments_of(loop)
    assert info.grown == int(grown.sum()) > 4
    assert not torch.isin(guide.positions[grown], positions).any()  # candidates were inactive before the drop
    assert (guide.values[grown] == 0).all()
    survivors = [(positions == place).nonzero().item() for place in guide.positions[~grown]]
    assert torch.equal(guide.values[~grown], values[survivors])
    names = {"momentum_buffer"} if kind == "sgd" else {"exp_avg", "exp_avg_sq"}
    assert names <= set(after)
    for name in names:
        assert (moments[name] != 0).all()
        assert (after[name][grown] == 0).all()
        assert torch.equal(after[name][~grown], moments[name][survivors])
    if kind == "adam":
        assert after["step"] == moments["step"] == 4  # shared, and a move is not a step
    assert torch.equal(guide.positions, guide.positions.sort().values)
    assert guide.values.grad is None

    loop.step(*batch_of(6))  # and training goes on with the new ones
    assert (guide.values[grown] != 0).any()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_move_changes_no_parameter_but_by_the_move_while_statistics_z_and_t_advance(kind: str) -> None:
    model, guide = pair(norm_net)
    recorded = Recorded(schedules.rigl(5, 100, 0.6))
    loop = loop_of(model, guide, recorded.schedule, kind)
    for step in range(1, 5):
        loop.step(*batch_of(step))
    assert guide.generator is not None
    others = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    states = {
        name: [slot.clone() for slot in tensors_in(loop.optimizer.state[parameter])]
        for name, parameter in model.named_parameters()
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    values, stream, keep = guide.values.detach().clone(), guide.generator.get_state(), guide.keep
    info = loop.step(*batch_of(5))

    assert info.grown > 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, others[name])
        for slot, old in zip(tensors_in(loop.optimizer.state[parameter]), states[name], strict=True):
            assert torch.equal(slot, old)
    source = recorded.moves[0].source
    assert torch.equal(guide.values[source >= 0], values[source[source >= 0]])
    assert (loop.taken, info.step) == (5, 5)
    assert not torch.equal(guide.keep, keep)
    by_hand = torch.Generator()
    by_hand.set_state(stream)
    torch.empty((len(values) + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=by_hand)
    assert torch.equal(guide.generator.get_state(), by_hand.get_state())
    now = dict(model.named_buffers())
    assert now["net.1.num_batches_tracked"] == buffers["net.1.num_batches_tracked"] + 1 == 5
    assert (now["net.1.running_mean"] != buffers["net.1.running_mean"]).any()


def test_weights_are_ranked_on_u_and_not_on_z_u() -> None:
    """The large weights are the masked ones at the moving step; ranked on Z u they would all be dropped."""
    model, guide = pair(sparsity=0.6, keep_prob=0.6)
    recorded = Recorded(schedules.rigl(1, 3, 0.5))
    loop = loop_of(model, guide, recorded.schedule)
    twin = copy.deepcopy(guide)
    twin()  # the Z that the moving step will draw
    masked = ~twin.keep
    sizes = torch.linspace(0.1, 0.2, len(masked))
    guide.values.data = torch.where(masked, 5 + sizes, sizes)
    positions = guide.positions.clone()
    loop.step(*batch_of(1))

    (move,) = recorded.moves
    assert torch.equal(guide.keep, ~masked)
    dropped = torch.ones(len(masked), dtype=torch.bool)
    dropped[move.source[move.source >= 0]] = False
    layer = (positions >= 60).long()
    for index in (0, 1):
        count = math.floor(0.5 / 2 * (1 + math.cos(math.pi / 3)) * int((layer == index).sum()))
        smallest = [i for i in sizes.argsort().tolist() if layer[i] == index and not masked[i]][:count]
        assert len(smallest) == count > 0
        assert sorted(smallest) == (dropped & (layer == index)).nonzero().squeeze(1).tolist()
    assert torch.isin(positions[masked], guide.positions).all()


@pytest.mark.parametrize("rescale", [False, True])
def test_growth_sees_the_gradient_of_the_mean_likelihood_loss_at_z_u(rescale: bool) -> None:
    """At every position, active or not, and without the KL; by hand, for the Z of the moving step."""
    model, guide = pair(rescale=rescale, kl_scale=7.0)
    recorded = Recorded(schedules.rigl(3, 100, 0.5))
    loop = loop_of(model, guide, recorded.schedule)
    for step in range(1, 3):
        loop.step(*batch_of(step))
    u, positions = guide.values.detach().clone(), guide.positions.clone()
    biases = {name: parameter.detach().clone() for name, parameter in model.net.named_parameters()}
    x, y = batch_of(3)
    loop.step(x, y)

    dense = torch.zeros(model.num_weights)
    dense[positions] = u * guide.keep / (guide.keep_prob if rescale else 1.0)
    dense.requires_grad_()
    hidden = torch.tanh(x @ dense[:60].reshape(10, 6).T + biases["0.bias"])
    F.cross_entropy(hidden @ dense[60:].reshape(4, 10).T + biases["2.bias"], y).backward()
    close(recorded.evidence[0].gradient, dense.grad)
    assert torch.equal(recorded.evidence[0].values, u)
    assert recorded.evidence[0].step == 3

    # The largest of the inactive ones came, layer by layer.
    grown = guide.positions[recorded.moves[0].source < 0]
    inactive = torch.ones(model.num_weights, dtype=torch.bool)
    inactive[positions] = False
    for start, end in ((0, 60), (60, 100)):
        mine = [place for place in grown.tolist() if start <= place < end]
        left = [place for place in range(start, end) if inactive[place] and place not in mine]
        assert dense.grad[mine].abs().min() >= dense.grad[left].abs().max()


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_state_restored_continues_with_the_same_bits(kind: str) -> None:
    model, guide = pair(norm_net)
    loop = loop_of(model, guide, schedules.rigl(4, 100, 0.5), kind)
    for step in range(1, 7):
        loop.step(*batch_of(step))
    saved, stream = copy.deepcopy(loop.state()), guide.generator.get_state()
    for step in range(7, 12):
        loop.step(*batch_of(step))

    other, twin = pair(norm_net, seed=99)
    resumed = loop_of(other, twin, schedules.rigl(4, 100, 0.5), kind)
    resumed.restore(saved)
    twin.generator.set_state(stream)
    for step in range(7, 12):
        resumed.step(*batch_of(step))
    assert resumed.taken == loop.taken == 11
    assert torch.equal(twin.positions, guide.positions)
    assert torch.equal(twin.values, guide.values)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
