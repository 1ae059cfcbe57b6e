"""A checkpoint of another training is refused, whichever option it differs in; and what a resume needs, it has (train.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from espalier import BayesianNetwork, Fit, Training, shelf
from espalier.training import Checkpoints
from espalier.training.distillation import distill
from espalier.training.train import check_asked
from fitted import digits
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")
EPOCHS = 4


def run(inference: str, watch: Any = None, start: int = 0, **options: Any) -> Fit:
    torch.manual_seed(start)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    training = Training(epochs=EPOCHS, batch_size=64, device="cpu", learning_rate=0.1)
    words = {"sparsity": 0.5, "seed": 1, **options}
    return shelf.load("inference", inference)(BayesianNetwork(net), digits(), training=training, watch=watch, **words)


@pytest.mark.parametrize(("inference", "options", "name", "other"), [
    ("mean_field", {"kl_warmup": 0.5}, "kl_warmup", 0.0),
    ("agent", {"drop_rate": 0.2, "gamma": 0.1}, "gamma", 1.0),
    ("rigl", {"drop_fraction": 0.3, "delta_t": 5}, "drop_fraction", 0.9),
    ("rigl", {"delta_t": 5, "freeze": 0.14}, "delta_t", 6),
    ("mean_field", {"noise_scale": 0.01}, "noise_scale", 0.3),
    ("edge_popup", {"frozen": "signed"}, "frozen", "kaiming"),
    ("fsvi", {"context_points": 8, "context": "train"}, "context", torch.randn(9, 1, 8, 8)),
    ("fsvi", {"context_points": 8}, "context_points", 16),
    ("fsvi", {"context_points": 8, "kl_scale": 1.0}, "kl_scale", 0.001),
    ("espn", {"mask_epochs": 2, "form": "rewind", "rewind_epochs": 2, "l1": 0.01}, "l1", 0.1),
    ("sghmc", {"refit_epochs": 2, "temperature": 0.01}, "temperature", 1.0),
    ("sghmc", {"refit_epochs": 2, "slab_scale": 0.3}, "slab_scale", 0.4),
])  # fmt: skip
def test_an_option_of_a_method_is_asked_for(inference: str, options: dict[str, Any], name: str, other: Any) -> None:
    watch = Recorder()
    run(inference, watch, **options)
    with pytest.raises(ValueError, match=f"expected the training that the checkpoint is of, with {name} .*: begin anew"):
        run(inference, Recorder(watch.checkpoints[-1]), **{**options, name: other})


@pytest.mark.parametrize("accept", ["bayes-factor", "joint-density"])
def test_the_threshold_of_what_may_go_is_asked_for(accept: str) -> None:
    watch, options = Recorder(), {"delta_t": 5, "accept": accept}
    run("mean_field", watch, **options, log_threshold=0.0)
    with pytest.raises(ValueError, match=r"is of, with accept _(favoured|likelier)\(.*, 0.0\), got _.*, 50.0\): begin anew"):
        run("mean_field", Recorder(watch.checkpoints[1]), **options, log_threshold=50.0)


def test_how_a_search_cuts_is_asked_for() -> None:
    watch, options = Recorder(), {"mask_epochs": 2, "form": "rewind", "rewind_epochs": 1, "l1": 0.01}
    run("espn", watch, **options, allocation="global")
    with pytest.raises(ValueError, match="is of, with each None, got .*: begin anew"):
        run("espn", Recorder(watch.checkpoints[-1]), **options, allocation="erk")


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    scale = np.float32(0.01)
    for inference, options in (("rigl", {"delta_t": np.int64(5)}), ("mean_field", {"noise_scale": scale, "delta_t": 5})):
        run(inference, Checkpoints(tmp_path / f"{inference}.safetensors", every=0), **options)
        run(inference, Checkpoints(tmp_path / f"{inference}.safetensors"), **options)  # over already


def gentle(logits: torch.Tensor, y: torch.Tensor, progress: float) -> torch.Tensor:
    return nn.functional.cross_entropy(logits / 2, y, reduction="none")


def test_the_rule_the_loss_and_the_scaling_are_asked_for() -> None:
    watch, options = Recorder(), {"delta_t": 5}
    run("rigl", watch, **options)
    begun = watch.checkpoints[1]
    with pytest.raises(ValueError, match="is of, with grow gradient, got at_random: begin anew"):
        run("set", Recorder(begun), **options)
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)))
    training = Training(epochs=EPOCHS, batch_size=64, device="cpu", learning_rate=0.1, loss=gentle)
    infer = shelf.load("inference", "rigl")
    with pytest.raises(ValueError, match="is of, with loss likelihood, got .*gentle: begin anew"):
        infer(model, digits(), sparsity=0.5, seed=1, training=training, watch=Recorder(begun), **options)
    training = Training(epochs=EPOCHS, batch_size=64, device="cpu", learning_rate=0.1)
    scaled = digits()._replace(input_scale=(torch.tensor(1.0), torch.tensor(2.0)))
    with pytest.raises(ValueError, match="is of, with preparation of the data .*: begin anew"):
        infer(model, scaled, sparsity=0.5, seed=1, training=training, watch=Recorder(begun), **options)


def test_a_checkpoint_in_memory_may_be_gone_on_from_twice() -> None:
    watch = Recorder()
    whole = run("rigl", watch, delta_t=5)
    for _ in range(2):
        again = run("rigl", Recorder(watch.checkpoints[1]), delta_t=5)
        assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]


def test_a_buffer_that_training_moves_and_no_file_keeps_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self, *, moves: bool) -> None:
            super().__init__()
            self.layer, self.moves = nn.Linear(64, 10), moves
            self.register_buffer("middle", torch.zeros(10), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x.flatten(1))
            if self.training and self.moves:
                self.middle.mul_(0.9).add_(x.detach().mean(0) + 1, alpha=0.1)
            return x - self.middle

    training = Training(epochs=1, batch_size=64, device="cpu")
    with pytest.raises(ValueError, match="expected buffers that training moves in the network's state, but middle is not"):
        shelf.load("inference", "static")(BayesianNetwork(Centred(moves=True)), digits(), training=training)
    shelf.load("inference", "static")(BayesianNetwork(Centred(moves=False)), digits(), training=training)


@pytest.mark.parametrize("frozen", ["signed", "kaiming"])
def test_frozen_weights_are_those_that_it_began_with(frozen: str) -> None:
    """Whatever the network was built with that it is gone on with."""
    watch = Recorder()
    whole = run("edge_popup", watch, frozen=frozen)
    again = run("edge_popup", Recorder(watch.checkpoints[2]), start=5, frozen=frozen)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    assert torch.equal(again.pairs.values, whole.pairs.values)


def test_rounds_that_go_back_to_the_network_as_it_was_want_the_same_one() -> None:
    watch = Recorder()
    run("lottery", watch, rounds=2)
    with pytest.raises(ValueError, match="with initial network .*, got .*: begin anew"):
        run("lottery", Recorder(watch.checkpoints[-2]), start=5, rounds=2)
    early = Recorder()
    whole = run("lottery", early, rounds=1, rewind_epochs=1)  # which is in the checkpoint
    again = run("lottery", Recorder(early.checkpoints[-2]), start=5, rounds=1, rewind_epochs=1)
    assert torch.equal(again.pairs.values, whole.pairs.values)


def test_a_checkpoint_with_a_student_on_the_way_is_of_an_earlier_version() -> None:
    with pytest.raises(ValueError, match="got one with a student on the way: begin anew"):
        check_asked({"asked": {"kind": "training", "distill_from": 9}}, {"kind": "training"})


def test_a_distillation_asks_for_its_teachers_and_its_numbers() -> None:
    fit, other, watch = run("cigl", drop_rate=0.2), run("cigl", drop_rate=0.2, start=5), Recorder()
    training = Training(epochs=EPOCHS, batch_size=64, device="cpu")
    distill(fit, digits(), training=training, seed=1, epochs=2, learning_rate=0.05, watch=watch)
    begun = watch.checkpoints[1]
    for name, teacher, seed in (("seed", fit, 2), ("taught_by", other, 1)):
        with pytest.raises(ValueError, match=f"expected the training that the checkpoint is of, with {name} "):
            distill(teacher, digits(), training=training, seed=seed, epochs=2, learning_rate=0.05, watch=Recorder(begun))
    with pytest.raises(ValueError, match="that the checkpoint is of, with kind distillation, got training"):
        run("cigl", Recorder(begun), drop_rate=0.2)


def test_a_state_that_is_no_tensor_is_refused_before_any_work() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            """Nothing."""

    with pytest.raises(ValueError, match="expected a network whose state is tensors, but 1._extra_state is none"):
        shelf.load("inference", "cigl")(BayesianNetwork(nn.Sequential(nn.Flatten(), Counting(64, 10))), digits())


def test_a_buffer_that_says_nothing_to_predictions_may_move() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.register_buffer("last", torch.zeros(2, 10), persistent=False)
            self.register_buffer("none", torch.tensor(float("nan")), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(x.flatten(1))
            self.last = logits.detach()
            return logits

    training = Training(epochs=1, batch_size=64.0, device="cpu", learning_rate=torch.tensor(0.1))  # type: ignore[arg-type]
    assert training.batch_size == 64
    shelf.load("inference", "static")(BayesianNetwork(Seen()), digits(), training=training)
