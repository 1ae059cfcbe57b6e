"""Who looks at a training changes nothing in it; one of them keeps a file from which it goes on to the same bits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from digits import digits, mlp
from espalier import runs, shelf, store
from espalier.prediction.fit import Fit
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.training.options import Training
from espalier.training.watch import Checkpoints, Several, Watch
from hashed import hashes
from watches import Ending, Killed, Recorder

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
    fits = [trained(watch) for watch in (None, Watch(), recorder, counter)]
    assert all(same(fits[0], fit) for fit in fits[1:])
    assert recorder.steps == EPOCHS * PER_EPOCH
    assert len(recorder.checkpoints) == 1 + EPOCHS
    assert counter.seen == [EPOCHS * PER_EPOCH, EPOCHS]


def test_the_plain_watch_starts_from_nothing_asks_for_no_checkpoint_and_ends_nothing() -> None:
    assert Watch().resume() is None
    Watch().keep(lambda: pytest.fail("nobody wants it"))
    assert Watch().on_epoch({}) is None


@pytest.mark.parametrize("kill", [{"step": 5}, {"step": 17}, {"epoch": 2}, {"step": 39}])
def test_a_training_that_is_killed_goes_on_from_its_file_to_the_same_bits(kill: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, Killed(**kill), every=0))
    kept = kill["epoch"] if "epoch" in kill else (kill["step"] - 1) // PER_EPOCH
    assert path.exists() == (kept > 0)
    inner = Recorder()
    assert same(trained(Checkpoints(path, inner, every=0)), trained(None))
    assert inner.steps == PER_EPOCH * (EPOCHS - kept)  # what the file holds is not done again
    *pairs, own = hashes(tmp_path)
    assert own == path.name
    assert len(pairs) == EPOCHS // 2
    assert all(name.startswith("mine.pairs/") for name in pairs)


def test_a_checkpoint_that_was_altered_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, Killed(epoch=1), every=0))
    bundle = store.read_bundle(path)
    bundle.tensors["values"][0] += 1
    store.write_bundle(path, bundle)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="expected .*mine.safetensors as a checkpoint was written here, but it"):
        trained(Checkpoints(path))
    assert path.read_bytes() == before


class Clocked(Checkpoints):
    """Counts what it writes."""

    def __init__(self, path: Path, every: float) -> None:
        super().__init__(path, every=every)
        self.count = 0

    def _write(self, bundle: Bundle) -> None:
        self.count += 1
        super()._write(bundle)


def test_checkpoints_are_some_seconds_apart(tmp_path: Path) -> None:
    often, never = Clocked(tmp_path / "often.safetensors", 0), Clocked(tmp_path / "never.safetensors", 3600)
    assert same(trained(often), trained(never))
    assert (often.count, never.count) == (EPOCHS, 0)
    with pytest.raises(ValueError, match="expected 0 or more seconds between checkpoints, got -1"):
        Checkpoints("mine.safetensors", every=-1)


def test_a_pair_is_written_once_and_one_that_was_altered_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(Checkpoints(path, Killed(epoch=3), every=0))
    (pair,) = (tmp_path / "mine.pairs").iterdir()
    written = pair.stat().st_mtime_ns
    trained(Checkpoints(path, every=0))
    assert pair.stat().st_mtime_ns == written
    content = bytearray(pair.read_bytes())
    content[-5] ^= 1
    pair.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine.pairs/\w+.safetensors as it was written, but it is missing or was altered"):
        trained(Checkpoints(path))


def test_a_long_run_writes_little_more_than_its_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 epochs, 200 pairs: 1.2 times the fit at most, with the checkpoints of a minute's training among it."""
    written, real = [], store.write_bytes

    def counted(path: Path, data: bytes) -> None:
        written.append(len(data))
        real(path, data)

    monkeypatch.setattr(store, "write_bytes", counted)
    words = ["--model", "mlp", "--hidden", "64", "--inference", "cigl", "--data", "digits", "--epochs", "250"]
    words += ["--sparsity", "0.5"]
    words += ["--train-size", "64", "--batch-size", "32", "--average-from", "0.2", "--freeze", "0.2", "--delta-t", "10"]
    clock = iter(range(10**9))  # a quarter of a second an epoch
    monkeypatch.setattr("espalier.training.watch.time", SimpleNamespace(monotonic=lambda: next(clock) / 8))
    fit = runs.start(resolve(words), tmp_path / "run")
    assert len(fit.pairs.values) == 200
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    assert sum(written) <= 1.2 * size


def test_several_watches_all_look_on_and_the_first_reason_counts(tmp_path: Path) -> None:
    one, other = Recorder(), Recorder(Bundle({}, {"step": 3}))
    several = Several([one, Ending(2), other, Several([Ending(2)])])
    assert several.resume() == Bundle({}, {"step": 3})
    assert several.on_epoch({"epoch": 1}) is None
    assert several.on_epoch({"epoch": 2}) == "it was to end after 2"
    several.on_step(None)  # type: ignore[arg-type]
    several.keep(lambda: Bundle({}, {"step": 4}))
    assert (one.steps, other.steps) == (1, 1)
    assert one.checkpoints[1:] == other.checkpoints[1:] == [Bundle({}, {"step": 4})]
    with pytest.raises(ValueError, match=r"expected espalier.training.Watch objects, got builtin_function_or_method: make"):
        trained([print, lambda row: None])  # type: ignore[list-item]
