"""Claims about the objective: in closed form it is Pyro's TraceMeanField_ELBO in every number, or Pyro itself is asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import gpytorch
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from espalier import shelf
from espalier.network import BayesianNetwork
from espalier.topology import schedules
from espalier.training import objective, rates
from espalier.training.loop import Loop
from espalier.training.objective import by_pyro, closed_form
from terms import agree, guide_of, labels, mlp, same, step, x_of

pytestmark = pytest.mark.usefixtures("float64", "own_stream")


# --------------------------------------------------------------------------------------------------- one and the same

SMALL = {
    "lenet": ((1, 16, 16), {"hidden": 300}),
    "mlp": ((160,), {"hidden": (128, 128)}),
    "linear": ((160,), {}),
    "logistic": ((160,), {}),
    "deep_gp": ((160,), {"widths": (128,)}),
    "unet": ((3, 16, 16), {}),
    "resnet50": ((3, 16, 16), {}),
    "wide_resnet": ((3, 16, 16), {}),
}


@pytest.mark.parametrize("name", [name for name in shelf.names("models") if "resnet" not in name])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_model_of_the_shelf_has_pyros_loss_and_gradient(name: str, dtype: torch.dtype) -> None:
    shape, options = SMALL.get(name, ((1, 16, 16), {}))
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = shelf.load("models", name)(shape, 3, **options)
    model.weight_decay, model.num_data = 0.02, 90
    output = model.evaluate(model.initial, x_of(18, *shape))
    y = labels(*output.shape[:-1]) if name not in ("linear", "deep_gp") else torch.randn(output.shape)
    agree(model, x_of(18, *shape), y, 1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shelf.names("models") if "resnet" in name])
def test_the_large_models_of_the_shelf_too(name: str) -> None:
    torch.manual_seed(0)
    model = shelf.load("models", name)(SMALL[name][0], 3).to(torch.float64)
    agree(model, x_of(18, *SMALL[name][0]), labels(18))


def poisson(output: Tensor) -> dist.TorchDistribution:
    return dist.Poisson(output.squeeze(-1).exp())


class Rows(nn.Module):
    """(n, 160) -> (n, 4, 3): a sequence of four labels each."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).view(len(x), 4, 3)


CASES: dict[str, tuple[Callable[[], nn.Module], object, Callable[[], Tensor]]] = {
    "categorical": (mlp, "categorical", labels),
    "labels of few bits": (mlp, "categorical", lambda: labels().to(torch.uint8)),
    "labels as floats": (mlp, "categorical", lambda: labels().double()),
    "yes and no": (lambda: mlp(2), "categorical", lambda: labels(classes=2).bool()),
    "soft": (mlp, "categorical", lambda: x_of(20, 3).softmax(-1)),
    "soft, in single precision": (mlp, "categorical", lambda: x_of(20, 3).softmax(-1).float()),
    "unnormalised": (mlp, "categorical", lambda: x_of(20, 3).exp()),
    "sequences": (Rows, "categorical", lambda: labels(20, 4)),
    "one of one row": (lambda: nn.Sequential(mlp(3), nn.Unflatten(1, (1, 3))), "categorical", labels),
    "bernoulli": (lambda: mlp(1), "bernoulli", lambda: labels(classes=2)),
    "masks": (lambda: mlp(6), "bernoulli", lambda: labels(20, 6, classes=2)),
    "normal": (lambda: mlp(1), "normal", lambda: x_of(20)),
    "normal, several": (lambda: mlp(4), "normal", lambda: x_of(20, 4)),
    "poisson": (lambda: mlp(1), poisson, labels),
    "events": (lambda: mlp(4), lambda out: dist.Normal(out, 0.5).to_event(1), lambda: x_of(20, 4)),
    "a module's own parameters": (lambda: mlp(1), gpytorch.likelihoods.StudentTLikelihood(), lambda: x_of(20)),
    "gaussian of gpytorch": (lambda: mlp(1), gpytorch.likelihoods.GaussianLikelihood(), lambda: x_of(20)),
    "softmax of gpytorch": (lambda: mlp(4), gpytorch.likelihoods.SoftmaxLikelihood(num_features=4, num_classes=3), labels),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["masked", "gaussian"])
def test_every_likelihood_and_kind_of_labels_has_pyros_loss_and_gradient(name: str, kind: str) -> None:
    net, likelihood, y = CASES[name]
    model = BayesianNetwork(net(), prior_scale=0.7, likelihood=likelihood, num_data=90, weight_decay=0.02).double()
    eps = 1e-7 if "single precision" in name else 1e-10
    agree(model, x_of(), y(), eps, kind)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
@pytest.mark.parametrize("num_data", [None, 20, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale": True},
        {"mask": "unit"},
        {"mask": "filter"},
        {"num_particles": 3},
        {"microbatches": 3},
        {"microbatches": 2, "num_particles": 2, "mask": "unit"},
        {"mask": "unit", "rescale": True, "kl_scale": 0.3},
        {"keep_prob": 1.0, "kl_scale": 7.0},
        {"keep_prob": (0.9, 0.5), "kl_scale": 0.3},
        {"keep_prob": (0.9, 0.5), "mask": "unit"},
        {"kl_scale": 0.0},
        {"kind": "gaussian", "kl_scale": 0.3},
        {"kind": "gaussian", "kl_scale": 0.0},
    ],
    ids=str,
)
def test_every_option_of_model_and_guide_has_pyros_loss_and_gradient(options, num_data, weight_decay) -> None:
    model = BayesianNetwork(mlp(), prior_scale=0.7, num_data=num_data, weight_decay=weight_decay)
    agree(model, x_of(), labels(), **options)


@pytest.mark.parametrize("rows", [20, 17, 2])
def test_each_part_of_a_batch_is_under_a_z_of_its_own(rows: int) -> None:
    """Written out in plain torch; of fewer rows than parts, a row is a part. A move looks at one Z."""
    model = BayesianNetwork(mlp(), num_data=90)
    x, y = x_of(rows, 160), labels(rows)
    guide, twin = guide_of(model, microbatches=3), guide_of(model)
    first, out = model.net[0], model.net[2]

    def logits(keep: Tensor, rows: Tensor) -> Tensor:
        dense = torch.zeros(model.num_weights).index_copy(0, guide.positions, guide.values.detach() * keep)
        w1, w2 = dense[: 128 * 160].view(128, 160), dense[128 * 160 :].view(3, 128)
        return torch.tanh(rows @ w1.t() + first.bias) @ w2.t() + out.bias

    terms = closed_form(model, guide, x, y)
    cuts = {20: (6, 7, 7), 17: (5, 6, 6), 2: (1, 1)}[rows]
    zs = []
    for _ in cuts:
        twin.draw()
        zs.append(twin.keep)
    told = torch.cat([logits(z, part) for z, part in zip(zs, x.split(cuts), strict=True)]).detach()
    same({"fit": terms.fit}, {"fit": -told.log_softmax(-1)[torch.arange(rows), y].mean()})
    guide.tapped = True
    assert torch.equal(guide.generator.get_state(), twin.generator.get_state())
    terms = closed_form(model, guide, x, y)
    twin.draw()
    same({"fit": terms.fit}, {"fit": -logits(twin.keep, x).detach().log_softmax(-1)[torch.arange(rows), y].mean()})


def test_a_z_for_each_part_leaves_less_noise_in_the_gradient() -> None:
    """Of equal mean; the variance over Z of a batch's gradient falls as one over the number of parts (here to a rounded third,
    were all rows alike)."""
    model = BayesianNetwork(mlp(), num_data=90)
    x, y = x_of(1, 160).expand(24, 160), labels(1).expand(24)
    spreads, means = [], []
    for cuts in (1, 3):
        guide = guide_of(model, keep_prob=0.7, microbatches=cuts)
        gradients = []
        for _ in range(300):
            guide.values.grad = None
            closed_form(model, guide, x, y)
            gradients.append(guide.values.grad.clone())
        spreads.append(torch.stack(gradients).var(0).sum())
        means.append(torch.stack(gradients).mean(0))
    ratio = float(spreads[1] / spreads[0])
    assert 0.28 < ratio < 0.39
    assert (means[0] - means[1]).square().sum() < 3 * (spreads[0] + spreads[1]) / 300


class Odd(nn.Module):
    """used: does the output depend on its weights, on its bias?"""

    def __init__(self, weight: bool, bias: bool, frozen: bool) -> None:
        super().__init__()
        self.layer, self.spare = nn.Linear(160, 3), nn.Linear(160, 128)
        self.layer.bias.requires_grad_(not frozen)
        self.spare.requires_grad_(not frozen)
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.layer.weight.t() if self.weight else x[:, :3]) + (self.layer.bias if self.bias else 0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", ["masked", "gaussian"])
@pytest.mark.filterwarnings("ignore:.*because requires_grad=False")
def test_what_the_output_has_nothing_to_do_with_has_its_prior_alone(weight: bool, bias: bool, frozen: bool, kind: str) -> None:
    agree(BayesianNetwork(Odd(weight, bias, frozen), num_data=90, weight_decay=0.02), x_of(), labels(), kind=kind)


@pytest.mark.parametrize("bad", [-100, -1, 3])
def test_a_label_that_is_no_class_is_an_error_and_not_passed_over(bad: int) -> None:
    model = BayesianNetwork(mlp())
    y = labels()
    y[3] = bad
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        closed_form(model, guide_of(model), x_of(), y)


def test_targets_that_would_broadcast_are_refused_as_by_pyro() -> None:
    for objective_of in (closed_form, by_pyro):
        model = BayesianNetwork(mlp(1), likelihood="normal")
        with pytest.raises(ValueError, match="expected targets of shape"):
            step(objective_of, model, guide_of(model), x_of(), x_of(1))


@pytest.mark.parametrize("kind", ["masked", "gaussian"])
def test_the_loop_takes_the_steps_it_would_by_pyro(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm, moves of the topology and all."""
    ends = []
    for ours in (True, False):
        net = nn.Sequential(mlp(128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 3))
        model = BayesianNetwork(net, num_data=90, weight_decay=0.02)
        guide = guide_of(model, kind)
        loop = Loop(model, guide, schedules.rigl(3, 100, 0.3), rates.constant(0.05))
        if not ours:
            monkeypatch.setattr(objective, "is_ours", lambda *arguments: False)
        infos = [loop.step(x_of() + index, labels()) for index in range(8)]
        assert loop.closed is ours
        assert sum(info.moved for info in infos) == 2
        losses = torch.stack([info.loss for info in infos])
        ends.append({"losses": losses, "z": guide.keep, **dict(guide.state_dict()), **dict(model.state_dict())})
    same(*ends)


@pytest.mark.parametrize("own", [True, False])
def test_activation_checkpointing_is_refused_in_a_sentence(own: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False))

    model = BayesianNetwork(Checkpointed(), num_data=8)
    form = closed_form if own else by_pyro
    with pytest.raises(ValueError, match="turn activation checkpointing off"):
        form(model, guide_of(model), torch.randn(8, 4), torch.arange(8) % 3, nullcontext())


def test_a_fault_of_ones_own_in_the_backward_pass_keeps_its_own_words() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return None + gradient

    class Own(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Wrong.apply(super().forward(x))

    model = BayesianNetwork(nn.Sequential(Own(4, 8), nn.Linear(8, 3)), num_data=8)
    with pytest.raises(TypeError, match="unsupported operand"):
        closed_form(model, guide_of(model), torch.randn(8, 4), torch.arange(8) % 3, nullcontext())
