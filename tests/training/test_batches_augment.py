"""Claims about an augmentation of one's own: it sees training batches alone, and its draws are the run's."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from espalier import BayesianNetwork, Training
from espalier.data import from_arrays
from espalier.inference import cigl
from espalier.runs.recipes import options, resolve
from espalier.training.batches import batches
from espalier.training.streams import Streams

RNG = np.random.default_rng(0)
DATA = from_arrays(RNG.normal(size=(120, 2, 4, 4)), np.arange(120) % 3, validation=0.2, channels="first")


def noisy(x: Tensor) -> Tensor:
    """Draws from torch, NumPy and Python."""
    return x * random.uniform(0.5, 2.0) + np.random.normal() + torch.randn(x.shape)  # noqa: NPY002


def epoch(augment: Any, seed: int = 1, epochs: int = 1) -> list[Tensor]:
    streams, training = Streams(seed, torch.device("cpu")), Training(batch_size=16, augment=augment)
    return [x for _ in range(epochs) for x, _ in batches(DATA, training, streams)]


def train(augment: Callable[[Tensor], Tensor] | str, seed: int = 0) -> Any:
    torch.manual_seed(0)
    net = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)))
    training = Training(epochs=2, batch_size=16, augment=augment)  # type: ignore[arg-type]
    return cigl.infer(net, DATA, sparsity=0.5, delta_t=2, training=training, seed=seed)


def test_what_it_draws_is_decided_by_the_seed_of_the_run() -> None:
    first = train(noisy)
    torch.manual_seed(77)
    np.random.seed(77)  # noqa: NPY002
    random.seed(77)
    again, other = train(noisy), train(noisy, seed=5)
    assert torch.equal(first.pairs.values, again.pairs.values)
    assert not torch.equal(first.pairs.values, other.pairs.values)


def test_every_batch_gets_draws_of_its_own() -> None:
    constant = torch.zeros(1)
    shifts = [float((x - y).mean()) for x, y in zip(epoch(lambda x: x + torch.randn(())), epoch(lambda x: x), strict=True)]
    assert len({round(shift, 5) for shift in shifts}) == len(shifts)
    several = epoch(lambda x: x * constant + torch.rand(()), epochs=3)
    assert len({float(x.flatten()[0]) for x in several}) == len(several)


def test_it_is_given_the_training_rows_and_no_others() -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    train(look)
    rows = {row.numpy().tobytes() for batch in seen for row in batch}
    assert rows <= {row.numpy().tobytes() for row in DATA.train.x}
    assert len(rows) > 60
    assert {len(batch) for batch in seen} == {2, 16}  # two rows, before any work


def test_one_that_changes_nothing_changes_no_model() -> None:
    plain, same = epoch("none"), epoch(lambda x: x)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


@pytest.mark.parametrize(
    ("augment", "got"),
    [
        (lambda x: x[:1], r"torch.float32 \(1, 2, 4, 4\)"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: (255 * x).byte(), r"torch.uint8 \(2, 2, 4, 4\)"),
        (lambda x: None, "NoneType"),
    ],
)
def test_one_that_gives_back_something_else_is_refused_before_any_work(augment: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"expected augment to give back a batch like the one it gets, .*, got {got}$"):
        train(augment)


def test_a_command_line_has_its_words_alone() -> None:
    (option,) = (option for option in options("mlp", "cigl") if option.name == "augment")
    assert "callable" not in option.help
    recipe = resolve(["--model", "mlp", "--inference", "cigl", "--data", "digits", "--augment", "crop-flip"])
    assert recipe.options["augment"] == "crop-flip"
    with pytest.raises(ValueError, match="augment"):
        resolve(["--model", "mlp", "--inference", "cigl", "--data", "digits", "--augment", "mine"])
    with pytest.raises(ValueError, match="expected augment of none, crop-flip, got 'mine'"):
        Training(augment="mine")  # type: ignore[arg-type]


def test_processes_draw_for_the_whole_batch_and_each_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(noisy)
    monkeypatch.setattr("espalier.training.distributed.size", lambda: 2)
    for rank, part in ((0, slice(8)), (1, slice(8, 16))):
        monkeypatch.setattr("espalier.training.distributed.rank", lambda rank=rank: rank)
        for mine, of in zip(epoch(noisy), whole, strict=True):
            assert torch.equal(mine, of[part])
