"""The loss nrs: cross-entropy and ReLUs that keep their side near every training row, by Pyro and without, in any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from digits import digits, mlp
from espalier import losses, shelf
from espalier.bounds import bounds, nrs, unstable_ratio
from espalier.contracts import Data
from espalier.data import ball_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import initial
from espalier.training import objective
from espalier.training.options import Training
from espalier.training.watch import Watches
from toys import toy
from unwritten import drawn, layout_of, twin
from watches import killed_and_resumed


def model_of(data: Data, spec: str, *, norm: bool = False) -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
    model = BayesianNetwork(net.double(), num_data=40, weight_decay=0.01)
    function = losses.named(spec)
    assert isinstance(function, losses.Stable)
    function.meet(model, data, torch.device("cpu"))
    model.loss = losses.Loss(spec, function, 10, 2)
    return model


def doubles() -> Data:
    data = toy()
    return data._replace(train=data.train._replace(x=data.train.x.double()))  # type: ignore[union-attr]


@pytest.mark.parametrize("norm", [False, True])
def test_it_is_the_cross_entropy_plus_rho_r_by_pyro_and_in_closed_form(norm: bool) -> None:
    data = doubles()
    model, (x, y) = model_of(data, "nrs:0.2:3", norm=norm), data.train
    found = []
    for how in (objective.closed_form, objective.by_pyro):
        guide = MaskedGuide(model, initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(1)), 0.8)
        guide.generator = torch.Generator().manual_seed(2)
        model.zero_grad()
        torch.manual_seed(3)
        model.train()
        if norm:
            model.net[1].reset_running_stats()
        terms = how(model, guide, x, y, objective.cast("float32", torch.device("cpu")))
        points = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([terms.loss, terms.fit, guide.values.grad, *points])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10)
    assert objective.is_ours(model, guide, x, y)

    guide.generator = torch.Generator().manual_seed(2)
    weights = guide.draw().detach()
    torch.manual_seed(3)
    if norm:
        model.net[1].reset_running_stats()
    model.train()
    entropy = F.cross_entropy(model.evaluate(weights, x), y)
    penalty = nrs(bounds(model.network(weights).eval(), x - 0.2, x + 0.2).relus).mean()
    assert float(found[0][1]) == pytest.approx(float((entropy + 3 * penalty).detach()), rel=1e-10)
    assert abs(float(penalty.detach())) > 0.1


def test_it_moves_no_buffer_and_no_mode_of_the_network() -> None:
    model = model_of(doubles(), "nrs:0.2", norm=True).train()
    model.net[2].eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert model.loss is not None
    assert model.loss.beside(model.initial, doubles().train.x, model).shape == (16,)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert [part.training for part in model.net] == [True, True, False, True, True]


def test_weights_that_are_not_written_out_have_the_same_r_and_gradient() -> None:
    torch.manual_seed(0)
    data = toy()
    model = BayesianNetwork(nn.Sequential(nn.Linear(160, 128), nn.ReLU(), nn.Linear(128, 10)).double())
    x = torch.randn(200, 160, dtype=torch.float64)
    function = losses.Stable(0.1)
    function.ball = ball_of(data, 0.1)
    layout = layout_of()
    found = []
    for values, draw in (drawn(layout), twin(layout, drawn(layout)[0])):
        output = model.evaluate(draw, x)
        loss = output.square().mean() + function.beside(draw, x, model).mean()
        found.append([loss, *torch.autograd.grad(loss, values)])
    for mine, theirs in zip(*found, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def trained(loss: Any, watch: Watches = None, inference: str = "cigl", **options: Any) -> Fit:
    training = Training(epochs=4, batch_size=32, learning_rate=0.2, device="cpu", loss=loss)
    options = {"sparsity": 0.5, "delta_t": 7, "freeze": 0.5, **options}
    return shelf.load("inference", inference)(mlp(), digits(), training=training, seed=1, watch=watch, **options)


def ratio(fit: Fit, eps: float = 0.05) -> float:
    with torch.no_grad():
        found = bounds(fit.ticket(), *ball_of(digits(), eps).box(digits().test.x))
        return float(unstable_ratio(found.relus).mean())


def test_it_makes_relus_stable_and_the_more_so_the_larger_its_weight(tmp_path: Path) -> None:
    ratios = [ratio(trained(loss, inference="rigl")) for loss in ("likelihood", "nrs:0.05:0.3", "nrs:0.05:3")]
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 0.6 * ratios[0]


@pytest.mark.parametrize("inference", ["cigl", "mean_field"])
def test_it_goes_with_any_inference_and_resumes_bit_for_bit(inference: str, tmp_path: Path) -> None:
    fit = trained("nrs:0.05:1", inference=inference)
    assert fit.record["loss"] == "nrs:0.05:1"
    again = killed_and_resumed(lambda watch: trained("nrs:0.05:1", watch, inference), tmp_path, 25)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


@pytest.mark.parametrize(("spec", "said"), [
    ("nrs", "expected a loss nrs:EPS or nrs:EPS:RHO, got 'nrs': other numbers than it takes"),
    ("nrs:0", "expected an eps and a rho above 0, got 0 and 0.01"),
    ("nrs:0.1:-1", "expected an eps and a rho above 0, got 0.1 and -1"),
])  # fmt: skip
def test_a_weight_or_a_reach_that_is_none_is_refused(spec: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Training(loss=spec)


@pytest.mark.parametrize(("layers", "spec", "said"), [
    ([nn.Linear(64, 9), nn.GELU(), nn.Linear(9, 10)], "nrs:0.1", "that intervals go through .* got gelu in it"),
    ([nn.Linear(64, 10)], "nrs:0.1", "expected a network with ReLUs to be stable, got none"),
    ([nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10)], "nrs:2", "expected an eps of at most 1 for images"),
])  # fmt: skip
def test_what_it_cannot_be_had_of_is_refused_before_any_work(layers: list[nn.Module], spec: str, said: str) -> None:
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), *layers))
    with pytest.raises(ValueError, match=said):
        shelf.load("inference", "rigl")(model, digits(), training=Training(loss=spec, device="cpu"), delta_t=5)
