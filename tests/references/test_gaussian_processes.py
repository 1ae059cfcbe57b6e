"""The GPyTorch references predict as `evaluation.predictions` does, in the data's units, from the training rows alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from budget import assert_mean
from espalier import Data, Split, Training, load_program, references
from espalier.prediction.evaluation import evaluate, predictions, score
from espalier.references.gaussian_processes import VariationalDeepGP, elbo_draws, exact_posterior
from espalier.references.kernels import DeepArcCosine


def waves(noise: float = 0.1, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> Data:
    """y = sin(2 a) + b / 2 + noise over two inputs; targets in units of `scale` about `shift`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(260, 2, generator=generator)
    y = torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + noise * torch.randn(260, generator=generator)
    parts = [Split(*each) for each in zip(x.split([60, 50, 50, 100]), y.split([60, 50, 50, 100]), strict=True)]
    return Data("waves", *parts, shape=(2,), num_classes=None, target_shift=shift, target_scale=scale)


REFERENCES = {
    "exact": lambda data, split="test": references.exact_gp(data, split, depth=1),
    "deep": lambda data, split="test": references.deep_gp(
        data, split, hidden=(2,), num_inducing=20, steps=300, num_samples=8
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_it_learns_and_is_scored_as_a_fit_is(name):
    data = waves(shift=30.0, scale=5.0)
    state = torch.get_rng_state()
    predicted = REFERENCES[name](data)
    assert torch.equal(torch.get_rng_state(), state)
    assert predicted.shape == ({"exact": 1, "deep": 8}[name], 100, 2)
    assert predicted.dtype == np.float64
    found = score({name: predicted}, data)[name]
    assert found["num_examples"] == 100
    assert 0.5 < found["rmse"] < 0.5 * 5 * data.test.y.std().item()  # noise 0.5; half of what the mean would do
    assert found["coverage_95"] > 0.85


@pytest.mark.parametrize("name", REFERENCES)
def test_units_are_the_datas_and_no_other_split_is_seen(name):
    plain, units = waves(), waves(shift=30.0, scale=5.0)
    nan = torch.full_like(units.test.y, math.nan)
    blind = units._replace(test=units.test._replace(y=nan), validation=units.test._replace(y=nan))
    first, second = REFERENCES[name](plain), REFERENCES[name](blind)
    np.testing.assert_allclose(second[..., 0], 30 + 5 * first[..., 0], rtol=1e-10)
    np.testing.assert_allclose(second[..., 1], 5 * first[..., 1], rtol=1e-10)


@pytest.mark.parametrize("name", REFERENCES)
def test_class_labels_are_refused(name):
    with pytest.raises(ValueError, match="^expected real-valued targets, but waves has 3 classes$"):
        REFERENCES[name](waves()._replace(num_classes=3))


def test_the_marginal_likelihood_finds_the_noise():
    data = waves(noise=0.3)
    found = references.exact_gp(data, depth=1)[0]
    assert found[:, 1].min() == pytest.approx(0.3, rel=0.35)  # 60 rows


def test_on_draws_of_a_known_process_the_learnt_kernel_comes_close_to_the_true_predictive_and_none_beats_it():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    kernel = DeepArcCosine(2, weight_variance=1.5, bias_variance=0.5).double()
    prior = kernel(x).to_dense().detach() + 0.05 * torch.eye(200)
    y = torch.linalg.cholesky(prior) @ torch.randn(200, generator=generator, dtype=torch.float64)
    parts = [Split(x[a:b].float(), y[a:b].float()) for a, b in ((0, 60), (0, 0), (0, 0), (60, 200))]
    data = Data("drawn", *parts, shape=(2,), num_classes=None)
    mean, variance = exact_posterior(kernel, x[:60], y[:60], x[60:], 0.05)
    truth = torch.stack([mean, (variance + 0.05).sqrt()], -1)[None].detach().numpy()
    scores = score({"true": truth, "learnt": references.exact_gp(data), "deep": REFERENCES["deep"](data)}, data)
    assert scores["true"]["nll"] < scores["learnt"]["nll"] + 0.05
    assert scores["learnt"]["nll"] < scores["true"]["nll"] + 0.2
    assert scores["true"]["nll"] < scores["deep"]["nll"]


def test_mini_batches_have_the_bound_of_the_whole_on_average():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    y = x[:, 0].sin()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = VariationalDeepGP(x[:8], (2,)).eval()
        whole = elbo_draws(model, x, y, 4000)
        parts = torch.stack([elbo_draws(model, *each, 4000, 40) for each in zip(x.split(10), y.split(10), strict=True)])
    assert_mean((parts.mean(0) - whole).numpy(), 0.0)


def test_score_is_what_evaluate_calls():
    data = waves()
    model = load_program("models", "deep_gp")(data.shape, 1, widths=(20,))
    training = Training(epochs=3, batch_size=20, learning_rate=0.01, optimizer="adam")
    fit = load_program("inference", "cigl")(model, data, sparsity=0.5, delta_t=2, training=training)
    found = evaluate(fit, data)
    assert found["predict"] == score(predictions(fit, data), data)
    assert found["num_examples"] == 100
