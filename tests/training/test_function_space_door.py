"""Where context points come from, and what has no KL of functions: refused in a sentence before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from digits import digits
from espalier.contracts import Data, Split
from espalier.data import CORRUPTIONS, Shifted
from espalier.data.worlds import levels_of
from espalier.guides.gaussian import GaussianGuide
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial
from espalier.training.function_space import Context, FunctionSpaceKL, check, context_of
from tiny import case, points, stream
from zoo import TiedEmbedding

# Context points


def test_points_from_training_rows_and_from_ones_own() -> None:
    data = digits()
    rows = context_of("train", data).draw(50, stream())
    assert (rows[:, None] == data.train.x[None]).flatten(2).all(2).any(1).all()
    own = context_of(data.test.x[:3], data)
    assert own.size == 3
    assert (own.draw(40, stream())[:, None] == data.test.x[None, :3]).flatten(2).all(2).any(1).all()


def test_corrupted_points_are_training_rows_under_one_corruption() -> None:
    data = digits()
    context, generator, twin = context_of("corrupted", data), stream(), stream()
    names = [name for name in CORRUPTIONS if name != "saturate"]  # which is of colours
    for _ in range(3):
        kind, severity = divmod(int(torch.randint(5 * len(names), (), generator=twin)), 5)
        rows = torch.randint(320, (4,), generator=twin)
        theirs = Shifted(data.train.x, levels_of(data), names[kind], severity + 1, 13)[rows]
        assert torch.equal(context.draw(4, generator), theirs)


def test_points_from_another_set_are_brought_to_the_form_of_the_run(tmp_path: Any) -> None:
    x = np.random.default_rng(0).random((60, 16, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "other.npz", x=x, y=np.arange(60) % 3)
    context = context_of(str(tmp_path / "other.npz"), digits())
    assert context.size == 48  # a fifth is its test split
    assert context.draw(7, stream()).shape == (7, 1, 8, 8)


def test_a_set_without_pixels_has_no_corruptions() -> None:
    split = Split(torch.randn(9, 6), torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^expected a data set of images \(1 or 3, h, w\), got inputs of shape \(6,\)"):
        context_of("corrupted", Data("plain", split, split, split, split, (6,), 2))


@pytest.mark.parametrize("bad", [torch.zeros(3, 8, 8), torch.zeros(0, 1, 8, 8), torch.full((2, 1, 8, 8), torch.nan)])
def test_a_tensor_that_the_network_cannot_take_is_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected finite context points, rows of shape \(1, 8, 8\), got a tensor"):
        context_of(bad, digits())


# The door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "^expected 1 to 1,000 context_points, got 0"),
        ({"points": 1001}, "^expected 1 to 1,000 context_points, got 1001"),
        ({"kl_scale": 0.0}, "^expected a kl_scale above 0, got 0.0"),
        ({"linearised": "some"}, "^expected linearised of last-layer, all, got 'some'$"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionSpaceKL(Context("own", 5, lambda n, g: points(n)), **{"points": 5, **options})


def test_a_guide_without_variances_is_refused() -> None:
    model, guide = case()
    with pytest.raises(ValueError, match="^expected a GaussianGuide, whose weights have variances, got MaskedGuide$"):
        FunctionSpaceKL(Context("own", 5, lambda n, g: points(n)), 5).begin(model, MaskedGuide(model, guide.topology))


def test_one_point_has_no_batch_statistics() -> None:
    model = BayesianNetwork(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    guide = GaussianGuide(model, initial(model.shapes, 0.5))
    with pytest.raises(ValueError, match="^expected 2 context_points or more of a network with batch norm, got 1"):
        FunctionSpaceKL(Context("own", 5, lambda n, g: points(n)), 1).begin(model, guide)
    FunctionSpaceKL(Context("own", 5, lambda n, g: points(n)), 2).begin(model, guide)


class Twice(nn.Module):
    """Its layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


NOT_LAST = "^expected a network whose last masked tensor is that of a Linear layer that gives its output, got "


@pytest.mark.parametrize(
    ("build", "shape", "form", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.LogSoftmax(-1)), (6,), "last-layer", NOT_LAST + "0.weight of Linear"),
        (Twice, (6,), "last-layer", NOT_LAST + "layer.weight of Linear"),
        (lambda: nn.Sequential(nn.Conv1d(1, 1, 3), nn.Flatten()), (1, 6), "last-layer", NOT_LAST + "0.weight of Conv1d"),
        (TiedEmbedding, (5,), "last-layer", NOT_LAST),
        (lambda: nn.Linear(6, 4), (1, 6), "last-layer", r"^expected a network whose output is a tensor \(n, K\)"),
        (lambda: nn.Sequential(nn.Linear(6, 999), nn.Linear(999, 9)), (6,), "all", "^expected a network of at most 10,000 "),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,), "all", "without batch norm .* got one of batch norm"),
    ],
)
def test_a_network_of_another_form_is_refused(
    build: Callable[[], nn.Module], shape: tuple[int, ...], form: Any, message: str
) -> None:
    x = torch.ones(2, *shape, dtype=torch.int64 if build is TiedEmbedding else None)
    with pytest.raises(ValueError, match=message):
        check(BayesianNetwork(build()), x, form)


def test_a_bias_that_is_masked_last_is_no_layer() -> None:
    """Outputs as many as hidden units: the features times the bias would have a shape that fits."""
    model = BayesianNetwork(nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 3)), maskable="*", prior_scale=1.0)
    with pytest.raises(ValueError, match="expected a network whose last masked tensor is that of a Linear layer .*, got 2.bias"):
        check(model, torch.randn(4, 6), "last-layer")
