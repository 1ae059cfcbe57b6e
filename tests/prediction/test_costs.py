"""Costs: the published factors, another counter's numbers, and what training and saving really hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espalier import load_data, load_program, store
from espalier.contracts import Evidence
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import costs
from espalier.prediction.costs import Forward, forward, training_work
from espalier.prediction.fit import Fit, How
from espalier.store import Bundle
from espalier.topology import codes, schedules
from espalier.topology.masks import erk, initial, uniform
from espalier.training import rates
from espalier.training.drop_rates import period
from espalier.training.loop import Loop
from espalier.training.options import Training

WRN, RESNET = ("wide_resnet", 10), ("resnet50", 100)


@pytest.fixture(scope="module")
def counted() -> Callable[[str, int], tuple[BayesianNetwork, Forward]]:
    """A model of the shelf on CIFAR's images, and its count; once each."""
    known: dict[str, tuple[BayesianNetwork, Forward]] = {}

    def find(name: str, classes: int) -> tuple[BayesianNetwork, Forward]:
        if name not in known:
            model = load_program("models", name)((3, 32, 32), classes)
            known[name] = model, forward(model, {"shape": (3, 32, 32)})
        return known[name]

    return find


def densities(model: BayesianNetwork, counts: tuple[int, ...]) -> dict[str, float]:
    return {weight.name: count / weight.size for weight, count in zip(model.weights, counts, strict=True)}


# ------------------------------------------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(("net", "millions"), [(WRN, 157.7), (RESNET, 1298)])
def test_dense_networks_cost_what_was_published(counted, net, millions):
    # Sundar & Dwaraknath 2021 (ReScience), CIFAR: 3.15e8 and 2.59e9 operations; multiply-adds in seed-systems.md, 2.6
    assert float(f"{counted(*net)[1].dense / 1e6:.4g}") == millions


@pytest.mark.parametrize(
    ("net", "density", "inference", "training"),
    [
        (WRN, 0.2, 0.352, 0.354), (WRN, 0.1, 0.174, 0.176), (WRN, 0.05, 0.088, 0.091), (WRN, 0.01, 0.018, 0.021),
        (RESNET, 0.2, 0.385, 0.387), (RESNET, 0.1, 0.225, 0.227), (RESNET, 0.05, 0.114, 0.117),
        (RESNET, 0.01, 0.023, 0.026),
    ],
)  # fmt: skip
def test_rigl_by_erk_costs_what_was_derived(counted, net, density, inference, training):
    model, work = counted(*net)
    sparse, dense = work.sparse(densities(model, erk(model.shapes, density))), work.dense
    assert round(sparse / dense, 3) == inference
    assert round(training_work(sparse, dense, 101, growths=1) / (101 * 3 * dense), 3) == training


@pytest.mark.parametrize(("density", "published"), [(0.2, 0.203), (0.1, 0.103), (0.05, 0.053)])
def test_rigl_by_uniform_densities_costs_what_the_code_base_says(counted, density, published):
    model, work = counted(*WRN)
    sparse = work.sparse(densities(model, uniform(model.shapes, density)))
    assert round(training_work(sparse, work.dense, 101, growths=1) / (303 * work.dense), 3) == published


def test_a_period_of_rigl_is_evcis_formula() -> None:
    f_s, f_d, delta_t = 3.7, 11.3, 17  # Evci et al. 2020: (3 f_S dT + 2 f_S + f_D) / (dT + 1)
    period = training_work(f_s, f_d, delta_t + 1, growths=1) / (delta_t + 1)
    assert period == pytest.approx((3 * f_s * delta_t + 2 * f_s + f_d) / (delta_t + 1), rel=1e-14)
    assert training_work(f_s, f_d, 5) == pytest.approx(5 * 3 * f_s)
    assert training_work(f_s, f_d, 10, growths=2, particles=4, moves=2) == pytest.approx(3 * (8 * 4 + 2) * f_s + 2 * (f_d - f_s))


# ---------------------------------------------------------------------------------------------------- another counter


class Reused(nn.Module):
    """A layer called twice, a tied one, a bare parameter in a matrix product, and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight
        self.bare = nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        x = self.second(self.first(self.twice(torch.tanh(self.twice(x)))))
        return (x.unsqueeze(2) @ x.unsqueeze(1)).sum(1) @ self.bare


def flat(layer: nn.Module, width: int) -> nn.Sequential:
    """A layer of any kind, and a linear one that reads what it gives."""
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(width, 2))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)), (3, 4)),
    "linear on rows of rows": (lambda: flat(nn.Linear(5, 6), 24), (4, 5)),
    "conv1d": (lambda: flat(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), 30), (4, 10)),
    "conv2d": (lambda: flat(nn.Sequential(nn.Conv2d(2, 4, (3, 2), dilation=2), nn.BatchNorm2d(4)), 96), (2, 8, 8)),
    "conv3d": (lambda: flat(nn.Conv3d(1, 3, 2, stride=(1, 2, 1)), 54), (1, 4, 4, 4)),
    "transposed 1d": (lambda: flat(nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), 66), (4, 5)),
    "transposed 2d": (lambda: flat(nn.ConvTranspose2d(3, 2, 3, stride=2), 162), (3, 4, 4)),
    "transposed 3d": (lambda: flat(nn.ConvTranspose3d(2, 1, 2), 64), (2, 3, 3, 3)),
    "transformer": (lambda: flat(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 40), (5, 8)),
    "reused": (Reused, (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_torchs_own_counter_agrees(name: str) -> None:
    build, shape = NETS[name]
    torch.manual_seed(0)
    net = build().eval()
    with sdpa_kernel(SDPBackend.MATH):  # the only attention on a CPU that torch's counter knows
        found = forward(BayesianNetwork(net), {"shape": shape})
        torch.backends.mha.set_fastpath_enabled(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.zeros(1, *shape))
        torch.backends.mha.set_fastpath_enabled(True)
    assert 2 * found.dense == counter.get_total_flops()
    if name != "transformer":  # torch calls its weights without their modules
        modules = {key.partition(".")[2]: sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
        for layer, count in found.layers.items():
            own = layer.removesuffix(".weight")
            tied = modules["second"] if own == "first" else 0
            assert 2 * count == modules[own] + tied, layer


def test_counts_by_hand() -> None:
    convolved = forward(BayesianNetwork(NETS["conv1d"][0]()), {"shape": (4, 10)})
    assert convolved == Forward({"0.weight": 5 * 6 * 2 * 3, "2.weight": 60}, 0)
    assert forward(BayesianNetwork(NETS["transposed 1d"][0]()), {"shape": (4, 5)}).layers["0.weight"] == 5 * 4 * 3 * 3
    reused = forward(BayesianNetwork(Reused()), {"shape": (6,)})
    assert reused == Forward({"twice.weight": 72, "first.weight": 72}, 36 + 24)
    masked = forward(BayesianNetwork(Reused(), maskable=["bare", "twice.*"]), {"shape": (6,)})
    assert masked == Forward({"bare": 24, "twice.weight": 72, "twice.bias": 0}, 72 + 36)
    half = masked.sparse({"bare": 0.5, "twice.weight": 0.25, "twice.bias": 0.5})
    assert half == 12 + 18 + 72 + 36
    transformer = forward(BayesianNetwork(NETS["transformer"][0]()), {"shape": (5, 8)})
    # attention: 8 -> 24 and 8 -> 8 of each of 5 tokens, 5 x 5 products of 4 numbers in 2 heads, twice
    assert transformer.rest == 5 * 8 * 24 + 2 * 2 * 25 * 4
    assert transformer.layers["0.self_attn.out_proj.weight"] == 5 * 64


# -------------------------------------------------------------------------------------------------------------- a fit


def fitted(inference: str, net: nn.Module | None = None, training: dict[str, Any] | None = None, **options: Any) -> Fit:
    """300 digits, 5 epochs of 9 steps: 45 in all, frozen at 33."""
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 10))
    settings = Training(**{"epochs": 5, "batch_size": 32, "device": "cpu", **(training or {})})
    return load_program("inference", inference)(
        BayesianNetwork(net), load_data("digits", train_size=300), **options, training=settings, seed=1
    )


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)
    )


LAYERS = {"1.weight": 64 * 30, "3.weight": 300}


@pytest.mark.parametrize(
    ("inference", "options", "growths"),
    [
        ("dense", {}, 0), ("static", {"sparsity": 0.8}, 0), ("set", {"sparsity": 0.8, "delta_t": 4}, 0),
        ("rigl", {"sparsity": 0.8, "delta_t": 4}, 8), ("cigl", {"sparsity": 0.8, "delta_t": 4, "drop_rate": 0.0}, 8),
        ("mean_field", {"sparsity": 0.8, "delta_t": 4}, 8),
    ],
)  # fmt: skip
def test_training_is_counted_step_by_step(inference: str, options: dict[str, Any], growths: int) -> None:
    fit = fitted(inference, **options)
    f_d = sum(LAYERS.values())
    f_s = sum(fit.topology.counts)  # a linear layer's multiply-adds are its weights
    found = costs.costs(fit, random_growth=inference == "set")
    expected = 2 * 32 * ((45 - growths) * 3 * f_s + growths * (2 * f_s + f_d)) + f_s  # and the average of one pair
    if inference == "mean_field":
        expected += 45 * 3 * f_s  # the draws
        expected += 2 * f_s * 32 * 128  # and what moments' factors look at
    assert found["train_flops"] == pytest.approx(expected, rel=1e-12)
    assert found["train_flops_relative"] == pytest.approx(expected / (2 * 32 * 45 * 3 * f_d), rel=1e-12)
    assert found["inference_flops"] == pytest.approx(2 * f_s)
    assert found["inference_flops_relative"] == pytest.approx(f_s / f_d)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("rule", ["gradual", "one-shot"])
def test_pruning_costs_the_average_over_its_schedule(rule: str) -> None:
    fit = fitted("cigl", rule=rule, sparsity=0.8, delta_t=4, drop_rate=0.0, training={"epochs": 8})
    # the same schedule walked by itself, over the number of weights that each step finds
    steps, last = 72, int(0.75 * 72)
    schedule = schedules.rule(rule, 4, last, 0.3, fit.topology.counts)
    topology, total = initial(fit.model.shapes, 0.0), 0
    for step in range(1, steps + 1):
        total += 3 * topology.num_active
        if schedule.due(step):
            zeros = torch.zeros(topology.num_active)
            evidence = Evidence(step, zeros, torch.zeros(topology.num_weights), torch.Generator())
            topology = schedule.move(topology, evidence).topology
    assert topology.counts == fit.topology.counts
    found = costs.costs(fit, "unmasked")
    assert found["train_flops"] == pytest.approx(2 * 32 * total, rel=2e-3)
    assert found["train_flops_relative"] == pytest.approx(total / (3 * sum(LAYERS.values()) * steps), rel=2e-3)
    assert found["train_flops_relative"] > 0.3 > found["inference_flops_relative"]


def test_cigl_adds_masks_averages_and_batch_norm_statistics() -> None:
    options = {"sparsity": 0.8, "drop_rate": 0.2, "rule": "static", "average_from": 0.4}
    running = fitted("cigl", conv_net(), {"batchnorm": "running"}, **options)
    again = fitted("cigl", conv_net(), {"batchnorm": "re-estimate", "bn_batches": 9}, **options)
    work = forward(running.model, running.record)
    f_s = work.sparse(densities(running.model, running.topology.counts))
    k, pairs = running.topology.num_active, 3
    assert len(running.pairs.values) == len(again.pairs.values) == pairs
    train, looked = 2 * 32 * 45 * 3 * f_s, 2 * 32 * 128 * f_s
    assert costs.costs(running)["train_flops"] == pytest.approx(train + looked + 3 * k * 45 + k * pairs, rel=1e-12)
    # a pass over all data, 9 batches, is a third of an epoch's training; here of 5 epochs, for 3 pairs and the ticket (as
    # published, 50 passes in 250 epochs: 50 / (3 * 250) = 6.7 %; seed-systems.md, 2.6)
    for how, sets in (("ticket", 4), ("pairs", 3), ("redraw", 3 + 16)):
        more = costs.costs(again, how)["train_flops"] - costs.costs(running, how)["train_flops"]
        assert more / train == pytest.approx(sets / (3 * 5), rel=1e-9)


@pytest.mark.parametrize(("how", "passes"), [("ticket", 1), ("mean", 1), ("unmasked", 1), ("pairs", 3), ("redraw", 5)])
def test_monte_carlo_and_ensembles_multiply_inference(how: How, passes: int) -> None:
    fit = fitted("cigl", sparsity=0.8, freeze=0.4, average_from=0.4)
    found = costs.costs(fit, how, num_samples=5)
    assert found["inference_flops"] == pytest.approx(passes * 2 * sum(fit.topology.counts))
    three = costs.ensemble([found, found, found])
    assert three["inference_flops_relative"] == pytest.approx(3 * found["inference_flops_relative"])
    assert three["train_flops"] == pytest.approx(3 * found["train_flops"])
    assert three["disk_bytes"] == 3 * found["disk_bytes"]
    assert three["state_bytes"] == found["state_bytes"]


def test_a_distilled_network_pays_for_its_teacher() -> None:
    options = {"sparsity": 0.8, "distill_epochs": 2, "average_from": 0.8}
    fit = fitted("distilled", training={"epochs": 5}, **options)
    alone, taught = costs.costs(fit, "ticket"), costs.costs(fit, "distilled")
    more = 2 * 32 * 2 * 9 * (2 + 3) * sum(fit.topology.counts)  # a pass of the teacher's moments, three of the student
    assert taught["train_flops"] - alone["train_flops"] == pytest.approx(more, rel=1e-9)
    assert taught["inference_flops"] == alone["inference_flops"]


@pytest.mark.parametrize("masks", [1, 4])
def test_one_told_draws_pays_for_as_many(masks: int) -> None:
    fit = fitted("distilled", training={"epochs": 5}, sparsity=0.8, average_from=0.6, freeze=0.6, distill_masks=masks)
    alone, taught = costs.costs(fit, "ticket"), costs.costs(fit, "distilled")
    more = 2 * 32 * 9 * (masks + 3) * sum(fit.topology.counts)  # of five epochs of nine steps a fifth
    assert taught["train_flops"] - alone["train_flops"] == pytest.approx(more, rel=1e-9)


def test_finding_the_drop_rate_is_paid_for() -> None:
    fit = fitted("cigl", training={"epochs": 60}, sparsity=0.8, drop_rate="auto")
    known = copy.copy(fit)
    known.record = {name: fact for name, fact in fit.record.items() if name != "drop_rate"}
    looks = 60 * 9 // period(32)
    assert looks > 0
    last = 4 * 144 * 2  # four turns of the rate at all validation rows, two products
    more = 2 * sum(fit.topology.counts) * (looks * 2 * 4 * 128 + last)  # four draws at two rates, of 128 rows
    assert costs.costs(fit)["train_flops"] - costs.costs(known)["train_flops"] == pytest.approx(more, rel=1e-9)


def test_earlier_trainings_of_a_run_are_counted() -> None:
    first, last = fitted("dense"), fitted("static", sparsity=0.8)
    alone = costs.costs(last)["train_flops"]
    last.record["earlier"] = [json.loads(json.dumps(costs.trained(first)))]
    assert costs.costs(last)["train_flops"] - alone == pytest.approx(2 * 32 * 45 * 3 * sum(LAYERS.values()))


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", [MaskedGuide, GaussianGuide])
def test_state_bytes_are_those_that_a_training_holds(optimizer: str, kind: type[MaskedGuide]) -> None:
    inference = "cigl" if kind is MaskedGuide else "mean_field"
    fit = fitted(inference, conv_net(), {"optimizer": optimizer, "learning_rate": 0.01}, sparsity=0.8, delta_t=4)
    data, model = load_data("digits", train_size=300), fit.model.train()
    guide = kind(model, fit.topology)
    loop = Loop(model, guide, schedules.static(), rates.constant(0.1), optimizer=optimizer)
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        loop.step(data.train.x[:8], data.train.y[:8])  # type: ignore[index]
    slots = [t for s in loop.optimizer.state.values() for n, t in s.items() if t is not None and n != "step"]
    held = [*guide.parameters(), guide.positions, *model.state_dict().values(), *slots]
    assert costs.costs(fit)["state_bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_a_training_that_prunes_held_all_weights() -> None:
    dense, pruned = fitted("dense"), fitted("cigl", rule="gradual", sparsity=0.8, delta_t=4, drop_rate=0.0)
    assert costs.costs(pruned)["state_bytes"] == costs.costs(dense)["state_bytes"]
    assert costs.costs(fitted("static", sparsity=0.8))["state_bytes"] < 0.5 * costs.costs(dense)["state_bytes"]


def content(path: Path) -> int:
    """Bytes of a safetensors file beside its header."""
    written = path.read_bytes()
    return len(written) - 8 - int.from_bytes(written[:8], "little")


@pytest.mark.parametrize("inference", ["cigl", "mean_field"])
def test_disk_bytes_are_those_of_the_file(inference: str, tmp_path: Path) -> None:
    fit = fitted(inference, conv_net(), sparsity=0.8, freeze=0.4, average_from=0.4)
    tensors = {name: t for name, t in fit.bundle().tensors.items() if not name.startswith("statistics.")}
    store.write_bundle(tmp_path / "pairs", Bundle(tensors, {}))
    assert costs.costs(fit, "pairs")["disk_bytes"] == content(tmp_path / "pairs")
    kept = {name: tensor[:1] for name, tensor in tensors.items() if name not in (codes.NAME, "keep", "scales")}
    store.write_bundle(tmp_path / "ticket", Bundle({**kept, codes.NAME: tensors[codes.NAME]}, {}))
    found = costs.costs(fit, "ticket")
    assert found["disk_bytes"] == content(tmp_path / "ticket")
    dense = {f"net.{name}": tensor for name, tensor in fit.ticket().state_dict().items()}
    store.write_bundle(tmp_path / "dense", Bundle(dense, {}))
    assert found["disk_bytes"] / found["disk_bytes_relative"] == pytest.approx(content(tmp_path / "dense"))
    assert 4 * fit.topology.num_active < found["disk_bytes"]


def test_costs_survive_the_disk(tmp_path: Path) -> None:
    fit = fitted("rigl", sparsity=0.8, delta_t=4)
    fit.save(tmp_path / "run")
    assert costs.costs(Fit.load(tmp_path / "run", fit.model)) == costs.costs(fit)


def test_an_lstm_costs_its_products() -> None:
    """Gates of 4 x 32 units, of 6 inputs and 32 states, at 5 steps: oneDNN's fused layer hides them."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.head = nn.LSTM(6, 32, batch_first=True), nn.Linear(32, 2)

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    found = costs.forward(BayesianNetwork(Net()), {"shape": (5, 6)})
    assert found.rest == 5 * 4 * 32 * (6 + 32)
    assert found.layers == {"head.weight": 32 * 2}
