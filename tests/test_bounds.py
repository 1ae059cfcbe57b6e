"""Interval bounds: they hold, against samples and every ReLU pattern of a tiny net, and are exact where they can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from espalier.bounds import Bounds, Relu, bounds, nrs, stability, unstable_ratio
from espalier.guides.masked import MaskedGuide
from espalier.models import deep_gp, lenet, resnet50, unet, wide_resnet
from espalier.network import BayesianNetwork
from espalier.topology.masks import initial


def normed(seed: int) -> nn.Sequential:
    """Convolutions, batch norms with statistics and signed scales, pools of both kinds, padding, strides, dropout."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.ReLU(),
        nn.Dropout(), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.double().eval()


def perceptron(seed: int, widths: tuple[int, ...] = (4, 9, 7, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def around(x: Tensor, eps: float, count: int, seed: int) -> Tensor:
    """`count` inputs for each of x, half of them corners of its box, `(count, *x.shape)`."""
    stream = torch.Generator().manual_seed(seed)
    noise = 2 * torch.rand(count, *x.shape, generator=stream, dtype=x.dtype) - 1
    noise[::2] = noise[::2].sign()
    return x + eps * noise


def activations(net: nn.Module, x: Tensor) -> list[Tensor]:
    """What every ReLU is given."""
    seen: list[Tensor] = []
    hooks = [part.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
             for part in net.modules() if isinstance(part, nn.ReLU)]  # fmt: skip
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


# ------------------------------------------------------------------------------------------------------- they hold


@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("eps", [0.003, 0.3])
@pytest.mark.parametrize("kind", ["perceptron", "normed"])
def test_no_sampled_input_leaves_them(kind: str, eps: float, seed: int) -> None:
    net = perceptron(seed) if kind == "perceptron" else normed(seed)
    x = torch.randn(3, *((4,) if kind == "perceptron" else (2, 8, 8)), dtype=torch.float64)
    found = bounds(net, x - eps, x + eps)
    assert len(found.relus) == (2 if kind == "perceptron" else 3)
    y = torch.tensor([0, 2, 1])
    for inputs in around(x, eps, 40, seed):
        for own, relu in zip(activations(net, inputs), found.relus, strict=True):
            assert (own >= relu.lower - 1e-12).all()
            assert (own <= relu.upper + 1e-12).all()
        z = net(inputs)
        assert (z >= found.lower - 1e-12).all()
        assert (z <= found.upper + 1e-12).all()
        others = z.scatter(1, y[:, None], -torch.inf).amax(1)
        assert (z.gather(1, y[:, None]).squeeze(1) - others >= found.margins(y) - 1e-12).all()


@pytest.mark.parametrize(
    ("program", "shape"), [(lenet, (1, 16, 16)), (wide_resnet, (3, 8, 8)), (resnet50, (3, 8, 8)), (deep_gp, (5,))]
)
def test_they_hold_for_networks_of_the_shelf_residual_ones_too(program, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    options = {"depth": 10, "widen": 1} if program is wide_resnet else {}
    model = program.model(shape, 3, **options)
    net = model.network(model.initial).eval().double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    found = bounds(net, x - 1e-3, x + 1e-3)
    assert (found.upper > found.lower).all()
    for inputs in around(x, 1e-3, 10, 0):
        z = net(inputs)
        assert (z >= found.lower).all()
        assert (z <= found.upper).all()


class Free(nn.Module):
    """A forward of one's own: branches, constants, methods and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.turn = nn.Linear(6, 8), nn.Linear(6, 8, bias=False), nn.ConvTranspose2d(2, 3, 2)
        self.top, self.shift = nn.Linear(3 * 9 + 8, 4), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(x.shape[0], -1)
        left, right = torch.relu(self.one(x)), self.other(x).relu_()
        mixed = self.shift - (left - 0.5 * right) / 3 * self.shift + left.sigmoid()
        grown = self.turn(torch.tanh(mixed).reshape(len(x), 2, 2, 2))
        return -self.top(torch.cat([grown.flatten(1), -mixed], 1))[:, :3]


@pytest.mark.parametrize("seed", range(4))
def test_any_forward_of_known_functions_will_do(seed: int) -> None:
    torch.manual_seed(seed)
    net, x = Free().double(), torch.randn(3, 2, 3, dtype=torch.float64)
    found = bounds(net, x - 0.1, x + 0.1)
    assert len(found.relus) == 2
    for inputs in around(x, 0.1, 40, seed):
        z = net(inputs)
        assert (z >= found.lower).all()
        assert (z <= found.upper).all()


def through_a_view(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    hidden = a(x)
    view = hidden.view(-1, 4)
    view *= 30.0
    return b(hidden)


def through_an_alias(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    hidden = a(x)
    kept = hidden
    hidden += b(hidden)
    hidden -= 0.5 * a(x)
    hidden /= -3.0
    return b(torch.relu(hidden) + kept)


def then_returned(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    out = b(a(x))
    first = out[:, 0]
    first += 5.0
    return out


def falling_backwards(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.softplus(b(a(x)), beta=-2.0)


def afterwards(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    hidden = a(x)
    out = b(hidden)
    hidden.mul_(0.0)
    return out


def falling(a: nn.Module, b: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.softplus(b(a(x)), beta=2, threshold=0.1)


@pytest.mark.parametrize("forward", [through_a_view, then_returned, falling_backwards, through_an_alias, afterwards, falling])
def test_what_a_forward_writes_into_is_written(forward: Callable[..., Tensor]) -> None:
    """Or refused, where it was a view: bounds that do not hold are none."""
    torch.manual_seed(1)
    a, b = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    net = partial(forward, a, b)
    if forward in (through_a_view, then_returned, falling_backwards):
        with pytest.raises(ValueError, match="written into through a view|a beta above 0, got -2.0: it has no bounds"):
            bounds(net, x - 0.3, x + 0.3)
        return
    found = bounds(net, x - 0.3, x + 0.3)
    y = net(x).argmax(1)
    for inputs in around(x, 0.3, 300, 0):
        z = net(inputs)
        assert (z >= found.lower).all()
        assert (z <= found.upper).all()
        own = z.gather(1, y[:, None]) - z.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)
        assert (own[:, 0] >= found.margins(y)).all()


# ------------------------------------------------------------------------------------------------- how good they are


def range_by_patterns(net: nn.Sequential, lower: np.ndarray, upper: np.ndarray, direction: np.ndarray) -> tuple[float, float]:
    """The true least and largest direction @ net(x) in a box, of a net with one hidden layer: one linear programme for each
    pattern of its ReLUs, on the polytope where the pattern holds."""
    w, b, v, c = (parameter.detach().numpy() for parameter in net.parameters())
    ends = []
    for pattern in itertools.product([0.0, 1.0], repeat=len(b)):
        on = np.array(pattern)
        side = np.where(on == 1, -1.0, 1.0)  # on: -(w x + b) <= 0
        slope, shift = direction @ (v * on) @ w, direction @ (v @ (on * b) + c)
        for sign in (1.0, -1.0):
            done = linprog(sign * slope, A_ub=side[:, None] * w, b_ub=-side * b, bounds=list(zip(lower, upper, strict=True)))
            if done.status == 0:
                ends.append(sign * done.fun + shift)
    return min(ends), max(ends)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_true_range_by_every_relu_pattern_lies_within(seed: int) -> None:
    net = perceptron(seed, (3, 5, 3))
    x = torch.randn(1, 3, dtype=torch.float64)
    found = bounds(net, x - 0.4, x + 0.4)
    low, high = (x - 0.4)[0].numpy(), (x + 0.4)[0].numpy()
    for place in range(3):
        least, most = range_by_patterns(net, low, high, np.eye(3)[place])
        assert float(found.lower[0, place]) <= least + 1e-9
        assert float(found.upper[0, place]) >= most - 1e-9
        assert most - least > 0.3 * float(found.upper[0, place] - found.lower[0, place])
    margin = min(range_by_patterns(net, low, high, np.eye(3)[1] - np.eye(3)[k])[0] for k in (0, 2))
    folded = float(found.margins(torch.tensor([1])))
    apart = float(found._replace(affine=None).margins(torch.tensor([1])))
    assert apart <= folded <= margin + 1e-9
    assert apart < folded


@torch.no_grad()
def test_a_linear_map_has_exact_ones_and_so_have_its_margins() -> None:
    torch.manual_seed(0)
    net, x, eps = nn.Linear(6, 4).double(), torch.randn(5, 6, dtype=torch.float64), 0.2
    found, y = bounds(net, x - eps, x + eps), torch.tensor([0, 3, 1, 1, 2])
    reach = eps * net.weight.abs().sum(1)
    assert torch.allclose(found.lower, net(x) - reach)
    assert torch.allclose(found.upper, net(x) + reach)
    for row, label in enumerate(y.tolist()):
        exact = min(
            float(net(x)[row, label] - net(x)[row, k] - eps * (net.weight[label] - net.weight[k]).abs().sum())
            for k in range(4) if k != label
        )  # fmt: skip
        assert float(found.margins(y)[row]) == pytest.approx(exact, rel=1e-12)
    three = found.margins(y.clamp(max=2), 3)
    assert (three >= found.margins(y.clamp(max=2))).all()


def test_a_point_has_the_networks_own_values() -> None:
    net, x = normed(0), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    found = bounds(net, x, x)
    assert torch.allclose(found.lower, net(x), rtol=1e-10)
    assert torch.allclose(found.upper, net(x), rtol=1e-10)
    assert unstable_ratio(found.relus).tolist() == [0.0] * 4


def test_a_larger_box_has_wider_ones() -> None:
    net, x = normed(1), torch.randn(4, 2, 8, 8, dtype=torch.float64)
    found = [bounds(net, x - eps, x + eps) for eps in (0.01, 0.1, 1.0)]
    for one, wider in itertools.pairwise(found):
        assert (wider.lower <= one.lower).all()
        assert (wider.upper >= one.upper).all()
        assert (unstable_ratio(wider.relus) >= unstable_ratio(one.relus)).all()


def test_a_sparse_ticket_has_those_of_its_masked_dense_net() -> None:
    torch.manual_seed(2)
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)))
    guide = MaskedGuide(model, initial(model.shapes, 0.7, generator=torch.Generator().manual_seed(1)))
    sparse = model.network(guide.distribution().mean).eval()
    mask = torch.zeros(model.num_weights).index_fill_(0, guide.positions, 1.0)
    dense = model.network(model.initial).eval()
    masks = dict(zip(("1.weight", "3.weight"), model.unflatten(mask).values(), strict=True))
    x = torch.randn(5, 1, 4, 4)

    def masked(box):
        owned = {name: p * masks.get(name, 1.0) for name, p in dense.named_parameters()}
        return torch.func.functional_call(dense, owned, (box,))

    for mine, theirs in zip(_flat(bounds(sparse, x - 0.1, x + 0.1)), _flat(bounds(masked, x - 0.1, x + 0.1)), strict=True):
        assert torch.equal(mine, theirs)


def _flat(found: Bounds) -> list[Tensor]:
    return [found.lower, found.upper, *(end for relu in found.relus for end in (relu.lower, relu.upper))]


# ----------------------------------------------------------------------------------------------------- how stable


def by_hand(net: nn.Sequential, x: Tensor, eps: float) -> Tensor:
    """R of a perceptron with batch norm, by loops over numbers: lists of scalar tensors, autograd their only machine."""
    rows, units, total = x.tolist(), 0, torch.zeros((), dtype=torch.float64)
    for row in rows:
        box = [(torch.tensor(v - eps, dtype=torch.float64), torch.tensor(v + eps, dtype=torch.float64)) for v in row]
        scale = None
        for layer in net:
            if isinstance(layer, nn.Linear):
                reached = []
                for weights, bias in zip(layer.weight, layer.bias, strict=True):
                    low, high = bias.clone(), bias.clone()
                    for weight, (least, most) in zip(weights, box, strict=True):
                        rising = bool(weight > 0)
                        low, high = low + weight * (least if rising else most), high + weight * (most if rising else least)
                    reached.append((low, high))
                box, scale = reached, None
            elif isinstance(layer, nn.BatchNorm1d):
                moved = []
                for place, ends in enumerate(box):
                    g, mean = layer.weight[place], layer.running_mean[place]
                    sd = (layer.running_var[place] + layer.eps).sqrt()
                    a, b = (g * (end - mean) / sd + layer.bias[place] for end in ends)
                    moved.append((a, b) if g > 0 else (b, a))
                box, scale = moved, layer.weight.detach()
            else:
                for place, (low, high) in enumerate(box):
                    square = 1.0 if scale is None else float(scale[place]) ** 2
                    total, units = total - torch.tanh(1 + low * high / square), units + 1
                box = [(low.clamp(min=0), high.clamp(min=0)) for low, high in box]
    return total / units


def test_r_and_its_gradient_are_those_of_a_naive_loop_in_double_precision() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    net.double().eval()
    nn.init.normal_(net[1].weight)
    net[1].running_mean.normal_()
    x = torch.randn(3, 4, dtype=torch.float64)
    mine, theirs = nrs(bounds(net, x - 0.2, x + 0.2).relus).mean(), by_hand(net, x, 0.2)
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    parameters = list(net.parameters())[:-2]  # the last layer is before no ReLU
    found, wanted = (torch.autograd.grad(value, parameters) for value in (mine, theirs))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    assert all(one.abs().max() > 1e-4 for one in found)


def test_stability_and_the_share_of_unstable_units_by_numbers() -> None:
    relu = Relu(torch.tensor([[-1.0, 0.5, -2.0, 0.0]]), torch.tensor([[1.0, 2.0, -1.0, 3.0]]), torch.tensor([2.0, 1.0, 0.5, 1.0]))
    wanted = [math.tanh(1 - 1 / 4), math.tanh(1 + 1.0), math.tanh(1 + 2 / 0.25), math.tanh(1.0)]
    assert stability(relu)[0].tolist() == pytest.approx(wanted)
    assert stability(relu._replace(scale=None))[0].tolist() == pytest.approx([math.tanh(v) for v in (0, 2, 3, 1)])
    other = Relu(-torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    assert float(nrs([relu, other])) == pytest.approx(-sum(wanted) / 10)
    assert float(unstable_ratio([relu, other])) == pytest.approx(7 / 10)


def test_the_scale_is_that_of_the_batch_norm_before_and_the_maker_the_weight_before_that() -> None:
    net, x = normed(3), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    relus = bounds(net, x - 0.1, x + 0.1).relus
    assert [relu.made_by is layer.weight for relu, layer in zip(relus, (net[0], net[4], net[10]), strict=True)] == [True] * 3
    assert relus[0].scale is net[1].weight
    assert relus[1].scale is net[5].weight  # through the pool
    assert torch.equal(relus[2].scale, torch.ones(5, dtype=torch.float64))


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("net", "said"), [
    (nn.Sequential(nn.Linear(4, 4), nn.GELU()), "got gelu in it: it has no bounds"),
    (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), "got softmax in it"),
    (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "got layer_norm in it"),
    (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), "got dropout in it"),
    (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "expected batch norm with running statistics, in evaluation mode"),
    (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval(), "expected batch norm with running"),
])  # fmt: skip
def test_a_function_without_a_rule_is_refused_by_name(net: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bounds(net, torch.zeros(2, 4), torch.ones(2, 4))


@pytest.mark.parametrize(("forward", "said"), [
    (lambda x: x * x, "got mul in it"),
    (lambda x: 1 / x, "by torch's functions alone, but unsupported operand"),
    (lambda x: x if x > 0 else -x, "by torch's functions alone, but '>' not supported"),
    (lambda x: (x, x), "expected a network whose output is one tensor to have bounds of, got tuple"),
    (lambda x: x.data, "an interval has no data"),
    (lambda x: torch.add(x, x, alpha=-1), "got add in it"),
    (lambda x: x.max(), "got max in it"),
    (lambda x: torch.where(x, x, x), "got where in it"),
    (lambda x: x.abs_(), "got abs in it"),
    (lambda x: x + (x == 0), "got eq in it"),
    (lambda x: x * (x != 0), "got ne in it"),
    (lambda x: nn.functional.linear(torch.ones(2, 4), x), "got linear in it"),
])  # fmt: skip
def test_a_forward_that_bounds_cannot_follow_is_refused(forward, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bounds(forward, torch.zeros(2, 4), torch.ones(2, 4))


def test_the_shelfs_group_norm_is_refused_and_a_network_without_relus_is_not_stable() -> None:
    model = unet.model((1, 8, 8), 2)
    with pytest.raises(ValueError, match="got group_norm in it"):
        bounds(model.network(model.initial).eval(), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="expected a network with ReLUs to be stable, got none"):
        nrs(bounds(nn.Linear(4, 2), torch.zeros(2, 4), torch.ones(2, 4)).relus)
