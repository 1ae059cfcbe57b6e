"""The search for a mask: how strong its L1 is, when it ends, and that it goes on after a kill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from espalier.guides.relaxed import RelaxedGuide
from espalier.network import BayesianNetwork
from espalier.store import Bundle
from espalier.topology.masks import initial
from espalier.training.options import Training
from espalier.training.relaxed_masks import ABOVE, Few, Search, above, budget, kept, strength

SHAPES = [(4, 3), (2, 4)]


def case() -> tuple[BayesianNetwork, RelaxedGuide]:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), num_data=10)
    return model, RelaxedGuide(model, initial(model.shapes, 0.0), rate=1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_automatic_strength_takes_an_idle_mask_value_to_zero_in_half_of_the_steps(momentum: float) -> None:
    """Nesterov SGD on the L1 alone, by torch: up to the start of its momentum."""
    steps, training = 400, Training(momentum=momentum, learning_rate=0.05)
    m, l1 = nn.Parameter(torch.ones(())), strength("auto", training, steps)
    optimiser = torch.optim.SGD([m], lr=0.05, momentum=momentum, nesterov=momentum > 0)
    taken = 0
    while m > 0:
        optimiser.zero_grad()
        (l1 * m.abs()).backward()
        optimiser.step()
        taken += 1
    assert taken == pytest.approx(steps / 2, abs=12)


@pytest.mark.parametrize(("l1", "optimizer", "sentence"), [
    ("auto", "adam", "expected a number for l1 with adam, whose steps do not grow with it, got auto"),
    (0.0, "sgd", "expected an l1 above 0 or auto, got 0.0"),
    ("much", "sgd", "expected an l1 above 0 or auto, got 'much'"),
])  # fmt: skip
def test_a_strength_that_is_none_is_refused(l1: Any, optimizer: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        strength(l1, Training(optimizer=optimizer), 100)
    assert strength(1, Training(optimizer=optimizer), 100) == 1.0


def test_what_is_kept_is_in_all_or_in_each_layer_and_the_sign_of_m_does_not_matter() -> None:
    relaxed = torch.tensor([0.9, -0.8, 0.7, *[0.1] * 9, 0.05, -0.6, *[0.01] * 6])
    assert budget(SHAPES, 0.8, "global") == 4
    assert kept(SHAPES, 4, relaxed).positions.tolist() == [0, 1, 2, 13]
    assert budget(SHAPES, 0.8, "uniform") == (2, 2)
    assert kept(SHAPES, (2, 2), relaxed).positions.tolist() == [0, 1, 12, 13]
    assert above(torch.tensor([0.02, -0.02, 0.01, -0.003])) == 2
    with pytest.raises(ValueError, match="expected an allocation of global, erk, uniform, got 'local'"):
        budget(SHAPES, 0.8, "local")
    with pytest.raises(ValueError, match="expected a sparsity that leaves one of 20 weights at least to each of 2 layers, but 1"):
        budget(SHAPES, 0.95, "global")


def test_the_search_keeps_the_first_values_of_which_few_are_above_the_threshold() -> None:
    model, guide = case()
    search = Search(5, 0.1)
    search.begin(model, guide)
    for number, left in enumerate([20, 6, 5, 0], 1):
        guide.relaxed.data = torch.zeros(20).index_fill(0, torch.arange(left), 1.0 / number)
        search.after(number, model, guide)
        assert search.row() == {ABOVE: max(left, 5)}
    assert search.relaxed.tolist() == pytest.approx([1 / 3] * 5 + [0.0] * 15)
    again = Search(5, 0.1)
    again.begin(model, guide)
    again.restore(search.bundle(), model, guide)
    assert torch.equal(again.relaxed, search.relaxed)
    again.restore(Bundle({}, {}), model, guide)
    assert torch.equal(again.relaxed, guide.relaxed)


def test_the_search_ends_at_the_count_and_not_before() -> None:
    watch = Few(5)
    assert watch.on_epoch({ABOVE: 6}) is None
    assert watch.on_epoch({ABOVE: 5}) == "5 mask values are above 0.01, of 5 to be kept"
