"""Masks by filter: one Z for all weights of a convolution's filter, which drops the channel where it is made; elsewhere a Z each.

Source: Tompson et al. 2015 (SpatialDropout).
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from budget import assert_mean, assert_rate
from digits import digits
from espalier import shelf
from espalier.guides.masked import MaskedGuide, draw_mask, groups
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.topology.masks import initial
from espalier.training.options import Training

P = 0.625
SHAPES = {
    "linear": [(9, 6), (4, 9)],
    "mixed": [(5, 2, 3, 3), (3, 5), (4, 3, 2), (2, 4, 1, 1)],
    "volumes": [(2, 3, 2, 2, 2), (7, 2)],
}


def by_loop(positions: list[int], shapes: list[tuple[int, ...]]) -> list[object]:
    """Of each position what it shares a Z with: (layer, filter), or itself alone."""
    found: list[object] = []
    for position in positions:
        layer, start = 0, 0
        while position >= start + int(np.prod(shapes[layer])):
            start, layer = start + int(np.prod(shapes[layer])), layer + 1
        own = np.unravel_index(position - start, shapes[layer])
        found.append((layer, int(own[0])) if len(shapes[layer]) > 2 else position)
    return found


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_a_filter_is_a_group_and_a_weight_of_a_matrix_is_one_of_its_own(name: str, sparsity: float) -> None:
    shapes = SHAPES[name]
    positions = initial(shapes, sparsity, "uniform", generator=torch.Generator().manual_seed(0)).positions
    shared = groups(positions, shapes, "filter")
    assert shared is not None
    ids, count = shared
    assert 0 <= int(ids.min()) <= int(ids.max()) < count
    names = by_loop(positions.tolist(), shapes)
    assert all((ids[i] == ids[j]).item() == (names[i] == names[j]) for i in range(len(ids)) for j in range(i))
    matrices = sum(isinstance(one, int) for one in names)
    assert count == matrices + sum(shape[0] for shape in shapes if len(shape) > 2)
    assert groups(positions, shapes, "weight") is None


def test_filters_share_a_z_and_groups_are_independent() -> None:
    shapes = SHAPES["mixed"]
    positions = initial(shapes, 0.5, generator=torch.Generator().manual_seed(1)).positions
    shared = groups(positions, shapes, "filter")
    assert shared is not None
    stream = torch.Generator().manual_seed(2)
    draws = torch.stack([draw_mask(positions, shapes, "filter", P, stream) for _ in range(3000)])
    firsts = torch.stack([draws[:, shared[0] == group][:, 0] for group in shared[0].unique()], 1)
    for group in shared[0].unique():
        own = draws[:, shared[0] == group]
        assert (own == own[:, :1]).all()
    count = firsts.shape[1]
    for column in range(count):
        assert_rate(int(firsts[:, column].sum()), 3000, P, looks=count)
    both = (firsts[:, :-1] & firsts[:, 1:]).double()
    assert_mean(both, np.full(count - 1, P**2))


def small() -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10))
    return BayesianNetwork(net)


@functools.cache
def trained() -> Fit:
    training = Training(epochs=6, batch_size=32, device="cpu")
    return shelf.load("inference", "cigl")(
        small(), digits(), sparsity=0.3, drop_rate="auto", mask="filter", delta_t=7, seed=1, training=training
    )


def test_a_draw_is_spatial_dropout_before_the_bias_and_a_z_for_every_weight_of_the_last_layer() -> None:
    fit, x = trained(), digits().test.x[:40]
    assert fit.record["mask"] == "filter"
    kernel, matrix = fit.dense(fit.pairs.values[-1]).split([54, 540])
    state = fit.pairs.state(-1)
    for (weights, _), probs in zip(fit.weights("redraw", num_samples=9), fit.predict(x, "redraw", num_samples=9), strict=True):
        kept_kernel, kept_matrix = weights.split([54, 540])
        z = (kept_kernel.view(6, 9) != 0).any(1)
        channels = F.conv2d(x, kernel.view(6, 1, 3, 3), stride=2) * z.view(1, 6, 1, 1) + state["net.0.bias"].view(1, 6, 1, 1)
        own = matrix * (kept_matrix != 0)
        logits = F.linear(F.relu(channels).flatten(1), own.view(10, 54), state["net.3.bias"])
        torch.testing.assert_close(probs, logits.softmax(-1).double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3)], ids=["grouped", "transposed"])
def test_layers_whose_filters_stand_otherwise_are_refused(layer: nn.Module) -> None:
    model = BayesianNetwork(nn.Sequential(layer))
    with pytest.raises(ValueError, match="expected Linear layers and plain convolutions for mask filter, but 0.weight of shape"):
        MaskedGuide(model, initial(model.shapes, 0.3), P, mask="filter")
