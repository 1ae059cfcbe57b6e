"""Masks by input unit: one Z for all weights that leave a unit, which is dropout on the inputs of a layer.

Source: Gal & Ghahramani 2016 (a Bernoulli mask on a layer's inputs is a mask on the columns of its weights). Which weights
leave which unit is asked of torch: they are those whose output the unit reaches.
"""

import copy
import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from budget import assert_mean, assert_rate
from digits import digits
from espalier import shelf, store
from espalier.guides.masked import MaskedGuide, draw_mask, groups
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology import schedules
from espalier.topology.masks import initial, prune
from espalier.training import rates
from espalier.training.loop import Loop
from espalier.training.options import Training
from rounding import close
from tiny import net as mlp

NUM_DATA, BATCH, DECAY = 90, 16, 0.02
P = 0.625  # a multiple of 2^-16: the effective keep probability is this one


pytestmark = pytest.mark.usefixtures("float64")


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )  # fmt: skip


NETS = {"mlp": (mlp, (6,), [6, 9]), "conv": (conv, (2, 6, 6), [2, 5, 12])}


def case(name: str, sparsity: float = 0.4, keep_prob: float = P, **options: bool) -> tuple[BayesianNetwork, MaskedGuide]:
    model = BayesianNetwork(NETS[name][0](), prior_scale=0.8, num_data=NUM_DATA, weight_decay=DECAY)
    stream = torch.Generator().manual_seed(1)
    topology = initial(model.shapes, sparsity, generator=stream)
    return model, MaskedGuide(model, topology, keep_prob, mask="unit", generator=stream, **options)


def batch_of(name: str, seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, *NETS[name][1], generator=stream), torch.randint(0, 4, (BATCH,), generator=stream)


def units_by_loop(shapes: list[tuple[int, ...]]) -> list[int]:
    """Unit of every weight of Linear and Conv shapes (out, in, ...), by counting."""
    units, before = [], 0
    for out, inputs, *kernel in shapes:
        for _ in range(out):
            for unit in range(inputs):
                units += [before + unit] * int(np.prod(kernel, dtype=int))
        before += inputs
    return units


# Which weights leave which unit


@pytest.mark.parametrize("shapes", [[(9, 6)], [(5, 2, 3, 3)], [(4, 3, 5)], [(2, 3, 2, 2, 2)],
                                    [(9, 6), (4, 9)], [(5, 2, 3, 3), (3, 5, 1, 1), (4, 12)], [(1, 1), (7, 1, 3)]])  # fmt: skip
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_units_are_numbered_through_the_layers(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    topology = initial(shapes, sparsity, "uniform", generator=torch.Generator().manual_seed(0))
    units, count = groups(topology.positions, shapes, "unit")
    everything = units_by_loop(shapes)
    assert count == sum(shape[1] for shape in shapes) == max(everything) + 1
    assert units.tolist() == [everything[place] for place in topology.positions.tolist()]


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3, bias=False), (5,)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 2, bias=False), (4, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), bias=False), (4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, bias=False), (2, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_unit_is_what_its_input_reaches(name: str) -> None:
    """The weights that matter to the output when only one input channel is not zero."""
    make, shape = LAYERS[name]
    layer = make()
    of = torch.full(layer.weight.shape, -1)
    for channel in range(shape[0]):
        x = torch.zeros(1, *shape)
        x[0, channel] = torch.rand(shape[1:]) + 0.1
        (slope,) = torch.autograd.grad(layer(x).sum(), layer.weight)
        of[slope != 0] = channel
    assert (of >= 0).all()
    units, count = groups(torch.arange(layer.weight.numel()), [tuple(layer.weight.shape)], "unit")
    assert count == shape[0]
    assert torch.equal(units, of.flatten())


# The distribution of Z


@pytest.mark.parametrize("name", NETS)
def test_the_weights_of_a_unit_share_a_z_and_units_are_independent(name: str) -> None:
    model, guide = case(name)
    assert guide.keep_prob == P
    units = torch.tensor(units_by_loop(list(model.shapes)))[guide.positions]
    present, draws = units.unique(), []
    for _ in range(4000):
        guide()
        assert guide.keep is not None
        z = torch.stack([guide.keep[units == unit][0] for unit in present[:12]])
        draws.append(z)
    for unit in present:  # of the last draw: all alike
        assert guide.keep[units == unit].unique().numel() == 1
    z = torch.stack(draws).numpy()
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    looks = z.shape[1] + len(pairs)
    for column in z.T:
        assert_rate(column.sum(), len(column), P, looks)
    for one, other in pairs:
        assert_rate((z[:, one] & z[:, other]).sum(), len(z), P * P, looks)


def test_every_draw_of_a_batch_has_its_own_units() -> None:
    model, guide = case("mlp")
    q = guide.distribution()
    weights = q.rsample((500,))
    units = torch.tensor(units_by_loop(list(model.shapes)))[guide.positions]
    assert q.keep is not None
    assert q.keep.shape == (500, guide.topology.num_active)
    for unit in units.unique():
        shared = q.keep[:, units == unit]
        assert (shared == shared[:, :1]).all()
        assert_rate(int(shared[:, 0].sum()), 500, P, looks=15)
    assert_mean(weights.detach(), q.mean.detach())
    assert_mean((weights - q.mean).detach() ** 2, q.variance.detach())
    close(q.mean[guide.positions], P * guide.values)


def test_independent_masks_and_shared_ones_cost_a_word_for_four_units_or_weights() -> None:
    model, guide = case("conv")
    for mask, number in (("weight", len(guide.positions)), ("unit", 19)):
        stream, by_hand = (torch.Generator().manual_seed(3) for _ in range(2))
        draw_mask(guide.positions, model.shapes, mask, P, stream)
        torch.empty((number + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=by_hand)
        assert torch.equal(stream.get_state(), by_hand.get_state())


def test_with_probability_one_nothing_is_drawn_and_nothing_dropped() -> None:
    model, guide = case("mlp", keep_prob=1.0)
    before = guide.generator.get_state()
    weights = guide()
    close(weights[guide.positions], guide.values)
    assert torch.equal(guide.generator.get_state(), before)


# It is dropout


def dropped(name: str, model: BayesianNetwork, dense: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """The network at unmasked weights, with the activations that enter each layer times that layer's Z."""
    tensors = [part.reshape(shape) for part, shape in zip(dense.split(model.sizes), model.shapes, strict=True)]
    zs = z.split(NETS[name][2])
    if name == "mlp":
        hidden = torch.tanh(F.linear(x * zs[0], tensors[0], model.net[0].bias))
        return F.linear(hidden * zs[1], tensors[1], model.net[2].bias)
    h = F.relu(F.conv2d(x * zs[0][:, None, None], tensors[0], model.net[0].bias, padding=1))
    h = F.relu(F.conv2d(h * zs[1][:, None, None], tensors[1], model.net[2].bias, stride=2))
    return F.linear(h.flatten(1) * zs[2], tensors[2], model.net[5].bias)


def z_of(model: BayesianNetwork, guide: MaskedGuide) -> Tensor:
    """The Z of every unit, read off the weights; units without active weights say nothing and get 0."""
    units = torch.tensor(units_by_loop(list(model.shapes)))[guide.positions]
    z = torch.zeros(int(sum(shape[1] for shape in model.shapes)))
    assert guide.keep is not None
    z[units] = guide.keep.double()
    assert torch.equal(z[units].bool(), guide.keep)
    return z


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_masking_units_is_zeroing_activations(name: str, rescale: bool) -> None:
    model, guide = case(name, rescale=rescale)
    seen = set()
    for seed in range(20):
        x, _ = batch_of(name, seed)
        weights = guide()
        z = z_of(model, guide)
        factor = 1 / P if rescale else 1.0
        unmasked = torch.zeros(model.num_weights).index_put((guide.positions,), guide.values.detach() * factor)
        close(model.evaluate(weights, x), dropped(name, model, unmasked, z, x))
        seen.add(tuple(z.tolist()))
    assert len(seen) >= 18


@pytest.mark.parametrize("name", NETS)
def test_the_objective_under_unit_masks_is_dropout_with_weight_decay(name: str) -> None:
    model, guide = case(name)
    x, y = batch_of(name, 3)
    (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA).backward()
    values = guide.values.detach().clone().requires_grad_()
    dense = torch.zeros(model.num_weights).index_put((guide.positions,), values)
    loss = F.cross_entropy(dropped(name, model, dense, z_of(model, guide), x), y)
    (loss + P / (2 * 0.8**2 * NUM_DATA) * (values**2).sum()).backward()  # the bound p u^2 / 2v, as for independent masks
    close(guide.values.grad, values.grad)


@pytest.mark.parametrize("rule", ["rigl", "gradual"])
@pytest.mark.parametrize("name", NETS)
def test_it_is_dropout_after_every_move_of_the_topology(name: str, rule: str) -> None:
    model, guide = case(name, 0.0 if rule == "gradual" else 0.6)
    counts = tuple(max(1, size // 4) for size in model.sizes)
    loop = Loop(model, guide, schedules.rule(rule, 3, 20, 0.5, counts), rates.constant(0.05))
    places = [guide.positions.clone()]
    for step in range(1, 22):
        loop.step(*batch_of(name, step))
        if not torch.equal(places[-1], guide.positions):
            places.append(guide.positions.clone())
        x, _ = batch_of(name, 100 + step)
        weights = guide()
        unmasked = torch.zeros(model.num_weights).index_put((guide.positions,), guide.values.detach())
        close(model.evaluate(weights, x), dropped(name, model, unmasked, z_of(model, guide), x))
    assert len(places) >= 6
    guide.move(prune(guide.topology, guide.values.data.abs(), (3, 3, 3)[: len(counts)]), loop.optimizer)
    guide()
    z_of(model, guide)


def test_a_mask_of_anything_else_is_refused() -> None:
    model, guide = case("mlp")
    with pytest.raises(ValueError, match="expected a mask per weight, unit, filter, got 'channel'"):
        MaskedGuide(model, guide.topology, P, mask="channel")


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 6, 3)],
    ids=["grouped", "depthwise", "transposed"],
)
def test_unit_masks_of_a_layer_whose_outputs_do_not_see_all_inputs_are_refused(layer: nn.Module) -> None:
    model = BayesianNetwork(nn.Sequential(layer))
    with pytest.raises(ValueError, match="expected Linear layers and plain convolutions for mask unit, but 0.weight of shape"):
        MaskedGuide(model, initial(model.shapes, 0.3), P, mask="unit")


def test_unit_masks_of_a_tensor_without_units_are_refused_with_a_sentence() -> None:
    net = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 4))
    model = BayesianNetwork(net, maskable=["*weight"])
    with pytest.raises(ValueError, match="expected .*1.weight"):
        MaskedGuide(model, initial(model.shapes, 0.3), P, mask="unit")()


# Fits


def small() -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
    return BayesianNetwork(net.float())


@functools.cache
def trained() -> Fit:
    torch.set_default_dtype(torch.float32)
    return shelf.load("inference", "cigl")(
        small(), digits(), sparsity=0.5, drop_rate=1 - P, mask="unit", delta_t=7, seed=1,
        training=Training(epochs=6, batch_size=32, device="cpu"),
    )  # fmt: skip


def test_redraw_is_monte_carlo_dropout_of_units() -> None:
    torch.set_default_dtype(torch.float32)
    fit, x = trained(), digits().test.x[:50]
    assert (fit.mask, fit.record["mask"]) == ("unit", "unit")
    units = torch.tensor(units_by_loop([(4, 1, 3, 3), (10, 36)]))[fit.topology.positions]
    last, state = fit.pairs.values[-1], fit.pairs.state(-1)
    kernel, matrix = fit.dense(last).split([36, 360])
    draws = list(fit.weights("redraw", num_samples=300, seed=4))
    predictions = fit.predict(x, "redraw", num_samples=300, seed=4)
    zs = []
    for (weights, _), probs in zip(draws, predictions, strict=True):
        kept = weights[fit.topology.positions] != 0
        z = torch.zeros(37)
        z[units] = kept.float()
        assert torch.equal(z[units].bool() & (last != 0), kept)  # a unit's weights go together
        h = F.relu(F.conv2d(x * z[0], kernel.view(4, 1, 3, 3), state["net.0.bias"], stride=2)).flatten(1)
        logits = F.linear(h * z[1:], matrix.view(10, 36), state["net.3.bias"])
        torch.testing.assert_close(probs, logits.softmax(-1).double(), rtol=0, atol=2e-5)
        zs.append(z[units.unique()])
    assert_mean(torch.stack(zs), np.full(len(units.unique()), P))


def test_collected_pairs_share_z_by_unit_too() -> None:
    fit = trained()
    units = torch.tensor(units_by_loop([(4, 1, 3, 3), (10, 36)]))[fit.topology.positions]
    for keep in fit.pairs.keep:
        assert all(keep[units == unit].unique().numel() == 1 for unit in units.unique())
        assert 0 < keep.sum() < len(keep)


def test_a_saved_fit_comes_back_with_its_kind_of_mask(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)
    fit, x = trained(), digits().test.x[:50]
    fit.save(tmp_path / "fit")
    other = Fit.load(tmp_path / "fit", small())
    assert other.mask == "unit"
    for how in fit.ways:
        assert torch.equal(fit.predict(x, how, num_samples=5, seed=3), other.predict(x, how, num_samples=5, seed=3))
    assert not torch.equal(other.pairs.keep, torch.ones_like(other.pairs.keep))

    tensors, facts = store.read_bundle(tmp_path / "fit" / "fit.safetensors")
    assert facts["mask"] == "unit"
    before = copy.copy(fit)
    before.mask = "weight"  # what the same fit would redraw if the file had forgotten
    assert not torch.equal(fit.predict(x, "redraw", seed=3), before.predict(x, "redraw", seed=3))


def test_the_rows_of_an_embedding_are_no_units() -> None:
    model = BayesianNetwork(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)), maskable=["0.*", "2.weight"])
    with pytest.raises(ValueError, match=r"expected Linear layers .* for mask unit, but 0\.weight .* Embedding"):
        MaskedGuide(model, initial(model.shapes, 0.5), 0.9, mask="unit")
