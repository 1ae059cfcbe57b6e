"""Laws of `BayesianNetwork` over a zoo of plain networks: what it computes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import Predictive
from torch import nn

from espalier.maskable import owner_of
from espalier.network import BayesianNetwork
from zoo import ZOO, meet, prior_draw, sites, tokens, train_some_steps

zoo = pytest.mark.parametrize("name", ZOO)


pytestmark = pytest.mark.usefixtures("own_store")


# ---------------------------------------------------------------------------------------------- laws over the whole zoo


@zoo
def test_the_maskable_tensors_are_the_linear_and_conv_weights_in_the_networks_order(name):
    net, _, _ = meet(name)
    model = BayesianNetwork(net)
    assert tuple(weight.name for weight in model.weights) == ZOO[name].names
    assert model.shapes == tuple(tuple(net.get_parameter(tensor).shape) for tensor in ZOO[name].names)
    assert model.sizes == tuple(math.prod(shape) for shape in model.shapes)
    assert model.num_weights == len(model.initial) == sum(model.sizes)
    assert not model.initial.requires_grad


@zoo
def test_evaluating_at_the_initial_weights_is_the_plain_network(name):
    net, x, _ = meet(name)
    model = BayesianNetwork(net).eval()
    for _ in range(2):  # and leaves the model as it was
        assert torch.equal(model.evaluate(model.initial, x), net(x))


@zoo
def test_the_users_network_is_left_alone(name):
    net, x, y = meet(name)
    objects = dict(net.named_parameters(remove_duplicate=False)) | dict(net.named_buffers())
    state = copy.deepcopy(net.state_dict())
    model = BayesianNetwork(net.train(), weight_decay=1e-3)
    pyro.poutine.trace(model).get_trace(x, y)
    train_some_steps(model, x, y)
    assert {k: id(v) for k, v in objects.items()} == {
        k: id(v) for k, v in [*net.named_parameters(remove_duplicate=False), *net.named_buffers()]
    }
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@zoo
def test_no_maskable_tensor_is_a_parameter_of_the_model(name):
    net, x, _ = meet(name)
    model = BayesianNetwork(net).eval()
    named = dict(net.named_parameters(remove_duplicate=False))
    tensors = {id(named[weight.name]) for weight in model.weights}
    masked = {key for key, tensor in named.items() if id(tensor) in tensors}
    for _ in range(2):
        held = {key.removeprefix("net.") for key, _ in model.named_parameters(remove_duplicate=False)}
        assert not held & masked
        assert held == set(dict(net.named_parameters(remove_duplicate=False))) - masked
        assert not {key.removeprefix("net.") for key in model.state_dict()} & masked
        model.evaluate(model.initial, x)  # and not after an evaluation either


@zoo
def test_the_dense_network_at_a_weight_vector_is_the_evaluation_there(name):
    net, x, _ = meet(name)
    model = BayesianNetwork(net).eval()
    weights = prior_draw(model)
    dense = model.network(weights).eval()
    assert type(dense) is type(net)
    assert torch.equal(dense(x), model.evaluate(weights, x))
    assert dense.state_dict().keys() == net.state_dict().keys()
    parameters = dict(dense.named_parameters(remove_duplicate=False))
    for weight in model.weights:
        assert len({id(parameters[tied]) for tied in weight.names}) == 1
    assert not any(parameter.data_ptr() == weights.data_ptr() for parameter in parameters.values())


@zoo
def test_a_flat_vector_is_the_networks_tensors_one_after_the_other(name):
    net, _, _ = meet(name)
    model = BayesianNetwork(net)
    weights = prior_draw(model)
    tensors = model.unflatten(weights)
    assert set(tensors) == {tied for weight in model.weights for tied in weight.names}
    assert torch.equal(torch.cat([tensors[weight.name].flatten() for weight in model.weights]), weights)
    originals = dict(net.named_parameters(remove_duplicate=False))
    for tensor, value in model.unflatten(model.initial).items():
        assert torch.equal(value, originals[tensor])


@zoo
def test_the_gradient_of_the_flat_vector_is_the_plain_networks_tensor_by_tensor(name):
    net, x, y = meet(name)
    net, x = net.double(), x if tokens(ZOO[name]) else x.double()
    model = BayesianNetwork(net).eval()
    weights = model.initial.clone().requires_grad_()
    nn.functional.cross_entropy(model.evaluate(weights, x), y).backward()
    nn.functional.cross_entropy(net(x), y).backward()
    flat = model.unflatten(weights.grad)
    for weight in model.weights:
        assert torch.allclose(flat[weight.name], net.get_parameter(weight.name).grad, rtol=0, atol=1e-12)
    points = dict(model.net.named_parameters())
    assert points or name == "tied_embedding"
    for tensor, parameter in points.items():
        assert torch.allclose(parameter.grad, net.get_parameter(tensor).grad, rtol=0, atol=1e-12)


@zoo
def test_the_program_has_the_sites_it_promises(name):
    net, x, y = meet(name)
    num_data, scale = 100, 0.37
    model = BayesianNetwork(net, num_data=num_data, prior_scale=scale, weight_decay=0.02).eval()
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    assert sites(trace) == ["weights", "l2", "y"]
    weights = trace.nodes["weights"]["value"]
    assert weights.shape == (model.num_weights,)
    assert weights.dtype == model.initial.dtype
    expected = torch.distributions.Normal(0.0, scale).log_prob(weights.double()).sum().item()
    assert trace.nodes["weights"]["log_prob_sum"].item() == pytest.approx(expected, rel=1e-5)
    named = dict(net.named_parameters(remove_duplicate=False))
    maskable = {id(named[weight.name]) for weight in model.weights}
    squares = sum(p.double().square().sum().item() for p in net.parameters() if id(p) not in maskable)
    assert trace.nodes["l2"]["log_prob_sum"].item() == pytest.approx(-num_data * 0.02 / 2 * squares, rel=1e-5)
    plain = -nn.functional.cross_entropy(model.evaluate(weights, x), y, reduction="sum").item()
    assert trace.nodes["y"]["log_prob_sum"].item() == pytest.approx(num_data / 8 * plain, rel=1e-5)
    assert pyro.poutine.trace(model).get_trace(x).nodes["_RETURN"]["value"].shape == (8,)


@zoo
def test_a_model_is_predicted_from_by_pyro_and_keeps_its_buffers(name):
    net, x, _ = meet(name)
    model = BayesianNetwork(net).eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(0)
    draws = Predictive(model, num_samples=3)(x)
    assert draws["y"].shape == (3, 8)
    assert draws["weights"].shape == (3, 1, model.num_weights)  # Pyro leaves room for the plate of the data
    assert not torch.equal(draws["weights"][0], draws["weights"][1])
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@zoo
def test_a_deep_copy_and_a_loaded_state_dict_are_the_same_model(name):
    net, x, _ = meet(name)
    model = BayesianNetwork(net, num_data=12, weight_decay=0.1).eval()
    other = BayesianNetwork(meet(name, seed=1)[0], num_data=12, weight_decay=0.1).eval()
    other.load_state_dict(model.state_dict())
    weights = prior_draw(model)
    for twin in (copy.deepcopy(model), other):
        assert torch.equal(twin.evaluate(weights, x), model.evaluate(weights, x))
        assert torch.equal(twin.l2(), model.l2())


@zoo
def test_the_masked_guide_trains_it_and_inactive_weights_stay_zero(name):
    net, x, y = meet(name)
    model = BayesianNetwork(net, num_data=80, weight_decay=1e-3).train()
    points = copy.deepcopy(dict(model.net.named_parameters()))
    torch.manual_seed(0)
    guide = train_some_steps(model, x, y)
    start = model.initial[guide.positions]
    assert guide.values.dtype == model.initial.dtype
    assert not torch.equal(guide.values.data, start)
    assert (guide.values.data - start).abs().gt(0).double().mean() > 0.5
    inactive = torch.ones(model.num_weights, dtype=torch.bool)
    inactive[guide.positions] = False
    assert inactive.sum() == model.num_weights - round(0.5 * model.num_weights)
    assert guide()[inactive].eq(0).all()
    assert all(not torch.equal(points[key], value) for key, value in model.net.named_parameters())
    held = {id(parameter) for parameter in pyro.get_param_store()._params.values()}
    assert held == {id(parameter) for parameter in [guide.values, *model.parameters()]}  # and no dead tensors beside


# --------------------------------------------------------------------------------------------------- pretrained weights


@zoo
def test_a_model_starts_from_pretrained_weights(name):
    net, x, _ = meet(name)
    pretrained = meet(name, seed=9)[0]
    model = BayesianNetwork(net).eval()
    assert not torch.equal(model.evaluate(model.initial, x), pretrained(x))
    model.start_from(pretrained.state_dict())
    assert torch.equal(model.evaluate(model.initial, x), pretrained(x))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("2.bias"), "^expected every tensor of the network, but 2.bias is missing from the file$"),
        (lambda s: s.update({"2.wieght": s.pop("2.weight")}), "got '2.wieght': did you mean '2.weight'[?]$"),
        (lambda s: s.update({"zzz": torch.zeros(1)}), "^expected the network's own tensors, got 'zzz'$"),
        (lambda s: s.update({"0.weight": s["0.weight"].T}), r"^expected '0.weight' of shape \(7, 5\), got \(5, 7\)$"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(spoil, message):
    model = BayesianNetwork(meet("mlp")[0])
    before, state = model.initial.clone(), copy.deepcopy(model.state_dict())
    tensors = dict(meet("mlp", seed=9)[0].state_dict())
    spoil(tensors)
    with pytest.raises(ValueError, match=message):
        model.start_from(tensors)
    assert torch.equal(model.initial, before)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


class Known(nn.Module):
    """Its last layer and its batch norm stand under two names."""

    def __init__(self, alias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 2))
        if alias:
            self.head, self.normed, self.act = self.body[5], self.body[1], self.body[2]

    def forward(self, x):
        return self.body(x)


def test_a_module_under_two_names_keeps_its_parameters_when_others_stand_in() -> None:
    """`functional_call`, told to tie, put the stand-in back where the parameter had been: it trained no more."""
    model, plain = BayesianNetwork(Known(True)), BayesianNetwork(Known(False))
    x, names = torch.randn(5, 3), list(dict(plain.named_parameters()))
    before = dict(model.named_parameters(remove_duplicate=False))
    others = {name: tensor.detach() + 1 for name, tensor in plain.state_dict().items()}
    stands = {name: tensor for name, tensor in others.items() if name in model.state_dict()}
    for _ in range(2):
        said = model.evaluate(model.initial, x, stands)
        torch.testing.assert_close(said, plain.evaluate(plain.initial, x, others))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert set(names) <= set(after)
    slots = [owner_of(model.net, name) for weight in model.weights for name in weight.names]
    assert all(owner._parameters[attribute] is None for owner, attribute in slots)


def test_a_tied_parameter_stands_in_wherever_it_is() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.bias, self.b.weight = self.a.bias, self.a.weight

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))

    model, x = BayesianNetwork(Tied()), torch.randn(3, 4)
    bias, weight = torch.randn(4), torch.randn(16)
    said = model.evaluate(weight, x, {"net.a.bias": bias})
    w = weight.view(4, 4)
    torch.testing.assert_close(said, torch.tanh(x @ w.T + bias) @ w.T + bias)
    assert model.net.b.bias is model.net.a.bias
    assert isinstance(model.net.a.bias, nn.Parameter)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"prior_scale": 0.0}, "expected a prior_scale above 0, got 0.0"),
        ({"num_data": 0}, "expected num_data above 0, the number of training examples, got 0"),
        ({"num_data": -5}, "expected num_data above 0, the number of training examples, got -5"),
        ({"weight_decay": -0.1}, "expected a finite weight_decay of 0 or more, got -0.1"),
        ({"weight_decay": float("nan")}, "expected a finite weight_decay of 0 or more, got nan"),
    ],
)
def test_numbers_that_are_none_of_a_model_are_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        BayesianNetwork(nn.Linear(3, 2), **options)
