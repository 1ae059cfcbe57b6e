"""The learning rate of stochastic weight averaging."""

import pytest
import torch

from digits import digits, mlp
from espalier import shelf
from espalier.training.options import Training
from espalier.training.rates import swa
from rounding import close

pytestmark = pytest.mark.usefixtures("float64")


def test_the_swa_rate_is_flat_then_linear_then_flat() -> None:
    """Izmailov et al. 2018: constant, a linear fall, then a constant rate under which the averaged weights explore."""
    rate = swa(0.3, 400, floor=0.2)
    assert [rate(step) for step in (1, 77, 200, 201)] == pytest.approx([0.3] * 4)
    assert [rate(step) for step in (301, 302, 350, 400)] == pytest.approx([0.06] * 4)
    for step in (211, 251, 263, 299):  # the fall is from step 201 to step 301
        assert rate(step) == pytest.approx(0.3 + (0.06 - 0.3) * (step - 201) / 100)
    warm = swa(0.3, 400, warmup=50, floor=0.2)
    assert [warm(step) for step in (1, 20, 50, 51, 399)] == pytest.approx([0.006, 0.12, 0.3, 0.3, 0.06])


def test_training_at_the_swa_rate_uses_it() -> None:
    torch.set_default_dtype(torch.float32)
    training = Training(epochs=8, batch_size=32, rate="swa", learning_rate=0.2, device="cpu")
    fit = shelf.load("inference", "cigl")(mlp(), digits(), drop_rate=0.0, delta_t=5, training=training)
    seen = [row["learning_rate"] for row in fit.history]
    assert seen[:4] == pytest.approx([0.2] * 4)
    assert 0 < seen[6] == seen[7] < seen[5] < seen[4] < 0.2
    assert len(fit.pairs.values) == 2
    close(fit.dense(fit.pairs.values.mean(0)), next(fit.weights("ticket"))[0])
