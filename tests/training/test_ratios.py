"""Layer ratios: budgets to the weight, the trade at one price against enumeration and a linear programme, scores by hand."""

import importlib.util
import itertools
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog
from torch import nn

from espalier import Training, shelf
from espalier.certificates import Frozen, layerwise
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import erk, magnitude_topology, uniform
from espalier.training.ratios import Scorer, bought, exchange, fitted, layer_ratios, least_of
from toys import BATCH, toy

pytestmark = pytest.mark.usefixtures("own_store")


def trained(widths: tuple[int, ...] = (3, 5, 4, 3), seed: int = 0) -> Fit:
    torch.manual_seed(seed)
    layers = itertools.chain(*((nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths)))
    model = BayesianNetwork(nn.Sequential(*list(layers)[:-1]))
    training = Training(epochs=40, batch_size=BATCH, learning_rate=0.1, device="cpu")
    return shelf.load("inference", "dense")(model, toy(6 * BATCH), training=training, seed=seed)


# -------------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.7, 0.9])
@pytest.mark.parametrize("by", ["dual", "erk", "uniform"])
def test_the_budget_is_met_to_the_weight(by: Any, sparsity: float) -> None:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 17), nn.Tanh(), nn.Linear(17, 9), nn.Tanh(), nn.Linear(9, 3)))
    found = layer_ratios(model, toy(40), sparsity=sparsity, by=by, rows=20)
    assert sum(found.counts) == round((1 - sparsity) * model.num_weights)
    assert all(1 <= count <= size for count, size in zip(found.counts, model.sizes, strict=True))
    if by != "dual":
        assert found.counts == {"erk": erk, "uniform": uniform}[by](model.shapes, 1 - sparsity)


def test_counts_are_fitted_to_a_total_in_their_proportions() -> None:
    stream = np.random.default_rng(0)
    for _ in range(300):
        sizes = stream.integers(1, 400, stream.integers(1, 9))
        kept = stream.integers(1, sizes + 1)
        floor = stream.integers(1, sizes + 1) if stream.random() < 0.5 else np.ones_like(sizes)
        total = int(stream.integers(floor.sum(), sizes.sum() + 1))
        counts = np.array(fitted(kept, sizes, total, tuple(floor)))
        assert counts.sum() == total
        assert (counts >= floor).all()
        assert (counts <= sizes).all()
        between = (counts > floor) & (counts < sizes)
        least, most = (counts - 1) / kept, (counts + 1) / kept  # one factor within a weight of each that has room
        assert not between.any() or least[between].max() < most[between].min()
    shapes = [(64, 256), (256, 256), (256, 10)]  # where no layer is short, the allocations of these names
    for own, kept in ((erk, [320, 512, 266]), (uniform, [16384, 65536, 2560])):
        assert fitted(kept, (16384, 65536, 2560), 4224, (1, 1, 1)) == own(shapes, 0.05)
    assert fitted((10, 30, 2), (100, 40, 20), 84, (1, 1, 1)) == (37, 40, 7)  # 44 are left for 10 : 2
    assert fitted((10, 30, 2), (100, 40, 20), 84, (1, 1, 12)) == (32, 40, 12)


# ----------------------------------------------------------------------------------------------------------- the trade


def test_what_is_bought_at_one_price_is_the_best_of_all() -> None:
    """Of convex losses, one weight at a time: every choice enumerated."""
    stream = np.random.default_rng(1)
    for _ in range(20):
        options = [list(range(1, stream.integers(3, 9))) for _ in range(3)]
        losses = [np.cumsum(np.sort(stream.normal(-1, 1, len(own)))).tolist() for own in options]
        for total in range(3, sum(map(len, options)) + 1):
            counts, _ = bought(options, losses, total)
            assert sum(counts) == total
            value = [dict(zip(*pair, strict=True)) for pair in zip(options, losses, strict=True)]
            best = min(
                sum(own[k] for own, k in zip(value, choice, strict=True))
                for choice in itertools.product(*options) if sum(choice) == total
            )  # fmt: skip
            assert sum(own[k] for own, k in zip(value, counts, strict=True)) == pytest.approx(best)


def test_of_losses_that_are_not_convex_it_is_the_linear_programme_and_its_price() -> None:
    stream = np.random.default_rng(2)
    for _ in range(40):
        options = [np.sort(stream.choice(np.arange(1, 60), 6, replace=False)).tolist() for _ in range(4)]
        losses = [stream.exponential(1.0, 6).tolist() for _ in range(4)]
        total = int(stream.integers(sum(own[0] for own in options) + 1, sum(own[-1] for own in options)))
        counts, price = bought(options, losses, total)
        convex = np.kron(np.eye(4), np.ones(6))
        solved = linprog(np.ravel(losses), A_eq=[*convex, np.ravel(options)], b_eq=[1, 1, 1, 1, total])
        value = 0.0
        for own, loss, count in zip(options, losses, counts, strict=True):
            pairs = itertools.combinations_with_replacement(zip(own, loss, strict=True), 2)
            value += min(np.interp(count, (a, b), (f, g)) for (a, f), (b, g) in pairs if a <= count <= b)
        assert value == pytest.approx(solved.fun)
        more, less = (
            linprog(np.ravel(losses), A_eq=[*convex, np.ravel(options)], b_eq=[1, 1, 1, 1, total + step]).fun - solved.fun
            for step in (1e-4, -1e-4)
        )
        assert -more / 1e-4 - 1e-6 <= price <= less / 1e-4 + 1e-6  # a derivative, on the side of it that there is


@pytest.mark.parametrize("total", [10, 14, 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_search_by_a_dual_variable_finds_what_enumeration_finds(seed: int, total: int) -> None:
    fit = trained(seed=seed)
    weights, state = next(fit.weights("ticket"))
    score = Scorer(fit.model, weights, state, toy(6 * BATCH), 96, "train")
    every = [counts for counts in itertools.product(*(range(1, size + 1) for size in fit.model.sizes)) if sum(counts) == total]
    losses = sorted(score(counts).loss for counts in every)
    start = min((own(fit.model.shapes, total / fit.model.num_weights) for own in (erk, uniform)), key=lambda c: score(c).loss)
    found, trace = exchange(lambda c: score(c).loss, fit.model.sizes, start, (1, 1, 1))
    assert sum(found) == total
    assert score(found).loss <= score(start).loss
    assert losses.index(score(found).loss) <= 3  # of 36, 78 or 144; the best in seven cases of nine
    assert all(row["loss"] >= after["loss"] for row, after in itertools.pairwise(trace))


@pytest.mark.parametrize(("sparsity", "floor"), [(0.8, (17, 9, 3)), (0.88, (1, 1, 1))])
def test_a_layer_keeps_a_weight_for_each_output_where_there_are_as_many(sparsity: float, floor: tuple[int, ...]) -> None:
    """A network of chance: every weight of a layer is worth as much elsewhere."""
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 17), nn.Tanh(), nn.Linear(17, 9), nn.Tanh(), nn.Linear(9, 3)))
    total = round((1 - sparsity) * model.num_weights)
    assert least_of(model.shapes, total) == floor
    for by in ("dual", "ppo"):
        if by == "dual" or importlib.util.find_spec("stable_baselines3"):
            found = layer_ratios(model, toy(40), sparsity=sparsity, by=by, rows=20, steps=20).counts
            assert all(count >= least for count, least in zip(found, floor, strict=True))


def test_what_is_found_is_what_certificates_prune_layer_by_layer() -> None:
    fit = trained()
    found = layer_ratios(fit, toy(6 * BATCH), sparsity=0.6)
    assert found.score.loss <= layer_ratios(fit, toy(6 * BATCH), sparsity=0.6, by="erk").score.loss
    fractions = [1 - count / size for count, size in zip(found.counts, fit.model.sizes, strict=True)]
    theirs = layerwise(Frozen.of(fit), fractions).topology
    mine = magnitude_topology(fit.model.shapes, found.counts, next(fit.weights("ticket"))[0])
    assert torch.equal(theirs.positions, mine.positions)


# --------------------------------------------------------------------------------------------------------------- scores


def test_a_score_is_that_of_plain_torch_on_the_rows_that_were_asked_for() -> None:
    fit, data = trained(), toy(6 * BATCH)
    weights, state = next(fit.weights("ticket"))
    score = Scorer(fit.model, weights, state, data, 50, "train")
    mine = score((4, 9, 5))
    plain = fit.ticket()
    for layer, count in zip([part for part in plain if isinstance(part, nn.Linear)], (4, 9, 5), strict=True):
        with torch.no_grad():
            layer.weight[layer.weight.abs() < layer.weight.abs().flatten().sort(descending=True).values[count - 1]] = 0.0
    y = data.train.y[:50]
    said = plain(data.train.x[:50]).detach()  # type: ignore[index]
    assert mine.loss == pytest.approx(float(F.cross_entropy(said, y)), rel=1e-5)
    assert mine.accuracy == pytest.approx(float((said.argmax(1) == y).float().mean()))
    score((4, 9, 5))
    assert score.forward_examples == 50


def test_the_examples_of_a_search_are_counted_and_no_test_row_is_looked_at() -> None:
    data = toy(6 * BATCH)
    looked: list[int] = []
    broken = data._replace(test=data.test._replace(x=None), calibration=data.calibration._replace(x=None))
    model = trained().model
    plain = model.evaluate

    def counted(weights: Any, x: Any, state: Any = None) -> Any:
        looked.append(len(x))
        return plain(weights, x, state)

    model.evaluate = counted
    found = layer_ratios(model, broken, sparsity=0.6, rows=30)
    assert found.forward_examples == sum(looked) > 30
    assert found.facts()["forward_examples"] == found.forward_examples


def test_a_regression_is_searched_by_its_likelihood() -> None:
    data = toy(64, None)
    data = data._replace(train=data.train._replace(y=data.train.x[:, 0] * 2.0))  # type: ignore[index]
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    found = layer_ratios(BayesianNetwork(net, likelihood="normal"), data, sparsity=0.5)
    assert sum(found.counts) == 12
    assert math.isnan(found.score.accuracy)
    assert "accuracy" not in found.facts()


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"by": "rl"}, "expected by of dual, ppo, erk, uniform and search_on of train, validation, got 'rl', 'train'"),
        ({"search_on": "test"}, "expected by of dual, .* got 'dual', 'test'"),
        ({"rows": 0}, "expected whole rows and steps of at least 1"),
        ({"sparsity": 1.0}, r"expected a sparsity in \[0, 1\) that leaves a weight to each of 2 layers, got 1"),
        ({"sparsity": 0.97}, r"expected a sparsity in \[0, 1\) that leaves a weight to each of 2 layers, got 0.97"),
        ({"search_on": "validation"}, "expected rows to find layer ratios on, but the validation split of toy is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], sentence: str) -> None:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match=f"^{sentence}"):
        layer_ratios(model, toy(), **{"sparsity": 0.5, **options})


def test_a_sparse_fit_and_a_regression_by_accuracy_are_refused() -> None:
    sparse = shelf.load("inference", "static")(
        BayesianNetwork(nn.Linear(3, 3)), toy(), sparsity=0.5, training=Training(epochs=1, device="cpu")
    )
    with pytest.raises(ValueError, match="^expected a dense fit to find layer ratios of, got density 0.4"):
        layer_ratios(sparse, toy(), sparsity=0.5)
    model = BayesianNetwork(nn.Linear(3, 1), likelihood="normal")
    with pytest.raises(ValueError, match="^expected classes for by ppo, whose reward is accuracy, but toy is a regression"):
        layer_ratios(model, toy(classes=None), sparsity=0.5, by="ppo")


def test_without_the_libraries_of_the_agent_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "espalier.training.constrained", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    model = BayesianNetwork(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r'^expected gymnasium and stable-baselines3 for by ppo: pip install "espalier\[rl\]"'):
        layer_ratios(model, toy(), sparsity=0.5, by="ppo")
