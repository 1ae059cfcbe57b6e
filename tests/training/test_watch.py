"""Who looks at a training changes nothing in it; one of them keeps a file from which it goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from digits import digits, mlp
from espalier import shelf, store
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from espalier.training.watch import Checkpoints, Silent, Watch
from watches import Killed, Recorder

EPOCHS, PER_EPOCH = 4, 10


def trained(watch: Watch | None) -> Fit:
    training = Training(epochs=EPOCHS, batch_size=32, learning_rate=0.1, device="cpu")
    settings = {"sparsity": 0.7, "drop_rate": 0.2, "delta_t": 7, "freeze": 0.5, "average_from": 0.5}
    return shelf.load("inference", "cigl")(mlp(), digits(), training=training, seed=1, watch=watch, **settings)


def same(one: Fit, other: Fit) -> bool:
    pairs = [(one.pairs.values, other.pairs.values), (one.pairs.keep, other.pairs.keep)]
    return one.history == other.history and all(torch.equal(*pair) for pair in pairs)


def test_every_watch_sees_every_step_and_epoch_and_changes_nothing() -> None:
    recorder, counter = Recorder(), Killed()
    fits = [trained(watch) for watch in (None, Silent(), recorder, counter)]
    assert all(same(fits[0], fit) for fit in fits[1:])
    assert recorder.steps == EPOCHS * PER_EPOCH
    assert len(recorder.checkpoints) == 1 + EPOCHS
    assert counter.seen == [EPOCHS * PER_EPOCH, EPOCHS]


def test_the_silent_watch_starts_from_nothing_and_asks_for_no_checkpoint() -> None:
    assert Silent().resume() is None
    Silent().epoch({}, lambda: pytest.fail("nobody wants it"))


@pytest.mark.parametrize("kill", [{"step": 5}, {"step": 17}, {"epoch": 2}, {"step": 39}])
def test_a_training_that_is_killed_goes_on_from_its_file_to_the_same_bits(kill: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, Killed(**kill)))
    kept = kill["epoch"] if "epoch" in kill else (kill["step"] - 1) // PER_EPOCH
    assert path.exists() == (kept > 0)
    inner = Recorder()
    assert same(trained(Checkpoints(path, inner)), trained(None))
    assert inner.steps == PER_EPOCH * (EPOCHS - kept)  # what the file holds is not done again
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_checkpoint_that_was_altered_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, Killed(epoch=1)))
    bundle = store.read_bundle(path)
    bundle.tensors["values"][0] += 1
    store.write_bundle(path, bundle)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="expected .*mine.safetensors as it was written, but its content was altered"):
        trained(Checkpoints(path))
    assert path.read_bytes() == before
