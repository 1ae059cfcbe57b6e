"""Laws of `BayesianNetwork` over a zoo of plain networks: what it computes, what it leaves alone, what it refuses."""

from __future__ import annotations

import copy
import math
import warnings
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, TraceMeanField_ELBO
from torch import Tensor, nn

from budget import assert_mean
from espalier.guides.masked import MaskedGuide
from espalier.network import LIKELIHOODS, BayesianNetwork, Normal
from espalier.topology.masks import initial

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # linear_operator scripts a function when it is imported
    import gpytorch

# -------------------------------------------------------------------------------------------------------------- the zoo


class TiedLinears(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.top = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.top(torch.relu(self.b(torch.relu(self.a(x)))))


class SharedLayer(nn.Module):
    """One layer under two names, as weight-shared (recurrent or Siamese) networks have it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.b = self.a
        self.top = nn.Linear(6, 3)

    def forward(self, x):
        return self.top(torch.relu(self.b(torch.relu(self.a(x)))))


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embedding(x).mean(1)))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.top = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.top(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.top = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.top(self.lstm(x)[0][:, -1])


class Animal(NamedTuple):
    build: object
    shape: tuple[int, ...]
    num_outputs: int = 3
    names: tuple[str, ...] = ()
    """The maskable tensors, in order, by their first name."""


def _tokens(animal: Animal) -> bool:
    return animal.build is TiedEmbedding


def _mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def _pooled(layer, channels, flat=nn.Flatten):
    pool = {nn.Conv1d: nn.AdaptiveAvgPool1d, nn.ConvTranspose1d: nn.AdaptiveAvgPool1d}
    pooled = pool.get(type(layer), nn.AdaptiveAvgPool2d)(1)
    return nn.Sequential(layer, nn.ReLU(), pooled, flat(), nn.Linear(channels, 3))


def _batchnorm():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def _transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))


ZOO = {
    "mlp": Animal(_mlp, (5,), names=("0.weight", "2.weight")),
    "bare_layer": Animal(lambda: nn.Linear(5, 3), (5,), names=("weight",)),
    "float64": Animal(lambda: _mlp().double(), (5,), names=("0.weight", "2.weight")),
    "tied_linears": Animal(TiedLinears, (6,), names=("a.weight", "top.weight")),
    "shared_layer": Animal(SharedLayer, (6,), names=("a.weight", "top.weight")),
    "tied_embedding": Animal(TiedEmbedding, (4,), 11, names=("embedding.weight",)),
    "attention": Animal(Attention, (4, 8), names=("attend.out_proj.weight", "top.weight")),
    "transformer": Animal(
        _transformer, (4, 8), names=("0.self_attn.out_proj.weight", "0.linear1.weight", "0.linear2.weight", "2.weight")
    ),
    "lstm": Animal(Recurrent, (6, 4), names=("top.weight",)),
    "grouped_conv": Animal(lambda: _pooled(nn.Conv2d(4, 6, 3, groups=2), 6), (4, 5, 5), names=("0.weight", "4.weight")),
    "conv_transpose": Animal(
        lambda: _pooled(nn.ConvTranspose2d(2, 5, 3, stride=2), 5), (2, 4, 4), names=("0.weight", "4.weight")
    ),
    "conv1d": Animal(lambda: _pooled(nn.Conv1d(3, 5, 3), 5), (3, 9), names=("0.weight", "4.weight")),
    "dropout": Animal(
        lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3)),
        (5,),
        names=("0.weight", "3.weight"),
    ),
    "batch_norm": Animal(_batchnorm, (2, 6, 6), names=("0.weight", "5.weight")),
}


def meet(name: str, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The animal's network in evaluation mode, eight inputs and labels."""
    torch.manual_seed(seed)
    animal = ZOO[name]
    net = animal.build().eval()
    dtype = next(net.parameters()).dtype
    x = torch.randint(0, 11, (8, *animal.shape)) if _tokens(animal) else torch.randn(8, *animal.shape, dtype=dtype)
    return net, x, torch.randint(0, animal.num_outputs, (8,))


zoo = pytest.mark.parametrize("name", ZOO)


@pytest.fixture(autouse=True)
def _fresh_parameter_store():
    with pyro.get_param_store().scope():
        yield


def prior_draw(model: BayesianNetwork, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(model.num_weights, dtype=model.initial.dtype, generator=generator)


def sites(trace) -> list[str]:
    return [name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "data"]


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
    net, x = net.double(), x if _tokens(ZOO[name]) else x.double()
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


def train_some_steps(model: BayesianNetwork, x: Tensor, y: Tensor, steps: int = 3) -> MaskedGuide:
    topology = initial(model.shapes, 0.5, generator=torch.Generator().manual_seed(0))
    guide = MaskedGuide(model, topology, 0.9)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), TraceMeanField_ELBO())
    for _ in range(steps):
        assert math.isfinite(svi.step(x, y))
    return guide


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


# ------------------------------------------------------------------------------------- what may be masked, what may not


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
        BayesianNetwork(_mlp(), maskable=["conv*", "7.weight"])


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
        BayesianNetwork(_mlp(), prior_scale=scale)


def test_weights_of_two_dtypes_are_refused():
    net = _mlp()
    net[2].double()
    with pytest.raises(ValueError, match=r"^expected all maskable weights in one dtype on one device: call net.to"):
        BayesianNetwork(net)


# ---------------------------------------------------------------------------------------------------------- the program


def test_there_is_no_l2_site_without_weight_decay_and_a_batch_is_all_data_without_num_data():
    net, x, y = meet("mlp")
    model = BayesianNetwork(net)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    assert sites(trace) == ["weights", "y"]
    plain = -nn.functional.cross_entropy(model.evaluate(trace.nodes["weights"]["value"], x), y, reduction="sum")
    assert trace.nodes["y"]["log_prob_sum"].item() == pytest.approx(plain.item(), rel=1e-6)


def test_the_prior_of_a_model_without_a_prior_scale_is_standard_normal():
    net, x, _ = meet("mlp")
    model = BayesianNetwork(net)
    torch.manual_seed(3)
    draws = torch.stack([pyro.poutine.trace(model).get_trace(x).nodes["weights"]["value"] for _ in range(400)])
    assert_mean(draws, torch.zeros(model.num_weights))
    assert_mean(draws.square(), torch.ones(model.num_weights))


def test_frozen_parameters_have_no_l2():
    net = _mlp()
    net[0].bias.requires_grad_(False)
    model = BayesianNetwork(net, weight_decay=0.2)
    assert model.l2().item() == pytest.approx(0.1 * net[2].bias.square().sum().item(), rel=1e-6)


def outputs_and_targets(kind: str) -> tuple[int, Tensor]:
    torch.manual_seed(4)
    return {
        "categorical": (3, torch.tensor([0, 2, 1, 1, 0, 2, 2, 0])),
        "bernoulli": (1, torch.tensor([0.0, 1, 1, 0, 1, 0, 0, 1])),
        "normal": (1, torch.randn(8)),
    }[kind]


def plain_log_likelihood(kind: str, output: Tensor, y: Tensor) -> Tensor:
    """By torch's own losses."""
    if kind == "categorical":
        return -nn.functional.cross_entropy(output, y, reduction="none")
    if kind == "bernoulli":
        return -nn.functional.binary_cross_entropy_with_logits(output[:, 0], y, reduction="none")
    return -0.5 * (y - output[:, 0]).square() - 0.5 * math.log(2 * math.pi)


def regression_net(num_outputs: int) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, num_outputs))


def test_every_likelihood_is_tested_here():
    assert set(LIKELIHOODS) == {"categorical", "bernoulli", "normal"}


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_named_likelihood_is_torchs_loss_per_example(kind):
    num_outputs, y = outputs_and_targets(kind)
    model, x = BayesianNetwork(regression_net(num_outputs), likelihood=kind), torch.randn(8, 5)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    expected = plain_log_likelihood(kind, model.evaluate(trace.nodes["weights"]["value"], x), y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected, rtol=1e-5, atol=1e-6)
    assert pyro.poutine.trace(model).get_trace(x).nodes["y"]["value"].shape == (8,)


def test_a_wide_bernoulli_output_is_one_event_per_example():
    model, x = BayesianNetwork(regression_net(4), likelihood="bernoulli"), torch.randn(8, 5)
    y = (torch.rand(8, 4) < 0.5).float()
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    logits = model.evaluate(trace.nodes["weights"]["value"], x)
    expected = -nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected, rtol=1e-5, atol=1e-6)


def test_a_normal_likelihood_learns_its_precision():
    model = BayesianNetwork(regression_net(1), likelihood=Normal(2.5))
    x, y = torch.randn(8, 5), 10 * torch.randn(8)
    assert model.outcome(model.initial, x).stddev.tolist() == pytest.approx([2.5**-0.5] * 8)
    train_some_steps(model, x, y)
    assert model.likelihood.log_precision.item() < math.log(2.5) - 1e-3  # the residuals are much wider


def test_a_normal_likelihood_with_a_fixed_precision_keeps_it():
    model = BayesianNetwork(regression_net(1), likelihood=Normal(2.5, learn=False))
    train_some_steps(model, torch.randn(8, 5), 10 * torch.randn(8))
    assert model.outcome(model.initial, torch.randn(3, 5)).stddev.tolist() == pytest.approx([2.5**-0.5] * 3)


def test_any_callable_is_a_likelihood():
    model = BayesianNetwork(regression_net(1), likelihood=lambda out: dist.StudentT(4.0, out.squeeze(-1), 0.5))
    x, y = torch.randn(8, 5), torch.randn(8)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.StudentT(4.0, mean, 0.5).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected)


def test_a_gpytorch_likelihood_at_one_column_is_a_normal():
    noise = gpytorch.likelihoods.GaussianLikelihood()
    noise.noise = 0.3
    model = BayesianNetwork(regression_net(1), likelihood=lambda out: noise(out.squeeze(-1)), num_data=80)
    x, y = torch.randn(8, 5), torch.randn(8)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.Normal(mean, 0.3**0.5).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], 10 * expected, rtol=1e-4)


@pytest.mark.parametrize(
    "likelihood",
    [gpytorch.likelihoods.GaussianLikelihood(), lambda out: dist.Normal(out, 0.5)],
    ids=["gpytorch", "callable"],
)
def test_outputs_of_one_column_and_flat_targets_are_matched_or_refused_but_never_crossed(likelihood):
    """Means (n, 1) against targets (n,) broadcast to (n, n): every target compared with every mean, without a word."""
    model, x, y = BayesianNetwork(regression_net(1), likelihood=likelihood), torch.randn(8, 5), torch.randn(8)
    try:
        trace = pyro.poutine.trace(model).get_trace(x, y)
        trace.compute_log_prob()
    except ValueError:
        return
    mean = model.evaluate(trace.nodes["weights"]["value"], x).squeeze(-1)
    expected = torch.distributions.Normal(mean, likelihood(mean).stddev).log_prob(y)
    assert torch.allclose(trace.nodes["y"]["log_prob"], expected)


def test_an_unknown_likelihood_is_refused_with_those_there_are():
    message = "^expected a likelihood of categorical, bernoulli, normal or a callable, got 'poisson'$"
    with pytest.raises(ValueError, match=message):
        BayesianNetwork(_mlp(), likelihood="poisson")


def test_a_given_state_stands_in_for_the_parameters_and_buffers():
    net, x, _ = meet("batch_norm")
    model = BayesianNetwork(net).eval()
    other = BayesianNetwork(meet("batch_norm", seed=1)[0].train())
    other.evaluate(other.initial, 3 + x)  # moves its statistics
    other.eval()
    weights, state = prior_draw(model), other.state_dict()
    assert torch.equal(model.evaluate(weights, x, state), other.evaluate(weights, x))
    assert torch.equal(model.network(weights, state).eval()(x), other.evaluate(weights, x))
    assert not torch.equal(model.evaluate(weights, x), other.evaluate(weights, x))  # and only for that call


def test_outputs_in_half_precision_are_widened():
    model = BayesianNetwork(_mlp().bfloat16())
    assert model.evaluate(model.initial, torch.randn(2, 5).bfloat16()).dtype == torch.float32


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
