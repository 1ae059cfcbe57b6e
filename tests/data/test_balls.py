"""What lies within eps of a row: in the units that people say, as the network is given it."""

from __future__ import annotations

import pytest
import torch

from digits import digits
from espalier.contracts import Data, Split
from espalier.data import ball_of, from_arrays
from toys import toy


def test_of_images_eps_is_a_share_of_white_and_no_pixel_leaves_black_and_white() -> None:
    data = digits()
    (mean,), (sd,) = (part.tolist() for part in data.input_scale)
    ball, x = ball_of(data, 2 / 16), data.test.x[:50]
    assert (ball.unit, ball.eps) == ("white", 0.125)
    levels = x * sd + mean  # 0 to 16
    for own, wanted in zip(ball.box(x), (levels - 2, levels + 2), strict=True):
        assert own.dtype == x.dtype
        assert torch.allclose(own * sd + mean, wanted.clamp(0, 16), atol=1e-4)
    lower, upper = ball.box(x)
    assert (lower <= x).all()
    assert (upper >= x).all()


def test_of_other_inputs_it_is_in_the_networks_units_and_unbounded() -> None:
    ball, x = ball_of(toy(), 0.3), 100 * torch.randn(6, 3, dtype=torch.float64)
    assert ball.unit == "sd"
    lower, upper = ball.box(x)
    assert torch.allclose(lower, x - 0.3)
    assert torch.allclose(upper, x + 0.3)


def test_of_colour_each_channel_has_its_own_radius() -> None:
    x = torch.rand(40, 3, 8, 8) * torch.tensor([255.0, 100.0, 30.0]).view(3, 1, 1)
    data = from_arrays(x.numpy(), torch.arange(40).numpy() % 2)
    ball = ball_of(data, 0.02)
    assert torch.allclose(ball.radius.flatten(), 0.02 * 255 / data.input_scale[1].double().flatten())


def several() -> Data:
    x, y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    part = Split((x, x), y)
    return Data("several", part, part, part, part, ((3,), (3,)), 2)


@pytest.mark.parametrize(("data", "eps", "said"), [
    (digits(), 0.0, "expected an eps above 0, got 0"),
    (digits(), float("nan"), "expected an eps above 0, got nan"),
    (digits(), 8.0, "expected an eps of at most 1 for images, where it is a share of white, got 8: divide by 255"),
    (several(), 0.1, "expected inputs that are one tensor"),
])  # fmt: skip
def test_what_is_no_ball_is_refused(data: Data, eps: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ball_of(data, eps)
