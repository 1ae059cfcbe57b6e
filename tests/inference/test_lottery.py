"""Lottery tickets: train, prune, rewind, replayed in plain float64 torch."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import shelf
from espalier.network import BayesianNetwork, under
from espalier.prediction.fit import Fit
from espalier.topology import codes
from espalier.topology.masks import erk
from espalier.training.options import Training
from espalier.training.streams import Streams
from rounding import close
from toys import BATCH, CPU, DECAY, P, net, toy
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


def lottery(watch: Recorder | None = None, model: BayesianNetwork | None = None, **options: Any) -> Fit:
    training = Training(epochs=3, batch_size=BATCH, learning_rate=0.2, weight_decay=DECAY, device="cpu")
    settings = {"sparsity": 0.7, "average_from": 1.0, "seed": 5, **options}
    data = toy(5 * BATCH + 2)
    return shelf.load("inference", "lottery")(
        model or BayesianNetwork(net()), data, training=training, watch=watch, **settings
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("rounds", "rewind"), [(1, 0), (3, 0), (2, 2)])
def test_a_lottery_ticket_is_train_prune_rewind_in_plain_torch(rounds: int, rewind: int) -> None:
    """Frankle & Carbin 2019, with the rewinding of Frankle et al. 2020: dense training, then as many sparse ones as rounds."""
    x, y = toy(5 * BATCH + 2).train
    order = Streams(5, CPU).order

    def train(start: list[Tensor], masks: list[Tensor], epochs: int, cosine: bool) -> list[Tensor]:
        parameters = [tensor.clone().requires_grad_() for tensor in start]
        optimiser, taken = torch.optim.SGD(parameters, lr=1.0, momentum=0.9, nesterov=True), 0
        for _ in range(epochs):
            for rows in torch.randperm(len(y), generator=order).split(BATCH)[:5]:
                w1, w2 = parameters[0] * masks[0], parameters[2] * masks[1]
                hidden = torch.tanh(F.linear(x[rows], w1, parameters[1]))
                squares = sum((tensor**2).sum() for tensor in (w1, w2, parameters[1], parameters[3]))
                loss = F.cross_entropy(F.linear(hidden, w2, parameters[3]), y[rows]) + DECAY / 2 * squares
                optimiser.zero_grad()
                loss.backward()
                rate = 0.1 * (1 + math.cos(math.pi * taken / (5 * epochs))) if cosine else 0.2
                optimiser.param_groups[0]["lr"] = rate
                optimiser.step()
                taken += 1
        return [tensor.detach() for tensor in parameters]

    begin, masks = [p.detach() for p in net().parameters()], [torch.ones(4, 3), torch.ones(3, 4)]
    if rewind:
        begin = train(begin, masks, rewind, cosine=False)
    for number in range(rounds + 1):
        final = train(begin, masks, 3, cosine=True)
        if number < rounds:
            counts = erk([(4, 3), (3, 4)], 0.3 ** ((number + 1) / rounds))
            for weight, mask, count in zip((final[0], final[2]), masks, counts, strict=True):
                best = torch.where(mask.bool(), weight.abs(), -1.0).flatten().topk(count).indices
                mask.zero_().view(-1)[best] = 1.0

    watch = Recorder()
    fit = lottery(watch, rounds=rounds, rewind_epochs=rewind)
    assert watch.steps == 5 * (3 * (rounds + 1) + rewind)
    assert fit.topology.num_active == round(0.3 * 24)
    kept = torch.cat([mask.flatten() for mask in masks]).bool()
    assert torch.equal(fit.topology.positions, kept.nonzero().squeeze(1))
    for how in ("ticket", "unmasked"):
        plain = list(fit.ticket(how).parameters())
        for mine, theirs in zip(sorted(plain, key=lambda t: t.shape), sorted(
            [final[0] * masks[0], final[1], final[2] * masks[1], final[3]], key=lambda t: t.shape
        ), strict=True):  # fmt: skip
            close(mine, theirs)


def topologies(watch: Recorder, sizes: tuple[int, ...], trainings: int) -> list[Tensor]:
    """Positions of each training, from the last checkpoint: it holds them all."""
    found, tensors = [], watch.checkpoints[-1].tensors
    for _ in range(trainings):
        found.append(codes.read(tensors, sizes).positions)
        tensors = under("next.", tensors)
    assert not tensors
    return found


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        ([(4, 3), (3, 4)], {"rounds": 4}),
        ([(2, 3), (5, 2), (3, 5)], {"rounds": 6, "sparsity": 0.3, "allocation": "uniform"}),
    ],
)  # fmt: skip
def test_every_round_of_the_lottery_keeps_some_of_what_was_left(
    shapes: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(wide, narrow) for narrow, wide in shapes]
    model = BayesianNetwork(nn.Sequential(*itertools.chain(*((layer, nn.Tanh()) for layer in layers[:-1])), layers[-1]))
    watch, rounds = Recorder(), options["rounds"]
    fit = lottery(watch, model, **options)
    found = topologies(watch, model.sizes, rounds + 1)
    density = 1 - options.get("sparsity", 0.7)
    wanted = [round(density ** (i / rounds) * model.num_weights) for i in range(rounds + 1)]
    assert all(0 <= len(p) - count < len(shapes) for p, count in zip(found, wanted, strict=True))  # a layer's rounding
    assert (len(found[0]), len(found[-1])) == (wanted[0], wanted[-1])
    assert torch.equal(found[-1], fit.topology.positions)
    for before, after in itertools.pairwise(found):
        assert torch.isin(after, before).all()


def test_masks_are_random_in_the_last_round_alone() -> None:
    plain, masked = Recorder(), Recorder()
    first, second = lottery(plain), lottery(masked, drop_rate=1 - P)
    assert (first.keep_prob, second.keep_prob) == (1.0, P)
    assert torch.equal(first.topology.positions, second.topology.positions)
    for one, other in zip(plain.checkpoints[1:10], masked.checkpoints[1:10], strict=True):  # three trainings of three epochs
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert not torch.equal(first.pairs.values, second.pairs.values)
    assert not second.pairs.keep.all()


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rewind_epochs": -1}])
def test_an_impossible_lottery_is_refused(options: dict[str, int]) -> None:
    watch = Recorder()
    with pytest.raises(ValueError, match="expected rounds of 1 to 100, rewind_epochs of at least 0 and a sparsity"):
        lottery(watch, **options)
    assert watch.steps == 0
