"""Prediction: five ways from one fit, each against plain torch; statistics, files and the form that ArviZ reads.

By hand means: the flat weight vector assembled here, cut into the layers of an ordinary `nn.Module` here, batch-norm
statistics by `torch.optim.swa_utils.update_bn`.
"""

import copy
import functools
import json
import math
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from budget import assert_mean
from espalier import shelf
from espalier.contracts import Data
from espalier.data.sets import load
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.prediction.datatree import to_datatree
from espalier.prediction.fit import WAYS, Fit
from espalier.store import Bundle
from espalier.training.options import Training

TOLERANCE = 2e-5  # float32, in another order
EPOCHS, BATCH, PAIRS = 8, 64, 4
OPTIONS = {"sparsity": 0.8, "drop_rate": 0.2, "delta_t": 10, "freeze": 0.5, "average_from": 0.5}


@functools.cache
def digits() -> Data:
    return load("digits")


def mlp_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


class Notes:
    """A watch that keeps the checkpoint of every epoch."""

    def __init__(self) -> None:
        self.checkpoints: list[Bundle] = []
        self.steps = 0

    def resume(self) -> None:
        return None

    def step(self, info: object) -> None:
        self.steps += 1

    def epoch(self, row: Mapping[str, Any], checkpoint: Callable[[], Bundle]) -> None:
        self.checkpoints.append(copy.deepcopy(checkpoint()))


@functools.cache
def trained(name: str) -> tuple[Fit, Notes]:
    """`mlp` or `conv`, with `-rescaled`, `-running` (batch-norm buffers as training left them) or `-rigl` behind it."""
    net = conv_net if name.startswith("conv") else mlp_net
    notes = Notes()
    training = Training(
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=0.2,
        device="cpu",
        batchnorm="running" if name.endswith("-running") else "re-estimate",
    )
    if name.endswith("-rigl"):
        options = {"sparsity": 0.8, "delta_t": 10, "freeze": 0.5}
        infer = shelf.load("inference", "rigl")
    else:
        options = {**OPTIONS, "rescale": name.endswith("-rescaled")}
        infer = shelf.load("inference", "cigl")
    return infer(BayesianNetwork(net()), digits(), training=training, seed=2, watch=notes, **options), notes


CIGL = ["mlp", "mlp-rescaled", "conv", "conv-rescaled"]


def nll(draws: Tensor, y: Tensor) -> float:
    return float(-draws.double().mean(0)[torch.arange(len(y)), y].log().mean())


# The hand


def plain(name: str, dense: Tensor, state: Mapping[str, Tensor], *, normalise: bool) -> nn.Module:
    """An ordinary dense network with these weights and this other state, statistics re-estimated, for evaluation."""
    net, start = (conv_net if name.startswith("conv") else mlp_net)(), 0
    net.load_state_dict({key.removeprefix("net."): tensor for key, tensor in state.items()}, strict=False)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            size = module.weight.numel()
            module.weight.data = dense[start : start + size].reshape(module.weight.shape).clone()
            start += size
    assert start == len(dense)
    if normalise:
        update_bn([digits().train.x[i * BATCH : (i + 1) * BATCH] for i in range(16)], net)
    return net.eval()


def zeros_but(fit: Fit, values: Tensor) -> Tensor:
    dense = torch.zeros(fit.topology.num_weights)
    for position, value in zip(fit.topology.positions.tolist(), values.tolist(), strict=True):
        dense[position] = value
    return dense


def masks_by_hand(count: int, keep_prob: float, seed: int, samples: int) -> Iterator[Tensor]:
    """Z as documented: 64-bit words, viewed as 16-bit integers, kept below round(65536 p) - 32768."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        words = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
        yield words.view(torch.int16)[:count] < round(65536 * keep_prob) - 32768


def networks_by_hand(name: str, how: str, samples: int, seed: int) -> list[nn.Module]:
    """The networks that a way to predict evaluates, from the pairs alone (method.md, section 6)."""
    fit, _ = trained(name)
    u, z, p = fit.pairs.values, fit.pairs.keep, fit.keep_prob
    factor = 1 / p if name.endswith("-rescaled") else 1.0
    states = [{key: tensor[i] for key, tensor in fit.pairs.states.items()} for i in range(len(u))]
    if how == "ticket":
        weights, state = torch.zeros(fit.topology.num_active), {k: torch.zeros(t.shape) for k, t in states[0].items()}
        for i in range(len(u)):  # the running mean
            weights += (z[i] * u[i] * factor - weights) / (i + 1)
            state = {key: tensor + (states[i][key] - tensor) / (i + 1) for key, tensor in state.items()}
        chosen = [(weights, state)]
    elif how == "pairs":
        chosen = [(z[i] * u[i] * factor, states[i]) for i in range(len(u))]
    elif how == "redraw":
        chosen = [(mask * u[-1] * factor, states[-1]) for mask in masks_by_hand(u.shape[1], p, seed, samples)]
    elif how == "mean":
        chosen = [(p * u[-1] * factor, states[-1])]
    else:
        chosen = [(u[-1], states[-1])]
    return [plain(name, zeros_but(fit, weights), state, normalise=True) for weights, state in chosen]


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
    torch.testing.assert_close(predicted.sum(-1), torch.ones(draws, len(x)))
    assert (predicted >= 0).all()
    by_hand = [net(x).softmax(-1).detach() for net in networks_by_hand(name, how, 3, 7)]
    torch.testing.assert_close(predicted, torch.stack(by_hand), rtol=0, atol=TOLERANCE)


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


def test_pairs_are_what_training_was_at_the_end_of_the_last_epochs() -> None:
    fit, notes = trained("mlp")
    assert len(notes.checkpoints) == EPOCHS
    assert fit.pairs.values.shape == fit.pairs.keep.shape == (PAIRS, fit.topology.num_active)
    for index, checkpoint in enumerate(notes.checkpoints[-PAIRS:]):
        assert torch.equal(fit.pairs.values[index], checkpoint.tensors["values"])
        assert torch.equal(fit.pairs.states["net.3.bias"][index], checkpoint.tensors["model.net.3.bias"])
    assert len({tuple(keep.tolist()) for keep in fit.pairs.keep}) == PAIRS


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_support_of_the_ticket_is_the_frozen_topology(name: str) -> None:
    fit, notes = trained(name)
    weights, _ = next(fit.weights("ticket"))
    ever = fit.pairs.keep.any(0)
    assert torch.equal(weights.nonzero().squeeze(1), fit.topology.positions[ever])
    assert ever.double().mean() > 0.98
    topologies = [checkpoint.tensors["topology"] for checkpoint in notes.checkpoints]
    frozen = round(0.5 * EPOCHS)
    assert all(torch.equal(topology, topologies[-1]) for topology in topologies[frozen - 1 :])
    assert not torch.equal(topologies[0], topologies[-1])
    bits = np.unpackbits(topologies[-1].numpy(), count=fit.topology.num_weights)
    assert torch.equal(torch.from_numpy(bits).nonzero().squeeze(1), fit.topology.positions)
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


def test_prediction_does_not_depend_on_how_rows_are_batched() -> None:
    fit, _ = trained("conv")
    x = digits().train.x
    assert len(x) > 1000  # several batches
    parts = torch.cat([fit.predict(part, "pairs") for part in x.split(333)], 1)
    torch.testing.assert_close(fit.predict(x, "pairs"), parts, rtol=0, atol=TOLERANCE)


def test_prediction_changes_nothing_in_the_model() -> None:
    fit, _ = trained("conv")
    before = copy.deepcopy(fit.model.state_dict())
    modes = [module.training for module in fit.model.modules()]
    momenta = [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for how in WAYS:
        fit.predict(digits().test.x[:30], how, num_samples=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in fit.model.state_dict().items())
    assert [module.training for module in fit.model.modules()] == modes
    assert [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta


def test_an_unknown_way_is_refused() -> None:
    fit, _ = trained("mlp")
    with pytest.raises(ValueError, match="expected one of ticket, pairs, redraw, mean, unmasked, got 'tickets'"):
        fit.predict(digits().test.x, "tickets")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected num_samples of at least 1, got 0"):
        fit.predict(digits().test.x, "redraw", num_samples=0)


def test_averaging_before_the_freeze_is_refused_before_any_work() -> None:
    infer, notes = shelf.load("inference", "cigl"), Notes()
    options = {**OPTIONS, "freeze": 0.75, "average_from": 0.5}
    training = Training(epochs=EPOCHS, batch_size=BATCH, device="cpu")
    with pytest.raises(ValueError, match=r"expected averaging to start after the topology is frozen.*0\.5.*lower"):
        infer(BayesianNetwork(mlp_net()), digits(), training=training, watch=notes, **options)
    assert notes.steps == len(notes.checkpoints) == 0


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
    torch.testing.assert_close(net(x).softmax(-1).detach(), fit.predict(x, "ticket")[0], rtol=0, atol=TOLERANCE)


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


# Batch norm


def test_statistics_are_those_of_update_bn_for_the_weights_that_predict() -> None:
    fit, _ = trained("conv")
    for how in ("ticket", "mean", "unmasked"):
        (net,) = networks_by_hand("conv", how, 1, 0)
        for layer in ("1", "5"):
            for part in ("running_mean", "running_var"):
                mine, theirs = fit.statistics[how][f"net.{layer}.{part}"], net.get_buffer(f"{layer}.{part}")
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for index, net in enumerate(networks_by_hand("conv", "pairs", 1, 0)):
        mine = fit.pairs.states["net.5.running_var"][index]
        torch.testing.assert_close(mine, net.get_buffer("5.running_var"), rtol=1e-5, atol=1e-5)
    each = fit.pairs.states["net.5.running_mean"]
    assert (each - each.mean(0)).abs().max() > 1e-2  # one pair's statistics are not another's


@pytest.mark.parametrize("how", ["ticket", "pairs", "redraw"])
def test_re_estimated_statistics_predict_better_than_running_ones(how: str) -> None:
    fit, _ = trained("conv")
    running, _ = trained("conv-running")
    assert torch.equal(running.pairs.values, fit.pairs.values)  # only the statistics differ
    assert torch.equal(running.pairs.keep, fit.pairs.keep)
    x, y = digits().test
    assert nll(fit.predict(x, how), y) < nll(running.predict(x, how), y)


def test_statistics_see_the_network_s_own_dropout_switched_off() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model = BayesianNetwork(net).train()
    batches = list(torch.randn(90, 5).split(30))
    estimated = batchnorm.estimate(model, model.initial, model.state_dict(), batches)
    outputs = [nn.functional.linear(batch, net[0].weight, net[0].bias).detach() for batch in batches]
    expected = torch.stack([output.mean(0) for output in outputs]).mean(0)
    torch.testing.assert_close(estimated["net.2.running_mean"], expected)
    expected = torch.stack([output.var(0) for output in outputs]).mean(0)
    torch.testing.assert_close(estimated["net.2.running_var"], expected)
    assert estimated["net.2.num_batches_tracked"] == 3
    assert all(module.training for module in model.net.modules())
    assert model.net[2].momentum == 0.1
    assert (model.net[2].running_mean == 0).all()  # the model's own buffers are left alone


def test_training_rows_one_more_than_whole_batches_do_not_break_the_statistics() -> None:
    """A last batch of one row has no variance."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    training = Training(epochs=1, batch_size=32, device="cpu")
    infer = shelf.load("inference", "cigl")
    fit = infer(BayesianNetwork(net), load("digits", train_size=65), sparsity=0.5, freeze=0.0, training=training)
    assert fit.predict(digits().test.x).isfinite().all()


# Files


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trained("conv")[0].save(tmp_path / "run")
    return tmp_path / "run"


def fresh(name: str = "conv") -> BayesianNetwork:
    net = (conv_net if name.startswith("conv") else mlp_net)()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)  # nothing of it may be left in a loaded fit
    return BayesianNetwork(net)


@pytest.mark.parametrize("name", ["mlp", "mlp-rescaled", "mlp-rigl", "conv"])
def test_a_saved_fit_comes_back_exactly(name: str, tmp_path: Path) -> None:
    fit, _ = trained(name)
    fit.save(tmp_path / "run")
    back = Fit.load(tmp_path / "run", fresh(name))
    assert torch.equal(back.topology.positions, fit.topology.positions)
    assert back.topology[1:] == fit.topology[1:]
    assert torch.equal(back.pairs.values, fit.pairs.values)
    assert torch.equal(back.pairs.keep, fit.pairs.keep)
    assert (back.keep_prob, back.rescale) == (fit.keep_prob, fit.rescale)
    assert back.record == json.loads(json.dumps(fit.record))
    assert back.history == fit.history
    back.inputs = fit.inputs
    for how in WAYS:
        assert torch.equal(back.predict(digits().test.x, how), fit.predict(digits().test.x, how))
    mine, theirs = back.ticket().state_dict(), fit.ticket().state_dict()
    assert sorted(mine) == sorted(theirs)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


def test_redraw_of_a_loaded_fit_with_batch_norm_asks_for_inputs_in_one_sentence(saved: Path) -> None:
    fit, back = trained("conv")[0], Fit.load(saved, fresh())
    x = digits().test.x
    for how in ("ticket", "pairs", "mean", "unmasked"):
        back.predict(x, how)
    with pytest.raises(
        ValueError, match=r"^expected training inputs for batch-norm statistics[^\n]*fit\.inputs"
    ) as info:
        back.predict(x, "redraw")
    assert "\n" not in str(info.value)
    back.inputs = [digits().train.x[i * BATCH : (i + 1) * BATCH] for i in range(16)]
    torch.testing.assert_close(back.predict(x, "redraw"), fit.predict(x, "redraw"), rtol=0, atol=TOLERANCE)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(bytes(data))


def _edit(path: Path) -> None:
    facts = json.loads(path.read_text())
    facts["num_active"] += 1
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("fit.safetensors", _truncate),
        ("fit.safetensors", _flip),
        ("history.json", _flip),
        ("record.json", _truncate),
        ("record.json", _edit),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(saved: Path, file: str, damage: Callable[[Path], None]) -> None:
    Fit.load(saved, fresh())
    damage(saved / file)
    with pytest.raises(ValueError, match=r"^expected .*(was altered|is cut short or altered)") as info:
        Fit.load(saved, fresh())
    assert file in str(info.value)
    assert "\n" not in str(info.value)


def test_a_folder_without_a_finished_fit_is_refused(saved: Path) -> None:
    (saved / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a finished run in .*no record\.json"):
        Fit.load(saved, fresh())


def test_a_fit_of_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a network with layers of \(72, 1152, 2560\) weights, got"):
        Fit.load(saved, fresh("mlp"))


def test_saving_overwrites_nothing(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert sorted(before) == ["fit.safetensors", "history.json", "record.json"]
    with pytest.raises(ValueError, match="expected a folder without a fit, but .* holds one"):
        trained("mlp")[0].save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["conv", "mlp-rigl"])
def test_the_file_is_plain_safetensors_with_packed_masks(name: str, tmp_path: Path) -> None:
    fit, _ = trained(name)
    fit.save(tmp_path / "run")
    path = tmp_path / "run" / "fit.safetensors"
    tensors = load_file(path)
    total, active, pairs = fit.topology.num_weights, fit.topology.num_active, len(fit.pairs.values)
    mask = np.zeros(total, dtype=np.uint8)
    mask[fit.topology.positions.numpy()] = 1
    np.testing.assert_array_equal(tensors["topology"].numpy(), np.packbits(mask))
    assert tensors["topology"].numel() == math.ceil(total / 8)
    assert (tensors["values"].dtype, tensors["values"].shape) == (torch.float32, (pairs, active))
    assert ("keep" in tensors) == (fit.keep_prob < 1)
    if "keep" in tensors:
        np.testing.assert_array_equal(tensors["keep"].numpy(), np.packbits(fit.pairs.keep.numpy(), axis=-1))
        assert tensors["keep"].shape == (pairs, math.ceil(active / 8))
    assert (
        max(t.numel() for n, t in tensors.items() if n not in ("values", "keep", "topology")) < active
    )  # nothing dense
    data = path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    json.loads(data[8 : 8 + header])
    assert len(data) == 8 + header + sum(t.numel() * t.element_size() for t in tensors.values())


# Regression


@functools.cache
def regression() -> tuple[Data, Fit]:
    """Targets around 70 with a spread of 20: far from standardised units."""
    import tempfile

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    y = 70 + 20 * (x[:, 0] - 0.5 * x[:, 1]) + 4 * rng.normal(size=300)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "tiny.npz", x=x, y=y)
        data = load(str(Path(folder) / "tiny.npz"))
    torch.manual_seed(0)
    model = shelf.load("models", "mlp")((4,), 1, hidden=(12,), likelihood="normal")
    training = Training(epochs=30, batch_size=16, learning_rate=0.02, device="cpu")
    options = {**OPTIONS, "sparsity": 0.3, "drop_rate": 0.05}
    return data, shelf.load("inference", "cigl")(model, data, training=training, seed=1, **options)


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
    torch.testing.assert_close(ticket[:, 0], mean.float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ticket[:, 1], scale.float().expand(len(x)), rtol=1e-5, atol=1e-5)


# ArviZ


@pytest.fixture
def arviz_base() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz_base
    return arviz_base


def test_datatree_of_class_probabilities(arviz_base: Any) -> None:
    fit, _ = trained("mlp")
    x, y = digits().test
    draws = fit.predict(x, "pairs")
    tree = to_datatree(fit.draws(x, "pairs"), y, classes=True)
    assert sorted(tree.children) == ["log_likelihood", "observed_data", "posterior_predictive", "predictions"]
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "observation")
    assert tree["log_likelihood"]["y"].dims == ("chain", "draw", "observation")
    assert tree["observed_data"]["y"].dims == ("observation",)
    np.testing.assert_array_equal(tree["observed_data"]["y"], y.numpy())
    np.testing.assert_array_equal(tree["predictions"]["probability"][0], draws.numpy())
    by_hand = draws.double()[:, torch.arange(len(y)), y].log()
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], by_hand.numpy(), rtol=0, atol=1e-5)
    extracted = arviz_base.extract(tree, group="log_likelihood")
    assert extracted.sizes == {"observation": len(y), "sample": PAIRS}


def test_datatree_names_the_dimensions_of_the_predicted_parameters() -> None:
    fit, _ = trained("mlp")
    x, y = digits().test
    tree = to_datatree(fit.draws(x, "pairs"), y, classes=True)
    assert tree["predictions"]["probability"].dims == ("chain", "draw", "observation", "class")
    data, fit = regression()
    tree = to_datatree(fit.draws(data.test.x, "pairs"), data.test.y, classes=False)
    assert tree["predictions"]["mean_and_scale"].dims == ("chain", "draw", "observation", "moment")


def test_datatree_of_means_and_scales(arviz_base: Any) -> None:
    data, fit = regression()
    y = data.test.y * data.target_scale + data.target_shift
    draws = fit.predict(data.test.x, "redraw", num_samples=6).double()
    tree = to_datatree(fit.draws(data.test.x, "redraw", num_samples=6), y, classes=False)
    mean, scale = draws[..., 0], draws[..., 1]
    by_hand = -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(tree["log_likelihood"]["y"][0], by_hand.numpy(), rtol=1e-5, atol=1e-5)
    assert arviz_base.extract(tree, group="posterior_predictive").sizes == {"observation": len(y), "sample": 6}


def test_posterior_predictive_draws_follow_the_predicted_distribution() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    tree = to_datatree([probabilities] * 4000, torch.tensor([0, 1]), classes=True)
    labels = tree["posterior_predictive"]["y"].values[0]
    assert_mean(labels[..., None] == np.arange(3), probabilities)
    parameters = torch.tensor([[3.0, 0.5], [-1.0, 2.0]])
    tree = to_datatree([parameters] * 4000, torch.zeros(2), classes=False)
    values = tree["posterior_predictive"]["y"].values[0]
    assert_mean(values, parameters[:, 0])
    assert_mean((values - parameters[:, 0].numpy()) ** 2, parameters[:, 1] ** 2)


def test_datatree_is_decided_by_its_seed() -> None:
    draws, y = torch.full((50, 8, 4), 0.25), torch.zeros(8, dtype=torch.int64)
    trees = [to_datatree(draws, y, classes=True, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (tree["posterior_predictive"]["y"].values for tree in trees)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
