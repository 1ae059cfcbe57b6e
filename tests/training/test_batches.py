"""Soft labels: what label smoothing and mixup make of a batch, the likelihood they have, and the training they are part of.

Expected values are written out from Szegedy et al. 2016 (sec. 7) and Zhang et al. 2018 (eq. 1-2), or are torch's own.
"""


import numpy as np
import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import Tensor, nn

from budget import FALSE_ALARMS, assert_mean, assert_rate
from espalier import shelf
from espalier.contracts import Data, Split
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.store import Bundle
from espalier.topology import schedules
from espalier.topology.masks import initial
from espalier.training import rates
from espalier.training.batches import batches, soften
from espalier.training.loop import Loop
from espalier.training.options import Training
from espalier.training.streams import Streams
from rounding import close
from watches import Recorder

NUM_DATA, BATCH, CLASSES, DECAY = 96, 16, 5, 0.013


pytestmark = pytest.mark.usefixtures("float64")


def net(outputs: int = CLASSES) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, outputs))


def case(keep_prob: float = 0.7, decay: float = DECAY) -> tuple[BayesianNetwork, MaskedGuide]:
    model = BayesianNetwork(net(), prior_scale=0.8, num_data=NUM_DATA, weight_decay=decay)
    stream = torch.Generator().manual_seed(1)
    return model, MaskedGuide(model, initial(model.shapes, 0.4, generator=stream), keep_prob, generator=stream)


def batch_of(seed: int, size: int = BATCH) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=stream), torch.randint(0, CLASSES, (size,), generator=stream)


def data(classes: int | None = CLASSES, count: int = NUM_DATA) -> Data:
    x, y = batch_of(7, count)
    part = Split(x, torch.randn(count) if classes is None else y % classes)
    return Data("tiny", part, part, part, part, (6,), classes)


def gradients(keep_prob: float, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """-ELBO / N of a fresh case that draws the same Z as any other, and its gradient."""
    pyro.clear_param_store()
    model, guide = case(keep_prob)
    loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / NUM_DATA
    return loss, list(torch.autograd.grad(loss, [guide.values, *model.parameters()]))


@pytest.mark.parametrize("size", [3, BATCH])
def test_the_log_joint_of_soft_labels_is_their_expected_log_likelihood_for_all_data(size: int) -> None:
    model, _ = case()
    x, _ = batch_of(2, size)
    soft = torch.rand(size, CLASSES).softmax(-1)
    weights = torch.randn(model.num_weights)
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(model, {"weights": weights})).get_trace(x, soft)
        trace.compute_log_prob()
    first, second = weights[:54].reshape(9, 6), weights[54:].reshape(CLASSES, 9)
    b1, b2 = model.net[0].bias.detach(), model.net[2].bias.detach()
    logits = torch.tanh(x @ first.T + b1) @ second.T + b2
    by_hand = sum(
        float(soft[n, c] * (logits[n, c] - logits[n].exp().sum().log())) for n in range(size) for c in range(CLASSES)
    )
    assert float(trace.nodes["y"]["log_prob_sum"]) == pytest.approx(NUM_DATA / size * by_hand, rel=1e-12)
    prior = torch.distributions.Normal(0.0, 0.8).log_prob(weights).sum()
    l2 = -NUM_DATA * DECAY / 2 * ((b1**2).sum() + (b2**2).sum())
    assert float(trace.log_prob_sum()) == pytest.approx(float(prior + l2 + NUM_DATA / size * by_hand), rel=1e-12)


@pytest.mark.parametrize("keep_prob", [1.0, 0.7])
def test_hard_labels_as_one_hot_rows_give_the_loss_and_the_gradient_of_integers(keep_prob: float) -> None:
    x, y = batch_of(3)
    loss, gradient = gradients(keep_prob, x, y)
    soft_loss, soft_gradient = gradients(keep_prob, x, F.one_hot(y, CLASSES).double())
    close(soft_loss, loss)
    for mine, theirs in zip(soft_gradient, gradient, strict=True):
        close(mine, theirs)
    (again, _), (other, _) = soften(x, y, CLASSES, 0.0, 0.0), soften(x, y, CLASSES, 0.1, 0.0)
    assert again is other is x  # without mixup the inputs are left alone


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.37, 0.9])
def test_label_smoothing_has_the_loss_and_the_gradient_of_torch_s(smoothing: float) -> None:
    x, y = batch_of(4)
    _, soft = soften(x, y, CLASSES, smoothing, 0.0)
    loss, gradient = gradients(1.0, x, soft)
    model, guide = case(1.0)
    values = guide.values.detach().clone().requires_grad_()
    dense = torch.zeros(model.num_weights).index_put((guide.positions,), values)
    b1, b2 = (model.net[i].bias.detach().clone().requires_grad_() for i in (0, 2))
    logits = F.linear(torch.tanh(F.linear(x, dense[:54].reshape(9, 6), b1)), dense[54:].reshape(CLASSES, 9), b2)
    theirs = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, y)
    theirs = theirs + (values**2).sum() / (2 * 0.8**2 * NUM_DATA) + DECAY / 2 * ((b1**2).sum() + (b2**2).sum())
    close(loss, theirs)
    for mine, other in zip(gradient, torch.autograd.grad(theirs, [values, b1, b2]), strict=True):
        close(mine, other)


@pytest.mark.parametrize(("smoothing", "classes"), [(0.1, 2), (0.1, 10), (0.25, 4)])
def test_a_smoothed_label_is_szegedy_s(smoothing: float, classes: int) -> None:
    y = torch.arange(classes)
    _, soft = soften(torch.zeros(classes, 1), y, classes, smoothing, 0.0)
    for row in range(classes):
        for column in range(classes):
            assert float(soft[row, column]) == pytest.approx((1 - smoothing) * (row == column) + smoothing / classes)


def test_soft_labels_of_another_number_of_classes_are_refused() -> None:
    model, _ = case()
    x, _ = batch_of(5)
    with pytest.raises(ValueError, match=r"expected targets of shape \(16, 5\), as the likelihood has, got \(16, 4\)"):
        poutine.trace(model).get_trace(x, torch.full((BATCH, 4), 0.25))


# Mixup


def mixed(alpha: float, smoothing: float = 0.0, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit vectors with a class each, mixed: the rows tell who was mixed with whom, and by what weight."""
    stream = torch.Generator().manual_seed(seed)
    return soften(torch.eye(size), torch.arange(size), size, smoothing, alpha, stream)


def test_mixup_mixes_inputs_and_labels_with_the_same_partner_by_the_same_weight() -> None:
    seen = set()
    for seed in range(40):
        x, y = mixed(0.8, seed=seed)
        close(y, x)
        (weight,) = {round(float(x[i, i]), 12) for i in range(8) if x[i, i] < 1}  # one a batch
        partners = [int((x[i] - weight * torch.eye(8)[i]).argmax()) for i in range(8)]
        assert sorted(partners) == list(range(8))  # a shuffled copy: each is a partner once
        close(x, weight * torch.eye(8) + (1 - weight) * torch.eye(8)[partners])
        seen.add(tuple(partners))
    assert len(seen) > 30


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_mixing_weight_is_beta_distributed(alpha: float) -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and the whole distribution by Kolmogorov and Smirnov."""
    weights = []
    stream = torch.Generator().manual_seed(3)
    for _ in range(3000):
        x, _ = soften(torch.eye(6), torch.arange(6), 6, 0.0, alpha, stream)
        loners = [float(x[i, i]) for i in range(6) if float(x[i, i]) < 1]
        weights += loners[:1]
    draws = np.array(weights)
    assert len(draws) > 2900  # the rest mixed everything with itself, or by a weight of 1
    assert_mean(draws, 0.5)
    assert_mean((draws - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))
    assert stats.kstest(draws, stats.beta(alpha, alpha).cdf).pvalue > FALSE_ALARMS


def test_every_example_is_equally_likely_to_be_the_partner() -> None:
    counts, trials = np.zeros((4, 4), int), 2000
    stream = torch.Generator().manual_seed(4)
    for _ in range(trials):
        x, _ = soften(torch.eye(4), torch.arange(4), 4, 0.0, 1.0, stream)
        for i in range(4):
            others = [j for j in range(4) if j != i and x[i, j] > 0]
            counts[i, others[0] if others else i] += 1
    for count in counts.flat:
        assert_rate(count, trials, 0.25, looks=16)


def test_labels_that_are_smoothed_and_mixed_are_the_mixture_of_smoothed_ones() -> None:
    smoothing, size = 0.2, 8
    x, y = mixed(0.9, smoothing, size)  # x is what the labels are without smoothing
    close(y, (1 - smoothing) * x + smoothing / size)


def test_without_mixup_nothing_is_drawn_and_with_it_only_from_the_generator() -> None:
    stream = torch.Generator().manual_seed(0)
    before, default, numpy_s = stream.get_state(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    soften(torch.eye(4), torch.arange(4), 4, 0.3, 0.0, stream)
    assert torch.equal(stream.get_state(), before)
    soften(torch.eye(4), torch.arange(4), 4, 0.3, 0.5, stream)
    assert not torch.equal(stream.get_state(), before)
    assert torch.equal(torch.get_rng_state(), default)
    assert (np.random.get_state()[1] == numpy_s).all()  # noqa: NPY002


# Training


def test_training_with_label_smoothing_is_torch_s_step_by_step() -> None:
    model, guide = case(1.0)
    training = Training(batch_size=BATCH, label_smoothing=0.15, device="cpu")
    loop = Loop(model, guide, schedules.static(), rates.constant(0.1))
    positions = guide.positions.clone()
    values = guide.values.detach().clone().requires_grad_()
    b1, b2 = (model.net[i].bias.detach().clone().requires_grad_() for i in (0, 2))
    optimiser = torch.optim.SGD([values, b1, b2], lr=0.1, momentum=0.9, nesterov=True)
    streams, order = Streams(3, torch.device("cpu")), Streams(3, torch.device("cpu")).order
    taken = 0
    for _ in range(3):
        rows = torch.randperm(NUM_DATA, generator=order).split(BATCH)
        for own, (x, y) in zip(rows, batches(data(), training, streams), strict=True):
            loop.step(x, y)
            dense = torch.zeros(model.num_weights).index_put((positions,), values)
            hidden = torch.tanh(F.linear(data().train.x[own], dense[:54].reshape(9, 6), b1))
            logits = F.linear(hidden, dense[54:].reshape(CLASSES, 9), b2)
            loss = F.cross_entropy(logits, data().train.y[own], label_smoothing=0.15)
            loss = loss + (values**2).sum() / (2 * 0.8**2 * NUM_DATA) + DECAY / 2 * ((b1**2).sum() + (b2**2).sum())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            close(guide.values, values)
            close(model.net[0].bias, b1)
            taken += 1
    assert taken == 18


def trained(seed: int = 2, watch: Recorder | None = None, **options: float) -> Fit:
    training = Training(epochs=4, batch_size=BATCH, device="cpu", **options)
    settings = {"sparsity": 0.5, "drop_rate": 0.2, "delta_t": 5, "average_from": 0.75}
    return shelf.load("inference", "cigl")(
        BayesianNetwork(net()), data(), training=training, seed=seed, watch=watch, **settings
    )


@pytest.mark.parametrize("options", [{"label_smoothing": 0.2}, {"mixup": 0.4}, {"label_smoothing": 0.1, "mixup": 1.0}])
def test_a_training_on_soft_labels_depends_on_its_seed_alone_and_resumes(options: dict[str, float]) -> None:
    watch = Recorder()
    whole = trained(watch=watch, **options)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    torch.rand(5)
    again, resumed = trained(**options), trained(watch=Recorder(watch.checkpoints[2]), **options)
    for other in (again, resumed):
        assert torch.equal(other.pairs.values, whole.pairs.values)
        assert torch.equal(other.pairs.keep, whole.pairs.keep)
        assert other.history == whole.history
    for different in (trained(), trained(seed=3, **options)):
        assert not torch.equal(different.pairs.values, whole.pairs.values)


def test_the_mixture_of_an_epoch_is_not_that_of_the_next_nor_of_a_resumed_stream_that_forgot() -> None:
    watch = Recorder()
    whole = trained(watch=watch, mixup=0.4)
    tensors, facts = watch.checkpoints[2]
    stale = {**tensors, "stream.augment": watch.checkpoints[1].tensors["stream.augment"]}
    assert not torch.equal(stale["stream.augment"], tensors["stream.augment"])
    forgot = trained(watch=Recorder(Bundle(stale, facts)), mixup=0.4)
    assert not torch.equal(forgot.pairs.values, whole.pairs.values)


def test_validation_looks_at_the_labels_as_they_are() -> None:
    fit = trained(label_smoothing=0.5, mixup=1.0)
    weights, state = next(fit.weights("mean"))
    with torch.no_grad():
        logits = fit.model.network(weights, state)(data().validation.x)
    nll = float(F.cross_entropy(logits, data().validation.y))
    assert fit.history[-1]["validation_nll"] == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize("options", [{"label_smoothing": -0.1}, {"label_smoothing": 1.0}, {"mixup": -1.0},
                                     {"label_smoothing": float("nan")}, {"mixup": float("nan")}])  # fmt: skip
def test_impossible_amounts_are_refused(options: dict[str, float]) -> None:
    sentence = r"expected label_smoothing in \[0, 1\) and mixup of 0 or more, got"
    with pytest.raises(ValueError, match=sentence):
        Training(**options)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"mixup": 0.1}])
def test_real_valued_targets_are_refused_before_any_work(options: dict[str, float]) -> None:
    watch, model = Recorder(), BayesianNetwork(net(1), likelihood="normal")
    training = Training(epochs=2, batch_size=BATCH, device="cpu", **options)
    with pytest.raises(ValueError, match="expected labels to smooth or to mix, but tiny has real-valued targets"):
        shelf.load("inference", "rigl")(model, data(None), training=training, watch=watch)
    assert watch.steps == 0


def test_an_infinite_mixup_is_refused() -> None:
    with pytest.raises(ValueError, match="mixup"):
        Training(mixup=float("inf"))


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"mixup": 0.4}])
@pytest.mark.parametrize(("outputs", "classes", "likelihood"), [(1, 2, "bernoulli"), (CLASSES, 3, "categorical")])
def test_a_network_whose_outputs_are_not_the_classes_is_refused_before_any_work(
    outputs: int, classes: int, likelihood: str, options: dict[str, float]
) -> None:
    model, infer = BayesianNetwork(net(outputs), likelihood=likelihood), shelf.load("inference", "rigl")
    hard, soft = (Training(epochs=1, batch_size=BATCH, device="cpu", **own) for own in ({}, options))
    if outputs == 1:
        infer(model, data(classes), training=hard, delta_t=2)  # hard labels it takes
    else:
        with pytest.raises(ValueError, match="expected a network with 3 outputs for the classes of tiny, got 5: give it as many"):
            infer(model, data(classes), training=hard, delta_t=2)
    with pytest.raises(ValueError, match=f"expected a categorical likelihood with one output for each of {classes} cla") as info:
        infer(model, data(classes), training=soft, delta_t=2)
    assert "Trace Shapes" not in str(info.value)  # Pyro adds this to what goes wrong inside a step
