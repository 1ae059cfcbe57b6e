"""A loss that is no number ends a training at its own step: at once on the CPU, at the next step on a GPU."""

import pytest
import torch

from espalier.training.finite import Finite

DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
])]  # fmt: skip


def watched() -> Finite:
    return Finite(lambda step: RuntimeError(f"step {step} failed"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_step_that_failed_is_named(device: str, value: float) -> None:
    finite, fine = watched(), torch.tensor(1.5, device=device)
    finite.see(1, fine)
    finite.see(2, fine)
    with pytest.raises(RuntimeError, match="^step 3 failed$"):  # noqa: PT012, whichever of the two a device is asked at
        finite.see(3, fine * value)
        finite.see(4, fine)
    finite.settle()  # said once


@pytest.mark.parametrize("device", DEVICES)
def test_the_last_one_is_looked_at_before_anything_is_kept(device: str) -> None:
    finite = watched()
    finite.see(1, torch.tensor(0.0, device=device))
    finite.settle()
    with pytest.raises(RuntimeError, match="^step 2 failed$"):  # noqa: PT012
        finite.see(2, torch.tensor(float("nan"), device=device))
        finite.settle()
