"""PNC against closed forms: b cancels exactly where training is linear, and both intervals are the textbook's."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from budget import assert_rate
from espalier import BayesianNetwork, Data, Split, Training
from espalier.inference import cigl, dense, rigl, static
from espalier.likelihoods import Normal
from espalier.models import deep_gp, linear
from espalier.references.procedural import (
    Procedure,
    batching,
    batching_interval,
    cheap_bootstrap,
    cheap_bootstrap_interval,
    corrected,
    untrained,
)

ROWS, NEW = 6, 5


def few(features: int = 10, rows: int = ROWS, shift: float = 3.0, scale: float = 2.0) -> Data:
    """Targets in units of `scale` about `shift`. Of fewer rows than features the kernel has eigenvalues that SGD reaches soon."""
    stream = torch.Generator().manual_seed(5)
    x, y = torch.randn(rows + NEW, features, generator=stream), torch.randn(rows + NEW, generator=stream)
    if rows < features:
        left, _, right = torch.linalg.svd(x[:rows], full_matrices=False)
        x[:rows] = left @ torch.diag(torch.linspace(2.0, 3.0, rows)) @ right
    train, test, empty = Split(x[:rows], y[:rows]), Split(x[rows:], y[rows:]), Split(x[:0], y[:0])
    return Data("few", train, empty, empty, test, (features,), None, target_shift=shift, target_scale=scale)


def straight(data: Data, b: int) -> BayesianNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(b)
        return linear.model(data.shape, 1, bias=False, learn_precision=False)


def steps(count: int, batch_size: int = 1000) -> Training:
    """SGD without decay to speak of: where few rows leave directions free, it stays as it began there."""
    return Training(
        epochs=count, batch_size=batch_size, learning_rate=0.3, momentum=0.5, rate="constant", weight_decay=1e-12, device="cpu"
    )


def interpolant(x, y, new, active=slice(None)):
    """K(new, X) K(X, X)^-1 y for the kernel of the active features."""
    x, new = x.double().numpy()[:, active], new.double().numpy()[:, active]
    return new @ x.T @ np.linalg.solve(x @ x.T, y)


def wavy(x):
    return torch.sin(2 * x[:, 0].double()) + 0.5


def spy(infer, fits, **options):
    """The same inference, which leaves its data and fits where we see them."""

    def seen(model, data, *, seed):
        fits.append((data, infer(model, data, seed=seed, **options)))
        return fits[-1][1]

    return seen


# ------------------------------------------------------------------------------------------------------- the intervals


def test_batching_by_hand_and_as_scipy_has_it():
    found = batching_interval(torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=torch.float64))
    assert found.centre.item() == 3
    assert found.high.item() - 3 == pytest.approx(3.182446 * math.sqrt(14 / 3) / 2, rel=1e-6)  # t_3 sd / sqrt(4)
    parts = np.random.default_rng(0).normal(size=(5, 7))
    low, high = stats.t.interval(0.8, 4, parts.mean(0), stats.sem(parts, axis=0))
    found = batching_interval(torch.from_numpy(parts), 0.8)
    np.testing.assert_allclose(found.low, low)
    np.testing.assert_allclose(found.high, high)


def test_the_cheap_bootstrap_by_hand_and_by_formula():
    whole = torch.tensor([2.0], dtype=torch.float64)
    found = cheap_bootstrap_interval(whole, torch.tensor([[2.5]], dtype=torch.float64))
    assert (found.low.item(), found.high.item()) == pytest.approx((2 - 12.7062047 / 2, 2 + 12.7062047 / 2))  # t_1
    found = cheap_bootstrap_interval(whole, torch.tensor([[1.0], [4.0], [2.0]], dtype=torch.float64), 0.9)
    assert found.high.item() - 2 == pytest.approx(2.35336343 * math.sqrt((1 + 4 + 0) / 3))  # about the whole, not the mean
    assert found.centre is whole


def test_both_cover_a_linear_regression_at_a_generic_point():
    rng, new, weights, times, rows = np.random.default_rng(3), np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.3, -2.0]), 3000, 160
    x = rng.normal(size=(times, rows, 3))
    y = x @ weights + rng.normal(size=(times, rows))

    def fitted(x, y):
        """Least squares at the new point, `(times,)`."""
        turned = x.transpose(0, 2, 1)
        return torch.from_numpy(np.linalg.solve(turned @ x, turned @ y[..., None])[..., 0] @ new)

    own = rng.integers(rows, size=(3, times, rows, 1))
    resamples = torch.stack([fitted(np.take_along_axis(x, r, 1), np.take_along_axis(y, r[..., 0], 1)) for r in own])
    parts = torch.stack([fitted(x[:, place::4], y[:, place::4]) for place in range(4)])
    for level in (0.8, 0.95):
        found = [batching_interval(parts, level)]
        found += [cheap_bootstrap_interval(fitted(x, y), resamples[:count], level) for count in (1, 3)]
        for interval in found:
            hits = ((interval.low <= new @ weights) & (new @ weights <= interval.high)).sum()
            assert_rate(int(hits), times, level, looks=6)


# ------------------------------------------------------------------------------------------------------- the predictor


@pytest.mark.parametrize("expected", [None, wavy], ids=["zero", "wavy"])
def test_the_initialisation_cancels_and_the_kernel_predictor_is_left(expected):
    data = few()
    infer = partial(dense.infer, training=steps(60))
    options = {} if expected is None else {"expected": expected}
    found = [corrected(Procedure(infer, straight(data, b), b, **options), data, data.test.x) for b in (1, 2)]
    plain = [infer(straight(data, b), data, seed=b).predict(data.test.x)[0, :, 0] for b in (1, 2)]
    assert (plain[0] - plain[1]).abs().max() > 0.5  # more features than rows: what no row asks for stays as it began
    s, new = ([0.0, 0.0] if expected is None else [expected(x).numpy() for x in (data.train.x, data.test.x)])
    truth = 3 + 2 * (new + interpolant(data.train.x, data.train.y.numpy() - s, data.test.x))
    for own in found:
        assert own.dtype is torch.float64
        np.testing.assert_allclose(own, truth, atol=2e-5)


def test_it_cancels_after_any_number_of_steps_and_in_mini_batches():
    data = few()
    infer = partial(dense.infer, training=steps(3, batch_size=2))
    models = [straight(data, b) for b in (1, 2)]
    # One seed: another order of the batches is another training.
    one, other = (corrected(Procedure(infer, model, 7, expected=wavy), data, data.test.x) for model in models)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    f, g = (infer(model, data, seed=7).predict(data.test.x)[0, :, 0] for model in models)
    assert (f - g).abs().max() > 0.5


@pytest.mark.parametrize("infer", [static.infer, partial(rigl.infer, delta_t=10**6)], ids=["static", "rigl"])
def test_sparse_networks_share_their_first_topology_and_leave_its_kernel(infer):
    data, fits = few(rows=4, features=40), []
    found = corrected(Procedure(spy(infer, fits, sparsity=0.5, training=steps(120)), straight(data, 1), 4), data, data.test.x)
    (_, f), (_, g) = fits
    assert torch.equal(f.topology.positions, g.topology.positions)
    assert f.topology.num_active == 20
    assert torch.equal(f.model.initial, g.model.initial)
    truth = interpolant(data.train.x, data.train.y.numpy(), data.test.x, f.topology.positions.numpy())
    np.testing.assert_allclose(found, 3 + 2 * truth, atol=1e-4)


def test_a_topology_that_moves_or_a_random_mask_is_decided_by_seed_and_data():
    data = few(rows=40, features=8)
    options = {"sparsity": 0.5, "delta_t": 2, "training": steps(8)}
    for infer in (partial(rigl.infer, **options), partial(cigl.infer, drop_rate=0.1, **options)):
        procedure = Procedure(infer, straight(data, 1), 3)
        assert torch.equal(*(corrected(procedure, data, data.test.x) for _ in range(2)))


def test_of_a_wide_network_most_of_the_noise_goes():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=stream)
    y = torch.tanh(x[:, 0]) + 0.5 * x[:, 1]
    data = Data("wide", Split(x[:30], y[:30]), Split(x[:0], y[:0]), Split(x[:0], y[:0]), Split(x[30:], y[30:]), (4,), None)
    training = Training(epochs=30, batch_size=1000, learning_rate=0.1, rate="constant", weight_decay=1e-10, device="cpu")
    infer, f, pnc = partial(dense.infer, training=training), [], []
    for b in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(b)
            model = deep_gp.model((4,), 1, widths=(512,), noise_precision=2.0, learn_precision=False, prior_scale=None)
        f.append(infer(model, data, seed=b).predict(data.test.x)[0, :, 0])
        pnc.append(corrected(Procedure(infer, model, b), data, data.test.x))
    assert torch.stack(pnc).std(0).mean() < 0.4 * torch.stack(f).std(0).mean()


# --------------------------------------------------------------------------------------------------- networks and rows


def closed(data: Data) -> torch.Tensor:
    """Least squares of least norm on the rows that were trained on, in units."""
    solution = np.linalg.lstsq(data.train.x.double().numpy(), data.train.y.double().numpy(), rcond=None)[0]
    return 3 + 2 * (data.test.x.double() @ torch.from_numpy(solution))


def test_batching_trains_each_part_twice_and_is_the_interval_of_its_closed_forms():
    data, fits = few(rows=23, features=2), []
    procedure = Procedure(spy(dense.infer, fits, training=steps(80)), straight(data, 1), 1)
    found = batching(procedure, data, data.test.x, parts=3, level=0.9)
    assert [len(own.train.y) for own, _ in fits] == [8, 8, 8, 8, 7, 7]
    trained = torch.cat([own.train.y for own, _ in fits[::2]])
    assert torch.equal(trained.sort().values, data.train.y.sort().values)  # disjoint, and all of them
    for (own, _), (shadow, _) in zip(fits[::2], fits[1::2], strict=True):
        assert torch.equal(own.train.x, shadow.train.x)
        assert not shadow.train.y.any()
    truth = batching_interval(torch.stack([closed(own) for own, _ in fits[::2]]), 0.9)
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_the_cheap_bootstrap_trains_all_rows_then_resamples_that_f_and_g_share():
    data, fits = few(rows=40, features=3), []
    procedure = Procedure(spy(dense.infer, fits, training=steps(60)), straight(data, 1), 1)
    found = cheap_bootstrap(procedure, data, data.test.x, replicates=2, level=0.9, seed=8)
    assert len(fits) == 6
    assert torch.equal(fits[0][0].train.x, data.train.x)
    for (own, _), (shadow, _) in zip(fits[::2], fits[1::2], strict=True):
        assert len(own.train.y) == 40
        assert torch.equal(own.train.x, shadow.train.x)
    assert len({len(own.train.y.unique()) for own, _ in fits[2::2]} | {40}) > 1  # with replacement
    whole, *others = (closed(own) for own, _ in fits[::2])
    for one, other in zip(found, cheap_bootstrap_interval(whole, torch.stack(others), 0.9), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)
    again = cheap_bootstrap(procedure, data, data.test.x, replicates=2, level=0.9, seed=9)
    assert torch.equal(again.centre, found.centre)
    assert not torch.equal(again.high, found.high)


def test_labels_of_every_part_are_the_untrained_ones_for_g():
    data, fits = few(rows=12, features=3), []
    data = data._replace(validation=Split(data.train.x[:4], data.train.y[:4]))
    corrected(Procedure(spy(dense.infer, fits, training=steps(1)), straight(data, 1), expected=wavy), data, data.test.x)
    for part in ("train", "validation", "test"):
        x, y = getattr(fits[1][0], part)
        torch.testing.assert_close(y, wavy(x).float())
    assert torch.equal(fits[0][0].validation.y, data.validation.y)


@pytest.mark.parametrize("sparsity", [0.0, 2 / 3])
def test_the_untrained_mean_is_that_of_the_weights_under_random_masks(sparsity):
    def build():
        net = nn.Linear(3, 1, bias=False)
        nn.init.normal_(net.weight, mean=1.0)
        return BayesianNetwork(net, likelihood=Normal(1.0, learn=False))

    x, count = torch.tensor([[1.0, 2.0, -0.5], [0.3, -1.0, 4.0]]), 200
    state = torch.get_rng_state()
    expected = untrained(build, count=count, sparsity=sparsity)
    found = expected(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, expected(x))  # one function
    keep = 1 - sparsity
    squares = x.square().sum(1)
    # One weight of three: E = sum / 3, E of the square = 2 sum of squares / 3. All: N(sum, sum of squares).
    variance = squares if not sparsity else 2 * squares / 3 - (x.sum(1) / 3).square()
    assert ((found - keep * x.sum(1)).abs() < 5 * (variance / count).sqrt()).all()


# ------------------------------------------------------------------------------------------------------------ the door


def refuse(*_, **__):
    raise AssertionError("nothing is trained before the door")


OURS = few()
WRONG = {
    "classes": ({"data": OURS._replace(num_classes=3)}, "^expected real-valued targets, but few has 3 classes$"),
    "columns": (
        {"data": OURS._replace(train=OURS.train._replace(y=torch.zeros(ROWS, 2)))},
        r"^expected one target per example, got \(6, 2\): correct each column by itself$",
    ),
    "precision": (
        {"model": linear.model((10,), 1)},
        r"^expected a likelihood whose parameters are fixed, or f and g are trained at different rates: likelihoods.Normal\(",
    ),
    "module": ({"infer": rigl}, "^expected an inference such as rigl.infer, got module: its `infer` is meant$"),
    "rows": ({"x": torch.zeros(2, 3)}, r"^expected rows of shape \[10\] to predict, got \[3\]$"),
    "no rows": ({"x": torch.zeros(0, 10)}, r"^expected rows of shape \[10\] to predict, got no rows$"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_corrected_is_said_before_anything_is_trained(what):
    changes, said = WRONG[what]
    given = {"data": OURS, "model": straight(OURS, 0), "infer": refuse, "x": OURS.test.x, **changes}
    for interval in (corrected, batching, cheap_bootstrap):
        with pytest.raises(ValueError, match=said):
            interval(Procedure(given["infer"], given["model"]), given["data"], given["x"])


def test_numbers_out_of_range_are_refused():
    procedure = Procedure(refuse, straight(OURS, 0))
    for parts in (1, ROWS + 1):
        with pytest.raises(ValueError, match=f"^expected 2 parts or more, and no more than the 6 training rows, got {parts}$"):
            batching(procedure, OURS, OURS.test.x, parts=parts)
    with pytest.raises(ValueError, match="^expected 1 replicate or more, got 0$"):
        cheap_bootstrap(procedure, OURS, OURS.test.x, replicates=0)
    for interval in (batching, cheap_bootstrap):
        with pytest.raises(ValueError, match=r"^expected a level in \(0, 1\), got 95$"):
            interval(procedure, OURS, OURS.test.x, level=95)
    with pytest.raises(ValueError, match="^expected predictions of 2 parts or more, got 1: one has no spread$"):
        batching_interval(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="^expected predictions of 1 replicate or more, got none$"):
        cheap_bootstrap_interval(torch.zeros(4), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="^expected 1 untrained network or more, got 0$"):
        untrained(refuse, count=0)
