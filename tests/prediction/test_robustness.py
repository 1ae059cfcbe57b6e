"""Certified, true and attacked accuracy lie in this order, and each is what a naive way finds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from espalier import shelf
from espalier.calibration import clopper_pearson
from espalier.contracts import Data, Split
from espalier.data import ball_of
from espalier.data.balls import Ball
from espalier.network import BayesianNetwork
from espalier.prediction import fast_gradient, looked_at, robustness_of, unbroken
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from fitted import digits, trained
from toys import toy


def net_of(seed: int, hidden: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 3)).double()


def ball(eps: float, edge: float = math.inf) -> Ball:
    radius, end = torch.tensor(eps, dtype=torch.float64), torch.tensor(edge, dtype=torch.float64)
    return Ball(radius, -end, end, eps, "sd")


def truly_robust(net: nn.Sequential, x: Tensor, y: int, eps: float) -> bool:
    """By one linear programme for each ReLU pattern and other class: is there no input of another class in the box?"""
    w, b, v, c = (parameter.detach().numpy() for parameter in net.parameters())
    box = [(float(one) - eps, float(one) + eps) for one in x]
    for pattern in itertools.product([0.0, 1.0], repeat=len(b)):
        on = np.array(pattern)
        side = np.where(on == 1, -1.0, 1.0)
        for k in {0, 1, 2} - {y}:
            d = v[y] - v[k]
            done = linprog((d * on) @ w, A_ub=side[:, None] * w, b_ub=-side * b, bounds=box)
            if done.status == 0 and done.fun + d @ (on * b) + c[y] - c[k] <= 0:
                return False
    return True


@pytest.mark.parametrize(("seed", "eps"), [(3, 0.4), (8, 0.8), (11, 0.8)])
def test_certified_is_at_most_the_truth_and_the_truth_at_most_what_pgd_leaves(seed: int, eps: float) -> None:
    net, stream = net_of(seed), torch.Generator().manual_seed(seed)
    x = torch.randn(12, 2, generator=stream, dtype=torch.float64)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    found = looked_at(net, x, y, ball(eps), 3, steps=10, restarts=3, generator=stream)
    truth = torch.tensor([truly_robust(net, row, int(label), eps) for row, label in zip(x, y, strict=True)])
    assert (truth | ~found["certified"]).all(), "what is proved is true, row by row"
    for name in ("pgd", "fgsm", "noise", "accuracy"):
        assert (found[name] | ~truth).all(), f"{name} breaks no row that cannot be broken"
        assert (found["accuracy"] | ~found[name]).all()
    assert 0 < found["certified"].sum() < truth.sum() <= found["pgd"].sum() < 11
    assert found["pgd"].sum() - truth.sum() <= 1, "in two dimensions the attack finds nearly all"


def test_no_attack_leaves_the_box_and_each_falls_in_the_margin() -> None:
    net, x = net_of(3, 6), torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(-0.5, 0.5)
    y, own = net(x).argmax(1), ball(0.3, 0.5)
    seen: list[Tensor] = []

    def watched(inputs: Tensor) -> Tensor:
        seen.append(inputs.detach())
        return net(inputs)

    moved = fast_gradient(watched, x, y, own)
    losses = [nn.functional.cross_entropy(net(at), y, reduction="none") for at in (x, moved)]
    assert (losses[1] > losses[0]).double().mean() > 0.9
    seen.append(moved)
    unbroken(watched, x, y, own, steps=5, restarts=2, generator=torch.Generator().manual_seed(1))
    assert len(seen) == 1 + 1 + 2 * 6
    for inputs in seen:
        assert inputs.abs().max() <= 0.5
    assert (moved - x).abs().max() <= 0.3 + 1e-12
    assert float((moved - x).abs().max()) == pytest.approx(0.3)


def test_of_a_linear_classifier_all_three_are_the_same_and_known() -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 2).double()
    x, eps = torch.randn(200, 4, dtype=torch.float64), 0.2
    y = net(x).argmax(1)
    d = (net.weight[1] - net.weight[0]).detach()
    distance = (net(x)[:, 1] - net(x)[:, 0]).detach().abs() / d.abs().sum()
    found = looked_at(net, x, y, ball(eps), 2, steps=3, restarts=1, generator=torch.Generator())
    for name in ("fgsm", "pgd", "certified"):
        assert torch.equal(found[name], distance > eps), name
    assert 20 < int((distance > eps).sum()) < 180
    assert found["unstable"].tolist() == [0.0] * 200


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_a_fits_table_has_every_eps_in_order_and_exact_intervals(kind: Any) -> None:
    rows = robustness_of(trained(kind)[0], digits(), [0.005, 0.05, 0.3], rows=150, steps=5)
    assert [row["eps"] for row in rows] == [0.005, 0.05, 0.3]
    for row in rows:
        assert row["certified"] <= row["pgd"] <= row["accuracy"]
        assert row["pgd"] <= row["fgsm"] + 0.02
        assert row["unit"] == "white"
        low, high = clopper_pearson(row["pgd"] * 150, 150)
        assert row["pgd_interval"] == pytest.approx([float(low), float(high)])
    for name in ("pgd", "certified"):
        assert rows[0][name] > rows[2][name]
    assert rows[0]["unstable"] < rows[1]["unstable"] < rows[2]["unstable"]
    assert rows[0]["certified"] > 0.3
    assert rows[0]["accuracy"] == rows[2]["accuracy"]
    drawn = torch.randperm(len(digits().test.y), generator=torch.Generator().manual_seed(0))[:150]  # a test set may be sorted
    logits = trained(kind)[0].ticket()(digits().test.x[drawn])
    assert rows[0]["accuracy"] == pytest.approx(float((logits.argmax(1) == digits().test.y[drawn]).double().mean()))


def test_it_is_decided_by_its_seed_and_leaves_torchs_stream_alone() -> None:
    before = torch.get_rng_state()
    one, again = (robustness_of(trained("mlp")[0], digits(), [0.05], rows=60, steps=3, how="unmasked", seed=s) for s in (1, 1))
    assert one == again
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_class_is_no_class() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        net[2].bias[3] += 100.0  # the unknown wins everywhere
    x = torch.randn(20, 3)
    y = net(x)[:, :3].argmax(1)
    found = looked_at(net, x, y, ball(1e-6), 3, steps=2, restarts=1, generator=torch.Generator())
    assert all(found[name].all() for name in ("accuracy", "pgd", "certified"))


def smooth() -> Fit:
    model = BayesianNetwork(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3)))
    return shelf.load("inference", "dense")(model, toy(), training=Training(epochs=1, device="cpu"))


def real() -> tuple[Fit, Data]:
    data = toy()
    part = Split(data.train.x, data.train.x[:, 0])
    data = data._replace(train=part, calibration=part, test=part, num_classes=None)
    model = BayesianNetwork(nn.Linear(3, 1), likelihood="normal")
    return shelf.load("inference", "dense")(model, data, training=Training(epochs=1, device="cpu")), data


@pytest.mark.parametrize(("options", "said"), [
    ({"how": "pairs"}, "expected a fit and a way to predict that is one network, got pairs: choose ticket"),
    ({"how": "distilled"}, "that is one network, got distilled"),
    ({"eps": [0.1, -1.0]}, "expected an eps above 0, got -1"),
    ({"eps": []}, "expected an eps to see how robust the network is, got none"),
    ({"rows": 0}, "expected rows, steps and restarts of at least 1, got 0, 20 and 2"),
    ({"split": "tset"}, "expected a split of train"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    eps = options.pop("eps", [0.1])
    with pytest.raises(ValueError, match=said):
        robustness_of(trained("mlp")[0], digits(), eps, **options)


def test_networks_without_bounds_or_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="got gelu in it"):
        robustness_of(smooth(), toy(), [0.1])
    with pytest.raises(ValueError, match="expected a categorical likelihood and one label a row"):
        robustness_of(*real(), [0.1])


def test_the_ball_is_that_of_the_data() -> None:
    assert float(ball_of(toy(), 0.1).radius) == 0.1
