"""What must hold on a GPU; skipped, with a reason, where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Fit, Training, load_data, load_program, runs
from espalier.prediction.evaluation import evaluate
from espalier.runs.recipes import resolve
from watches import Killed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def conv_net() -> BayesianNetwork:
    torch.manual_seed(0)
    return BayesianNetwork(
        nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    )


def fit(device: str, precision: str = "float32", keep: float = 0.9) -> Fit:
    training = Training(epochs=6, batch_size=64, device=device, precision=precision, augment="crop-flip")  # type: ignore[arg-type]
    return load_program("inference", "cigl")(
        conv_net(), load_data("digits"), sparsity=0.8, drop_rate=1 - keep, delta_t=8, training=training, seed=1
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_predicting_and_saving_work_on_the_gpu(precision: str, tmp_path: Path) -> None:
    trained, data = fit("cuda", precision), load_data("digits")
    assert trained.pairs.values.is_cuda
    for how in ("ticket", "pairs", "redraw", "mean", "unmasked"):
        probs = trained.predict(data.test.x, how, num_samples=2)  # type: ignore[arg-type]
        assert not probs.is_cuda
        torch.testing.assert_close(probs.sum(-1), torch.ones(probs.shape[:2], dtype=torch.float64))
    accuracy = (trained.predict(data.test.x).mean(0).argmax(-1) == data.test.y).float().mean()
    assert accuracy > 0.4  # six epochs, and flipped digits
    trained.save(tmp_path / "run")
    loaded = Fit.load(tmp_path / "run", conv_net())
    torch.testing.assert_close(loaded.predict(data.test.x), trained.predict(data.test.x), rtol=1e-3, atol=1e-4)
    assert loaded.to("cuda").predict(data.test.x, "ticket").shape == (1, len(data.test.y), 10)


def test_the_topology_is_exact_and_two_runs_are_equal() -> None:
    first, second = fit("cuda"), fit("cuda")
    assert first.topology.num_active == round(0.2 * first.topology.num_weights)
    assert torch.equal(first.topology.positions, second.topology.positions)


def test_redrawn_masks_are_those_of_the_cpu() -> None:
    trained, data = fit("cuda"), load_data("digits")
    there = trained.predict(data.test.x[:100], "redraw", num_samples=3, seed=5)
    here = trained.to("cpu").predict(data.test.x[:100], "redraw", num_samples=3, seed=5)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_the_likelihood_stays_on_the_gpu_for_who_goes_on_there() -> None:
    trained, x = fit("cuda"), load_data("digits").test.x
    (there,), (here,) = trained.outcomes(x, on_device=True), trained.outcomes(x)
    assert there.logits.is_cuda
    assert not here.logits.is_cuda
    torch.testing.assert_close(there.logits.cpu(), here.logits, rtol=0, atol=1e-6)  # the network's own, twice
    torch.testing.assert_close(trained.predict(x)[0], here.logits.softmax(-1), rtol=0, atol=1e-6)


def waits(work: Callable[[], object]) -> int:
    """How many times it waits for the GPU, as torch tells."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        work()
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in heard)


def test_draws_do_not_wait_for_the_gpu_one_by_one() -> None:
    """What waits is there once a prediction, batch norm's statistics of every draw included."""
    trained, x = fit("cuda"), load_data("digits").test.x
    waits(lambda: trained.predict(x, "redraw", num_samples=1))  # torch says something of its own the first time
    few, many = (waits(partial(trained.predict, x, "redraw", num_samples=draws)) for draws in (2, 12))
    assert many == few


@pytest.mark.parametrize("masks", [0, 1, 3])
def test_steps_do_not_wait_for_the_gpu(masks: int) -> None:
    """Nor a student's: what waits is there once an epoch, however many steps it has."""
    infer, data = load_program("inference", "distilled"), load_data("digits")

    def trained(batch_size: int) -> None:
        training = Training(epochs=6, batch_size=batch_size, device="cuda")
        infer(conv_net(), data, sparsity=0.8, drop_rate=0.1, delta_t=10**6, distill_masks=masks, training=training)

    waits(partial(trained, 64))
    few, many = waits(partial(trained, 128)), waits(partial(trained, 16))
    assert abs(many - few) <= 4  # in the end, what a report is told of the student is looked at in batches


def test_a_training_that_diverges_says_at_which_step() -> None:
    """Looked at a step later on a GPU, and named as on the CPU."""
    said = []
    for device in ("cpu", "cuda"):
        with pytest.raises(RuntimeError, match="stopped being finite at step") as error:
            load_program("inference", "cigl")(
                conv_net(), load_data("digits"), sparsity=0.8, drop_rate=0.1, delta_t=8, seed=1,
                training=Training(epochs=2, batch_size=64, device=device, learning_rate=1e25),
            )  # fmt: skip
        said.append(str(error.value).split(":")[0])
    assert said[0] == said[1]


def test_a_network_that_diverged_is_told_of_though_nothing_waits() -> None:
    trained, x = fit("cuda"), load_data("digits").test.x
    trained.pairs.values.fill_(float("nan"))
    with pytest.raises(ValueError, match="may have diverged"):
        trained.predict(x, "redraw", num_samples=3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_drop_rate_is_found_and_a_student_taught_on_the_way(precision: str) -> None:
    data = load_data("digits")
    training = Training(epochs=10, batch_size=64, device="cuda", precision=precision)  # type: ignore[arg-type]
    infer = load_program("inference", "distilled")
    trained = infer(conv_net(), data, sparsity=0.8, drop_rate="auto", delta_t=8, training=training)
    rates = [row["drop_rate"] for row in trained.history]
    assert len(set(rates)) > 2
    found = evaluate(trained, data)["predict"]
    assert found["distilled"]["accuracy"] > 0.7
    assert found["distilled"]["nll"] < found["redraw"]["nll"] + 0.05


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Bit for bit only as far as the kernels are deterministic: those of this network are."""
    words = ["--model=mlp", "--inference=distilled", "--data=digits", "--epochs=6", "--drop-rate=0.2", "--delta-t=8"]
    words.append("--device=cuda")
    with pytest.raises(KeyboardInterrupt):
        runs.start(resolve(words), tmp_path / "cut", Killed(epoch=5), every=0)
    cut = runs.resume(tmp_path / "cut", every=0)
    whole = runs.start(resolve(words), tmp_path / "whole", every=0)
    assert torch.equal(cut.topology.positions, whole.topology.positions)
    torch.testing.assert_close(cut.pairs.values, whole.pairs.values, rtol=1e-3, atol=1e-4)
    assert cut.student is not None
    assert whole.student is not None
    torch.testing.assert_close(cut.student[0], whole.student[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("inference", "options"), [
    ("agent", {"drop_rate": 0.1, "delta_t": 8}),
    ("espn", {"mask_epochs": 4}),
    ("espn", {"mask_epochs": 4, "form": "rewind", "allocation": "erk"}),
])  # fmt: skip
def test_the_neighbours_train_on_the_gpu(inference: str, options: dict[str, object]) -> None:
    training = Training(epochs=4, batch_size=64, device="cuda")
    trained = load_program("inference", inference)(
        conv_net(), load_data("digits"), sparsity=0.8, training=training, seed=1, **options
    )
    assert trained.pairs.values.is_cuda
    assert trained.topology.num_active == round(0.2 * trained.topology.num_weights)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
