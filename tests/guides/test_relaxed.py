"""The relaxed mask's loss is the paper's, under Pyro and in closed form, and a pair holds w * m."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.contracts import Evidence
from espalier.guides.relaxed import RelaxedGuide
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import objective
from rounding import close

pytestmark = pytest.mark.usefixtures("float64")
L1, NUM_DATA = 0.03, 90


def case(sparsity: float = 0.0) -> tuple[BayesianNetwork, RelaxedGuide]:
    """Mask values of either sign, away from where they start."""
    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)), num_data=NUM_DATA)
    stream = torch.Generator().manual_seed(1)
    guide = RelaxedGuide(model, initial(model.shapes, sparsity, generator=stream), rate=L1 * NUM_DATA)
    assert (guide.relaxed == 1).all()
    with torch.no_grad():
        guide.relaxed.add_(torch.randn(guide.relaxed.shape, generator=stream))
    return model, guide


def batch() -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(2)
    return torch.randn(16, 6, generator=stream), torch.randint(0, 4, (16,), generator=stream)


@pytest.mark.parametrize("way", ["by_pyro", "closed_form"])
@pytest.mark.parametrize("sparsity", [0.0, 0.4])
def test_the_loss_is_the_cross_entropy_of_w_times_m_plus_the_l1_of_m(way: str, sparsity: float) -> None:
    model, guide = case(sparsity)
    x, y = batch()
    w, m = (tensor.detach().clone().requires_grad_() for tensor in (guide.values, guide.relaxed))
    dense = torch.zeros(90).index_copy(0, guide.positions, w * m)
    first, second = dense[:54].view(9, 6), dense[54:].view(4, 9)
    loss = F.cross_entropy(torch.tanh(x @ first.T + model.net[0].bias) @ second.T + model.net[2].bias, y) + L1 * m.abs().sum()
    loss.backward()
    terms = getattr(objective, way)(model, guide, x, y, objective.cast("float32", y.device))
    close(terms.loss, loss)
    close(terms.kl, L1 * m.abs().sum())
    close(guide.values.grad, w.grad)
    close(guide.relaxed.grad, m.grad)
    assert objective.is_ours(model, guide, x, y)


def test_a_pair_holds_the_product_and_it_moves_with_its_weights() -> None:
    _, guide = case(0.5)
    product = guide.values.detach() * guide.relaxed.detach()
    close(guide.collected(), product)
    close(guide.distribution().mean[guide.positions], product)
    before, gradient = dict(zip(guide.positions.tolist(), guide.relaxed.tolist(), strict=True)), torch.randn(90)
    move = schedules.rigl(1, 10, 0.3).move(guide.topology, Evidence(1, guide.values.data, gradient, torch.Generator()))
    guide.move(move)
    assert move.num_grown > 3
    assert guide.relaxed.tolist() == [before.get(p, 1.0) for p in guide.positions.tolist()]


def test_a_rate_that_is_no_prior_is_refused() -> None:
    model, guide = case()
    for rate in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a rate above 0 for the Laplace prior of m, got"):
            RelaxedGuide(model, guide.topology, rate=rate)
