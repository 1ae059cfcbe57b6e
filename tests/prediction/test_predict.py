"""One forward pass of all rows: the same however they are batched, and nothing in the model changes."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training
from espalier.inference import cigl
from espalier.prediction.fit import WAYS
from espalier.prediction.predict import at_once, is_valid
from fitted import TOLERANCE, digits, trained


def test_prediction_does_not_depend_on_how_rows_are_batched() -> None:
    fit, _ = trained("conv")
    x = digits().train.x
    assert len(x) > 1000  # several batches
    parts = torch.cat([fit.predict(part, "pairs") for part in x.split(333)], 1)
    torch.testing.assert_close(fit.predict(x, "pairs"), parts, rtol=0, atol=TOLERANCE)


def test_rows_at_once_are_few_enough_for_a_cache_and_for_memory() -> None:
    """Of tabular rows, of images, of large ones and of what hardly fits; more on a GPU."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [at_once(numbers, cpu) for numbers in (1, 524, 3072, 3 * 224**2, 1 << 23)] == [500, 500, 85, 16, 1]
    assert [at_once(numbers, gpu) for numbers in (1, 3072, 3 * 224**2, 1 << 23)] == [4000, 4000, 216, 1]


def test_prediction_changes_nothing_in_the_model() -> None:
    fit, _ = trained("conv")
    before = copy.deepcopy(fit.model.state_dict())
    modes = [module.training for module in fit.model.modules()]
    momenta = [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for how in WAYS:
        fit.predict(digits().test.x[:30], how, num_samples=2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in fit.model.state_dict().items())
    assert [module.training for module in fit.model.modules()] == modes
    assert [module.momentum for module in fit.model.modules() if isinstance(module, nn.BatchNorm2d)] == momenta


def test_what_is_valid_is_what_torch_would_build() -> None:
    """Of a distribution on a GPU it is asked later, so that no draw waits: here beside torch's own answer."""
    nan, half = torch.tensor([0.5, torch.nan]), torch.tensor([0.5, 0.25])
    for kind, given in [
        (dist.Categorical, {"logits": torch.stack([half, nan])}), (dist.Categorical, {"logits": torch.stack([half, half])}),
        (dist.Bernoulli, {"logits": nan}), (dist.Bernoulli, {"probs": half}),
        (dist.Bernoulli, {"probs": torch.tensor([0.5, 1.5])}),
        (dist.Normal, {"loc": nan, "scale": half}), (dist.Normal, {"loc": half, "scale": -half}),
        (dist.Normal, {"loc": half, "scale": half}), (dist.StudentT, {"df": half, "loc": half, "scale": half}),
        (dist.NegativeBinomial, {"total_count": half, "logits": half}),
        (dist.NegativeBinomial, {"total_count": -half, "logits": half}),
        (dist.HalfNormal, {"scale": nan}), (dist.HalfNormal, {"scale": half}),
        (dist.Beta, {"concentration1": -half, "concentration0": half}),
        (dist.Beta, {"concentration1": half, "concentration0": half}),
    ]:  # fmt: skip
        try:
            kind(**given, validate_args=True)
            built = True
        except ValueError:
            built = False
        assert bool(is_valid(kind(**given, validate_args=False))) == built, (kind, given)
        assert bool(is_valid(kind(**given, validate_args=False).to_event(1))) == built


def test_a_distribution_is_as_valid_as_what_it_is_made_of() -> None:
    for wrong in (False, True):
        scale = torch.tensor([[0.5, torch.nan if wrong else 2.0]])
        weights, parts = dist.Categorical(logits=torch.zeros(1, 2)), dist.Normal(torch.zeros(1, 2), scale, validate_args=False)
        assert bool(is_valid(dist.MixtureSameFamily(weights, parts, validate_args=False))) != wrong


@pytest.mark.parametrize("norm", [False, True])
def test_a_fit_that_several_threads_ask_says_to_each_what_it_says_to_one(norm: bool) -> None:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(64)] if norm else []
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 64), *middle, nn.ReLU(), nn.Linear(64, 10)))
    fit = cigl.infer(model, digits(), sparsity=0.5, drop_rate=0.2, training=Training(epochs=3, batch_size=64))
    asked = [(how, seed) for seed in range(5) for how in ("ticket", "pairs", "redraw", "mean")]

    def said(one: tuple[Any, int]) -> Tensor:
        return fit.predict(digits().test.x, one[0], num_samples=6, seed=one[1])

    alone = [said(one) for one in asked]
    with ThreadPoolExecutor(4) as pool:
        for mine, theirs in zip(pool.map(said, asked), alone, strict=True):
            assert torch.equal(mine, theirs)
