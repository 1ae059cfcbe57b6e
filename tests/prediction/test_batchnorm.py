"""Statistics re-estimated for the weights that predict: those of `torch.optim.swa_utils.update_bn`."""

import pytest
import torch
from torch import Tensor, nn

from espalier import shelf
from espalier.data import from_arrays
from espalier.data.sets import load
from espalier.network import BayesianNetwork
from espalier.prediction import batchnorm
from espalier.training.options import Training
from fitted import digits, networks_by_hand, trained


def nll(draws: Tensor, y: Tensor) -> float:
    return float(-draws.double().mean(0)[torch.arange(len(y)), y].log().mean())


def test_statistics_are_those_of_update_bn_for_the_weights_that_predict() -> None:
    fit, _ = trained("conv")
    for how in ("ticket", "mean", "unmasked"):
        (net,) = networks_by_hand("conv", how, 1, 0)
        for layer in ("1", "5"):
            for part in ("running_mean", "running_var"):
                mine, theirs = fit.statistics[how][f"net.{layer}.{part}"], net.get_buffer(f"{layer}.{part}")
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for index, net in enumerate(networks_by_hand("conv", "pairs", 1, 0)):
        mine = fit.pairs.states["net.5.running_var"][index]
        torch.testing.assert_close(mine, net.get_buffer("5.running_var"), rtol=1e-5, atol=1e-5)
    each = fit.pairs.states["net.5.running_mean"]
    assert (each - each.mean(0)).abs().max() > 1e-2  # one pair's statistics are not another's


@pytest.mark.parametrize("how", ["ticket", "pairs", "redraw"])
def test_re_estimated_statistics_predict_better_than_running_ones(how: str) -> None:
    fit, _ = trained("conv")
    running, _ = trained("conv-running")
    assert torch.equal(running.pairs.values, fit.pairs.values)  # only the statistics differ
    assert torch.equal(running.pairs.keep, fit.pairs.keep)
    x, y = digits().test
    assert nll(fit.predict(x, how), y) < nll(running.predict(x, how), y)


def test_statistics_see_the_network_s_own_dropout_switched_off() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model = BayesianNetwork(net).train()
    batches = list(torch.randn(90, 5).split(30))
    estimated = batchnorm.estimate(model, model.initial, model.state_dict(), batches)
    outputs = [nn.functional.linear(batch, net[0].weight, net[0].bias).detach() for batch in batches]
    expected = torch.stack([output.mean(0) for output in outputs]).mean(0)
    torch.testing.assert_close(estimated["net.2.running_mean"], expected)
    expected = torch.stack([output.var(0) for output in outputs]).mean(0)
    torch.testing.assert_close(estimated["net.2.running_var"], expected)
    assert estimated["net.2.num_batches_tracked"] == 3
    assert all(module.training for module in model.net.modules())
    assert model.net[2].momentum == 0.1
    assert (model.net[2].running_mean == 0).all()  # the model's own buffers are left alone


def test_training_rows_one_more_than_whole_batches_do_not_break_the_statistics() -> None:
    """A last batch of one row has no variance."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    training = Training(epochs=1, batch_size=32, device="cpu")
    infer = shelf.load("inference", "cigl")
    fit = infer(BayesianNetwork(net), load("digits", train_size=65), sparsity=0.5, freeze=0.0, training=training)
    assert fit.predict(digits().test.x).isfinite().all()


class Frozen(nn.Sequential):
    """A backbone that stays in evaluation mode, whatever mode is asked for."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def test_a_frozen_batch_norm_keeps_its_statistics_in_every_way_to_predict() -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(2.0)
    net = nn.Sequential(Frozen(nn.Linear(64, 4), norm), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 10))
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), net))
    data = load("digits", train_size=128)
    infer = shelf.load("inference", "cigl")
    fit = infer(model, data, sparsity=0.2, delta_t=2, training=Training(epochs=2, batch_size=32, device="cpu"))
    for _, state in (*fit.weights("ticket"), *fit.weights("pairs"), *fit.weights("redraw", num_samples=2)):
        assert (state["net.1.0.1.running_mean"] == 0.3).all()
        assert (state["net.1.0.1.running_var"] == 2.0).all()
        assert (state["net.1.2.running_mean"] != 0).any()  # the one that trains is re-estimated
    assert not batchnorm.has_batchnorm(BayesianNetwork(nn.Sequential(Frozen(nn.Linear(3, 3), nn.BatchNorm1d(3)))))


def test_looking_for_batch_norms_leaves_every_mode_as_it_was() -> None:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()))
    model.net[2].train()
    model.net[1].eval()
    before = [part.training for part in model.modules()]
    assert batchnorm.has_batchnorm(model)
    assert [part.training for part in model.modules()] == before


def test_a_norm_that_is_called_twice_has_the_mean_over_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(torch.relu(self.norm(self.first(x)))))

    torch.manual_seed(0)
    model, batches = BayesianNetwork(Twice()), [torch.randn(8, 3) for _ in range(3)]
    found = batchnorm.estimate(model, model.initial, dict(model.state_dict()), batches)
    net, means = model.network(model.initial).train(), []
    net.norm.register_forward_hook(lambda _, inputs, __: means.append(inputs[0].mean(0)))
    with torch.no_grad():
        for batch in batches:
            net(batch)
    torch.testing.assert_close(found["net.norm.running_mean"], torch.stack(means).mean(0))
    assert int(found["net.norm.num_batches_tracked"]) == 6


def test_a_norm_of_ones_own_is_given_a_number_for_its_momentum() -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean, variance = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)

    torch.manual_seed(0)
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), Own(4), nn.Linear(4, 2)))
    batches = [torch.randn(8, 3) for _ in range(3)]
    found = batchnorm.estimate(model, model.initial, dict(model.state_dict()), batches)
    net = model.network(model.initial)
    expected = torch.stack([net[0](batch).mean(0) for batch in batches]).mean(0)
    torch.testing.assert_close(found["net.1.running_mean"], expected.detach())


def test_the_first_estimate_of_a_process_averages_its_batches_alone() -> None:
    """Where zeros stay unwritten, that is tried out at the first evaluation, which is no batch (`sparse.trial`)."""
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(600, 256)
    data = from_arrays(x, (x[:, 0] > 3).long(), validation=0.0, calibration=0.0, standardise=False)
    net = nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 2))
    training = Training(epochs=2, batch_size=32, device="cpu")
    fit = shelf.load("inference", "cigl")(BayesianNetwork(net), data, sparsity=0.9, drop_rate=0.1, delta_t=5, training=training)
    assert fit.layout is not None
    ticket = fit.ticket().train()
    norm = ticket.get_submodule("1")
    mean, variance = norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone()
    norm.reset_running_stats()  # type: ignore[operator]
    norm.momentum = None  # type: ignore[assignment]
    with torch.no_grad():
        for batch in data.train.x[:480].split(32):
            ticket(batch)
    torch.testing.assert_close(mean, norm.get_buffer("running_mean"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, norm.get_buffer("running_var"), rtol=1e-4, atol=1e-5)
