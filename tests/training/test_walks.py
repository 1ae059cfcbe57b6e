"""The walk over the layers by hand, what an agent sees of them, and the multiplier against its formula."""

import math

import numpy as np
import pytest
from torch import nn

from espalier.network import BayesianNetwork
from espalier.training.walks import Layer, Multiplier, Walk, clip, layers_of, scalarised
from toys import net


def test_a_walk_over_two_layers_is_that_by_hand() -> None:
    asked: list[tuple[int, ...]] = []
    model = BayesianNetwork(net())  # 3 -> 4 -> 3, twelve weights each

    def reward(kept: tuple[int, ...]) -> float:
        asked.append(kept)
        return 61.5

    walk = Walk(layers_of(model), model.sizes, reward)
    assert walk.reset().tolist() == [0, 4, 3, 1, 1, 0, 0]
    first = walk.step(0.5)
    assert first.observation.tolist() == [1, 3, 4, 1, 1, 0, 0.5]
    assert (first.reward, first.cost, first.over, walk.kept, asked) == (0.0, 0.0, False, (6,), [])
    last = walk.step(0.75)
    assert last.observation.tolist() == [0, 4, 3, 1, 1, 0, 1.25]
    # nine of 24 weights are left: 37.5 %, for each of two layers
    assert (last.reward, last.cost, last.over, asked) == (61.5, pytest.approx(75.0), True, [(6, 3)])
    assert walk.reset().tolist() == [0, 4, 3, 1, 1, 0, 0]
    walk.step(1.0)
    assert walk.kept == (1,)  # no layer is cut through


def test_an_agent_sees_a_convolution_as_it_is() -> None:
    parts = [
        nn.Conv2d(6, 8, (3, 5), stride=(2, 3), padding=(1, 2), groups=2), nn.Conv2d(8, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 2, padding="valid"), nn.ConvTranspose2d(4, 7, 2, stride=2), nn.Flatten(), nn.Linear(28, 5),
    ]  # fmt: skip
    assert layers_of(BayesianNetwork(nn.Sequential(*parts))) == [
        Layer(8, 3, 15, 6, 3), Layer(4, 8, 9, 1, 2), Layer(4, 4, 4, 1, 0), Layer(4, 7, 4, 4, 0), Layer(5, 28),
    ]  # fmt: skip


@pytest.mark.parametrize(("sparsity", "ends"), [(0.9, (0.9, 0.95)), (0.8, (0.8, 0.85)), (0.98, (0.98, 0.99))])
def test_the_clip_rises_as_released_and_never_to_all_of_a_layer(sparsity: float, ends: tuple[float, float]) -> None:
    assert (clip(sparsity, 0.0), clip(sparsity, 1.0)) == pytest.approx(ends)
    assert clip(sparsity, 0.5) == pytest.approx(sum(ends) / 2)


def test_the_multiplier_ascends_by_adam_on_its_softplus() -> None:
    """Kingma & Ba 2015, algorithm 1, in NumPy: the gradient of nu (cost - budget) is sigmoid(z) (cost - budget)."""
    multiplier, z = Multiplier(10.0), math.log(math.e - 1)
    mean = square = 0.0
    assert multiplier.value == pytest.approx(1.0)
    for taken, cost in enumerate([38.0, 25.5, 12.0, 4.0, 9.0, 3.0, 2.0], 1):
        gradient = (cost - 10.0) / (1 + math.exp(-z))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        z += mean / (1 - 0.9**taken) / (math.sqrt(square / (1 - 0.999**taken)) + 1e-8)
        multiplier.update(cost)
        assert multiplier.value == pytest.approx(np.logaddexp(0, z), rel=1e-9)


def test_the_reward_is_scalarised_between_accuracy_and_cost() -> None:
    assert scalarised(90.0, 30.0, 0.0) == 90.0
    assert scalarised(90.0, 30.0, 2.0) == pytest.approx(10.0)
    assert scalarised(90.0, 30.0, 1e9) == pytest.approx(-30.0, rel=1e-6)
