"""The mean-field program: what its fits draw, keep, save and resume."""

import copy
import functools
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.optim.swa_utils import update_bn

from budget import FALSE_ALARMS, assert_mean
from digits import digits
from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.prediction.fit import WAYS, Fit
from espalier.prediction.pairs import Pairs
from espalier.store import Bundle
from espalier.topology import DROP_SCORES
from espalier.topology.masks import initial
from espalier.training.options import Training
from tiny import net
from watches import Recorder

pytestmark = pytest.mark.usefixtures("float64")


def normed() -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))
    return BayesianNetwork(net.float())


def run(watch: Recorder | None = None, seed: int = 1, **options: Any) -> Fit:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=6, batch_size=32, learning_rate=0.1, device="cpu")
    settings = {"sparsity": 0.8, "noise_scale": 0.05, "delta_t": 7, "freeze": 0.5, "average_from": 0.5, **options}
    return shelf.load("inference", "mean_field")(
        normed(), digits(), training=training, seed=seed, watch=watch, **settings
    )


@functools.cache
def trained() -> tuple[Fit, Recorder]:
    watch = Recorder()
    return run(watch), watch


def test_draws_of_a_fit_have_the_learned_mean_and_deviation() -> None:
    fit, _ = trained()
    assert fit.ways == (*WAYS, "moments")
    assert fit.topology.num_active == round(0.2 * 1480)
    mu, sigma, places = fit.pairs.values, fit.pairs.scales, fit.topology.positions
    assert mu.shape == sigma.shape == (3, 296)
    assert (sigma > 0).all()
    assert float((sigma[-1] - 0.05).abs().max()) > 1e-3  # it was learned
    collected = torch.stack([weights for weights, _ in fit.weights("pairs")])
    standard = ((collected[:, places] - mu) / sigma).numpy()
    assert stats.kstest(standard.ravel(), "norm").pvalue > FALSE_ALARMS
    assert np.abs(np.corrcoef(standard) - np.eye(3)).max() < 0.3  # 296 weights: five standard errors
    outside = torch.ones(1480, dtype=torch.bool)
    outside[places] = False
    assert (collected[:, outside] == 0).all()

    fresh = torch.stack([weights for weights, _ in fit.weights("redraw", num_samples=1500, seed=5)])
    assert (fresh[:, outside] == 0).all()
    standard = (fresh[:, places] - mu[-1]) / sigma[-1]
    assert_mean(standard, torch.zeros(296))
    assert_mean(standard**2, torch.ones(296))
    other = next(fit.weights("redraw", num_samples=1, seed=6))[0]
    assert not torch.equal(other, fresh[0])
    for how in ("mean", "unmasked"):
        assert torch.equal(next(fit.weights(how))[0], fit.dense(mu[-1]))
    torch.testing.assert_close(next(fit.weights("ticket"))[0], fit.dense(mu.mean(0)))


def test_redraw_takes_mean_and_deviation_from_the_last_pair() -> None:
    model = BayesianNetwork(net())
    topology = initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(0))
    values = torch.stack([torch.full((45,), 3.0), torch.full((45,), -1.0)])
    scales = torch.stack([torch.full((45,), 2.0), torch.linspace(0.1, 0.9, 45)])
    states = {name: torch.stack([tensor, tensor]) for name, tensor in model.state_dict().items()}
    pairs = Pairs(values, torch.ones(2, 45, dtype=torch.bool), states, scales)
    fit = Fit(model, topology, pairs, keep_prob=1.0, rescale=False, record={}, history=[])
    draws = torch.stack([w for w, _ in fit.weights("redraw", num_samples=2000)])[:, topology.positions]
    assert_mean(draws, values[-1])
    assert_mean((draws - values[-1]) ** 2, scales[-1] ** 2)


def test_statistics_of_a_pair_are_those_of_its_own_draw() -> None:
    fit, _ = trained()
    x = digits().test.x[:40]
    rows = digits().train.x[:320].split(32)
    predictions = fit.predict(x, "pairs")
    for index, (weights, state) in enumerate(fit.weights("pairs")):
        by_hand = fit.model.network(weights, state)
        update_bn([[batch] for batch in rows], by_hand)
        with torch.no_grad():
            probs = by_hand.eval()(x).softmax(-1)
        torch.testing.assert_close(predictions[index], probs.double(), rtol=0, atol=2e-5)


def test_the_history_has_the_kl_and_the_record_what_was_asked() -> None:
    fit, _ = trained()
    assert fit.keep_prob == 1.0
    assert [row["moves"] for row in fit.history] == [1, 1, 2, 0, 0, 0]  # steps 7, 14, 21, 28 of 60, before 30
    q = torch.distributions.Normal(fit.pairs.values[-1], fit.pairs.scales[-1])
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, fit.record["prior_scale"])).sum() / 320
    assert fit.history[-1]["kl"] == pytest.approx(float(kl), rel=1e-3)  # the mean over an epoch with a rate near 0


def test_a_saved_fit_comes_back_with_its_scales(tmp_path: Path) -> None:
    fit, _ = trained()
    fit.save(tmp_path / "fit")
    other = Fit.load(tmp_path / "fit", normed())
    assert torch.equal(other.pairs.scales, fit.pairs.scales)
    other.inputs = fit.inputs
    x = digits().test.x[:40]
    for how in fit.ways:
        assert torch.equal(fit.predict(x, how, num_samples=4, seed=2), other.predict(x, how, num_samples=4, seed=2))


@pytest.mark.parametrize("epoch", [1, 2, 3, 5])
def test_a_resumed_training_gives_the_same_fit_and_needs_the_scales(epoch: int) -> None:
    whole, watch = trained()
    resumed = run(Recorder(copy.deepcopy(watch.checkpoints[epoch])))
    expected = whole.bundle().tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.bundle().tensors.items())
    assert resumed.history == whole.history
    tensors, facts = watch.checkpoints[epoch]
    slots = [name for name in tensors if name.startswith("optimizer.1.")]  # those of log_scale
    assert slots
    for name in ["log_scale", *slots]:
        stale = {**tensors, name: tensors[name] * 0.9}
        forgot = run(Recorder(Bundle(stale, copy.deepcopy(facts))))
        assert not torch.equal(forgot.bundle().tensors["scales"], expected["scales"])


def test_the_drop_score_that_is_named_is_used() -> None:
    seen = {name: run(drop_score=name, noise_scale=0.3).topology.positions.tolist() for name in DROP_SCORES}
    assert {*get_args(get_type_hints(shelf.load("inference", "mean_field"))["drop_score"])} == set(seen)
    assert seen["snr"] == seen["snr-magnitude"]  # see the test of their ranking
    apart = ("magnitude", "mean-magnitude", "snr", "snr-exponential")  # the others are near one of these, of weights near 0
    assert len({tuple(seen[name]) for name in apart}) == len(apart)
    assert run(noise_scale=0.3).topology.positions.tolist() == seen["snr-magnitude"]
