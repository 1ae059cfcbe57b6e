"""Somebody else's loop, attached to: on one seed it gives the topology, the weights and the fit of our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, from_pretrained
from espalier.adapters.attached import Attached, attach
from espalier.data import from_arrays
from espalier.prediction import batchnorm
from espalier.prediction.fit import WAYS, Fit
from espalier.prediction.prior import of_fit
from espalier.topology import erk
from espalier.training.batches import batches
from espalier.training.streams import Streams
from foreign import BATCH, CASES, DATA, EPOCHS, SEED, STEPS, close, ours, split
from together import EXAMPLES, network


def theirs(case: str, pause: int = 0) -> tuple[Attached, nn.Module]:
    """A plain torch loop over the same batches. pause: an epoch after which it is taken up again from state dicts."""
    name, training, options = split(case)
    streams, rates = Streams(SEED, torch.device("cpu")), training.learning_rates(STEPS)

    def begin() -> tuple[Attached, nn.Module, torch.optim.Optimizer]:
        net = network(name)
        kinds = {"sgd": {"momentum": 0.9, "nesterov": True}, "adam": {}}
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.SGD
        optimizer = kind(net.parameters(), lr=1.0, weight_decay=1e-3, **kinds[training.optimizer])
        return attach(net, steps=STEPS, num_data=EXAMPLES, seed=SEED, **options), net, optimizer

    sparse, net, optimizer = begin()
    for epoch in range(1, EPOCHS + 1):
        for x, y in batches(DATA, training, streams):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.param_groups[0]["lr"] = rates(sparse.taken + 1)
            sparse.step(optimizer)
        sparse.collect()
        if epoch == pause:
            saved = copy.deepcopy((sparse.state_dict(), net.state_dict(), optimizer.state_dict()))
            sparse, net, optimizer = begin()
            net.load_state_dict(saved[1])
            optimizer.load_state_dict(saved[2])
            sparse.load_state_dict(saved[0])
    return sparse, net


def fit_of(sparse: Attached) -> Fit:
    return sparse.fit(batchnorm.training_batches(DATA, 16, BATCH, torch.device("cpu")))


@pytest.mark.parametrize("case", CASES)
def test_both_loops_give_the_same_topology_weights_and_fit(case: str) -> None:
    mine, (sparse, net) = ours(case), theirs(case)
    fit = fit_of(sparse)
    assert torch.equal(fit.topology.positions, mine.topology.positions)
    assert fit.topology.counts == mine.topology.counts
    assert torch.equal(fit.pairs.keep, mine.pairs.keep)
    assert fit.pairs.values.shape == mine.pairs.values.shape == (2, mine.topology.num_active)
    close(fit.pairs.values, mine.pairs.values)
    assert fit.pairs.states.keys() == mine.pairs.states.keys()
    for name, tensor in mine.pairs.states.items():
        close(fit.pairs.states[name], tensor)
    for how in WAYS:
        close(fit.predict(DATA.validation.x, how), mine.predict(DATA.validation.x, how))
    assert fit.model.prior_scale == pytest.approx(mine.model.prior_scale, rel=1e-12)
    assert {name: mine.record[name] for name in ("density", "layers", "num_data", "keep_prob")}.items() <= fit.record.items()
    assert sum(row["exchanged"] for row in mine.history) > 500 or case == "pruned", "the topologies must have moved"
    net.eval()
    if case != "batch norm":  # whose running averages are of training
        close(net(DATA.validation.x).softmax(-1).detach(), fit.predict(DATA.validation.x, "mean")[0])


def test_the_comparison_would_see_a_step_beside_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, before = ours("sgd"), Attached.before_step

    def and_a_step(self: Attached, optimizer: torch.optim.Optimizer) -> bool:
        learned = [(parameter, parameter.grad) for group in optimizer.param_groups for parameter in group["params"]]
        moved = before(self, optimizer)
        for parameter, gradient in learned:
            parameter.grad = gradient
        return moved

    monkeypatch.setattr(Attached, "before_step", and_a_step)
    found = fit_of(theirs("sgd")[0])
    assert not torch.equal(found.topology.positions, mine.topology.positions)


@pytest.mark.parametrize("pause", [2, 7])
def test_put_down_and_taken_up_again_it_ends_in_the_same_bits(pause: int) -> None:
    whole, again = fit_of(theirs("sgd")[0]), fit_of(theirs("sgd", pause)[0])
    assert torch.equal(whole.topology.positions, again.topology.positions)
    assert torch.equal(whole.pairs.values, again.pairs.values)
    assert torch.equal(whole.pairs.keep, again.pairs.keep)


def small(**options: Any) -> tuple[Attached, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    sparse = attach(net, **{"steps": 20, "sparsity": 0.5, "drop_rate": 0.3, "delta_t": 2, **options})
    return sparse, net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


X, Y = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3


def learn(net: nn.Module) -> None:
    nn.functional.cross_entropy(net(X), Y).backward()


def test_density_is_exact_at_every_step_and_a_step_has_one_z() -> None:
    sparse, net, optimizer = small()
    wanted = sum(erk(sparse.model.shapes, 0.5))
    for _ in range(20):
        optimizer.zero_grad()
        twice = net(X), net(X)
        assert torch.equal(*twice)
        assert sum(int((net[i].weight != 0).sum()) for i in (0, 2)) == int((sparse.keep & (sparse.values != 0)).sum())
        learn(net)
        sparse.step(optimizer)
        assert sum(int((original != 0).sum()) for original in sparse.originals) <= wanted == sparse.topology.num_active
        for original in sparse.originals:
            moment = optimizer.state.get(original, {}).get("momentum_buffer")
            assert moment is None or not moment[original == 0].any()


def test_a_move_takes_the_place_of_a_step() -> None:
    sparse, net, optimizer = small()
    biases = [net[0].bias, net[2].bias]
    learn(net)
    assert not sparse.step(optimizer)
    held = [bias.detach().clone() for bias in biases]
    optimizer.zero_grad()
    learn(net)
    assert sparse.step(optimizer)
    assert all(torch.equal(*both) for both in zip(held, biases, strict=True))


def test_gradients_of_several_backward_passes_are_one_step_s() -> None:
    """Two halves of a batch, accumulated, are the batch."""
    found = []
    for parts in (1, 2):
        sparse, net, optimizer = small()
        for _ in range(20):
            optimizer.zero_grad()
            for x, y in zip(X.chunk(parts), Y.chunk(parts), strict=True):
                (nn.functional.cross_entropy(net(x), y) / parts).backward()
            sparse.step(optimizer)
        found.append(sparse)
    assert torch.equal(found[0].topology.positions, found[1].topology.positions)
    torch.testing.assert_close(found[0].values, found[1].values, rtol=0, atol=1e-5)


def test_an_average_of_the_network_follows_its_topology() -> None:
    """`AveragedModel` copies the module: its copy, too, computes with the topology of the moment."""
    sparse, net, optimizer = small()
    average = torch.optim.swa_utils.AveragedModel(net)
    for _ in range(20):
        optimizer.zero_grad()
        learn(net)
        sparse.step(optimizer)
        average.update_parameters(net)
    average.eval()
    active = torch.zeros(sparse.topology.num_weights, dtype=torch.bool)
    active[sparse.topology.positions] = True
    weights = torch.cat([average.module[i].weight.flatten() for i in (0, 2)])
    assert not weights[~active].any()


def test_removed_it_leaves_a_plain_network_at_the_posterior_mean() -> None:
    sparse, net, optimizer = small()
    for _ in range(20):
        optimizer.zero_grad()
        learn(net)
        sparse.step(optimizer)
    fit = sparse.fit()
    assert len(fit.pairs.values) == 1  # of the last step
    plain = sparse.remove().eval()
    assert set(plain.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    torch.testing.assert_close(plain(X).softmax(-1).double(), fit.predict(X, "mean")[0], rtol=0, atol=1e-6)
    assert sum(int((plain[i].weight != 0).sum()) for i in (0, 2)) == fit.topology.num_active


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(("options", "sentence"), [
    ({"drop_rate": "auto"}, "expected a number for drop_rate, got 'auto': to find one"),
    ({"drop_rate": None}, "expected a number for drop_rate, got None"),
    ({"mask": "row"}, "expected a mask per weight, unit, filter, got 'row'"),
    ({"num_data": -5}, "expected num_data of at least 1, the training examples, got -5"),
    ({"steps": 0}, "expected steps of at least 1, freeze and average_from in"),
    ({"average_from": 0.5}, "expected averaging to start after the topology is frozen, got average_from 0.5 and a freeze at"),
    ({"sparsity": 1.0}, r"expected a sparsity in \[0, 1\), got 1"),
    ({"likelihood": "normal"}, "expected a likelihood that is known, but Normal has parameters that your loss does not train"),
])  # fmt: skip
def test_what_cannot_be_attached_is_refused_and_nothing_is_changed(options: dict[str, Any], sentence: str) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=sentence):
        attach(net, **{"steps": 20, **options})
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_what_goes_wrong_in_a_loop_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected weights of one layer each, but first.weight and second.weight are tied"):
        attach(Tied(), steps=20)
    sparse, net, optimizer = small(delta_t=1)
    with pytest.raises(RuntimeError, match=r"expected a training before its fit, but no step was taken"):
        sparse.fit()
    assert not sparse.before_step(torch.optim.SGD([torch.zeros(2)], lr=0.1))  # not ours
    with pytest.raises(ValueError, match="expected all masked weights in one optimiser, got some"):
        sparse.step(torch.optim.SGD(net[0].parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match=r"expected a forward pass in training mode and backward\(\) before a step"):
        sparse.step(optimizer)
    sparse, net, optimizer = small(rule="gradual")
    learn(net)
    sparse.step(optimizer)
    with pytest.raises(ValueError, match="expected 14 steps, to reach the sparsity, got 1: train on"):
        sparse.fit()


def test_a_fit_of_what_was_removed_before_is_the_same() -> None:
    """Without pairs it is that of the last step, of whose u the plain network has the mean."""
    fits = []
    for removed in (False, True):
        sparse, net, optimizer = small()
        for _ in range(20):
            optimizer.zero_grad()
            learn(net)
            sparse.step(optimizer)
        if removed:
            sparse.remove()
        fits.append(sparse.fit())
    assert torch.equal(fits[0].pairs.values, fits[1].pairs.values)
    assert torch.equal(fits[0].predict(X, "mean"), fits[1].predict(X, "mean"))


def test_units_of_grouped_convolutions_share_nothing() -> None:
    net = nn.Sequential(nn.Conv1d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(ValueError, match="expected Linear layers and plain convolutions for mask unit, but 0.weight"):
        attach(net, steps=10, mask="unit")


@pytest.mark.parametrize(("kind", "decay", "known"), [
    (torch.optim.SGD, 0.01, True), (torch.optim.Adam, 0.01, True), (torch.optim.AdamW, 0.01, False),
    (torch.optim.SGD, 0.0, False),
])  # fmt: skip
def test_its_prior_is_the_decay_that_is_added_to_the_gradient(kind: Any, decay: float, known: bool, tmp_path: Path) -> None:
    """Before it is saved and after; N is that of the data where nobody said it."""
    data = from_arrays(X.numpy(), Y.numpy(), validation=0.0)
    sparse, net, _ = small(delta_t=10)
    optimizer = kind(net.parameters(), lr=0.01, weight_decay=decay)
    for _ in range(20):
        learn(net)
        sparse.step(optimizer)
    fit = sparse.fit(data=data)
    expected = (fit.keep_prob / (len(data.train.y) * decay)) ** 0.5 if known else None
    assert fit.record["prior_scale"] == (pytest.approx(expected) if known else None)
    fit.save(tmp_path / "fit")
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    loaded = Fit.load(tmp_path / "fit", BayesianNetwork(plain))
    for one in (fit, loaded):
        drawn = torch.stack([*of_fit(one, draws=50)])
        assert float(drawn[drawn != 0].std()) == pytest.approx(expected or 1.0, rel=0.1)


def test_groups_of_several_decays_are_no_one_prior() -> None:
    sparse, net, _ = small(delta_t=10)
    groups = [{"params": net[0].parameters(), "weight_decay": 1e-3}, {"params": net[2].parameters(), "weight_decay": 1e-1}]
    learn(net)
    sparse.step(torch.optim.SGD(groups, lr=0.01))
    assert sparse.weight_decay == 0.0


def collected() -> Attached:
    """One that has learned for twenty steps, and has a pair of each."""
    sparse, net, optimizer = small(delta_t=10)
    for _ in range(20):
        learn(net)
        sparse.step(optimizer)
        sparse.collect()
    return sparse


def test_its_fit_is_a_tree_without_a_history() -> None:
    data = from_arrays(X.numpy(), Y.numpy(), validation=0.0)
    sparse = collected()
    tree = sparse.fit(data=data).to_datatree(data)
    assert "sample_stats" not in tree
    assert tree["predictions"]["probability"].sizes["draw"] == len(sparse.pairs)


def test_its_fit_is_exported_with_its_data(tmp_path: Path) -> None:
    data = from_arrays(X.numpy(), Y.numpy(), validation=0.0)
    sparse = collected()
    fit = sparse.fit(batchnorm.training_batches(data, 16, BATCH, torch.device("cpu")))
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    deployed = from_pretrained(fit.export(tmp_path / "out", data), network=plain)
    torch.testing.assert_close(deployed(X[:5]), fit.predict(data.inputs(X[:5]), "ticket")[0])
    assert f"{len(sparse.pairs)} collected pairs" in (tmp_path / "out" / "README.md").read_text()
