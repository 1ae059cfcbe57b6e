"""Claims about the studies under examples/benchmarks: what they do is what they say. Their results stand in studies.md."""

from __future__ import annotations

import itertools
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from espalier import Data, Split, Training, load_data
from places import ROOT

sys.path.append(str(ROOT / "examples" / "benchmarks"))  # where the studies find each other, too
transfer, distilled_data = import_module("transfer"), import_module("distilled_data")


# --- Transfer -----------------------------------------------------------------------------------------------------
def sparse_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight *= torch.rand_like(layer.weight) < 0.3
    return net


def shots(classes: int = 3, n: int = 30) -> Data:
    stream = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, 1, 4, 4, generator=stream), torch.arange(n) % classes
    return Data("shots", Split(x, y), Split(x[:0], y[:0]), Split(x[:0], y[:0]), Split(x, y), (1, 4, 4), classes)


TRAINING = Training(epochs=4, batch_size=16, learning_rate=0.1, device="cpu")


def test_fine_tuning_moves_every_active_weight_and_no_zero() -> None:
    net = sparse_net()
    found = transfer.tuned(net, shots(), TRAINING, body=True, seed=5)
    assert found[-1].weight.shape == (3, 8)
    for before, after in ((net[1], found[1]), (net[3], found[3])):
        assert torch.equal(after.weight == 0, before.weight == 0)
        assert not torch.equal(after.weight, before.weight)
    assert bool((found[-1].weight != 0).all())


def test_a_probe_moves_the_last_layer_alone() -> None:
    net = sparse_net()
    start, found = transfer.with_head(net, 3, 5), transfer.tuned(net, shots(), TRAINING, body=False, seed=5)
    for place in (1, 3):
        assert torch.equal(found[place].weight, net[place].weight)
        assert torch.equal(found[place].bias, net[place].bias)
    assert not torch.equal(found[-1].weight, start[-1].weight)


def test_what_rounding_made_zero_is_tuned_and_what_was_zero_is_not() -> None:
    net = sparse_net()
    with torch.no_grad():
        net[1].weight[0, net[1].weight[0].nonzero()[0]] = 1e-6  # below half a step of its row
    rounded = transfer.rounded(net)
    lost = (rounded[1].weight == 0) & (net[1].weight != 0)
    assert int(lost.sum()) == 1
    found = transfer.tuned(rounded, shots(), TRAINING, body=True, seed=5, like=net)
    assert bool((found[1].weight[lost] != 0).all())
    assert torch.equal(found[1].weight == 0, net[1].weight == 0)


def test_rounding_is_torchs_per_channel_quantisation() -> None:
    net = sparse_net()
    rounded = transfer.rounded(net)
    for place in (1, 3, 5):
        weight = net[place].weight.detach()
        scales, zeros = weight.abs().amax(1) / 127, torch.zeros(len(weight), dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
        torch.testing.assert_close(rounded[place].weight, theirs, rtol=1e-5, atol=1e-7)
        assert not torch.equal(rounded[place].weight, weight)
        assert torch.equal(rounded[place].bias, net[place].bias)


def test_a_mapping_takes_the_pair_seen_most_often_first() -> None:
    # target 0 is said to be source 4 five times and source 1 four; target 1 source 4 six times and source 2 once; target 2 never
    # to be one that is left
    said = torch.tensor([4] * 5 + [1] * 4 + [4] * 6 + [2] + [4] * 3)
    labels = torch.tensor([0] * 9 + [1] * 7 + [2] * 3)
    found = transfer.mapping(said, labels, 3)
    assert found.tolist()[:2] == [1, 4]
    assert len(set(found.tolist())) == 3


def test_mappings_of_random_answers_are_naive_greedy_ones() -> None:
    stream = torch.Generator().manual_seed(2)
    said, labels = (torch.randint(6, (400,), generator=stream) for _ in range(2))
    pairs = list(itertools.product(range(6), range(6)))
    counts = {(t, s): sum(1 for a, b in zip(labels.tolist(), said.tolist(), strict=True) if (a, b) == (t, s)) for t, s in pairs}
    wanted: dict[int, int] = {}
    for target, source in sorted(pairs, key=lambda pair: (-counts[pair], pair)):
        if target not in wanted and source not in wanted.values():
            wanted[target] = source
    assert transfer.mapping(said, labels, 6).tolist() == [wanted[t] for t in range(6)]


def test_a_prompt_frames_the_image_and_leaves_it() -> None:
    prompt, x = transfer.Prompt(lambda pixels: pixels), torch.rand(3, 1, 20, 20)
    with torch.no_grad():
        prompt.frame.normal_(0, 3)
        found = prompt(x) / 255
    torch.testing.assert_close(found[..., 4:24, 4:24], x)
    around = torch.ones(28, 28, dtype=torch.bool)
    around[4:24, 4:24] = False
    assert torch.equal(found[0, 0, around], found[2, 0, around])
    assert bool(((found >= 0) & (found <= 1)).all())


def test_a_prompt_is_learned_and_the_net_is_not_touched() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, y = torch.rand(40, 1, 20, 20), torch.arange(40) % 4
    prompt = transfer.Prompt(lambda pixels: pixels / 255)
    training = Training(epochs=30, batch_size=20, learning_rate=0.3, optimizer="adam")
    stands = transfer.prompted(net, prompt, Split(x, y), 4, training, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    plain = transfer.Prompt(lambda pixels: pixels / 255)
    with torch.no_grad():
        losses = [functional.cross_entropy(net(p(x))[:, stands], y) for p in (prompt, plain)]
    assert losses[0] < losses[1]


def test_shots_are_so_many_of_every_class_each_once() -> None:
    x = torch.arange(50.0)[:, None]
    pool = Split(x, torch.tensor([0] * 30 + [1] * 17 + [2] * 3))
    rows = transfer.drawn(pool, 5, 0)
    assert rows.y.bincount().tolist() == [5, 5, 3]
    assert len(rows.x.unique()) == 13
    assert torch.equal(pool.y[rows.x.squeeze(1).long()], rows.y)
    assert not torch.equal(rows.x, transfer.drawn(pool, 5, 1).x)


# --- Distilled data -----------------------------------------------------------------------------------------------
def test_matching_pulls_every_image_as_a_naive_loop_says() -> None:
    rng = np.random.default_rng(0)
    features, real = rng.standard_normal((5, 6)), [rng.standard_normal((n, 6)) for n in (4, 7, 3)]
    images = rng.standard_normal((3 * 2, 6))
    network = nn.Linear(6, 5, bias=False).double().requires_grad_(False)
    network.weight.copy_(torch.from_numpy(features))
    x = torch.from_numpy(images).requires_grad_()
    loss = distilled_data.matching_loss(network, [torch.from_numpy(part) for part in real], x)
    loss.backward()
    total, pull = 0.0, np.zeros_like(images)
    for label in range(3):
        gap = np.zeros(5)
        for row in real[label]:
            gap += features @ row / len(real[label])
        for own in range(2):
            gap -= features @ images[2 * label + own] / 2
        total += sum(value**2 for value in gap)
        for own in range(2):
            for feature in range(5):
                pull[2 * label + own] -= 2 * gap[feature] * features[feature] / 2
    assert float(loss.detach()) == pytest.approx(total, rel=1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), pull, rtol=1e-10)


@pytest.fixture(scope="module")
def digits() -> Split:
    """Digits as images of one channel, `(n, 1, 8, 8)`."""
    data = load_data("digits")
    return Split(data.train.x[:].view(-1, 1, 8, 8), data.train.y)


@pytest.mark.parametrize("drop_rate", [0.0, 0.5])
def test_distilled_images_are_nearer_to_the_mean_features_than_real_ones_are(drop_rate: float, digits: Split) -> None:
    matching = distilled_data.Matching(steps=60, width=8)
    images = distilled_data.distilled(digits, 10, matching, 0, drop_rate)
    assert images.shape == (100, 1, 8, 8)
    own = distilled_data.distance(digits, 10, images, 8)
    others = [distilled_data.distance(digits, 10, distilled_data.few(digits, 10, seed), 8) for seed in range(8)]
    assert own < 0.7 * min(others)


def test_distilling_is_decided_by_its_seed_and_masks_are_another_stream_of_networks(digits: Split) -> None:
    matching = distilled_data.Matching(steps=2, width=4)
    one, same, other = (distilled_data.distilled(digits, 10, matching, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, distilled_data.distilled(digits, 10, matching, 0, drop_rate=0.5))


def test_a_random_network_drops_as_many_weights_as_it_says() -> None:
    stream = torch.Generator().manual_seed(0)
    net = distilled_data.random_network((1, 8, 8), 32, stream, 0.3)
    weights = torch.cat([part.weight.flatten() for part in net if isinstance(part, nn.Conv2d)])
    share = float((weights == 0).float().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / len(weights)) ** 0.5
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 32 * 4 * 4)
    assert len(distilled_data.random_network((1, 28, 28), 4, stream)) == 13


def test_tables_pair_by_seed_and_say_what_is_clear_of_zero() -> None:
    accuracies = {"dense": (0.8, 0.6, 0.7), "RigL 80%": (0.7, 0.52, 0.58)}
    rows = [
        {"arm": arm, "way": "probe", "target": target, "shots": 1, "seed": seed, "accuracy": value + (target == "mnist") * 0.1}
        for arm, values in accuracies.items() for seed, value in enumerate(values) for target in ("digits", "mnist")
    ]  # fmt: skip
    *_, line = transfer.against_dense(rows, "accuracy").splitlines()
    half = 4.302653 * 0.02 / 3**0.5  # Student's t of 2 degrees of freedom; gaps -.1, -.08, -.12
    assert line == f"| RigL 80% | probe | **-0.100 [{-0.1 - half:+.3f}, {-0.1 + half:+.3f}]** |"
    facts = {"method": "dense", "mixup": 0.0, "map": "as it is"}
    values = [("distilled", (1.0, 1.4)), ("real", (1.1, 1.1))]
    rows = [{**facts, "set": name, "seed": seed, "nll": nll} for name, each in values for seed, nll in enumerate(each)]
    said = distilled_data.paired(rows, "nll").splitlines()[2]
    assert said.startswith("| distilled - real | +0.100 [-2.4")


def test_coverage_of_certificates_is_a_row_for_each_size_and_test(capsys: pytest.CaptureFixture[str]) -> None:
    confident = import_module("confident_mnist")
    losses = np.random.default_rng(0).random((len(confident.GRID), 400)) < np.linspace(0.01, 0.5, len(confident.GRID))[:, None]
    confident.coverage("Losses", losses, [50, 100], 4, 0.2, 0.1)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| 50", "| 100"))]
    assert len(rows) >= 4
    assert confident.interval(0, 0) == "-"
