"""A training that is ended early is one whose last epoch that was, says so, and is resumed to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from digits import digits, mlp
from espalier import shelf
from espalier.prediction.fit import Fit
from espalier.training.drop_rates import DRAWS, ROWS
from espalier.training.options import Training
from espalier.training.stopping import EarlyStopping
from espalier.training.watch import Checkpoints, Watches
from watches import Ending, Killed, Recorder

EPOCHS, PER_EPOCH = 12, 10
OPTIONS = {"sparsity": 0.7, "drop_rate": 0.2, "delta_t": 5, "freeze": 0.5, "average_from": 0.5}


def trained(watch: Watches, inference: str = "cigl", patience: int = 0, epochs: int = EPOCHS, **options: Any) -> Fit:
    training = Training(epochs=epochs, batch_size=32, learning_rate=0.5, device="cpu", patience=patience, rate="constant")
    return shelf.load("inference", inference)(mlp(), digits(), training=training, seed=1, watch=watch, **{**OPTIONS, **options})


def same(one: Fit, other: Fit) -> bool:
    pairs = [(one.pairs.values, other.pairs.values), (one.pairs.keep, other.pairs.keep)]
    return one.history == other.history and one.record == other.record and all(torch.equal(*pair) for pair in pairs)


def rows(*scores: float) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "validation_nll": score} for epoch, score in enumerate(scores, 1)]


# ------------------------------------------------------------------------------------------------------------- patience


@pytest.mark.parametrize(("scores", "patience", "ends"), [
    ([3.0, 2.0, 1.0, 1.5, 1.2], 2, 5),
    ([3.0, 2.0, 1.0, 1.5, 0.9, 0.9, 0.9], 2, 7),  # as low again is not lower
    ([3.0, 3.1], 1, 2),
    ([3.0, 2.0, 1.0], 1, None),
])  # fmt: skip
def test_patience_counts_the_epochs_since_the_lowest_score(scores: list[float], patience: int, ends: int | None) -> None:
    watch = EarlyStopping(patience)
    watch.on_begin([])
    said = [watch.on_epoch(row) for row in rows(*scores)]
    assert next((index for index, sentence in enumerate(said, 1) if sentence), None) == ends


def test_patience_that_goes_on_knows_the_rows_before_and_forgets_those_of_another_training() -> None:
    watch = EarlyStopping(2)
    watch.on_begin(rows(1.0, 1.5))
    assert watch.on_epoch({"epoch": 3, "validation_nll": 1.2}) == "patience 2: validation_nll was lowest, 1, in epoch 1"
    watch.on_begin([])
    assert watch.on_epoch({"epoch": 1, "validation_nll": 9.0}) is None


def test_what_patience_cannot_have_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="expected patience of at least 1 epoch, got 0"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match="expected validation_auc in the history to stop on, got epoch, validation_nll"):
        EarlyStopping(1, of="validation_auc").on_epoch(rows(1.0)[0])
    with pytest.raises(ValueError, match="expected patience of 0 or more epochs, got -1"):
        Training(patience=-1)
    bare = digits()._replace(validation=digits().validation._replace(x=digits().train.x[:0], y=digits().train.y[:0]))
    recorder = Recorder()
    with pytest.raises(ValueError, match="expected a validation split for patience, but digits has none"):
        shelf.load("inference", "rigl")(mlp(), bare, training=Training(patience=3, device="cpu"), watch=recorder)
    assert recorder.steps == 0


def test_patience_of_the_options_is_that_of_the_watch_and_ends_where_the_history_says() -> None:
    by_option, by_watch, whole = trained(None, patience=2), trained(EarlyStopping(2)), trained(None)
    assert same(by_option, by_watch)
    scores = [row["validation_nll"] for row in whole.history]
    last = next(i for i in range(2, EPOCHS) if min(scores[: i - 1]) <= min(scores[i - 1 : i + 1])) + 1
    assert last < EPOCHS, "it must be tried out"
    assert by_option.history == whole.history[:last]
    assert by_option.record["stopped_at"] == last
    assert by_option.record["stopped_by"].startswith("patience 2: validation_nll was lowest")
    assert "stopped_at" not in whole.record


# --------------------------------------------------------------------------------------------------- what an end is like


@pytest.mark.parametrize("epoch", [1, 2, 3, 9])
def test_a_training_that_is_ended_has_the_rows_and_the_pairs_of_one_that_was_to_end_there(epoch: int) -> None:
    """Epoch 1 and 2 end in the middle of the moves, the first one right after a move (step 10)."""
    recorder = Recorder()
    fit, whole = trained([Ending(epoch), recorder]), trained(None)
    assert fit.history == whole.history[:epoch]
    assert recorder.steps == epoch * PER_EPOCH
    assert len(fit.pairs.values) == max(1, epoch - EPOCHS // 2)
    assert torch.equal(fit.pairs.values[-1], recorder.checkpoints[-1].tensors["values"])
    assert fit.topology.num_active == whole.topology.num_active
    assert fit.pairs.keep.shape == fit.pairs.values.shape
    assert (fit.record["stopped_at"], fit.record["stopped_by"]) == (epoch, f"it was to end after {epoch}")
    assert fit.predict(digits().test.x, "ticket").isfinite().all()


def test_z_of_a_pair_that_ends_with_a_move_stays_with_its_weights() -> None:
    """The first epoch's last step is a move: the pair is Z of that step, carried to the new topology, as worked out from the
    moments: a weight's Z is that of its place before."""
    recorder = Recorder()
    fit = trained([Ending(1), recorder])
    grown = fit.pairs.values[0] == 0
    assert grown.sum() > 5
    assert fit.pairs.keep[0][grown].all()
    kept = fit.pairs.keep[0][~grown].double().mean()
    assert abs(kept - fit.keep_prob) < 4 * (fit.keep_prob * (1 - fit.keep_prob) / int((~grown).sum())) ** 0.5


def test_the_reason_of_the_last_epoch_is_no_early_end() -> None:
    assert "stopped_at" not in trained(Ending(EPOCHS)).record


@pytest.mark.parametrize(("rule", "last"), [("gradual", 6), ("one-shot", 6), ("set", 2), ("static", 2)])
def test_a_pruning_rule_reaches_its_sparsity_before_a_training_may_end(rule: str, last: int) -> None:
    fit = trained(Ending(2), rule=rule)
    assert len(fit.history) == fit.record["stopped_at"] == last
    assert fit.record["stopped_by"] == "it was to end after 2"
    assert fit.topology.num_active == round(0.3 * fit.topology.num_weights)


def test_a_student_of_a_training_that_was_ended_learns_a_share_of_what_there_was() -> None:
    fit = trained(Ending(14), inference="distilled", drop_rate="auto", epochs=40)
    assert fit.record["distilled"]["steps"] == 28  # a fifth of 140
    assert fit.record["drop_rate"]["found"] == 1 - fit.keep_prob
    last = 4 * len(digits().validation.y) * 2  # the last look
    assert fit.record["drop_rate"]["forward_examples"] == 2 * DRAWS * ROWS + last  # and one estimate, at step 134


def test_a_later_phase_can_be_ended_too() -> None:
    fit = trained(Ending(EPOCHS + 1), inference="distilled", distill_epochs=3)
    assert "stopped_at" not in fit.record
    assert {name: fit.record["distilled"][name] for name in ("epochs", "stopped_at")} == {"epochs": 1, "stopped_at": 1}
    assert len(fit.history) == EPOCHS + 1


# -------------------------------------------------------------------------------------------------------- kill and resume


@pytest.mark.parametrize("kill", [{"step": 15}, {"epoch": 2}, {"epoch": 3}])
def test_killed_and_resumed_under_the_same_watches_it_ends_in_the_same_bits(kill: dict[str, int], tmp_path: Path) -> None:
    path, listening = tmp_path / "mine.safetensors", EarlyStopping(2)
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, [EarlyStopping(2), Killed(**kill)], every=0))
    assert same(trained(Checkpoints(path, listening, every=0)), trained(EarlyStopping(2)))


@pytest.mark.parametrize(("rule", "epoch", "kill"), [("rigl", 4, 4), ("gradual", 2, 4)])
def test_an_end_that_was_asked_for_is_in_the_checkpoint(rule: str, epoch: int, kill: int, tmp_path: Path) -> None:
    """Killed between the end and the fit, or while a rule still prunes: nobody needs to ask again."""
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, [Ending(epoch), Killed(epoch=kill)], every=0), rule=rule)
    assert same(trained(Checkpoints(path), rule=rule), trained(Ending(epoch), rule=rule))


def test_a_watch_hears_of_epochs_after_another_one_ended_the_training() -> None:
    """A pruning rule goes on until it has its sparsity."""
    ended = Recorder()
    heard: list[int] = []
    ended.on_epoch = lambda row: heard.append(row["epoch"])  # type: ignore[method-assign, assignment, return-value]
    fit = trained([Ending(2), ended], rule="gradual")
    assert len(fit.history) > 2
    assert heard == [row["epoch"] for row in fit.history]


@pytest.mark.filterwarnings("ignore:the fit has no distilled net")  # so hot a training's
@pytest.mark.parametrize("other", [{"distill_masks": 3}, {"distill_rate": 0.1}])
def test_a_checkpoint_of_another_student_is_not_gone_on_from(other: dict[str, Any], tmp_path: Path) -> None:
    trained(Checkpoints(tmp_path / "a.safetensors", every=0), "distilled", epochs=4, distill_rate=0.001)
    with pytest.raises(ValueError, match="expected the training that the checkpoint is of, with distill_.*: begin anew"):
        trained(Checkpoints(tmp_path / "a.safetensors", every=0), "distilled", epochs=4, **{"distill_rate": 0.001, **other})


@pytest.mark.parametrize("other", [
    {"epochs": 3}, {"sparsity": 0.5}, {"drop_rate": 0.3}, {"drop_rate": "auto"}, {"mask": "unit"}, {"num_particles": 2},
    {"delta_t": 7}, {"average_from": 0.75},
])  # fmt: skip
def test_a_checkpoint_is_gone_on_from_by_the_training_that_it_is_of(other: dict[str, Any], tmp_path: Path) -> None:
    first = trained(Checkpoints(tmp_path / "a.safetensors", every=0), epochs=4)
    assert same(trained(Checkpoints(tmp_path / "a.safetensors", every=0), epochs=4), first)
    with pytest.raises(ValueError, match="expected the training that the checkpoint is of, with .*: begin anew"):
        trained(Checkpoints(tmp_path / "a.safetensors", every=0), **{"epochs": 4, **other})
