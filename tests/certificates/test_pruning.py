"""Predictors whose draws are frozen, and the nested families that they are pruned in: against sorting by hand and torch."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import shelf
from espalier.certificates.pruning import Frozen, facts, family
from espalier.contracts import PARTS, Data
from espalier.data.sets import load
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit
from espalier.training.options import Training

OPTIONS = {"sparsity": 0.7, "drop_rate": 0.2, "delta_t": 10, "freeze": 0.5, "average_from": 0.5, "seed": 3}


@functools.cache
def digits() -> Data:
    return load("digits", train_size=400)


@functools.cache
def fit_of(kind: str) -> Fit:
    torch.manual_seed(0)
    if kind == "mlp":
        net: nn.Module = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)
        )
    else:
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
    infer = shelf.load("inference", "cigl")
    fit: Fit = infer(
        BayesianNetwork(net), digits(), training=Training(epochs=6, batch_size=50, bn_batches=2), **OPTIONS
    )
    return fit


@pytest.mark.parametrize("how", ["ticket", "pairs", "redraw", "mean", "unmasked"])
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_a_frozen_predictor_is_the_average_of_the_fits_draws(kind: str, how: Any) -> None:
    fit, x = fit_of(kind), digits().test.x[:50]
    frozen = Frozen.of(fit, how, num_samples=5, seed=7)
    expected = fit.predict(x, how, num_samples=5, seed=7).double().mean(0).numpy()
    np.testing.assert_allclose(frozen.predict(x), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(frozen.predict(x), frozen.predict(x))
    assert facts(frozen)["draws"] == {"pairs": len(fit.pairs.values), "redraw": 5}.get(how, 1)


def test_a_regression_has_no_bounded_loss() -> None:
    fit = fit_of("mlp")
    whole, fit.record = fit.record, {**fit.record, "task": "regression"}
    try:
        with pytest.raises(ValueError, match="expected a fit of classes or masks to certify"):
            Frozen.of(fit)
    finally:
        fit.record = whole
    with pytest.raises(ValueError, match="expected one of ticket, pairs"):
        Frozen.of(fit, "distilled")


@pytest.mark.parametrize("fraction", [0.0, 0.13, 0.5, 0.99])
def test_global_magnitude_zeroes_the_smallest_weights_and_no_others(fraction: float) -> None:
    base = Frozen.of(fit_of("mlp"))
    pruned = family(fit_of("mlp"), base).at(fraction)
    before, after = base.dense(0), pruned.dense(0)
    active = base.topology.positions.tolist()
    gone = sorted(active, key=lambda p: (float(before[p].abs()), -p))[: round(fraction * len(active))]
    expected = before.clone()
    expected[gone] = 0
    torch.testing.assert_close(after, expected, rtol=0, atol=0)
    assert pruned.topology.num_active == len(active) - len(gone)
    assert sum(pruned.topology.counts) == len(pruned.topology.positions)


@pytest.mark.parametrize("by", ["magnitude", "layer-magnitude", "snr", "inclusion"])
@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_families_are_nested(by: Any, structure: Any) -> None:
    members = family(fit_of("mlp"), Frozen.of(fit_of("mlp")), by, structure)
    kept = [set(members.at(level).topology.positions.tolist()) for level in (0.0, 0.2, 0.5, 0.9)]
    assert all(wide > narrow for wide, narrow in itertools.pairwise(kept))


def test_per_layer_magnitude_prunes_every_layer_alike() -> None:
    base = Frozen.of(fit_of("mlp"))
    pruned = family(fit_of("mlp"), base, "layer-magnitude").at(0.4)
    for before, after in zip(base.topology.counts, pruned.topology.counts, strict=True):
        assert after == pytest.approx(0.6 * before, abs=1.01)
    layer = base.values[0].abs().split(list(base.topology.counts))[0]
    own = pruned.values[0].abs().split(list(pruned.topology.counts))[0]
    torch.testing.assert_close(own.sort().values, layer.sort().values[-len(own) :])


def test_snr_is_the_mean_over_the_spread_of_the_collected_draws() -> None:
    fit = fit_of("mlp")
    draws = np.stack([fit.pairs.pair(i).draw(i).numpy() for i in range(len(fit.pairs.values))]).astype(np.float64)
    mean, spread = np.abs(draws.mean(0)), draws.std(0, ddof=1)
    found, varies = family(fit, Frozen.of(fit), "snr").score.double().numpy(), spread > 0
    np.testing.assert_allclose(found[varies], mean[varies] / spread[varies], rtol=1e-4)
    assert (found[~varies & (mean > 0)] > found[varies].max()).all()  # certain and not zero: the last to go
    assert (found[mean == 0] == 0).all()


def test_inclusion_is_the_probability_of_staying_in_half_of_the_layer() -> None:
    """Of a layer of 8 active weights by a sum over all 70 subsets of 4."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False), nn.Linear(2, 4, bias=False))
    options = {**OPTIONS, "sparsity": 0.0}
    data = digits()._replace(num_classes=4)
    data = data._replace(**{n: getattr(data, n)._replace(y=getattr(data, n).y % 4) for n in PARTS})
    fit = shelf.load("inference", "cigl")(
        BayesianNetwork(net), data, training=Training(epochs=2, batch_size=50), **options
    )
    base = Frozen.of(fit)
    found = family(fit, base, "inclusion").score[-8:].numpy()
    u = base.values[0, -8:].abs().double().numpy()
    logits = u / u.mean()
    weights = {s: math.exp(sum(logits[list(s)])) for s in itertools.combinations(range(8), 4)}
    expected = [sum(w for s, w in weights.items() if i in s) / sum(weights.values()) for i in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_biases_go_under_the_same_threshold() -> None:
    fit = fit_of("mlp")
    base = Frozen.of(fit)
    members = family(fit, base, biases=True)
    biases = {name: tensor[0] for name, tensor in base.states.items() if name.endswith("bias")}
    everything = torch.cat([base.values[0].abs(), *(b.abs() for b in biases.values())])
    assert len(members.score) == len(everything) == base.topology.num_active + 24 + 12 + 10
    pruned = members.at(0.6)
    threshold = everything.sort().values[round(0.6 * len(everything))]
    for name, before in biases.items():
        torch.testing.assert_close(
            pruned.states[name][0], torch.where(before.abs() >= threshold, before, 0.0), rtol=0, atol=0
        )
    left = pruned.topology.num_active + sum(int((pruned.states[n] != 0).sum()) for n in biases)
    assert left == len(everything) - round(0.6 * len(everything))
    with pytest.raises(ValueError, match="expected by magnitude and structure weights where biases are pruned"):
        family(fit, base, "snr", biases=True)


def test_a_pruned_channel_is_silent_and_the_last_layer_stays() -> None:
    fit = fit_of("mlp")
    base = Frozen.of(fit)
    pruned = family(fit, base, structure="channels").at(0.5)
    net = pruned.ticket()
    first, second, last = (net[i] for i in (1, 3, 5))
    silent = [(layer.weight == 0).all(1) & (layer.bias == 0) for layer in (first, second)]
    empty = [int((layer.weight == 0).all(1).sum()) for layer in (base.ticket()[1], base.ticket()[3])]
    assert sum(int(s.sum()) for s in silent) >= round(0.5 * 36) >= sum(empty)
    torch.testing.assert_close(last.weight, base.ticket()[5].weight)
    score = np.concatenate([
        [row[row != 0].double().square().mean().sqrt().item() if (row != 0).any() else 0.0 for row in layer.weight]
        for layer in (base.ticket()[1], base.ticket()[3])
    ])  # fmt: skip
    gone = torch.cat(silent).numpy()
    assert score[gone].max() <= score[~gone].min()
    x = digits().test.x[:20]
    np.testing.assert_allclose(torch.softmax(net(x), -1).detach().numpy(), pruned.predict(x), atol=1e-6)


@pytest.mark.parametrize("how", ["ticket", "pairs"])
@pytest.mark.parametrize("kind", ["mlp", "norm"])
def test_by_nrs_the_channels_of_the_least_stable_relus_go_first(kind: str, how: Any) -> None:
    fit, data = fit_of(kind), digits()
    base = Frozen.of(fit, how)
    members = family(fit, base, "nrs", "channels", data=data)
    x = data.train.x[:512]
    (mean,), (sd,) = (part.tolist() for part in data.input_scale)
    edges = (-mean / sd, (16 - mean) / sd)
    low, high = (x + sign * 2 / 255 * 16 / sd for sign in (-1, 1))
    low, high = low.clamp(min=edges[0]), high.clamp(max=edges[1])
    total = 0.0
    for draw in range(len(base.values)):
        net = base.model.network(base.dense(draw), base.state(draw)).eval()
        lower, upper, scores = low, high, []
        for layer in list(net)[:-1]:
            if isinstance(layer, nn.ReLU):
                g2 = net[1].weight.view(1, -1, 1, 1) ** 2 if kind == "norm" else 1.0
                score = torch.tanh(1 + lower * upper / g2)
                scores.append(score.mean((0, 2, 3)) if score.dim() == 4 else score.mean(0))
                lower, upper = lower.relu(), upper.relu()
            elif isinstance(layer, nn.BatchNorm2d):
                ends = layer(lower), layer(upper)
                lower, upper = torch.minimum(*ends), torch.maximum(*ends)
            elif isinstance(layer, nn.Flatten):
                lower, upper = layer(lower), layer(upper)
            else:
                act = nn.functional.conv2d if isinstance(layer, nn.Conv2d) else nn.functional.linear
                plus, minus = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
                lower, upper = (act(a, plus, layer.bias) + act(b, minus) for a, b in ((lower, upper), (upper, lower)))
        total = total + torch.cat(scores).detach().double()
    torch.testing.assert_close(members.score, total / len(base.values), rtol=1e-4, atol=1e-5)
    assert members.score.std() > 0.005
    gone = members.score.argsort()[: round(0.5 * len(members.score))].tolist()
    weight = fit.model.unflatten(members.at(0.5).dense(0))
    rows = torch.cat([layer.flatten(1).abs().sum(1) for layer in list(weight.values())[:-1]])
    assert set(gone) <= set((rows == 0).nonzero()[:, 0].tolist())
    assert torch.equal(list(weight.values())[-1], list(fit.model.unflatten(base.dense(0)).values())[-1])


def test_a_layer_that_no_relu_follows_stays_and_nrs_wants_channels_and_data() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 10))
    infer = shelf.load("inference", "rigl")
    fit = infer(BayesianNetwork(net), digits(), training=Training(epochs=1, batch_size=50), sparsity=0.5, delta_t=2)
    base = Frozen.of(fit)
    members = family(fit, base, "nrs", "channels", data=digits())
    assert len(members.score) == 6
    kept = fit.model.unflatten(members.at(0.9).dense(0))
    assert torch.equal(kept["1.weight"], fit.model.unflatten(base.dense(0))["1.weight"])
    assert int((kept["3.weight"].abs().sum(1) > 0).sum()) <= 1
    for structure, data in (("weights", digits()), ("channels", None)):
        with pytest.raises(ValueError, match="expected structure channels, and data whose training rows show"):
            family(fit, base, "nrs", structure, data=data)  # type: ignore[arg-type]
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    fit = infer(BayesianNetwork(smooth), digits(), training=Training(epochs=1, batch_size=50), sparsity=0.5, delta_t=2)
    with pytest.raises(ValueError, match="expected a network with ReLUs after its layers to prune by nrs, got none"):
        family(fit, Frozen.of(fit), "nrs", "channels", data=digits())


def test_all_draws_lose_the_same_weights() -> None:
    fit = fit_of("mlp")
    base = Frozen.of(fit, "redraw", num_samples=4)
    pruned = family(fit, base).at(0.5)
    assert pruned.values.shape == (4, pruned.topology.num_active)
    for draw in range(4):
        after, before = pruned.dense(draw), base.dense(draw)
        torch.testing.assert_close(after[pruned.topology.positions], before[pruned.topology.positions], rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected one draw, got 4"):
        pruned.ticket()


def test_batch_norm_statistics_are_those_of_the_pruned_net() -> None:
    fit = fit_of("norm")
    base = Frozen.of(fit)
    pruned = family(fit, base).at(0.5)
    expected = batchnorm.estimate(fit.model, pruned.dense(0), base.state(0), fit.inputs or [])
    for name, tensor in expected.items():
        torch.testing.assert_close(pruned.states[name][0], tensor, rtol=0, atol=0)
    assert not torch.equal(pruned.states["net.1.running_var"], base.states["net.1.running_var"])
    inputs, fit.inputs = fit.inputs, None
    with pytest.raises(ValueError, match="call fit.look_at"):
        family(fit, base)
    fit.inputs = inputs


def test_what_is_stored_is_what_predicts() -> None:
    fit, x = fit_of("norm"), digits().test.x[:20]
    pruned = family(fit, Frozen.of(fit, "pairs")).at(0.6)
    again = Frozen.from_bundle(fit.model, pruned.bundle())
    np.testing.assert_array_equal(again.predict(x), pruned.predict(x))
    assert facts(again) == facts(pruned)


def test_unknown_ways_to_prune_are_named() -> None:
    with pytest.raises(
        ValueError, match="expected by of magnitude, layer-magnitude, snr, inclusion, bayes-factor, nrs, structure of weights"
    ):
        family(fit_of("mlp"), Frozen.of(fit_of("mlp")), "size")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["transposed", "declared first"])
def test_channels_of_what_has_none_or_of_the_answer_are_refused(kind: str) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(16, 10), nn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(x.flatten(1))))

    shaped = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 10))
    net = shaped if kind == "transposed" else First()
    training = Training(epochs=1, batch_size=200, device="cpu")
    infer = shelf.load("inference", "cigl")
    fit = infer(BayesianNetwork(net), digits(), drop_rate=0.1, delta_t=10**6, sparsity=0.5, training=training)
    said = "is transposed: prune weights" if kind == "transposed" else "head.weight is called after body.weight"
    with pytest.raises(ValueError, match=said):
        family(fit, Frozen.of(fit), structure="channels")
    assert family(fit, Frozen.of(fit)).at(0.5).topology.num_active < fit.topology.num_active


@pytest.mark.parametrize("kind", ["functional", "tied answer"])
def test_the_answer_is_judged_by_what_is_called(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.emb, self.mid, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            if kind == "tied answer":
                self.head.weight = self.emb.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.mid(torch.relu(self.emb(torch.relu(self.body(x.flatten(1)))))))
            return nn.functional.linear(h, self.head.weight, self.head.bias) if kind == "functional" else self.head(h)

    infer, training = shelf.load("inference", "cigl"), Training(epochs=1, batch_size=200, device="cpu")
    data = digits()._replace(num_classes=16)  # of which ten have examples
    fit = infer(BayesianNetwork(Net()), data, drop_rate=0.1, delta_t=10**6, sparsity=0.5, training=training)
    if kind == "functional":
        assert family(fit, Frozen.of(fit), structure="channels").at(0.2).topology.num_active < fit.topology.num_active
    else:
        with pytest.raises(ValueError, match="emb.weight is called after mid.weight"):
            family(fit, Frozen.of(fit), structure="channels")
