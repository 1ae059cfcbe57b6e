"""Moves of the topology under the guide: values and moments travel, growth and drop see u and the gradient at Z u."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.contracts import Evidence, Move, Schedule, Topology
from espalier.topology import schedules
from espalier.training.loop import Loop
from guided import batch_of, loop_of, norm_net, pair, tensors_in
from rounding import close

pytestmark = pytest.mark.usefixtures("float64")


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
