"""Claims about ensembles: the even mixture of all their members' draws, a draw at a time, in every way that all of them have."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch import nn

from espalier import BayesianNetwork, Training, calibration
from espalier.data import from_arrays
from espalier.inference import cigl, rigl
from espalier.models import mlp
from espalier.prediction import Ensemble, Fit, evaluate, predictions, recalibrated, uncertainties
from espalier.prediction.fit import WAYS
from fitted import digits, regression, trained


def members(name: str = "mlp", count: int = 3) -> list[Fit]:
    return [trained(name, seed)[0] for seed in range(2, 2 + count)]


def taught(fit: Fit) -> Fit:
    """With a student, halfway to nothing."""
    fit = copy.copy(fit)
    fit.student = (0.5 * fit.pairs.values[0], fit.pairs.state(0))
    return fit


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_it_predicts_the_mean_of_its_members_in_every_way(name: str) -> None:
    fits, data = [taught(fit) for fit in members(name)], digits()
    found = predictions(Ensemble(fits), data, num_samples=3, seed=5)
    assert tuple(found) == (*WAYS, "moments", "distilled")
    for way, probs in found.items():
        naive = np.zeros((len(data.test.y), 10))
        for fit, seed in zip(fits, Ensemble(fits).seeds(5), strict=True):
            for draw in (draws := fit.predict(data.test.x, way, num_samples=3, seed=seed).double().numpy()):
                naive += draw / len(draws) / len(fits)
        np.testing.assert_allclose(probs, naive, rtol=0, atol=1e-14)
        assert np.abs(probs - predictions(fits[0], data, ways=[way], num_samples=3, seed=5)[way]).max() > 0.01


def test_of_a_regression_it_is_the_mixture_of_all_draws() -> None:
    data, fit = regression()
    other = copy.copy(fit)
    other.pairs = fit.pairs._replace(values=1.1 * fit.pairs.values)
    for way in ("ticket", "pairs", "redraw"):
        found = predictions(Ensemble([fit, other]), data, ways=[way], num_samples=4)[way]
        seeds = Ensemble([fit, other]).seeds(0)
        draws = [own.predict(data.test.x, way, num_samples=4, seed=s).numpy() for own, s in zip((fit, other), seeds, strict=True)]
        np.testing.assert_array_equal(found, np.concatenate(draws))
        y = data.in_units(data.test.y).numpy()
        logs = logsumexp(np.concatenate([norm.logpdf(y, own[..., 0], own[..., 1]) - np.log(2 * len(own)) for own in draws]), 0)
        scores = evaluate(Ensemble([fit, other]), data, predicted={way: found})["predict"][way]
        assert scores["nll"] == pytest.approx(-logs.mean())


def test_no_more_than_two_draws_are_held() -> None:
    alive: list[Any] = []
    for draw in Ensemble(members()).draws(digits().test.x, "redraw", num_samples=4):
        assert sum(other() is not None for other in alive) <= 1
        alive.append(weakref.ref(draw))
    assert len(alive) == 12


def test_its_uncertainty_is_that_of_all_draws_together() -> None:
    fits, x = members("mlp-rigl"), digits().test.x
    assert not uncertainties(fits[0], x)["mutual_information"].any()
    found = uncertainties(Ensemble(fits), x, "ticket")["mutual_information"]
    draws = np.concatenate([fit.predict(x, "ticket").numpy() for fit in fits])
    np.testing.assert_allclose(found, calibration.mutual_information(draws), atol=1e-14)
    assert found.max() > 0.05


def test_of_single_networks_all_ways_are_equal_to_the_last_bit() -> None:
    found = predictions(Ensemble(members("mlp-rigl")), digits())
    for probs in found.values():
        np.testing.assert_array_equal(probs, found["ticket"])


def test_its_calibrators_are_fitted_on_what_it_predicts_itself() -> None:
    ensemble, data = Ensemble(members()), digits()
    _, kept = recalibrated(ensemble, data, "test", ["temperature"], ways=["ticket"])
    seen = predictions(ensemble, data, "validation", ways=["ticket"])["ticket"]
    assert kept["ticket + temperature"]["temperature"] == calibration.fit_temperature(seen, data.validation.y.numpy())


def test_counts_are_sums_over_its_members() -> None:
    fits = members()
    told, one = (evaluate(each, digits(), num_samples=1) for each in (Ensemble(fits), fits[0]))
    assert [told[key] for key in ("num_weights", "num_active", "num_pairs")] == [
        3 * one[key] for key in ("num_weights", "num_active", "num_pairs")
    ]
    assert told["density"] == one["density"]


def test_its_ways_are_those_that_all_members_have() -> None:
    fits = members()
    assert Ensemble([taught(fits[0]), fits[1]]).ways == (*WAYS, "moments")
    uneven = Ensemble([fits[0], members("mlp-rigl")[1]])
    assert uneven.ways == ("ticket", "redraw", "mean", "unmasked"), "one would count for more"
    with pytest.raises(ValueError, match="expected one of ticket, redraw, mean, unmasked, which all members have, got 'pairs'"):
        uneven.predict(digits().test.x, "pairs")


def test_what_makes_no_ensemble_is_refused_in_a_sentence() -> None:
    first, second, _ = members()
    other, _, classes = digits(), regression(), copy.copy(second)
    classes.record = {**second.record, "data": {**second.record["data"], "classes": ["no", "yes"]}}
    training = Training(epochs=1, batch_size=100, device="cpu")
    fewer = other._replace(hashes={**other.hashes, "train": "0"})
    cut = rigl.infer(mlp.model((1, 8, 8), 10, hidden=(20,)), fewer, delta_t=2, training=training)
    for wrong, sentence in (
        ([first], "expected two members of an ensemble or more, got 1"),
        ([first, second, first], "got one twice: member 3"),
        ([first, cut], "got other rows or splits in member 2"),
        ([first, second, regression()[1]], "got other tasks in member 3"),
        ([first, classes], "got other classes in member 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Ensemble(wrong)


def test_members_on_other_devices_and_networks_predict_together() -> None:
    training = Training(epochs=1, batch_size=100, device="cpu")
    wide = cigl.infer(mlp.model((1, 8, 8), 10, hidden=(20,)), digits(), delta_t=2, training=training)
    ensemble = Ensemble([members()[0], wide]).to("cpu")
    assert ensemble.fits[1] is wide
    assert ensemble.predict(digits().test.x[:5]).shape == (2, 5, 10)
    assert torch.equal(ensemble.predict(digits().test.x[:5])[1:], wide.predict(digits().test.x[:5]))


def test_by_logits_it_is_the_geometric_mean_of_all_draws() -> None:
    fits, data = members(count=2), digits()
    x = data.test.x[:50]
    for way, samples in (("ticket", 1), ("redraw", 3)):
        seeds = Ensemble(fits).seeds(0)
        draws = torch.cat([fit.predict(x, way, num_samples=samples, seed=s) for fit, s in zip(fits, seeds, strict=True)])
        pooled = draws.double().log().mean(0).softmax(-1)
        found = Ensemble(fits, "logits").predict(x, way, num_samples=samples)
        assert found.shape == (1, 50, 10)
        assert torch.allclose(found[0], pooled, rtol=1e-9)
        assert (found[0] - Ensemble(fits).predict(x, way, num_samples=samples).mean(0)).abs().max() > 1e-3
    _, fit = regression()
    other = copy.copy(fit)
    other.pairs = fit.pairs._replace(values=1.1 * fit.pairs.values)
    with pytest.raises(ValueError, match="expected a pool of probabilities, logits, the latter of classes, got 'logits'"):
        Ensemble([fit, other], "logits")


def test_each_member_draws_masks_of_its_own() -> None:
    """With one seed for all they would drop the same units, and the mean over draws would vary by more."""
    one, data = trained("mlp")[0], digits()
    twin = copy.deepcopy(one)
    twin.pairs = twin.pairs._replace(values=twin.pairs.values * (1 + 1e-6))  # or it would be the same member twice
    x = data.test.x[:50]
    draws = Ensemble([one, twin]).predict(x, "redraw", num_samples=3, seed=4)
    torch.testing.assert_close(draws[:3], one.predict(x, "redraw", num_samples=3, seed=4))  # the first as alone
    assert all((draws[i] - draws[3 + i]).abs().max() > 1e-3 for i in range(3))
    assert Ensemble([one, twin]).predict(x, "redraw", num_samples=1, seed=-3).shape == (2, 50, 10)  # as a fit takes it


def test_logits_of_two_kinds_are_not_pooled() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    data = from_arrays(x, (x[:, 0] > 0).astype(int))
    training = Training(epochs=2, batch_size=50, device="cpu")
    options = {"sparsity": 0.3, "training": training}
    two = rigl.infer(mlp.model((4,), 2, hidden=(8,)), data, **options)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    one = rigl.infer(BayesianNetwork(net, likelihood="bernoulli"), data, **options)
    with pytest.raises(ValueError, match="expected logits of one kind to pool, got Categorical .* and Bernoulli .*: take pool="):
        Ensemble([two, one], "logits").predict(data.test.x[:1])
    even = Ensemble([two, one]).predict(data.test.x)
    assert torch.allclose(even[0], two.predict(data.test.x)[0])
    assert torch.allclose(even[1], one.predict(data.test.x)[0])
