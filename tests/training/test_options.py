"""Options of a training: the prior that a weight decay is, filled in; what cannot be meant."""

import math

import pytest

from by_hand import CASES, DECAY, batch_of, mlp
from espalier.contracts import Data, Split
from espalier.network import BayesianNetwork
from espalier.training.options import DEFAULT_WEIGHT_DECAY, Training, prepare

pytestmark = pytest.mark.usefixtures("float64")


def tiny_data() -> Data:
    x, y = batch_of(CASES["mlp"], size=50)
    part = Split(x, y)
    return Data("tiny", part, part, part, part, (6,), 5)


@pytest.mark.parametrize("rescale", [False, True])
def test_preparing_a_model_fills_in_the_half_that_was_not_given(rescale: bool) -> None:
    plain, believed = BayesianNetwork(mlp()), BayesianNetwork(mlp(), prior_scale=0.3)
    p = 0.75
    decayed = prepare(plain, tiny_data(), Training(weight_decay=DECAY, device="cpu"), keep_prob=p, rescale=rescale)
    v = 1 / (p * 50 * DECAY) if rescale else p / (50 * DECAY)
    assert (decayed.num_data, decayed.weight_decay) == (50, DECAY)
    assert decayed.prior_scale == pytest.approx(math.sqrt(v), rel=1e-14)

    implied = prepare(believed, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    expected = 1 / (p * 50 * 0.3**2) if rescale else p / (50 * 0.3**2)
    assert (implied.num_data, implied.prior_scale) == (50, 0.3)
    assert implied.weight_decay == pytest.approx(expected, rel=1e-14)

    default = prepare(plain, tiny_data(), Training(device="cpu"), keep_prob=p, rescale=rescale)
    assert default.weight_decay == DEFAULT_WEIGHT_DECAY
    assert plain.prior_scale is None  # a copy was prepared
    assert plain.num_data is None


def test_prior_scale_and_weight_decay_together_are_refused() -> None:
    believed = BayesianNetwork(mlp(), prior_scale=0.3)
    with pytest.raises(ValueError, match="expected a prior_scale or a weight_decay, got both"):
        prepare(believed, tiny_data(), Training(weight_decay=DECAY, device="cpu"))
