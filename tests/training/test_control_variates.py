"""The control variate: of mean zero over batches and masks, by the Z of the step, across moves, and with nothing else moved."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budget import assert_mean
from espalier.contracts import Data, Evidence, Split, Topology
from espalier.guides import GaussianGuide, MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.training import objective
from espalier.training.control_variates import ControlVariate
from espalier.training.options import Training
from rounding import close

pytestmark = pytest.mark.usefixtures("float64", "own_stream")
ROWS, BATCH = 6, 2


def data(rows: int = ROWS) -> Data:
    stream = torch.Generator().manual_seed(4)
    split = Split(torch.randn(rows, 3, generator=stream), torch.randint(0, 3, (rows,), generator=stream))
    empty = Split(split.x[:0], split.y[:0])
    return Data("tiny", split, empty, empty, split, (3,), 3)


def case(keep_prob: float = 1.0, net: nn.Module | None = None, **options: Any) -> tuple[BayesianNetwork, MaskedGuide]:
    torch.manual_seed(0)
    if net is None:
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    model = BayesianNetwork(net, prior_scale=0.8, num_data=ROWS, weight_decay=0.02).train()
    topology = Topology(torch.tensor([3, 4, 7, 11, 13, 18, 23]), (4, 3), model.sizes)
    guide = MaskedGuide(model, topology, keep_prob, generator=torch.Generator().manual_seed(1), **options)
    with torch.no_grad():
        guide.values.copy_(torch.tensor([0.9, -1.4, 0.6, 1.1, -0.8, 1.7, -0.5]))
    return model, guide


def control(rows: int = ROWS, training: Training | None = None, **options: float) -> ControlVariate:
    options = {"gamma": 1.0, "coefficient": 1.0, **options}
    return ControlVariate(data(rows), training or Training(batch_size=BATCH), **options)


def gradients(model: BayesianNetwork, guide: MaskedGuide, rows: Any, follower: ControlVariate | None, taken: int = 2) -> Tensor:
    """Of a step's loss on these rows, flat: of the values, then of the biases."""
    split = data().train
    x, y = split.x[list(rows)], split.y[list(rows)]
    parameters = [guide.values, *model.parameters()]
    for parameter in parameters:
        parameter.grad = None
    objective.closed_form(model, guide, x, y)
    if follower is not None:
        follower.before(taken, x, y, model, guide)
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def moved(model: BayesianNetwork, guide: MaskedGuide) -> Tensor:
    """Exchanges some weights, takes all values elsewhere; where weights have grown, `(k,)`."""
    move = schedules.rigl(1, 10, 0.6).move(
        guide.topology, Evidence(1, guide.values.data, torch.randn(24), torch.Generator())
    )
    guide.move(move)
    with torch.no_grad():
        for parameter in (guide.values, *model.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape))
    assert 1 < move.num_grown < 6
    return move.source < 0


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_over_all_batches_the_corrected_gradient_has_the_mean_of_the_plain_one(factor: float) -> None:
    """At weights and on a topology that are no longer those of the snapshot, by enumeration of the fifteen batches."""
    model, guide = case()
    follower = control(coefficient=factor)
    gradients(model, guide, [0, 1], follower, taken=1)
    grown = moved(model, guide)
    batches = list(itertools.combinations(range(ROWS), BATCH))
    plain = torch.stack([gradients(model, guide, rows, None) for rows in batches])
    corrected = torch.stack([gradients(model, guide, rows, follower) for rows in batches])
    close(corrected.mean(0), plain.mean(0))
    close(plain.mean(0), gradients(model, guide, range(ROWS), None))
    close(corrected[:, :7][:, grown], plain[:, :7][:, grown])
    assert (corrected[:, :7][:, ~grown] - plain[:, :7][:, ~grown]).abs().amax(0).min() > 1e-3
    assert corrected.var(0).sum() < plain.var(0).sum()


def test_at_the_snapshot_itself_the_gradient_is_that_of_all_rows_whatever_batch_and_z() -> None:
    """Which it would not be if the two passes saw different masks."""
    model, guide = case(0.6)
    follower, seen = control(), set()
    follower.look(model, guide)
    follower.passed = 1
    decay = torch.cat([guide.keep_prob / 0.8**2 / ROWS * guide.values, *(0.02 * p.flatten() for p in model.parameters())])
    for rows in itertools.combinations(range(ROWS), BATCH):
        found = gradients(model, guide, rows, follower)
        seen.add(tuple(guide.keep.tolist()))
        close(found, torch.cat([mean.flatten() for mean in follower.mean]) + decay)
    assert len(seen) > 5


def expected(model: BayesianNetwork, guide: MaskedGuide) -> Tensor:
    """E_Z of the gradient of all rows in the values, by all 128 masks."""
    (x, y), total = data().train, torch.zeros(7)
    biases = [p.detach() for p in model.parameters()]
    for bits in itertools.product((0.0, 1.0), repeat=7):
        keep, values = torch.tensor(bits), guide.values.detach().clone().requires_grad_()
        w = torch.zeros(24).index_copy(0, guide.positions, values * keep * guide.scale)
        logits = torch.tanh(x @ w[:12].view(4, 3).T + biases[0]) @ w[12:].view(3, 4).T + biases[1]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), values)
        total += math.prod(guide.keep_prob if bit else 1 - guide.keep_prob for bit in bits) * gradient
    return total


@pytest.mark.parametrize("rescale", [False, True])
def test_over_masks_too_both_parts_of_the_correction_have_one_mean(rescale: bool) -> None:
    model, guide = case(0.6, rescale=rescale)
    follower, exact = control(), expected(model, guide)
    passes = []
    for _ in range(300):
        follower.snapshot = None
        follower.look(model, guide)
        passes.append(follower.mean[0])
    assert_mean(torch.stack(passes), exact)
    x, y = data().train
    moved(model, guide)  # with weights of the snapshot that the step has no Z for
    steps = []
    for _ in range(1500):
        guide.draw()
        keep = follower.carried(guide.keep, guide.positions, follower.snapshot.positions, guide.keep_prob)
        steps.append(follower.gradient(model, guide, follower.snapshot, keep, x, y)[1][0])
    assert_mean(torch.stack(steps), exact)


def test_the_coefficient_goes_to_the_slope_of_the_losses_over_those_at_the_snapshot() -> None:
    model, guide = case()
    follower = control(coefficient=0.4, memory=0.7)
    follower.look(model, guide)
    assert follower.coefficient == 0.4  # there was no snapshot to compare with
    split, losses = data().train, []
    for _ in range(2):
        parts = [(split.x[i : i + BATCH], split.y[i : i + BATCH]) for i in range(0, ROWS, BATCH)]
        with torch.no_grad():
            w = torch.zeros(24).index_copy(0, guide.positions, guide.values)
            losses.append([float(F.cross_entropy(model.evaluate(w, x), y)) for x, y in parts])
        moved(model, guide)
        if len(losses) == 1:
            then = {name: p.clone() for name, p in (*guide.named_parameters(), *model.named_parameters())}, guide.topology
    (parameters, topology) = then
    guide.positions, guide.counts = topology.positions, topology.counts
    with torch.no_grad():
        for name, parameter in (*guide.named_parameters(), *model.named_parameters()):
            parameter.copy_(parameters[name])
    follower.look(model, guide)
    old, new = losses
    centre = [[value - sum(each) / 3 for value in each] for each in (old, new)]
    slope = sum(a * b for a, b in zip(*centre, strict=True)) / sum(a * a for a in centre[0])
    assert follower.coefficient == pytest.approx(0.7 * 0.4 + 0.3 * slope, rel=1e-10)
    assert abs(slope) > 0.05
    alone = control(training=Training(batch_size=ROWS), coefficient=0.4)
    for _ in range(2):
        alone.look(model, guide)
    assert alone.coefficient == 0.4  # one batch has no slope


def test_buffers_streams_and_parameters_are_left_as_they_were() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Linear(4, 3))
    model, guide = case(0.7, net)
    follower = control()
    split = data().train
    for taken in (1, 2, 4):
        objective.closed_form(model, guide, split.x, split.y)
        tensors, stream = [*guide.state_dict().values(), *model.state_dict().values()], guide.generator.get_state()
        before, default = [tensor.clone() for tensor in tensors], torch.get_rng_state()
        follower.before(taken, split.x, split.y, model, guide)
        assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
        assert torch.equal(torch.get_rng_state(), default)
        assert torch.equal(guide.generator.get_state(), stream)
        assert model.net.training
        with torch.no_grad():
            for parameter in (guide.values, *model.parameters()):
                parameter.add_(0.1)


def test_the_pass_sees_all_rows_in_their_order_and_as_they_are() -> None:
    training = Training(batch_size=4, augment=lambda x: x + 1, label_smoothing=0.3)
    follower = control(11, training)
    for _ in range(2):
        parts = list(follower.batches(torch.device("cpu")))
        assert [len(y) for _, y in parts] == [6, 5]
        assert torch.equal(torch.cat([x for x, _ in parts]), data(11).train.x)
        close(torch.cat([y for _, y in parts]), 0.7 * F.one_hot(data(11).train.y, 3) + 0.1)


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"memory": 1.1}, {"coefficient": float("nan")}])
def test_numbers_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected a gamma above 0, a finite coefficient and a memory in \[0, 1\], got"):
        control(**options)


def test_a_guide_whose_draw_cannot_be_shared_is_refused() -> None:
    model, guide = case()
    for other in (GaussianGuide(model, guide.topology), case(0.5, num_particles=2)[1], case(0.5, mask="unit")[1]):
        with pytest.raises(ValueError, match="expected a guide with one Z a step and weight for a control variate"):
            control().begin(model, other)


def test_a_networks_own_dropout_is_drawn_afresh_for_every_batch_of_the_pass() -> None:
    seen: list[Tensor] = []

    class Noisy(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(super().forward(torch.ones(40)))
            return x

    model, guide = case(0.8, nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Noisy(0.5), nn.Linear(4, 3)))
    before = torch.get_rng_state()
    control().look(model, guide)
    assert len({tuple(mask.tolist()) for mask in seen}) == len(seen) == ROWS // BATCH
    assert torch.equal(torch.get_rng_state(), before)
