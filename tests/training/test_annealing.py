"""The factor of the KL rises to its own value, step by step, through kills, and the loss is the ELBO with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from digits import digits, mlp
from espalier import shelf
from espalier.prediction.fit import Fit
from espalier.training.annealing import KLWarmup
from espalier.training.options import Training
from espalier.training.watch import Watch, Watches
from watches import killed_and_resumed

EPOCHS, PER_EPOCH = 4, 10


def trained(watch: Watches = None, **options: Any) -> Fit:
    training = Training(epochs=EPOCHS, batch_size=32, learning_rate=0.1, device="cpu")
    options = {"sparsity": 0.7, "delta_t": 7, "freeze": 0.5, "noise_scale": 0.05, **options}
    return shelf.load("inference", "mean_field")(mlp(), digits(), training=training, seed=1, watch=watch, **options)


class Steps(Watch):
    def __init__(self) -> None:
        self.kl: list[float] = []

    def on_step(self, info: Any) -> None:
        self.kl.append(float(info.kl))


def test_the_first_steps_weigh_the_kl_by_their_share_of_the_rise() -> None:
    """Step 1 is taken at the same weights with and without it, so its KL is a twentieth; from step 20 on the factor is whole."""
    risen, plain = Steps(), Steps()
    fit = trained(risen, kl_scale=0.5, kl_warmup=0.5)
    other = trained(plain, kl_scale=0.5)
    assert risen.kl[0] == pytest.approx(plain.kl[0] / 20, rel=1e-5)
    assert [row["kl_scale"] for row in fit.history] == pytest.approx([0.5 * 11 / 20, 0.5, 0.5, 0.5])
    assert fit.record["kl_scale"] == 0.5
    assert fit.record["kl_warmup"] == 0.5
    assert "kl_warmup" not in other.record
    assert not torch.equal(fit.pairs.values, other.pairs.values)


@pytest.mark.parametrize("step", [7, 25])
def test_killed_and_resumed_it_rises_on(step: int, tmp_path: Path) -> None:
    fit = trained(kl_warmup=0.8)
    again = killed_and_resumed(lambda watch: trained(watch, kl_warmup=0.8), tmp_path, step)
    assert again.history == fit.history
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a kl_warmup in \[0, 1\], a fraction of training, got 1.5"):
        KLWarmup(1.5, 100)
