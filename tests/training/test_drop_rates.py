"""Claims about the drop rate that is found while training: the estimate is that of an enumeration, the rule goes to the best rate
and stays in its bounds, a resumed run follows the same path."""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from budget import assert_mean
from espalier import BayesianNetwork, MaskedGuide, Training
from espalier.contracts import Data, Split
from espalier.distributions import effective_keep_prob, prior_scale_of, weight_decay_of
from espalier.inference import cigl, distilled
from espalier.topology import initial
from espalier.training import drop_rates
from espalier.training.drop_rates import HALF_WIDTH, Found, State, begin, init, loss_of, period, sides, step
from espalier.training.teachers import Teacher
from fitted import digits
from watches import Recorder

ROWS = 6


def tiny(likelihood: Any = "categorical") -> tuple[BayesianNetwork, MaskedGuide, Data]:
    """Five active weights, so that all 32 masks can be enumerated."""
    torch.manual_seed(3)
    net = nn.Linear(4, 3 if likelihood == "categorical" else 1)
    model = BayesianNetwork(net, likelihood=likelihood, num_data=50, prior_scale=1.0)
    sparsity = max(0.0, 1 - 5 / model.num_weights)
    topology = initial(model.shapes, sparsity, generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, 0.8)
    with torch.no_grad():
        guide.values.mul_(4)
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 0, 1, 2]) if likelihood == "categorical" else torch.linspace(-1, 1, ROWS)
    split = Split(x, y)
    classes = 3 if likelihood == "categorical" else None
    return model, guide, Data("tiny", split, split, Split(x[:0], y[:0]), split, (4,), classes)


def enumerated(model: BayesianNetwork, guide: MaskedGuide, data: Data, rate: float) -> float:
    """-log E_Z p(y | x, Z * u), the mean over rows, by all masks."""
    total: Tensor | float = 0.0
    for bits in itertools.product([0.0, 1.0], repeat=len(guide.values)):
        keep = torch.tensor(bits)
        chance = math.prod(1 - rate if bit else rate for bit in bits)
        dense = torch.zeros(model.num_weights).index_copy(0, guide.positions, guide.values.detach() * keep)
        log_prob = model.outcome(dense, data.validation.x).log_prob(data.validation.y)
        total = total + chance * log_prob.detach().double().exp()
    return float(-torch.as_tensor(total).log().mean())


@pytest.mark.parametrize("likelihood", ["categorical", lambda o: dist.StudentT(4.0, o.squeeze(-1), 0.5)])
def test_the_estimate_is_unbiased_for_the_enumerated_difference_up_to_few_draws(
    likelihood: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 draws, of whose bias, of order 1 / S^2 after the correction, nothing is seen."""
    monkeypatch.setattr(drop_rates, "DRAWS", 64)
    monkeypatch.setattr(drop_rates, "ROWS", 60)
    model, guide, data = tiny(likelihood)
    found = Found(data, 50, 1000, seed=0)
    found.states = [State(math.asin(math.sqrt(0.2)))]
    low, high = (math.sin(angle) ** 2 for angle in sides(found.states[0].phi))
    exact = (enumerated(model, guide, data, high) - enumerated(model, guide, data, low)) / (2 * HALF_WIDTH)
    assert_mean(torch.stack([found.gradient(model, guide) for _ in range(30)]), exact)


def test_the_difference_is_the_derivative_up_to_the_square_of_its_width() -> None:
    model, guide, data = tiny()
    phi = math.asin(math.sqrt(0.2))

    def loss(angle: float) -> float:
        return enumerated(model, guide, data, math.sin(angle) ** 2)

    derivative = (loss(phi + 1e-4) - loss(phi - 1e-4)) / 2e-4
    errors = [abs((loss(phi + h) - loss(phi - h)) / (2 * h) - derivative) for h in (2 * HALF_WIDTH, HALF_WIDTH)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


def test_the_mean_of_few_draws_is_less_biased_than_its_logarithm() -> None:
    """-log E p for p uniform on [0.1, 0.9], by means of 4 draws."""
    p = torch.rand(4, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8 + 0.1
    plain, corrected = -p.mean(0).log(), loss_of(p.log())
    truth = -math.log(0.5)
    assert abs(float(corrected.mean()) - truth) < 0.2 * abs(float(plain.mean()) - truth)
    own = p[:, 0].tolist()
    left_out = [-math.log(sum(own[:place] + own[place + 1 :]) / 3) for place in range(4)]
    assert float(corrected[0]) == pytest.approx(-4 * math.log(sum(own) / 4) - 3 * sum(left_out) / 4, abs=1e-12)


def test_where_draws_differ_by_orders_of_magnitude_the_slope_is_the_true_one() -> None:
    """log p ~ N(0, s^2), as of rows of a LeNet under its masks, and E p = exp(s^2 / 2): the slope in s is -s. The delta method's
    correction leaves about twice as much of the bias."""
    z = torch.randn(4, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def delta(log_probs: Tensor) -> Tensor:
        mean = torch.logsumexp(log_probs, 0) - math.log(4)
        return -mean - (log_probs - mean).exp().var(0) / 8

    for s in (0.5, 1.0):
        off = [abs(float((loss(z * (s + 0.02)) - loss(z * (s - 0.02))).mean()) / 0.04 + s) for loss in (loss_of, delta)]
        assert off[0] < 0.6 * off[1]


def test_one_draw_that_says_it_all_is_no_better_than_it_is() -> None:
    """Of which the jackknife alone would make anything."""
    log_probs = torch.tensor([[-0.1, -2.0], [-60.0, -2.0], [-80.0, -2.0], [-90.0, -2.0]], dtype=torch.float64)
    assert loss_of(log_probs).tolist() == pytest.approx([0.1, 2.0])


def test_the_rule_is_adam_on_the_angle_and_stays_in_its_bounds() -> None:
    state, phi, mean, square = init(0.05), math.asin(math.sqrt(0.05)), 0.0, 0.0
    for taken, gradient in enumerate([0.3, -0.1, 0.2, -0.4], 1):
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        phi -= 0.03 * (mean / (1 - 0.8**taken)) / math.sqrt(square / (1 - 0.95**taken))
        state = step(state, gradient, 0.1)
        assert state.phi == pytest.approx(phi)
    for sign in (1.0, -1.0):
        state = init(0.1)
        for _ in range(100):
            state = step(state, sign, 0.2)
        assert state.rate == pytest.approx(drop_rates.LOWEST if sign > 0 else drop_rates.HIGHEST)
    moved = [step(init(0.1), 1.0, progress).phi - init(0.1).phi for progress in (0.6, 0.8, 1.0)]
    np.testing.assert_allclose(moved, [-0.03, -0.01875, -0.0075])
    assert step(init(0.1), 0.0, 0.5).rate == pytest.approx(0.1)


def test_it_starts_where_it_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """At call, and not when the module was read: a study changes it."""
    monkeypatch.setattr(drop_rates, "START", 0.2)
    assert init().rate == pytest.approx(0.2)


def test_the_rate_goes_to_where_the_predictive_is_best() -> None:
    """Values that stand still: the rule ends where the enumerated loss is least."""
    model, guide, data = tiny()
    model.weight_decay = 1e-3
    found = Found(data, 64, 400 * 67, seed=1)
    for number in range(1, 401):
        found.after(number * found.every, model, guide)
    grid = np.linspace(0.001, 0.5, 200)
    best = grid[np.argmin([enumerated(model, guide, data, rate) for rate in grid])]
    assert 1 - guide.keep_prob == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("own", [False, True])
def test_the_decay_stays_or_the_prior_does(own: bool) -> None:
    model, guide, data = tiny()
    model.weight_decay = 1e-3
    found = Found(data, 50, 100, seed=0)
    found.keeps_prior, found.states = own, [init(0.3)]
    before = model.prior_scale, model.weight_decay
    found.begin(model, guide)
    assert guide.keep_prob == effective_keep_prob(0.7)
    if own:
        assert model.prior_scale == before[0]
        assert model.weight_decay == pytest.approx(weight_decay_of(1.0, 50, guide.keep_prob, rescale=False))
    else:
        assert model.weight_decay == before[1]
        assert model.prior_scale == pytest.approx(prior_scale_of(1e-3, 50, guide.keep_prob, rescale=False))


def network() -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 10))
    return BayesianNetwork(net)


OPTIONS: dict[str, Any] = {"sparsity": 0.7, "drop_rate": "auto", "delta_t": 10, "seed": 3}
TRAINING = Training(epochs=12, batch_size=128)
NONE = Split(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))


def test_a_training_finds_its_rate_and_says_so() -> None:
    fit = cigl.infer(network(), digits(), training=TRAINING, **OPTIONS)
    rates = [row["drop_rate"] for row in fit.history]
    assert len(set(rates)) > 2
    assert isinstance(fit.keep_prob, float)
    found, steps, rows = fit.record["drop_rate"], TRAINING.steps(digits()), len(digits().validation.y)
    last = found.pop("forward_examples") - steps // period(128) * 2 * 4 * 128
    assert last == 4 * rows * 2  # the last look: four turns, two products
    assert found == {"rule": "auto", "validation_rows": rows, "followed": rates[-1], "found": 1 - fit.keep_prob}
    assert fit.record["keep_prob"] == fit.keep_prob


def test_a_resumed_training_finds_the_same_rate() -> None:
    seen = Recorder()
    whole = cigl.infer(network(), digits(), training=TRAINING, watch=seen, **OPTIONS)
    again = cigl.infer(network(), digits(), training=TRAINING, watch=Recorder(seen.checkpoints[7]), **OPTIONS)
    assert again.history == whole.history
    assert torch.equal(again.pairs.values, whole.pairs.values)


def test_a_distilled_net_learns_from_masks_of_the_rate_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    real = Teacher.together

    def together(teacher: Teacher, *given: Any) -> Any:
        heard.append(teacher.fit.keep_prob)
        return real(teacher, *given)

    monkeypatch.setattr(Teacher, "together", together)
    fit = distilled.infer(network(), digits(), training=TRAINING, **OPTIONS)
    assert {*heard} == {1 - fit.record["drop_rate"]["found"]} == {fit.keep_prob}
    assert "distilled" in fit.ways


@pytest.mark.parametrize(
    ("options", "data", "sentence"),
    [
        ({"drop_rate": "best"}, digits(), "expected a drop_rate in \\[0, 1\\) or auto, auto-kind or auto-layer, got 'best'"),
        ({"drop_rate": "auto", "rescale": True}, digits(), "expected a number for drop_rate with rescale, got auto"),
    ],
)
def test_what_cannot_be_found_is_refused_before_any_work(options: dict[str, Any], data: Data, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cigl.infer(network(), data, training=TRAINING, **options)
    assert begin(0.25, network(), digits(), TRAINING, seed=0) == (0.75, [])


def test_without_a_validation_split_it_is_the_papers_and_that_is_said() -> None:
    with pytest.warns(UserWarning, match="digits has no validation split to find the drop rate on: it is 0.1, as in the paper"):
        found = begin("auto", network(), digits()._replace(validation=NONE), TRAINING, seed=0)
    assert found == (effective_keep_prob(0.9), [])


def test_a_training_that_ends_before_the_first_look_is_told_so() -> None:
    data, short = digits(), Training(epochs=2, batch_size=128)
    sentence = f"the drop rate stays at 0.01, where it begins: it is looked at every 34 steps, and there are {short.steps(data)}"
    with pytest.warns(UserWarning, match=sentence):
        begin("auto", network(), data, short, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin("auto", network(), data, TRAINING, seed=0)


def test_it_is_the_default_of_both_programs() -> None:
    for program in (cigl, distilled):
        assert inspect.signature(program.infer).parameters["drop_rate"].default == "auto"


def test_of_a_published_validation_split_that_lies_class_by_class_all_classes_are_looked_at() -> None:
    y = torch.arange(4000) // 400
    split = Split(torch.zeros(4000, 1), y)
    found = Found(Data("sorted", split, split, split, split, (1,), 10), 128, 10, seed=0)
    assert len(found.chosen.unique()) == drop_rates.POOL
    shares = torch.bincount(y[found.chosen], minlength=10) / drop_rates.POOL
    assert (shares - 0.1).abs().max() < 4 * math.sqrt(0.1 * 0.9 / drop_rates.POOL)


def test_a_rate_may_be_a_number_of_any_kind() -> None:
    model, _, data = tiny()
    assert begin(np.float32(0.25), model, data, Training(), seed=0) == (0.75, [])  # type: ignore[arg-type]


def test_a_long_training_looks_less_often() -> None:
    """Four per cent of the work, 8/3 steps each; up to eight, for sixty looks at each rate; and no more in the shortest."""
    assert [period(128, steps) for steps in (0, 500, 2040, 3000, 4020, 100000)] == [34, 34, 34, 50, 67, 67]
    assert [period(128, 4020, rates) for rates in (1, 2, 3)] == [67, 34, 34]
    assert period(64, 100000) == 134 == 2 * period(128, 100000)
    assert Found(digits(), 128, 3000, seed=0).every == 50
