"""Five ways to predict from one fit, each against plain torch; the parts of a fit."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training, shelf
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.prediction.fit import WAYS
from espalier.sparse import SparseLinear
from espalier.topology import codes
from fitted import (
    CIGL,
    EPOCHS,
    PAIRS,
    TOLERANCE,
    conv_net,
    digits,
    mlp_net,
    networks_by_hand,
    regression,
    trained,
    zeros_but,
)
from shelved import untrained

# The five ways


@pytest.mark.parametrize("name", CIGL)
@pytest.mark.parametrize(
    ("how", "draws"), [("ticket", 1), ("pairs", PAIRS), ("redraw", 3), ("mean", 1), ("unmasked", 1)]
)
def test_each_way_is_the_plain_dense_network_it_names(name: str, how: str, draws: int) -> None:
    fit, _ = trained(name)
    x = digits().test.x
    predicted = fit.predict(x, how, num_samples=3, seed=7)
    assert predicted.shape == (draws, len(x), 10)
    torch.testing.assert_close(predicted.sum(-1), torch.ones(draws, len(x), dtype=torch.float64))
    assert (predicted >= 0).all()
    by_hand = [net(x).softmax(-1).detach() for net in networks_by_hand(name, how, 3, 7)]
    torch.testing.assert_close(predicted, torch.stack(by_hand).double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CIGL)
def test_the_five_ways_differ_and_all_have_learned(name: str) -> None:
    fit, _ = trained(name)
    means = {how: fit.predict(digits().test.x, how).mean(0) for how in WAYS}
    for how, mean in means.items():
        assert (mean.argmax(-1) == digits().test.y).double().mean() > 0.75
        for other in WAYS:
            if other != how and {how, other} != {"mean", "unmasked"}:  # the same thing where the guide rescales
                assert (mean - means[other]).abs().max() > 1e-3
    same = (means["mean"] - means["unmasked"]).abs().max() < TOLERANCE
    assert same == name.endswith("-rescaled")


@pytest.mark.parametrize("name", ["mlp-rigl", "conv-rigl"])
def test_without_a_mask_and_with_one_pair_all_ways_coincide(name: str) -> None:
    fit, _ = trained(name)
    x = digits().test.x
    ticket = fit.predict(x, "ticket")[0]
    for how in WAYS:
        for draw in fit.predict(x, how, num_samples=2):
            assert torch.equal(draw, ticket)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_support_of_the_ticket_is_the_frozen_topology(name: str) -> None:
    fit, notes = trained(name)
    weights, _ = next(fit.weights("ticket"))
    ever = fit.pairs.keep.any(0)
    assert torch.equal(weights.nonzero().squeeze(1), fit.topology.positions[ever])
    assert ever.double().mean() > 0.98
    sizes = fit.topology.sizes
    topologies = [codes.read(checkpoint.tensors, sizes).positions for checkpoint in notes.checkpoints]
    frozen = round(0.5 * EPOCHS)
    assert all(torch.equal(topology, topologies[-1]) for topology in topologies[frozen - 1 :])
    assert not torch.equal(topologies[0], topologies[-1])
    assert torch.equal(topologies[-1], fit.topology.positions)
    assert fit.topology.num_active == round(0.2 * fit.topology.num_weights)


def test_redraw_is_decided_by_its_seed() -> None:
    fit, _ = trained("conv")
    x = digits().test.x[:20]
    torch.manual_seed(0)
    first = fit.predict(x, "redraw", num_samples=3, seed=5)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(fit.predict(x, "redraw", num_samples=3, seed=5), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(fit.predict(x, "redraw", num_samples=2, seed=5), first[:2])
    assert not torch.equal(fit.predict(x, "redraw", num_samples=3, seed=6), first)
    assert len({tuple(draw.flatten().tolist()) for draw in first}) == 3


def test_an_unknown_way_is_refused() -> None:
    fit, _ = trained("mlp")
    with pytest.raises(ValueError, match="expected one of ticket, pairs, redraw, mean, unmasked, moments, got 'tickets'"):
        fit.predict(digits().test.x, "tickets")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected num_samples of at least 1, got 0"):
        fit.predict(digits().test.x, "redraw", num_samples=0)


# The parts of a fit


@pytest.mark.parametrize("name", ["mlp", "conv", "conv-rescaled"])
def test_ticket_is_a_plain_module_with_exact_zeros(name: str) -> None:
    fit, _ = trained(name)
    net, x = fit.ticket(), digits().test.x
    original = (conv_net if name.startswith("conv") else mlp_net)()
    assert type(net) is nn.Sequential
    assert [type(part) for part in net.modules()] == [type(part) for part in original.modules()]
    assert sorted(net.state_dict()) == sorted(original.state_dict())
    assert not any(part.training for part in net.modules())
    layers = [module.weight for module in net.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    flat = torch.cat([weight.flatten() for weight in layers])
    off = torch.ones(fit.topology.num_weights, dtype=torch.bool)
    off[fit.topology.positions] = False
    assert (flat[off] == 0).all()
    assert (flat != 0).sum() <= fit.topology.num_active
    torch.testing.assert_close(net(x).softmax(-1).detach().double(), fit.predict(x, "ticket")[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["conv", "conv-rescaled"])
def test_indexing_gives_the_collected_draws_of_one_tensor(name: str) -> None:
    fit, _ = trained(name)
    draws = fit["4.weight"]
    assert draws.shape == (PAIRS, 16, 8, 3, 3)
    factor = 1 / fit.keep_prob if name.endswith("-rescaled") else 1.0
    for index in range(PAIRS):
        dense = zeros_but(fit, fit.pairs.values[index] * fit.pairs.keep[index] * factor)
        assert torch.equal(draws[index].flatten(), dense[72 : 72 + 1152])
    off = torch.ones(fit.topology.num_weights, dtype=torch.bool)
    off[fit.topology.positions] = False
    assert (draws.flatten(1)[:, off[72 : 72 + 1152]] == 0).all()
    with pytest.raises(KeyError, match=r"expected a masked tensor of 0.weight, 4.weight, 8.weight, got '4.bias'"):
        fit["4.bias"]


def test_regression_predicts_means_and_scales_in_the_user_s_units() -> None:
    data, fit = regression()
    x, y = data.test.x[:], data.test.y * data.target_scale + data.target_shift
    assert data.target_scale > 10
    assert data.target_shift > 50
    pairs = len(fit.pairs.values)
    for how, draws in {"ticket": 1, "pairs": pairs, "redraw": 5, "mean": 1, "unmasked": 1}.items():
        predicted = fit.predict(x, how, num_samples=5)
        assert predicted.shape == (draws, len(x), 2)
        assert (predicted[..., 1] > 0).all()
        error = (predicted[..., 0].mean(0) - y).square().mean().sqrt()
        assert error < 0.6 * y.std()
    values = (fit.pairs.values * fit.pairs.keep).mean(0)
    dense, biases = zeros_but(fit, values), {key: tensor.mean(0) for key, tensor in fit.pairs.states.items()}
    hidden = (x @ dense[:48].reshape(12, 4).T + biases["net.1.bias"]).relu()
    mean = (hidden @ dense[48:] + biases["net.3.bias"]) * data.target_scale + data.target_shift
    scale = (-0.5 * biases["likelihood.log_precision"]).exp() * data.target_scale
    ticket = fit.predict(x, "ticket")[0]
    torch.testing.assert_close(ticket[:, 0], mean.double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ticket[:, 1], scale.double().expand(len(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, "auto"])
def test_a_ticket_without_its_zeros_says_what_the_dense_one_says(sparse: bool | str) -> None:
    data = digits()
    fit = untrained(shelf.load("models", "mlp")((1, 8, 8), 10, hidden=(256, 256)), data)
    for how in ("ticket", "distilled"):
        dense, lean = fit.ticket(how), fit.ticket(how, sparse=sparse)
        # The first layer is a third full and the last one small: only the middle one gains.
        assert [isinstance(part, SparseLinear) for part in lean] == [False, False, False, True, False, False]
        assert not lean.training
        with torch.no_grad():
            torch.testing.assert_close(lean(data.test.x), dense(data.test.x), rtol=0, atol=TOLERANCE)
    with pytest.raises(ValueError, match="but no Linear layer of this one would gain: leave it dense"):
        trained("mlp")[0].ticket(sparse=True)


def test_a_fit_of_several_inputs_with_batch_norm_is_moved() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.last(self.norm(self.first(torch.cat([left, right], 1))).relu())

    rng = np.random.default_rng(0)
    data = from_arrays({"left": rng.normal(size=(120, 3)), "right": rng.normal(size=(120, 2))}, rng.integers(0, 2, 120))
    fit = cigl.infer(BayesianNetwork(Both()), data, drop_rate=0.1, training=Training(epochs=2, batch_size=30, device="cpu"))
    before = fit.predict(data.test.x)
    assert torch.equal(fit.to("cpu").predict(data.test.x), before)


def test_a_module_is_one_network() -> None:
    fit = trained("mlp")[0]
    for how in ("redraw", "pairs", "moments"):
        with pytest.raises(ValueError, match=f"expected one network, ticket, mean, unmasked or distilled, got '{how}'"):
            fit.ticket(how)
