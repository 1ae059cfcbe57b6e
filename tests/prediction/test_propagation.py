"""The way to predict `moments`: exact where it can be, beside many masks where it cannot; its factors by hand."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from espalier import Training, shelf
from espalier.calibration import UNCERTAINTIES
from espalier.certificates.pruning import Frozen
from espalier.contracts import Data
from espalier.data import from_arrays
from espalier.network import BayesianNetwork
from espalier.prediction import Ensemble, Fit, equip, posterior_check, tree_of, uncertainties
from espalier.prediction.costs import costs
from espalier.prediction.propagation import EACH, MASKS, ROWS, normals
from fitted import digits, mlp_net, plain, regression, trained, zeros_but

FEW = Training(epochs=2, batch_size=32, learning_rate=0.1, device="cpu")


def mean_kl(p: Tensor, q: Tensor) -> float:
    return float((p * (p.clamp_min(1e-30) / q.clamp_min(1e-30)).log()).sum(-1).mean())


def fitted(net: nn.Module, data: Data, inference: str = "cigl", **options: Any) -> Fit:
    options = {"sparsity": 0.5, "seed": 1, "training": FEW, **options}
    return shelf.load("inference", inference)(BayesianNetwork(net), data, **options)


@functools.cache
def linear() -> Fit:
    torch.manual_seed(0)
    return fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits(), drop_rate=0.3)


def moments_of(fit: Fit, x: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
    """Mean and variance of the laid-out outputs, up to the constant that a softmax takes from its logits."""
    logits = torch.stack([one.logits for one in fit.outcomes(x, "moments", num_samples=count)])
    return logits.mean(0), logits.var(0, unbiased=False)


def test_of_one_linear_layer_the_moments_are_exact() -> None:
    fit, x = linear(), digits().test.x[:20]
    u, p = zeros_but(fit, fit.pairs.values[-1]).view(10, 64).double(), fit.keep_prob
    bias = fit.pairs.states["net.1.bias"][-1].double()
    flat = x.flatten(1).double()
    fit.record["moments"]["factors"] = [1.0, 1.0]
    outputs = [one.logits for one in fit.outcomes(x, "moments", num_samples=64)]
    # Categorical normalises its logits: differences of two are what they were.
    mean = torch.stack(outputs).mean(0)
    told = flat @ (p * u).t() + bias
    torch.testing.assert_close(mean - mean[:, :1], told - told[:, :1], atol=1e-5, rtol=1e-5)
    spread = (flat.square() @ (p * (1 - p) * u.square()).t())[:, 1:] + (flat.square() @ (p * (1 - p) * u.square()).t())[:, :1]
    found = torch.stack([one - one[:, :1] for one in outputs])[:, :, 1:].var(0, unbiased=False)
    torch.testing.assert_close(found, spread, rtol=0.15, atol=1e-6)  # points of two classes are uncorrelated up to 1 / sqrt(512)


def test_its_factors_there_are_one_up_to_the_noise_of_the_masks() -> None:
    fit = fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits(), drop_rate=0.3)
    layer, _ = fit.record["moments"]["factors"]
    assert layer == pytest.approx(1, abs=0.15)  # ten outputs of MASKS masks: sqrt(2 / 31 / 10) = .08


def test_factors_are_the_spread_of_the_masks_over_what_was_computed() -> None:
    """By hand in float64: plain networks, their layers' outputs kept, and the formulas."""
    fit, _ = trained("mlp")
    x = digits().train.x[:ROWS]
    kept: list[list[Tensor]] = [[], []]
    for values in fit.redrawn(MASKS):
        net = plain("mlp", zeros_but(fit, values), fit.pairs.state(-1), normalise=False)
        first = net[1](net[0](x))
        kept[0].append(first.detach().double())
        kept[1].append(net[3](net[2](first)).detach().double())
    u, p = zeros_but(fit, fit.pairs.values[-1]).double(), fit.keep_prob
    w1, w2 = u[: 64 * 40].view(40, 64), u[64 * 40 :].view(10, 40)
    b1, b2 = (fit.pairs.states[f"net.{layer}.bias"][-1].double() for layer in (1, 3))
    flat = x.flatten(1).double()
    loc, variance = flat @ (p * w1).t() + b1, flat.square() @ (p * (1 - p) * w1.square()).t()
    factors = [float(torch.stack(kept[0]).var(0).sum() / variance.sum())]
    s = (variance * factors[0]).sqrt()
    below, density = (torch.from_numpy(of((loc / s).numpy())) for of in (stats.norm.cdf, stats.norm.pdf))
    a = loc * below + s * density
    b = (loc.square() + s.square()) * below + loc * s * density - a.square()
    w, v = p * w2, p * (1 - p) * w2.square()
    computed = (a.square() + b) @ v.t() + b @ w.square().t()
    factors.append(float(torch.stack(kept[1]).var(0).sum() / computed.sum()))
    found = fit.record["moments"]
    assert found["factors"][:2] == pytest.approx(factors, rel=1e-4)
    assert (found["rows"], found["masks"], len(found["factors"])) == (ROWS, MASKS, 3)
    assert b2.shape == (10,)
    # The last: no other brings the mean probabilities closer to those of the masks.
    told = torch.stack([F.softmax(logits, -1) for logits in kept[1]]).mean(0)
    mean, deviation = a @ w.t() + b2, (computed * factors[1]).sqrt()

    def distance(factor: float) -> float:
        points = normals(EACH * MASKS, 10)
        return mean_kl(told, (mean + points[:, None] * deviation * factor**0.5).softmax(-1).mean(0))

    best = found["factors"][2]
    assert distance(best) <= min(distance(best * by) for by in (0.3, 0.8, 0.9, 1.1, 1.25, 3.0))


@pytest.mark.parametrize("name", ["mlp", "mlp-rescaled", "conv", "conv-rescaled"])
def test_one_pass_says_what_many_masks_say(name: str) -> None:
    fit, _ = trained(name)
    fit.look_at(digits())
    x = digits().test.x
    many = fit.predict(x, "redraw", num_samples=300, seed=5).double()
    ours = fit.predict(x, "moments", num_samples=64)
    assert ours.shape == (64 * EACH, len(x), 10)
    distance = mean_kl(many.mean(0), ours.mean(0))
    few = fit.predict(x, "redraw", num_samples=16, seed=6).double().mean(0)
    assert distance < 0.3 * mean_kl(many.mean(0), fit.predict(x, "mean")[0].double())
    assert distance < mean_kl(many.mean(0), few) * (1 if name.startswith("mlp") else 2)
    information = [UNCERTAINTIES["mutual_information"](draws.numpy()) for draws in (many, ours)]
    assert np.corrcoef(*information)[0, 1] > (0.9 if name.startswith("mlp") else 0.75)
    # Under batch norm the last factor makes up for means that are a little off, at the price of the size.
    assert information[1].mean() == pytest.approx(information[0].mean(), rel=0.35 if name.startswith("mlp") else 0.8)


def test_a_gaussian_guide_has_its_own_moments() -> None:
    torch.manual_seed(0)
    fit = fitted(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits(), "mean_field")
    assert fit.pairs.scales is not None
    x = digits().test.x[:40]
    many = torch.stack([one.logits for one in fit.outcomes(x, "redraw", num_samples=400)]).softmax(-1)
    mean = fit.predict(x, "mean")[0].double()
    assert mean_kl(many.mean(0), fit.predict(x, "moments").mean(0)) < 0.1 * mean_kl(many.mean(0), mean) + 1e-4


def test_a_regression_has_the_variance_that_was_computed() -> None:
    data, fit = regression()
    x = data.test.x[:30]
    found = fit.predict(x, "moments", num_samples=4)
    many = fit.predict(x, "redraw", num_samples=400)
    assert fit.record["moments"]["factors"][-1] == pytest.approx(1.0, abs=1e-6)  # nothing comes after the last layer
    mean, spread = many[..., 0].mean(0), many[..., 0].std(0)
    torch.testing.assert_close(found[..., 0].mean(0), mean, atol=float(spread.max()) / 2, rtol=0)
    assert float((found[..., 0].std(0, unbiased=False) / spread).log().abs().mean()) < 0.4
    torch.testing.assert_close(found[..., 1], found[:1, :, 1].expand_as(found[..., 1]))  # one likelihood


def test_the_normals_have_mean_zero_and_variance_one_and_are_normal() -> None:
    points = normals(256, 10, 3)
    torch.testing.assert_close(points.mean(0), torch.zeros(10, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(points.square().mean(0), torch.ones(10, dtype=torch.float64))
    assert stats.kstest(points.numpy()[:, 4], "norm").statistic < 0.02  # of independent draws .05
    assert float((points.t() @ points / 256 - torch.eye(10)).abs().max()) < 0.15
    assert not torch.equal(points, normals(256, 10, 4))
    assert torch.equal(points, normals(256, 10, 3))
    assert normals(2, 30_000).shape == (2, 30_000)  # more than a Sobol sequence has
    assert torch.equal(normals(1, 3), torch.zeros(1, 3, dtype=torch.float64))


def test_to_look_moves_nothing_and_says_the_same_again() -> None:
    fit, _ = trained("conv")
    fit.look_at(digits())
    before, own = {name: t.clone() for name, t in fit.model.state_dict().items()}, dict(fit.record["moments"])
    state = torch.get_rng_state()
    equip(fit, digits())
    assert fit.record["moments"] == own
    assert torch.equal(torch.get_rng_state(), state)
    after = fit.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    json.dumps(fit.record["moments"])


def test_a_file_brings_it_back_bit_for_bit(tmp_path: Path) -> None:
    fit, _ = trained("mlp")
    fit.save(tmp_path)
    again = Fit.load(tmp_path, BayesianNetwork(mlp_net()))
    x = digits().test.x[:9]
    assert torch.equal(again.predict(x, "moments", seed=2), fit.predict(x, "moments", seed=2))
    assert not torch.equal(fit.predict(x, "moments", seed=2), fit.predict(x, "moments", seed=3))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)).cumsum(-1)


class Nosy(Odd):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x.flatten(1))
        return found * float(found.detach().numpy().max() > 0)


@pytest.mark.parametrize(("net", "word"), [(Odd, "cumsum"), (Nosy, ".+")])
def test_a_network_that_it_cannot_go_through_is_trained_all_the_same(net: type[nn.Module], word: str) -> None:
    fit = fitted(net(), digits(), drop_rate=0.2)
    assert "moments" not in fit.ways
    assert list(fit.record["moments"]) == ["unknown"]
    assert re.search(word, fit.record["moments"]["unknown"])
    with pytest.raises(ValueError, match="expected one of ticket"):
        fit.predict(digits().test.x[:3], "moments")


class Written(Odd):
    """Writes what is random into what is not."""

    def forward(self, x: Tensor) -> Tensor:
        found = x.new_zeros(len(x), 10)
        found += self.body(x.flatten(1))
        return found


class Viewed(Odd):
    """Writes into a view, of which the whole is to know."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x.flatten(1))
        found.view(-1).relu_()
        return found


class Noisy(Odd):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x.flatten(1))
        return found + torch.randn_like(x.flatten(1)[:, :10])


@pytest.mark.parametrize("net", [Written, Viewed, Noisy])
def test_a_network_that_it_would_get_wrong_is_left_out(net: type[nn.Module]) -> None:
    fit = fitted(net(), digits(), drop_rate=0.2)
    assert "unknown" in fit.record["moments"]
    state = torch.get_rng_state()
    equip(fit, digits())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_posterior_that_hardly_moves_its_mean_keeps_its_variance(likelihood: str, seed: int) -> None:
    """Its cross-entropy knows no last factor: any from .05 to 20 was found."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    data = from_arrays(x, (x[:, 0] + rng.normal(size=400) > 0).astype(np.int64))
    torch.manual_seed(seed)
    model = shelf.load("models", "mlp")((6,), 2, hidden=(20,), likelihood=likelihood)
    fit = shelf.load("inference", "cigl")(model, data, sparsity=0.3, drop_rate=0.3, seed=seed, training=FEW)
    assert 0.8 < fit.record["moments"]["factors"][-1] < 1.25


def test_few_rows_of_large_inputs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, _ = trained("mlp")
    own = dict(fit.record["moments"])
    monkeypatch.setattr("espalier.prediction.propagation.NUMBERS", 64 * 10)
    equip(fit, digits())
    assert fit.record["moments"]["rows"] == 10
    fit.record["moments"] = own


def test_rows_of_another_dtype_are_a_sentence() -> None:
    fit, _ = trained("mlp")
    with pytest.raises(ValueError, match=r"expected rows of torch.float32, got torch.float64"):
        fit.predict(digits().test.x[:3].double(), "moments")


def test_one_network_has_no_use_for_it() -> None:
    fit, _ = trained("mlp-rigl")
    assert "moments" not in fit.record
    assert "moments" not in fit.ways


def test_a_rate_a_layer_and_a_layer_without_masks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    fit = fitted(net, digits(), drop_rate=0.2)
    fit.keep_prob = (1.0, 0.7)
    equip(fit, digits())
    assert fit.record["moments"]["factors"][0] == 1.0  # nothing moves
    x = digits().test.x
    many = fit.predict(x, "redraw", num_samples=300).double().mean(0)
    assert mean_kl(many, fit.predict(x, "moments").mean(0)) < 0.5 * mean_kl(many, fit.predict(x, "mean")[0].double())


@pytest.mark.parametrize("mask", ["unit", "filter"])
def test_shared_masks(mask: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
    fit = fitted(net, digits(), drop_rate=0.1, mask=mask)
    x = digits().test.x
    many = fit.predict(x, "redraw", num_samples=300).double().mean(0)
    assert mean_kl(many, fit.predict(x, "moments").mean(0)) < 0.5 * mean_kl(many, fit.predict(x, "mean")[0].double())


def test_several_fits_pool_theirs() -> None:
    fits = [trained("mlp", seed)[0] for seed in (2, 3)]
    both, x = Ensemble(fits), digits().test.x[:5]
    found = both.predict(x, "moments", num_samples=4)
    assert len(found) == 2 * 4 * EACH
    torch.testing.assert_close(found[: 4 * EACH], fits[0].predict(x, "moments", num_samples=4))


def test_what_follows_from_draws_follows() -> None:
    fit, _ = trained("mlp")
    data, x = digits(), digits().test.x[:50]
    doubt = uncertainties(fit, x, "moments", names=["mutual_information", "expected_entropy", "predictive_entropy"])
    np.testing.assert_allclose(doubt["mutual_information"] + doubt["expected_entropy"], doubt["predictive_entropy"], atol=1e-9)
    tree = tree_of(fit, data, ways=["moments"], num_samples=2)
    assert tree["predictions/probability"].shape[:2] == (1, 2 * EACH)
    found, ticket = (costs(fit, way) for way in ("moments", "ticket"))
    assert found["inference_flops"] == 2 * ticket["inference_flops"]
    assert found["disk_bytes"] == ticket["disk_bytes"]


def test_what_asks_for_networks_is_refused() -> None:
    fit, _ = trained("mlp")
    data = digits()
    with pytest.raises(ValueError, match="by networks"):
        Frozen.of(fit, "moments")
    with pytest.raises(ValueError, match="vary together"):
        posterior_check(fit, data.test.x, data.test.y, how="moments")
    with pytest.raises(ValueError, match="draw weights for layers"):
        tree_of(fit, data, ways=["moments"], layers=["1.weight"])


def test_rows_of_few_training_examples_do() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    data = from_arrays(x, (x[:, 0] > 0).astype(np.int64))
    fit = fitted(nn.Linear(5, 2), data, drop_rate=0.2, training=Training(epochs=1, batch_size=8, device="cpu"))
    assert fit.record["moments"]["rows"] == len(data.train.y) < ROWS
    assert fit.predict(data.test.x, "moments").shape == (16 * EACH, len(data.test.y), 2)


def test_an_output_that_is_expanded_has_moments() -> None:
    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).expand(-1, 10)

    assert "factors" in fitted(Expanded(), digits(), drop_rate=0.2).record["moments"]


class Heads(nn.Module):
    """The mean of many independent outputs, or their sums by class: reductions that no layer comes after."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.classes = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32 * classes)), classes

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(len(x), self.classes, 32).sum(-1) / 8


@pytest.mark.parametrize("classes", [1, 10])
def test_sums_of_what_is_independent_after_the_last_layer_have_the_spread_of_the_masks(classes: int) -> None:
    torch.manual_seed(0)
    data, x = digits(), digits().test.x[:100]
    if classes == 1:
        parts = {part: getattr(data, part)._replace(y=getattr(data, part).y.float()) for part in ("train", "validation", "test")}
        data = data._replace(num_classes=None, **parts)
    model = BayesianNetwork(Heads(classes), likelihood="categorical" if classes > 1 else "normal")
    training = Training(epochs=4, batch_size=32, learning_rate=0.02, device="cpu")
    fit = shelf.load("inference", "cigl")(model, data, sparsity=0.3, drop_rate=0.2, training=training, seed=1)
    drawn, told = fit.predict(x, "redraw", num_samples=200), fit.predict(x, "moments", num_samples=32)
    if classes == 1:
        spread = [each[..., 0].var(0, unbiased=False).mean() for each in (told, drawn)]
        assert float(spread[0] / spread[1]) == pytest.approx(1, abs=0.3)  # factors of 32 masks; 30 times without them
    else:
        assert mean_kl(drawn.mean(0), told.mean(0)) < 0.01
        doubt = [UNCERTAINTIES["mutual_information"](each.numpy()).mean() for each in (told, drawn)]
        assert doubt[0] / doubt[1] == pytest.approx(1, abs=0.4)
