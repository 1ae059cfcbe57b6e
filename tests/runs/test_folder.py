"""Nothing is ever lost: a killed run goes on bit for bit, and every part of the checkpoint is needed for that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from commands import fit
from espalier import data, runs, shelf, store
from espalier.cli.main import main
from espalier.runs.recipes import resolve
from espalier.store import Bundle
from espalier.training.options import Training
from espalier.training.watch import Watch
from hashed import hashes
from places import HELPERS, PROGRAM
from watches import Recorder

KILLS = 2


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A run that uses everything: batch norm, dropout, augmentation, random growth, Nesterov momentum, pairs."""
    recipe = {
        "model": str(PROGRAM), "inference": "cigl", "data": "digits", "train_size": 160,
        "sparsity": 0.7, "drop_rate": 0.2, "rule": "set", "delta_t": 6, "freeze": 0.5, "average_from": 0.5,
        "epochs": 6, "batch_size": 16, "augment": "crop-flip", "bn_batches": 3, "learning_rate": 0.05, "seed": 3,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("kills", [KILLS, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_inside_an_epoch_resumes_to_equal_files(recipe_file: Path, tmp_path: Path, kills: int) -> None:
    words = [sys.executable, str(HELPERS / "kill.py"), str(recipe_file), str(tmp_path / "runs"), str(kills)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen["landed"]) == kills
    assert all(0 < step % seen["per_epoch"] < seen["per_epoch"] for step in seen["landed"])
    assert seen["before_first_checkpoint"] >= 1, "no kill before the first checkpoint: that case was not tried"
    assert seen["different"] == []
    pairs = [name for name in seen["files"] if name.startswith("pairs/")]
    assert seen["files"] == [store.LOCK, "config.yaml", "fit.safetensors", "history.json", "model.py", *pairs, "record.json"]
    assert len(pairs) == 3


def test_the_command_line_resumes_a_killed_run_and_knows_a_finished_one(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-c", "from espalier.cli.main import main; raise SystemExit(main())", "fit", "--config"]
    words += [str(recipe_file), "--epochs", "500", "--checkpoint-every", "0", "--out", str(folder)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (folder / "checkpoint.safetensors").exists():
        assert process.poll() is None
    process.kill()
    assert process.wait() == -9
    assert main(["evaluate", str(folder)]) == 2
    assert "`espalier resume" in capsys.readouterr().err
    config = (folder / "config.yaml").read_text().replace("epochs: 500", "epochs: 6")
    (folder / "config.yaml").write_text(config)
    (folder / "checkpoint.safetensors").unlink()  # made for 500 epochs, it may be past the sixth
    assert main(["resume", str(folder)]) == 0
    assert "espalier evaluate" in capsys.readouterr().out
    before = hashes(folder)
    assert main(["resume", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert before == hashes(folder)


def train(recipe_file: Path, watch: Recorder) -> str:
    """Train, and hash all that comes of it."""
    recipe = resolve(["--config", str(recipe_file)])
    loaded = data.load(recipe.data, **recipe.of("data"))
    torch.manual_seed(0)
    model = shelf.load("models", recipe.model)(loaded.shape, loaded.num_outputs, **recipe.of("model"))
    infer = shelf.load("inference", "cigl")
    fit = infer(model, loaded, **recipe.of("inference"), training=Training(**recipe.of("training")), watch=watch)
    digests = [store.tensor_digest(tensor) for _, tensor in sorted(fit.bundle().tensors.items())]
    return hashlib.sha256((json.dumps(digests) + store.canonical(fit.history)).encode()).hexdigest()


# Part of the state -> the names of its tensors, and the epoch to resume from: random growth matters only while the
# topology still moves (epochs 1-3), pairs only once there are some (from epoch 4).
PARTS: dict[str, tuple[Callable[[str], bool], int]] = {
    "values": (lambda name: name == "values", 2),
    "positions": (lambda name: name == "topology.gaps", 2),
    "what was ever active": (lambda name: name == "ever.topology.gaps", 2),
    "other parameters": (lambda name: name.startswith("model.") and name.endswith(("weight", "bias")), 2),
    "batch-norm buffers": (lambda name: name.startswith("model.") and "running" in name, 2),
    "moments of the values": (lambda name: name.startswith("optimizer.0."), 2),
    "moments of the other parameters": (lambda name: name.startswith("optimizer.") and not name.startswith("optimizer.0."), 2),
    "generator of the order": (lambda name: name == "stream.order", 2),
    "generator of Z": (lambda name: name == "stream.mask", 2),
    "generator of the augmentation": (lambda name: name == "stream.augment", 2),
    "generator of random growth": (lambda name: name == "stream.topology", 2),
    "the network's own generator": (lambda name: name == "stream.default", 2),
    "pairs": (lambda name: name.startswith("pair."), 5),
}


@pytest.mark.parametrize("part", [*PARTS, "step", "number of pairs", "nothing"])
def test_every_part_of_the_checkpoint_is_needed(recipe_file: Path, part: str) -> None:
    whole = Recorder()
    expected = train(recipe_file, whole)
    chosen, epoch = PARTS.get(part, (lambda name: False, 5 if "pairs" in part else 2))
    tensors, facts = whole.checkpoints[epoch]
    stale, stale_facts = whole.checkpoints[epoch - 1]  # what a checkpoint that forgets this part would leave in place
    changed = {name: stale.get(name, torch.zeros_like(tensor)) if chosen(name) else tensor for name, tensor in tensors.items()}
    if part in PARTS:
        touched = [name for name in tensors if chosen(name)]
        assert touched
        assert any(not torch.equal(changed[name], tensors[name]) for name in touched)
    if part == "step":
        facts = {**facts, "step": stale_facts["step"]}
    if part == "number of pairs":
        facts = {**facts, "pairs": facts["pairs"] - 1}
    same = train(recipe_file, Recorder(Bundle(changed, facts))) == expected
    assert same == (part == "nothing")


def test_an_altered_checkpoint_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    recipe, folder = resolve(["--config", str(recipe_file), "--epochs", "2", "--freeze", "0"]), tmp_path / "run"

    class Stop(Watch):
        def keep(self, checkpoint: Callable[[], Bundle]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe, folder, Stop(), every=0)
    path = folder / runs.CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(ValueError, match="altered"):
        runs.resume(folder)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short or altered"):
        runs.resume(folder)
    path.write_bytes(whole)
    assert runs.resume(folder).history[-1]["epoch"] == 2


def test_runs_load_without_pickle(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(run, "--hidden", "32,16", "--sparsity", "0.8", "--drop_rate", "0.2", "--rescale") == 0
    code = (
        "import pickle, torch, espalier, espalier.runs, espalier.data.readers\n"
        "def no(*args, **kwargs): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = no\n"
        f"print(espalier.load({str(run)!r}).topology.num_active)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    assert done.returncode == 0, done.stderr


def test_a_home_and_labels_of_a_file_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here, tmp_path / "elsewhere"):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    np.savez(here / "noisy.npz", y=np.roll(np.arange(10), 1)[np.zeros(1797, int)])
    words = ["--data-dir=~/sets", "--label-noise=noisy.npz:y", "--train-size=160", "--epochs=2", "--delta-t=1", "--device=cpu"]
    recipe = ["--model=mlp", "--hidden=[8]", "--inference=rigl", "--data=digits", *words]
    assert main(["fit", *recipe, "--out", str(here / "run")]) == 0
    written = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert written["data_dir"] == str(home / "sets")
    assert written["label_noise"] == f"{here / 'noisy.npz'}:y"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", str(here / "run")]) == 0
