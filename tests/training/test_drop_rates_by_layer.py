"""One rate a layer, or a kind of layers: each Z has its layer's, what follows does too, and each is found at its own best."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from budget import assert_mean, assert_rate
from digits import digits
from espalier.contracts import Data, Split
from espalier.guides.masked import MaskedGuide, draw_mask
from espalier.inference import cigl, distilled
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import initial
from espalier.training import drop_rates
from espalier.training.drop_rates import HALF_WIDTH, Found, State, shares, sides
from espalier.training.options import Training
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
KEPT = (0.9, 0.4)


def tiny() -> tuple[BayesianNetwork, MaskedGuide, Data]:
    """Two layers of four and three active weights: 128 masks."""
    torch.manual_seed(3)
    model = BayesianNetwork(nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)), num_data=50, prior_scale=1.0)
    topology = initial(model.shapes, 0.5, "uniform", generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, KEPT)
    with torch.no_grad():
        guide.values.mul_(4)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    split = Split(x, torch.tensor([0, 1, 2, 0, 1, 2]))
    return model, guide, Data("tiny", split, split, Split(x[:0], split.y[:0]), split, (4,), 3)


def enumerated(model: BayesianNetwork, guide: MaskedGuide, data: Data, rates: tuple[float, ...]) -> float:
    """-log E_Z p(y | x, Z * u), the mean over rows, by all masks."""
    each = torch.tensor(rates, dtype=torch.float64).repeat_interleave(torch.tensor(guide.counts))
    total: Tensor | float = 0.0
    for bits in itertools.product([0.0, 1.0], repeat=len(guide.values)):
        keep = torch.tensor(bits)
        chance = torch.where(keep > 0, 1 - each, each).prod()
        dense = torch.zeros(model.num_weights).index_copy(0, guide.positions, guide.values.detach() * keep)
        total = total + chance * model.outcome(dense, data.validation.x).log_prob(data.validation.y).detach().double().exp()
    return float(-torch.as_tensor(total).log().mean())


@pytest.mark.parametrize("mask", ["weight", "unit", "filter"])
def test_each_z_is_kept_at_its_layers_rate(mask: str) -> None:
    model = BayesianNetwork(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 5)))
    topology = initial(model.shapes, 0.3, generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, KEPT, mask=mask, generator=torch.Generator().manual_seed(1))
    drawn, again = [], torch.Generator().manual_seed(1)
    for _ in range(400):
        guide.draw()
        assert guide.keep is not None
        drawn.append(guide.keep)
        assert torch.equal(guide.keep, draw_mask(guide.positions, guide.shapes, mask, KEPT, again))
    for keep, kept in zip(torch.stack(drawn).split(guide.counts, 1), KEPT, strict=True):
        first = {int(unit): place for place, unit in reversed(list(enumerate(keep.T.long() @ torch.arange(1, 401))))}
        alone = keep[:, sorted(first.values())]  # one weight of each group: those are independent
        assert_rate(int(alone.sum()), alone.numel(), kept)


def test_what_a_fit_predicts_by_goes_by_layers_and_files_keep_it(tmp_path: Path) -> None:
    fit = cigl.infer(network(), digits(), training=Training(epochs=4, batch_size=128, device="cpu"), delta_t=5)
    fit.keep_prob = (0.75, 0.5)
    each = torch.tensor(fit.keep_prob).repeat_interleave(torch.tensor(fit.topology.counts))
    values, _ = next(fit.values("mean"))
    assert torch.equal(values, fit.pairs.values[-1] * each)
    many = torch.stack([values for values, _ in fit.values("redraw", num_samples=300)])
    for own, kept in zip((many != 0).split(fit.topology.counts, 1), fit.keep_prob, strict=True):
        assert_rate(int(own.sum()), own.numel(), kept)
    fit.save(tmp_path)
    loaded = Fit.load(tmp_path, network())
    assert loaded.keep_prob == fit.keep_prob
    assert loaded.masked
    assert torch.equal(next(loaded.values("redraw"))[0], many[0])
    assert "keep_prob 0." in repr(loaded)


@pytest.mark.parametrize("number", [0, 1])
def test_each_rates_estimate_is_unbiased_for_its_own_difference(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_rates, "DRAWS", 64)
    monkeypatch.setattr(drop_rates, "ROWS", 60)
    model, guide, data = tiny()
    found = Found(data, 50, 1000, 0, "auto-layer", model.shapes)
    found.states = [State(math.asin(math.sqrt(0.2))), State(math.asin(math.sqrt(0.35)))]

    def at(angle: float) -> float:
        rates = [0.2, 0.35]
        rates[number] = math.sin(angle) ** 2
        return enumerated(model, guide, data, tuple(rates))

    low, high = sides(found.states[number].phi)
    assert_mean(torch.stack([found.gradient(model, guide, number) for _ in range(30)]), (at(high) - at(low)) / (2 * HALF_WIDTH))


def test_each_goes_its_own_way_to_where_the_predictive_is_best() -> None:
    """Here one to its lower end and one to its upper, by enumeration."""
    model, guide, data = tiny()
    data = data._replace(validation=data.validation._replace(y=torch.tensor([2, 0, 0, 0, 1, 2])))
    found = Found(data, 64, 900 * 67, 1, "auto-layer", model.shapes)
    for number in range(1, 901):
        found.after(number * found.every, model, guide)
    best = min(itertools.product((0.001, 0.25, 0.5), repeat=2), key=lambda rates: enumerated(model, guide, data, rates))
    assert best == (0.001, 0.5)
    assert isinstance(guide.keep_prob, tuple)
    assert guide.keep_prob[0] > 0.99
    assert guide.keep_prob[1] < 0.55
    assert found.row()["drop_rate"] == pytest.approx(1 - np.dot(guide.keep_prob, guide.counts) / sum(guide.counts))


def test_which_layers_share_a_rate() -> None:
    shapes = [(6, 3, 3, 3), (8, 6, 3, 3), (20, 32), (10, 20)]
    assert shares("auto", shapes) == (0, 0, 0, 0)
    assert shares("auto-kind", shapes) == (0, 0, 1, 1)
    assert shares("auto-layer", shapes) == (0, 1, 2, 3)
    assert shares("auto-kind", shapes[2:]) == (0, 0)


def network() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)))


def test_a_training_finds_them_says_so_and_resumes_bit_for_bit() -> None:
    options = {"drop_rate": "auto-layer", "microbatches": 2, "sparsity": 0.5, "delta_t": 5, "seed": 1}
    training, seen = Training(epochs=30, batch_size=128, device="cpu"), Recorder()
    whole = distilled.infer(network(), digits(), training=training, watch=seen, **options)
    again = distilled.infer(network(), digits(), training=training, watch=Recorder(seen.checkpoints[20]), **options)
    assert again.history == whole.history
    assert again.keep_prob == whole.keep_prob
    assert torch.equal(again.pairs.values, whole.pairs.values)
    assert isinstance(whole.keep_prob, tuple)
    assert len(set(whole.keep_prob)) == 2
    told = whole.record["drop_rate"]
    assert told["rule"] == "auto-layer"
    assert told["by_layer"] == [1 - p for p in whole.keep_prob]
    assert told["followed"] == next(row["drop_rate"] for row in reversed(whole.history) if "drop_rate" in row)
    assert "distilled" in whole.ways


def test_as_many_as_layers_and_none_with_rescale() -> None:
    model, guide, _ = tiny()
    for options in ({"keep_prob": (0.9,)}, {"keep_prob": KEPT, "rescale": True}):
        with pytest.raises(ValueError, match="expected one keep_prob, or without rescale one for each of 2 layers, got"):
            MaskedGuide(model, guide.topology, **options)


def test_with_a_topology_that_is_pruned_it_resumes_bit_for_bit_too() -> None:
    """The mean rate is that of the last estimate, of as many weights as there were then."""
    options = {"drop_rate": "auto-layer", "rule": "gradual", "sparsity": 0.8, "delta_t": 5, "seed": 3}
    training, seen = Training(epochs=16, batch_size=128, device="cpu"), Recorder()
    whole = cigl.infer(network(), digits(), training=training, watch=seen, **options)
    for begun in (4, 8):
        again = cigl.infer(network(), digits(), training=training, watch=Recorder(seen.checkpoints[begun]), **options)
        assert again.history == whole.history
        assert torch.equal(again.pairs.values, whole.pairs.values)
