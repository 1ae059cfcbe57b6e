"""Edge-popup: the subnetwork of the largest scores, whose weights never move, and the gradient that goes straight through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from digits import digits, mlp
from espalier import shelf
from espalier.guides.popup import PopupGuide
from espalier.network import BayesianNetwork
from espalier.prediction.costs import costs, forward
from espalier.prediction.fit import Fit
from espalier.training import objective
from espalier.training.options import Training
from espalier.training.watch import Watches
from watches import killed_and_resumed


def small(**options: Any) -> tuple[BayesianNetwork, PopupGuide]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    model = BayesianNetwork(net, num_data=50, prior_scale=0.7)
    return model, PopupGuide(model, [20, 7], generator=torch.Generator().manual_seed(2), **options)


@pytest.mark.parametrize("closed", [False, True])
def test_the_forward_pass_is_the_subnetworks_and_the_gradient_that_of_all_weights(closed: bool) -> None:
    """Against torch alone: top-k of |s| in each layer, dL/dw of all weights there, times w sign(s); and the scores' decay."""
    model, guide = small()
    x, y = torch.randn(9, 6, dtype=torch.float64), torch.randint(0, 3, (9,))
    scores, frozen = guide.scores.detach().clone(), guide.frozen.clone()
    mask = torch.zeros_like(scores)
    for start, size, count in ((0, 48, 20), (48, 24, 7)):
        best = sorted(range(start, start + size), key=lambda place: -abs(float(scores[place])))[:count]
        mask[best] = 1
    assert torch.equal(guide.positions, mask.nonzero().flatten())
    weights = (frozen * mask).requires_grad_()
    first, last = weights[:48].view(8, 6), weights[48:].view(3, 8)
    bias = [parameter.detach() for parameter in model.net.parameters()]
    logits = torch.relu(x @ first.t() + bias[0]) @ last.t() + bias[1]
    loss = nn.functional.cross_entropy(logits, y)
    (gradient,) = torch.autograd.grad(loss, weights)
    if closed:
        terms = objective.closed_form(model, guide, x, y)
        assert float(terms.fit) == pytest.approx(float(loss.detach()), rel=1e-10)
    else:
        (TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / 50).backward()
    assert guide.scores.grad is not None
    expected = gradient * frozen * scores.sign() + scores / 0.7**2 / 50
    assert torch.allclose(guide.scores.grad, expected, rtol=1e-8, atol=1e-12)
    assert guide.values.grad is None


@pytest.mark.parametrize("frozen", ["signed", "kaiming"])
def test_frozen_weights_have_the_size_that_keeps_activations(frozen: Any) -> None:
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 40)))
    guide = PopupGuide(model, [6000, 1200], frozen=frozen, generator=torch.Generator().manual_seed(0))
    for part, fan in zip(guide.frozen.split(model.sizes), (200, 300), strict=True):
        assert float(part.square().mean()) == pytest.approx(2 / (fan * 0.1), rel=1e-5 if frozen == "signed" else 0.05)
    if frozen == "signed":
        assert torch.equal(guide.frozen.sign(), model.initial.sign())


def trained(watch: Watches = None, **options: Any) -> Fit:
    training = Training(epochs=4, batch_size=32, learning_rate=0.1, device="cpu", **options)
    return shelf.load("inference", "edge_popup")(mlp(), digits(), sparsity=0.8, training=training, seed=1, watch=watch)


def test_it_learns_without_moving_a_weight_and_says_what_that_costs() -> None:
    fit = trained()
    assert fit.history[-1]["validation_accuracy"] > 0.8
    assert fit.topology.density == pytest.approx(0.2, abs=1e-3)
    sizes = [len(part.unique()) for part in fit.pairs.values[0].abs().split(fit.topology.counts)]
    assert sizes == [1, 1]  # of one size in a layer still
    work = forward(fit.model, fit.record)
    sparse = work.sparse(dict.fromkeys(work.layers, 0.2))
    exact = 2 * 32 * 40 * (2 * sparse + work.dense)  # forward, to activations, and to all scores; ten steps an epoch
    assert costs(fit)["train_flops"] == pytest.approx(exact, rel=2e-3)


def test_it_goes_with_the_robust_loss() -> None:
    assert not torch.equal(trained(loss="dro:1").topology.positions, trained().topology.positions)


def test_killed_and_resumed_it_chooses_the_same(tmp_path: Path) -> None:
    fit = trained()
    again = killed_and_resumed(trained, tmp_path, 17)
    assert again.history == fit.history
    assert torch.equal(again.topology.positions, fit.topology.positions)
    assert torch.equal(again.pairs.values, fit.pairs.values)


def test_other_words_for_frozen_are_refused() -> None:
    with pytest.raises(ValueError, match="expected frozen weights of signed, kaiming, got 'ones'"):
        small(frozen="ones")
