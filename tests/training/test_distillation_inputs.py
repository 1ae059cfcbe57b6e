"""What a student learns on besides training rows: inputs without labels, in batches of their own and none that are held out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.contracts import Data, Split
from espalier.training.distillation import STREAM
from espalier.training.streams import Streams
from rounding import close
from taught import Replay, masked_fit, once, student_of, z_of
from toys import BATCH, CPU, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


def more(rows: int = 3 * BATCH) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(9))


@pytest.mark.usefixtures("float64")
def test_batches_of_either_come_in_a_random_order_of_their_own_rows() -> None:
    """The cosine is over the steps of both."""
    fit, data, epochs, rate = masked_fit(), toy(2 * BATCH), 3, 0.2
    replay, streams = Replay(fit), Streams([5, STREAM], CPU)
    optimiser = torch.optim.SGD(replay.student, lr=1.0, momentum=0.9, nesterov=True)
    taken, seen = 0, []
    for _ in range(epochs):
        order = torch.tensor([0, 0, 1, 1, 1])[torch.randperm(5, generator=streams.order)].tolist()
        seen.append(order)
        left: dict[int, list[Tensor]] = {}
        for place in order:
            x = (data.train.x, more())[place]
            if place not in left:  # each is shuffled when its first batch is asked for
                left[place] = list(x[torch.randperm(len(x), generator=streams.order)].split(BATCH))
            batch = left[place].pop(0)
            loss = replay.loss(batch, replay.target(batch, z_of(fit, streams.mask)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * taken / (5 * epochs)))
            optimiser.step()
            taken += 1
    assert len({*map(tuple, seen)}) > 1
    once(fit, data, rate, epochs=epochs, inputs=more())
    for mine, theirs in zip(student_of(fit), replay.student, strict=True):
        close(mine, theirs)
    assert fit.history[-1]["step"] == 5 + 5 * epochs
    assert {name: fit.record["distilled"][name] for name in ("steps", "unlabelled")} == {"steps": 15, "unlabelled": 3 * BATCH}


@pytest.mark.usefixtures("float64")
def test_labels_of_training_count_for_as_little_as_before() -> None:
    data = toy(2 * BATCH)
    others = data._replace(train=Split(data.train.x, (data.train.y + 1) % 3))
    students = [student_of(once(masked_fit(), one, inputs=more())) for one in (data, others)]
    alone = student_of(once(masked_fit(), data))
    for mine, theirs, without in zip(*students, alone, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, without)


def held(data: Data, part: str, rows: int) -> Tensor:
    x = getattr(data, part).x
    return torch.cat([more(), x[:rows]])


@pytest.mark.parametrize(("inputs", "sentence"), [
    (lambda data: more()[:0], "expected inputs without labels, as the network takes them, got no rows"),
    (lambda data: more()[:, :2], r"expected inputs as the network takes them, .*\(3,\).* got .*\(2,\)"),
    (lambda data: more().double(), r"expected inputs as the network takes them, .*float32.* got .*float64.*: data.inputs\(x\)"),
    (lambda data: more() / 0, "expected finite inputs, got NaN or infinity"),
    (lambda data: held(data, "test", 1), "1 of 16 rows of the test split are among them: leave them out"),
])  # fmt: skip
def test_inputs_that_will_not_do_are_refused(inputs: Any, sentence: str) -> None:
    data = toy()
    data = data._replace(test=Split(more(16) + 1, torch.zeros(16, dtype=torch.int64)))
    fit, found = masked_fit(), inputs(data)
    with pytest.raises(ValueError, match=sentence):
        once(fit, data, inputs=found)
    assert fit.student is None


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("other", [{"inputs": None}, {"shifted": 1}, {"masks": 2}, {"rate": 0.2}, {"epochs": 3}], ids=str)
def test_a_checkpoint_of_another_distillation_is_not_gone_on_from(other: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"epochs": 2, "rate": 0.1, "masks": 1, "inputs": more()}
    first = Recorder()
    whole = student_of(once(masked_fit(), toy(2 * BATCH), **asked, watch=first))
    saved = first.checkpoints[1]
    again = student_of(once(masked_fit(), toy(2 * BATCH), **asked, watch=Recorder(saved)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, whole, strict=True))
    moved = {"inputs": more() + 1} if "shifted" in other else other  # others, as many
    with pytest.raises(ValueError, match="expected the training that the checkpoint is of, with "):
        once(masked_fit(), toy(2 * BATCH), **{**asked, **moved}, watch=Recorder(saved))
