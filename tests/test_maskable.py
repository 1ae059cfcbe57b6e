"""Which tensors of a network are masked: the default, patterns, and what cannot be."""

from __future__ import annotations

import copy
import math
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from espalier.network import BayesianNetwork
from zoo import Recurrent, meet, mlp, train_some_steps

pytestmark = pytest.mark.usefixtures("own_store")


def _weight_normed():
    return nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3))


def test_a_weight_normed_layer_stays_dense_and_says_so():
    net = _weight_normed()
    with pytest.warns(UserWarning, match="^0.weight stay dense: a parametrised weight cannot be masked$"):
        model = BayesianNetwork(net)
    assert [weight.name for weight in model.weights] == ["2.weight"]
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    assert torch.equal(model.evaluate(model.initial, x), net(x))
    before = copy.deepcopy(dict(model.net.named_parameters()))
    train_some_steps(model, x, y)
    assert all(not torch.equal(before[key], value) for key, value in model.net.named_parameters())


def test_a_complex_layer_stays_dense_and_says_so():
    net = nn.Sequential(nn.Linear(5, 4, dtype=torch.cfloat), nn.Linear(4, 3))
    with pytest.warns(UserWarning, match="^0.weight stay dense: what is not floating cannot be masked$"):
        model = BayesianNetwork(net)
    assert [weight.name for weight in model.weights] == ["1.weight"]


@pytest.mark.parametrize("pattern", ["0.weight", "0.parametrizations.weight.original1", "0.*"])
def test_naming_a_weight_normed_layer_is_refused(pattern):
    with pytest.raises(ValueError, match=r"^0\.\S+ cannot be masked: .* leave it dense$"):
        BayesianNetwork(_weight_normed(), maskable=[pattern])


def test_naming_a_recurrent_weight_is_refused():
    with pytest.raises(ValueError, match="^lstm.weight_ih_l0 cannot be masked: its LSTM keeps a second copy; leave it"):
        BayesianNetwork(Recurrent(), maskable=["lstm.weight_*"])


@pytest.mark.parametrize("maskable", [None, ["*"]])
def test_a_layer_without_its_weights_yet_is_refused_in_one_sentence(maskable):
    with pytest.raises(ValueError, match="0.weight has no shape yet: call the network once first"):
        BayesianNetwork(nn.Sequential(nn.LazyLinear(3)), maskable=maskable)


def test_a_network_without_maskable_tensors_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match="^expected a network with a Linear or Conv layer; .* are 0.weight, 0.bias$"):
        BayesianNetwork(nn.Sequential(nn.LayerNorm(4)))
    with pytest.raises(ValueError, match="its parameters are none$"):
        BayesianNetwork(nn.Sequential(nn.ReLU()))


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match=r"^expected a network with a tensor that matches conv\* or 7.weight; "):
        BayesianNetwork(mlp(), maskable=["conv*", "7.weight"])


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["2.weight"], ["2.weight"]),
        (["*.weight"], ["0.weight", "2.weight"]),
        (["[2-9].weight", "0.weight"], ["0.weight", "2.weight"]),  # the network's order, not the patterns'
        (["0.*"], ["0.weight", "0.bias"]),  # whatever floating parameter is named
    ],
)
def test_patterns_choose_the_maskable_tensors(patterns, names):
    net, x, _ = meet("mlp")
    model = BayesianNetwork(net, maskable=patterns).eval()
    assert [weight.name for weight in model.weights] == names
    assert torch.equal(model.evaluate(model.initial, x), net(x))


def test_an_embedding_or_an_attention_projection_can_be_masked_by_name():
    net, x, _ = meet("transformer")
    model = BayesianNetwork(net, maskable=["*in_proj_weight"]).eval()
    assert [weight.name for weight in model.weights] == ["0.self_attn.in_proj_weight"]
    assert torch.equal(model.evaluate(model.initial, x), net(x))
    net, x, _ = meet("tied_embedding")
    model = BayesianNetwork(net, maskable=["head.weight"]).eval()
    assert model.weights[0].names == ("embedding.weight", "head.weight")  # a tied tensor is masked whole
    assert torch.equal(model.evaluate(model.initial, x), net(x))


def test_another_choice_of_maskable_tensors_is_the_same_model():
    net, x, _ = meet("mlp")
    model = BayesianNetwork(net, prior_scale=0.3, likelihood="categorical", num_data=50, weight_decay=0.01).eval()
    other = model.with_maskable(["2.weight"]).eval()
    assert [weight.name for weight in other.weights] == ["2.weight"]
    assert (other.prior_scale, other.num_data, other.weight_decay) == (0.3, 50, 0.01)
    assert type(other.likelihood) is type(model.likelihood)
    assert torch.equal(other.evaluate(other.initial, x), net(x))
    assert [weight.name for weight in model.weights] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_prior_without_spread_is_refused(scale):
    with pytest.raises(ValueError, match="^expected a prior_scale above 0, got .*: it is a standard deviation$"):
        BayesianNetwork(mlp(), prior_scale=scale)


def test_weights_of_two_dtypes_are_refused():
    net = mlp()
    net[2].double()
    with pytest.raises(ValueError, match=r"^expected all maskable weights in one dtype on one device: call net.to"):
        BayesianNetwork(net)


class Locked(nn.Linear):
    """A layer with something in it that cannot be copied."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.lock = threading.Lock()


class Remembering(nn.Linear):
    """A layer that keeps its last activation."""

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    net(torch.ones(1, 3))
    return net


def used() -> nn.Module:
    net = nn.Sequential(Remembering(3, 2))
    net(torch.ones(1, 3))
    return net


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    net(torch.ones(1, 3))
    return net


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (normed, "use torch.nn.utils.parametrizations.weight_norm for 0"),
        (pruned, "call torch.nn.utils.prune.remove on 0 first"),
        (lambda: nn.Sequential(Locked()), "remove what cannot be copied"),
        (used, "remove what cannot be copied"),
    ],
)
def test_a_network_that_cannot_be_copied_says_why_and_what_to_do(make, remedy):
    with pytest.raises(ValueError, match=f"^expected a network that can be copied, but .*: {remedy}"):
        BayesianNetwork(make(), maskable=["1.weight"] if make in (pruned, normed) else None)


def test_one_pattern_need_be_no_list() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert [weight.name for weight in BayesianNetwork(net, maskable="2.*").weights] == ["2.weight", "2.bias"]  # type: ignore[arg-type]


def test_a_frozen_tensor_stays_as_it_is_under_a_pattern_and_by_its_name_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    assert [weight.name for weight in BayesianNetwork(net, maskable=["*.weight"]).weights] == ["1.weight"]
    with pytest.raises(ValueError, match="0.weight cannot be masked: it is frozen"):
        BayesianNetwork(net, maskable=["0.weight", "1.weight"])
