"""ESPN: dense training, the L1 on relaxed masks, and training of what is left, replayed in plain float64 torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espalier import shelf
from espalier.contracts import Data, Split
from espalier.network import BayesianNetwork
from espalier.prediction.costs import costs, forward
from espalier.prediction.fit import Fit
from espalier.topology.masks import erk
from espalier.training.options import Training
from espalier.training.streams import Streams
from rounding import close
from toys import BATCH, CPU, DECAY, P, net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
L1, COUNT = 0.02, 7


def data() -> Data:
    return toy(5 * BATCH + 2)


def espn(watch: Recorder | None = None, given: Data | None = None, **options: Any) -> Fit:
    training = Training(epochs=3, batch_size=BATCH, learning_rate=0.2, weight_decay=DECAY, device="cpu")
    settings = {"sparsity": 0.7, "average_from": 1.0, "seed": 5, "l1": L1, "mask_epochs": 20, "rewind_epochs": 2,
                "finetune_rate": 0.07, **options}  # fmt: skip
    return shelf.load("inference", "espn")(
        BayesianNetwork(net()), given or data(), training=training, watch=watch, **settings
    )


class Hand:
    """Nesterov SGD on w1, b1, w2, b2, and on m where there is one."""

    def __init__(self) -> None:
        self.x, self.y = data().train
        self.order = Streams(5, CPU).order
        self.mask = [torch.ones(4, 3), torch.ones(3, 4)]

    def train(
        self, start: list[Tensor], epochs: int, peak: float, cosine: bool, count: int | None = None
    ) -> tuple[list[Tensor], list[Tensor], int]:
        """count: train m, too, until an epoch in which so few are above 0.01; m then is that of the step when they were."""
        m = [torch.ones(4, 3), torch.ones(3, 4)]
        soft = [one.requires_grad_() for one in m] if count else []
        parameters = [tensor.detach().clone().requires_grad_() for tensor in start]
        optimiser, taken, seen = torch.optim.SGD([*parameters, *soft], lr=1.0, momentum=0.9, nesterov=True), 0, None
        while taken < 5 * epochs and seen is None:
            for rows in torch.randperm(len(self.y), generator=self.order).split(BATCH)[:5]:
                w1, w2 = (w * one * mask for w, one, mask in zip(parameters[::2], m, self.mask, strict=True))
                hidden = torch.tanh(F.linear(self.x[rows], w1, parameters[1]))
                loss = F.cross_entropy(F.linear(hidden, w2, parameters[3]), self.y[rows])
                if count:
                    loss = loss + L1 * sum(one.abs().sum() for one in m)
                else:
                    loss = loss + DECAY / 2 * sum((t**2).sum() for t in (w1, w2, parameters[1], parameters[3]))
                optimiser.zero_grad()
                loss.backward()
                rate = peak / 2 * (1 + math.cos(math.pi * taken / (5 * epochs))) if cosine else peak
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
                taken += 1
                if count and seen is None and sum(int((one.abs() > 0.01).sum()) for one in m) <= count:
                    seen = [one.detach().clone() for one in m]
        final = [tensor.detach() for tensor in parameters]
        final[::2] = [w * one.detach() * mask for w, one, mask in zip(final[::2], m, self.mask, strict=True)]
        return final, seen or [one.detach() for one in m], taken // 5


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("form", "allocation"), [("finetune", "global"), ("rewind", "global"), ("finetune", "erk")])
def test_espn_is_three_trainings_in_plain_torch(form: str, allocation: str) -> None:
    """Cho, Joshi & Hegde 2020, both forms, with a search that ends before its last epoch."""
    hand, tuning = Hand(), form == "finetune"
    first, _, _ = hand.train([p.detach() for p in net().parameters()], 3 if tuning else 2, 0.2, cosine=tuning)
    found, m, epochs = hand.train(first, 20, 0.2, cosine=False, count=COUNT)
    assert 1 < epochs < 20
    flat = torch.cat([one.abs().flatten() for one in m])
    if allocation == "global":
        kept = torch.zeros(24).index_fill(0, flat.topk(COUNT).indices, 1.0)
    else:
        best = [part.topk(count).indices for part, count in zip(flat.split(12), erk([(4, 3), (3, 4)], 0.3), strict=True)]
        kept = torch.zeros(24).index_fill(0, torch.cat([best[0], 12 + best[1]]), 1.0)
    hand.mask = [kept[:12].view(4, 3), kept[12:].view(3, 4)]
    final, _, _ = hand.train(found if tuning else first, 3, 0.07 if tuning else 0.2, cosine=True)

    watch = Recorder()
    fit = espn(watch, form=form, allocation=allocation)
    assert fit.topology.positions.tolist() == kept.nonzero().flatten().tolist()
    above = int((flat > 0.01).sum())
    assert fit.record["relaxed_mask"] == {"form": form, "l1": L1, "above": above, "kept": COUNT, "epochs": epochs}
    assert watch.steps == 5 * ((3 if tuning else 2) + epochs + 3)
    ticket = dict(fit.ticket().named_parameters())
    for name, mine in zip(("0.weight", "0.bias", "2.weight", "2.bias"), final, strict=True):
        close(ticket[name], mine)


def test_where_the_l1_is_too_weak_the_largest_are_kept_all_the_same_and_it_is_said() -> None:
    fit = espn(l1=1e-5, mask_epochs=1)
    assert fit.topology.num_active == COUNT
    assert fit.record["relaxed_mask"] == {"form": "finetune", "l1": 1e-5, "above": 24, "kept": COUNT, "epochs": 1}


def test_nothing_is_chosen_on_rows_that_were_kept_for_a_test() -> None:
    """Cho, Joshi & Hegde's released code reports the best epoch on the test split."""
    given = data()
    other = Split(given.test.x + 1.0, (given.test.y + 1) % 3)
    plain, changed = espn(), espn(given=given._replace(test=other, calibration=other))
    assert torch.equal(plain.topology.positions, changed.topology.positions)
    assert torch.equal(plain.pairs.values, changed.pairs.values)


def test_masks_are_random_in_the_last_training_alone() -> None:
    plain, masked = Recorder(), Recorder()
    first, second = espn(plain), espn(masked, drop_rate=1 - P)
    assert (first.keep_prob, second.keep_prob) == (1.0, P)
    assert torch.equal(first.topology.positions, second.topology.positions)
    assert not torch.equal(first.pairs.values, second.pairs.values)
    assert not second.pairs.keep.all()


@pytest.mark.parametrize("form", ["finetune", "rewind"])
def test_resumed_from_any_checkpoint_it_gives_the_same_fit(form: str) -> None:
    watch = Recorder()
    whole = espn(watch, form=form)
    expected = whole.bundle().tensors
    for number, checkpoint in enumerate(watch.checkpoints[1:], 1):
        rest = Recorder(checkpoint)
        again = espn(rest, form=form)
        assert rest.steps == watch.steps - 5 * number
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.bundle().tensors.items())
        assert again.record == whole.record
    tensors, facts = watch.checkpoints[-1]
    assert "next.relaxed.reached" in tensors
    assert facts["next"]["stopped"].endswith("mask values are above 0.01, of 7 to be kept")


def test_the_dense_trainings_are_paid_for() -> None:
    fit = espn()
    epochs, count = fit.record["relaxed_mask"]["epochs"], forward(fit.model, {"shape": (3,)})
    sparse = COUNT + count.rest
    found = costs(fit)
    work = 2 * BATCH * 5 * 3 * ((3 + epochs) * count.dense + 3 * sparse)
    assert found["train_flops"] == pytest.approx(work + COUNT)  # and the mean of one pair
    assert found["state_bytes"] == 24 * (4 * 4 + 8) + 2 * 4 * 7  # w, m and their momentum, positions; the biases and theirs


@pytest.mark.parametrize("options", [{"form": "freeze"}, {"mask_epochs": 0}, {"rewind_epochs": 0}, {"average_from": 1.5}])
def test_an_impossible_search_is_refused_before_any_work(options: dict[str, Any]) -> None:
    watch = Recorder()
    with pytest.raises(ValueError, match="expected form finetune or rewind, epochs of at least 1 and"):
        espn(watch, **options)
    with pytest.raises(ValueError, match="but 1 are left: lower the sparsity"):
        espn(watch, sparsity=0.95)
    assert watch.steps == 0
