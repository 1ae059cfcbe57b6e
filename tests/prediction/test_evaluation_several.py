"""Claims about fits whose network takes, or gives, several tensors, and whose examples have several labels or targets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from espalier import BayesianNetwork, Data, Fit, Split, Training
from espalier.inference import cigl, distilled
from espalier.nested import Together
from espalier.prediction import evaluate
from espalier.prediction.datatree import to_datatree

RNG = np.random.default_rng(3)
N, EPOCHS = 96, 4
FEATURES = torch.from_numpy(RNG.standard_normal((N, 4))).float()
LABELS = (FEATURES[:, 0] + FEATURES[:, 1] > 0).long()


def data_of(x: Any, y: Tensor, shape: Any, num_classes: int | None, **options: Any) -> Data:
    """The same rows in every split: what is tested is the arithmetic."""
    part = Split(x, y)
    return Data("several", part, part, part, part, shape, num_classes, **options)


def trained(model: BayesianNetwork, data: Data, infer: Callable[..., Fit] = cigl.infer, **options: Any) -> Fit:
    training = Training(epochs=EPOCHS, batch_size=32, learning_rate=0.02)
    return infer(model, data, sparsity=0.5, drop_rate=0.1, training=training, delta_t=2, seed=1, **options)


class Net(nn.Module):
    """Of two inputs, with an output of the kind that is asked for."""

    def __init__(self, gives: Callable[[Tensor], Any] = lambda o: o, width: int = 2) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(16, width)
        self.gives = gives

    def forward(self, a: Tensor, b: Tensor | None = None) -> Any:
        a, b = (a[:, :2], a[:, 2:]) if b is None else (a, b)
        return self.gives(self.last(torch.cat([self.left(a).relu(), self.right(b).relu()], 1)))


def net(gives: Callable[[Tensor], Any] = lambda o: o, width: int = 2) -> Net:
    torch.manual_seed(0)
    return Net(gives, width)


PLAIN = data_of(FEATURES, LABELS, (4,), 2)
PAIR = data_of(Together((FEATURES[:, :2], FEATURES[:, 2:])), LABELS, ((2,), (2,)), 2)
NAMED = data_of(Together({"b": FEATURES[:, 2:], "a": FEATURES[:, :2]}), LABELS, {"b": (2,), "a": (2,)}, 2)


@pytest.mark.parametrize("infer", [cigl.infer, distilled.infer])
@pytest.mark.parametrize("data", [PAIR, NAMED], ids=["tuple", "dict"])
def test_inputs_that_are_a_tuple_or_a_dict_train_and_predict_as_one_tensor(infer, data, tmp_path):
    one, several = (trained(BayesianNetwork(net()), each, infer) for each in (PLAIN, data))
    assert torch.equal(one.pairs.values, several.pairs.values)
    for how in one.ways:
        assert torch.equal(one.predict(PLAIN.test.x, how), several.predict(data.test.x, how))
    assert evaluate(one, PLAIN)["predict"] == evaluate(several, data)["predict"]
    parts = data.test.x.parts
    assert torch.equal(several.predict(parts), one.predict(PLAIN.test.x))  # as plain tensors too
    several.save(tmp_path / "run")
    again = Fit.load(tmp_path / "run", BayesianNetwork(net()))
    assert torch.equal(again.predict(parts), one.predict(PLAIN.test.x))
    with pytest.raises(ValueError, match="expected rows of shape"):
        again.predict(FEATURES)


def test_new_inputs_are_scaled_part_by_part():
    scale = {"b": (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])), "a": None}
    data = NAMED._replace(input_scale=scale)
    found = data.inputs({"a": np.ones((1, 2)), "b": [[3.0, 10.0]]})
    assert found["b"].tolist() == [[1.0, 2.0]]
    assert found["a"].tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match=r"expected inputs of shape \(n, 2\), got \(1, 3\)"):
        data.inputs({"a": np.ones((1, 3)), "b": np.ones((1, 2))})


class Output(OrderedDict[str, Any]):
    """As Hugging Face's."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any]]] = {
    "a place": (lambda o: (o, o.mean()), {"output": 0}),
    "a key": (lambda o: {"logits": o, "hidden": None}, {"output": "logits"}),
    "a function": (lambda o: Output(logits=o), {"output": lambda o: o.logits}),
    "the likelihood picks a key": (lambda o: {"logits": o}, {"likelihood": lambda o: dist.Categorical(logits=o["logits"])}),
    "the likelihood picks an attribute": (lambda o: Output(logits=o, past=None),
                                          {"likelihood": lambda o: dist.Categorical(logits=o.logits)}),
    "the likelihood takes both": (lambda o: (o[:, :1], o[:, 1:]), {"likelihood": lambda o: dist.Categorical(
        logits=torch.cat(o, 1))}),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_a_tuple_or_a_dict_give_the_fit_of_a_tensor(name):
    gives, options = OUTPUTS[name]
    one, other = trained(BayesianNetwork(net()), PLAIN), trained(BayesianNetwork(net(gives), **options), PLAIN)
    torch.testing.assert_close(one.pairs.values, other.pairs.values)
    assert torch.equal(one.predict(PLAIN.test.x, "pairs"), other.predict(PLAIN.test.x, "pairs"))


@pytest.mark.parametrize(
    ("gives", "options", "sentence"),
    [
        (lambda o: {"logits": o}, {}, "expected a tensor from the network, got a with keys logits: say by output="),
        (lambda o: (o, o), {}, "expected a tensor from the network, got a tuple: say by output="),
        (lambda o: {"logits": o}, {"output": "logit"}, "to have a part 'logit', got logits: mend output="),
        (lambda o: (o,), {"output": 3}, "to have a part 3, got tuple: mend output="),
        (lambda o: {"logits": o}, {"likelihood": lambda o: dist.Categorical(logits=o["logit"])}, "'logit'"),
        (lambda o: o, {"likelihood": lambda o: dist.Categorical(logits=o.logits)}, "no attribute 'logits'"),
    ],
)
def test_outputs_that_the_likelihood_does_not_take_are_refused_before_training(gives, options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        trained(BayesianNetwork(net(gives), **options), PLAIN)


# --- Several targets ------------------------------------------------------------------------------------------------
UNITS = (torch.tensor([50.0, -3.0]), torch.tensor([10.0, 0.5]))
TWO = FEATURES[:, :2].sin() + 0.3 * torch.from_numpy(RNG.standard_normal((N, 2))).float()
COLUMNS = data_of(FEATURES, TWO, (4,), None, target_shift=(50.0, -3.0), target_scale=(10.0, 0.5))


@pytest.fixture(scope="module")
def two_columns() -> Fit:
    return trained(BayesianNetwork(net(), likelihood="normal"), COLUMNS)


def test_several_real_targets_have_scores_in_their_own_units(two_columns):
    y = COLUMNS.in_units(TWO).numpy()
    np.testing.assert_allclose(y, (TWO.double() * UNITS[1] + UNITS[0]).numpy())
    draws = two_columns.predict(FEATURES, "pairs").numpy()
    assert draws.shape == (len(two_columns.pairs.values), N, 2, 2)
    found = evaluate(two_columns, COLUMNS)["predict"]["pairs"]
    assert found["num_examples"] == N
    logs = stats.norm(draws[..., 0], draws[..., 1]).logpdf(y).sum(-1)
    joint = np.log(np.mean(np.exp(logs - logs.max()), 0)) + logs.max()
    assert found["nll"] == pytest.approx(-joint.mean() / 2, rel=1e-10)
    error = (y - draws[..., 0].mean(0)) ** 2
    np.testing.assert_allclose(found["rmse_by_output"], np.sqrt(error.mean(0)), rtol=1e-10)
    assert found["rmse"] == pytest.approx(np.sqrt(error.mean()), rel=1e-10)
    low, high = found["nll_interval"]
    assert low < found["nll"] < high
    assert len(found["crps_by_output"]) == len(found["coverage_95_by_output"]) == 2


def test_several_real_targets_have_a_tree(two_columns):
    tree = to_datatree(two_columns.mixture(FEATURES), COLUMNS.in_units(TWO))
    pairs = len(two_columns.pairs.values)
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "observation", "output")
    assert tree["log_likelihood"]["y"].shape == (1, pairs, N)
    assert tree["predictions"]["mean_and_scale"].shape == (1, pairs, N, 2, 2)
    drawn = tree["posterior_predictive"]["y"].values
    assert abs(drawn[..., 0].mean() - 50) < 5
    assert abs(drawn[..., 1].mean() + 3) < 0.25
    logs = tree["log_likelihood"]["y"].values[0]
    found = evaluate(two_columns, COLUMNS)["predict"]["pairs"]["nll"]
    assert found == pytest.approx(-(np.log(np.exp(logs).mean(0)) / 2).mean(), rel=1e-9)


def test_a_joint_distribution_of_the_targets_is_one_event():
    scale = torch.tensor([[0.5, 0.0], [0.3, 0.4]])
    model = BayesianNetwork(net(), likelihood=lambda o: dist.MultivariateNormal(o, scale_tril=scale.to(o)))
    fit = trained(model, COLUMNS)
    found = evaluate(fit, COLUMNS)["predict"]["mean"]["nll"]
    mean = (fit.predict(FEATURES, "mean")[0, ..., 0].double() - UNITS[0]) / UNITS[1]
    covariance = (scale @ scale.T).double().numpy()
    logs = [stats.multivariate_normal(m, covariance).logpdf(y) for m, y in zip(mean.numpy(), TWO.double().numpy(), strict=True)]
    assert found == pytest.approx(-np.mean(logs) / 2 + np.log(10 * 0.5) / 2, rel=1e-6)


def test_counts_in_two_columns_keep_their_support():
    counts = torch.from_numpy(RNG.poisson(3.0, (N, 2))).float()
    data = data_of(FEATURES, counts, (4,), None)
    model = BayesianNetwork(net(), likelihood=lambda o: dist.Poisson(o.exp()))
    fit = trained(model, data)
    drawn = to_datatree(fit.mixture(FEATURES), counts)["posterior_predictive"]["y"].values
    assert (drawn >= 0).all()
    assert (drawn == np.rint(drawn)).all()
    wrong = counts.clone()
    wrong[7, 1] = -1
    with pytest.raises(ValueError, match=r"support of the Poisson likelihood .* got -1 in row 7"):
        trained(model, data_of(FEATURES, wrong, (4,), None))


# --- Several labels --------------------------------------------------------------------------------------------------
WORDS = torch.from_numpy(RNG.integers(0, 3, (N, 5)))
SEQUENCES = data_of(FEATURES, WORDS, (4,), 3)


def test_sequences_of_labels_have_scores_intervals_and_a_tree():
    fit = trained(BayesianNetwork(net(lambda o: o.view(-1, 5, 3), width=15)), SEQUENCES)
    probs = fit.predict(FEATURES, "pairs")
    assert probs.shape == (len(fit.pairs.values), N, 5, 3)
    found = evaluate(fit, SEQUENCES)["predict"]["pairs"]
    mean = probs.mean(0).numpy()
    assert (found["num_examples"], found["num_labels"]) == (N, 5 * N)
    assert found["accuracy"] == pytest.approx((mean.argmax(-1) == WORDS.numpy()).mean())
    assert found["nll"] == pytest.approx(-np.log(np.take_along_axis(mean, WORDS.numpy()[..., None], -1)).mean(), rel=1e-6)
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
    tree = to_datatree(fit.mixture(FEATURES), WORDS)
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "observation", "output")
    assert tree["predictions"]["probability"].shape[-3:] == (N, 5, 3)
    logs = np.log(np.take_along_axis(probs.numpy(), WORDS.numpy()[None, ..., None], -1))[..., 0].sum(-1)
    np.testing.assert_allclose(tree["log_likelihood"]["y"].values[0], logs, rtol=1e-6)
    assert "validation_nll" in fit.history[-1]


def test_masks_have_scores_and_a_tree():
    masks = (FEATURES[:, :1, None] + torch.from_numpy(RNG.standard_normal((N, 3, 4))) > 0).float()
    data = data_of(FEATURES, masks.long(), (4,), 2)
    fit = trained(BayesianNetwork(net(lambda o: o.view(-1, 3, 4), width=12), likelihood="bernoulli"), data, distilled.infer)
    found = evaluate(fit, data)["predict"]
    assert found["distilled"]["num_labels"] == 12 * N
    tree = to_datatree(fit.mixture(FEATURES), masks.long())
    assert tree["posterior_predictive"]["y"].dims == ("chain", "draw", "observation", "output_0", "output_1")
    assert set(np.unique(tree["posterior_predictive"]["y"])) == {0, 1}
    one_event = BayesianNetwork(
        net(lambda o: o.view(-1, 3, 4), width=12), likelihood=lambda o: dist.Bernoulli(logits=o).to_event(2)
    )
    same = trained(one_event, data)
    assert same.predict(FEATURES, "mean").shape == (1, N, 3, 4, 2)
    assert evaluate(same, data)["predict"]["mean"]["nll"] == pytest.approx(found["mean"]["nll"], rel=1e-4)
