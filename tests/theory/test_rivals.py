"""The methods that stand beside NUTS: one topology, one prior, a drop rate that validation chose."""

from __future__ import annotations

import pytest
import torch

from espalier import calibration
from espalier.theory import rivals


@pytest.mark.slow
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
