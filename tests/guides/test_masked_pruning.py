"""The guide's move to fewer weights: values, moments, Pyro's store and copies go with those that stay."""

import copy

import pyro
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch import Tensor

from espalier.contracts import Schedule
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.topology import schedules
from espalier.topology.masks import prune
from espalier.training.loop import Loop
from espalier.training.rates import constant
from pruned import dense
from rounding import close
from tiny import NUM_DATA, batch_of

pytestmark = pytest.mark.usefixtures("float64")


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    return {name: slot.clone() for name, slot in optimizer.state[parameter].items()}


@pytest.mark.parametrize("family", [MaskedGuide, GaussianGuide])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_values_and_every_moment_travel_with_the_weights_that_stay(kind: str, family: type[MaskedGuide]) -> None:
    model, guide = dense()
    guide = family(model, guide.topology)
    loop = Loop(model, guide, schedules.static(), constant(0.05), optimizer=kind)
    for step in range(4):
        loop.step(*batch_of(step))
    names = [name for name, _ in guide.named_parameters()]
    held = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    before = {name: (p.detach().clone(), moments(loop.optimizer, p)) for name, p in guide.named_parameters()}
    others = {name: (p.detach().clone(), moments(loop.optimizer, p)) for name, p in model.named_parameters()}
    move = prune(guide.topology, guide.values.data.abs(), (11, 5))
    guide.move(move, loop.optimizer)

    assert guide.topology.counts == (11, 5)
    assert torch.equal(guide.positions, move.topology.positions)
    assert [name for name, _ in guide.named_parameters()] == names
    for name, parameter in guide.named_parameters():
        values, old = before[name]
        assert torch.equal(parameter.detach(), values[move.source])
        new = loop.optimizer.state[parameter]
        assert set(new) == set(old) == ({"momentum_buffer"} if kind == "sgd" else {"step", "exp_avg", "exp_avg_sq"})
        for key, moment in old.items():
            assert (moment != 0).all()
            assert torch.equal(new[key], moment if moment.dim() == 0 else moment[move.source])
    now = [parameter for group in loop.optimizer.param_groups for parameter in group["params"]]
    assert [id(p) for p in now] == [id(p) for p in (*guide.parameters(), *model.parameters())]  # in the same order
    assert set(loop.optimizer.state) == set(now)  # nothing of the dense weights is left behind
    assert all(old is not new for old, new in zip(held[: len(names)], now, strict=False))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), others[name][0])
        assert all(torch.equal(slot, others[name][1][key]) for key, slot in loop.optimizer.state[parameter].items())

    loop.step(*batch_of(9))  # and it goes on
    assert guide.values.shape == (16,)
    assert (guide.values.detach() != before["values"][0][move.source]).all()


def test_pyro_s_store_forgets_the_dense_weights_and_svi_goes_on_with_the_rest() -> None:
    """Two pruning moves under plain SVI; without momentum its steps are those of the loop."""
    rate, moves, steps = 0.05, (3, 6), range(1, 10)
    model, guide = dense(0.7)
    schedule = Schedule(
        100, lambda t: t in moves, lambda topology, e: prune(topology, e.values.abs(), (20 - e.step, 15 - e.step))
    )
    loop, expected = Loop(model, guide, schedule, constant(rate), momentum=0.0), []
    for step in steps:
        loop.step(*batch_of(step))
        expected.append((guide.values.detach().clone(), guide.positions.clone()))

    pyro.clear_param_store()  # one store for both would hand the second guide the values of the first
    other, twin = dense(0.7)
    svi = SVI(other, twin, pyro.optim.SGD({"lr": rate / NUM_DATA}), TraceMeanField_ELBO())
    for step, (values, positions) in zip(steps, expected, strict=True):
        store = pyro.get_param_store()
        if step in moves:
            twin(*batch_of(step))  # the loop's move draws a Z too
            twin.move(prune(twin.topology, twin.values.data.abs(), (20 - step, 15 - step)))
            assert not any("values" in name for name in store)
        else:
            svi.step(*batch_of(step))
            assert dict(store.named_parameters())["values"] is twin.values
        close(twin.values, values)
        assert torch.equal(twin.positions, positions)
    assert twin.values.shape == (23,)


def test_a_guide_that_was_pruned_can_be_copied_and_the_copy_goes_the_same_way() -> None:
    model, guide = dense(0.8)
    loop = Loop(model, guide, schedules.gradual((9, 9), 3, 100), constant(0.1))
    for step in range(1, 8):
        loop.step(*batch_of(step))
    twin = copy.deepcopy(loop)
    for step in range(8, 14):
        loop.step(*batch_of(step))
        twin.step(*batch_of(step))
    assert twin.guide is not guide
    assert torch.equal(twin.guide.values, guide.values)
