"""The claims about ground truth: quick, and each with deliberately wrong formulas that its check must catch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from espalier import calibration
from espalier.distributions.masked import draw_keep, scatter
from espalier.prediction.fit import Fit
from espalier.prediction.predict import parameters_of
from espalier.references.nuts import Potential
from espalier.theory import ground_truth, rivals
from espalier.theory.ground_truth import conjugate, factorised

CLAIMS = {claim.name: claim for claim in ground_truth.CLAIMS}


class Averaged(Potential):
    """The mean log-likelihood in place of the sum."""

    def __call__(self, values: Tensor) -> Tensor:
        weights = scatter(values, self.topology.positions, self.topology.num_weights)
        log_likelihood = self.model.outcome(weights, self.x, self.state).log_prob(self.y).mean()
        return 0.5 * torch.dot(values, values) / self.scale**2 + self.constant - log_likelihood


class Unsquared(Potential):
    """The prior's scale taken for its variance."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = math.sqrt(self.scale)


class Rising(Potential):
    def __call__(self, values: Tensor) -> Tensor:
        return -super().__call__(values)


def masked(fit: Fit, x: Tensor, keep_prob: float, factor: float = 1.0) -> Tensor:
    generator, last = torch.Generator().manual_seed(0), fit.pairs.values[-1]
    keeps = [draw_keep(len(last), keep_prob, last.device, generator) for _ in range(50)]
    dense = [scatter(factor * last * keep, fit.topology.positions, fit.topology.num_weights) for keep in keeps]
    with torch.no_grad():
        return torch.stack([parameters_of(fit.model.outcome(weights, x)) for weights in dense])


MUTATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "nuts-posterior": {
        "mean for sum": {"potential": Averaged},
        "scale for variance": {"potential": Unsquared},
        "sign": {"potential": Rising},
    },
    "nuts-control": {
        "scale for variance": {"posterior": lambda x, y, v, tau: conjugate(x, y, v**0.5, tau)},
        "variance for precision": {"posterior": lambda x, y, v, tau: conjugate(x, y, v, 1 / tau)},
        "factor 2": {"posterior": lambda x, y, v, tau: conjugate(x, y, v, 2 * tau)},
        "sign": {"posterior": lambda x, y, v, tau: conjugate(x, -y, v, tau)},
    },
    "nuts-mean-field": {
        "marginal variances": {"variances": lambda matrix: np.diag(np.linalg.inv(matrix))},
        "factor 2": {"variances": lambda matrix: 2 * factorised(matrix)},
        "half": {"variances": lambda matrix: factorised(matrix) / 2},
    },
    "nuts-predictive": {
        "p for 1 - p": {"monte_carlo": lambda fit, x: masked(fit, x, 1 - fit.keep_prob)},
        "factor 2": {"monte_carlo": lambda fit, x: masked(fit, x, fit.keep_prob, 2.0)},
        "sign": {"monte_carlo": lambda fit, x: masked(fit, x, fit.keep_prob, -1.0)},
    },
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name):
    finding = CLAIMS[name].check(True)
    assert finding.verdict == "holds", finding


@pytest.mark.parametrize(("name", "mutation"), [(name, each) for name in MUTATIONS for each in MUTATIONS[name]])
def test_a_wrong_formula_is_caught(name, mutation):
    finding = CLAIMS[name].check(True, **MUTATIONS[name][mutation])
    assert finding.verdict == "fails", finding
    assert math.isfinite(finding.discrepancy)


def test_every_claim_has_its_mutations():
    assert set(MUTATIONS) == set(CLAIMS)
    assert all(len(each) >= 2 for each in MUTATIONS.values())


def test_every_method_stands_on_one_topology_under_one_prior():
    world = rivals.world(rivals.LOGISTIC, 1, True)
    for fit in world.by_rate.values():
        assert torch.equal(fit.topology.positions, world.fit.topology.positions)
        assert fit.model.prior_scale == rivals.PRIOR_SCALE
        assert fit.record["weight_decay"] == pytest.approx(fit.keep_prob / len(world.data.train.y))
    assert all(each.shape[1:] == world.reference.shape[2:] for each in world.draws.values())


def test_the_drop_rate_is_the_validation_splits_choice():
    world = rivals.world(rivals.LOGISTIC, 1, True)
    x, y = world.data.validation
    scores = {
        rate: calibration.nll(rivals.redraw(fit, x).mean(0).numpy(), y.numpy()) for rate, fit in world.by_rate.items()
    }
    assert world.figures["drop_rate"] == min(scores, key=scores.get)
    assert world.by_rate[world.figures["drop_rate"]] is world.fit


def test_nuts_is_at_no_distance_from_itself_and_a_shift_is_measured():
    truth = torch.tensor([[[[0.7, 0.3]], [[0.9, 0.1]]]], dtype=torch.float64)  # (chains, draws, n, C)
    found = rivals.compare(truth[0], {"same": truth[0], "far": 1 - truth[0]})
    assert {name: float(each[0]) for name, each in found["same"].items()} == pytest.approx(
        {"total_variation": 0.0, "agreement": 1.0, "wasserstein": 0.0, "sd_over_draws": 0.1}
    )
    assert {name: float(each[0]) for name, each in found["far"].items()} == pytest.approx(
        {"total_variation": 0.6, "agreement": 0.0, "wasserstein": 0.6, "sd_over_draws": 0.1}
    )


def test_dropout_of_units_is_left_on():
    world = rivals.world(rivals.LOGISTIC, 1, True)
    assert float(world.draws["units"].std(0).mean()) > 0.005
    assert len(world.draws["units"]) == rivals.DRAWS
