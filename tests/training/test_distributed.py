"""One network on two processes is the network on one process, to rounding; whatever differs is said in distributed.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import together
from espalier import store
from espalier.store import Bundle
from espalier.training import distributed
from hashed import hashes
from places import HELPERS, PROGRAM
from together import CASES, MOVES

EXACT = [case for case in CASES if case not in ("batch norm", "batch norm, controlled loss", "dropout")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with batch norm, dropout, augmentation, random growth and pairs."""
    recipe = {
        "model": str(PROGRAM), "inference": "cigl", "data": "digits", "train_size": 160,
        "sparsity": 0.7, "drop_rate": 0.2, "rule": "set", "delta_t": 6, "freeze": 0.5, "average_from": 0.8,
        "epochs": 20, "batch_size": 16, "augment": "crop-flip", "bn_batches": 3, "learning_rate": 0.05, "seed": 3,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Path:
    """What two processes under torchrun left, the second one in `1`."""
    folder = tmp_path_factory.mktemp("together")
    words = [*TORCHRUN, str(HELPERS / "together.py"), str(folder), str(recipe_file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder


def left(folder: Path, rank: int, case: str) -> Bundle:
    return store.read_bundle(folder / str(rank) / f"{case}.safetensors")


def seen(folder: Path, rank: int) -> dict[str, Any]:
    return json.loads((folder / str(rank) / "seen.json").read_text())


@pytest.mark.parametrize("case", EXACT)
def test_two_processes_train_what_one_does_on_the_same_batches(folder: Path, case: str) -> None:
    alone, two = together.state(together.trained(case)), left(folder, 0, case)
    assert sum(row.get("moves", 0) for row in alone.facts["history"]) == MOVES
    assert sum(row["exchanged"] for row in alone.facts["history"]) > 1000
    if "augment" not in CASES[case]:  # these learn within the epochs that there are
        assert alone.facts["history"][-1]["loss"] < 0.8 * alone.facts["history"][0]["loss"]
    assert two.tensors.keys() == alone.tensors.keys()
    assert torch.equal(two.tensors["positions"], alone.tensors["positions"])
    assert torch.equal(two.tensors["keep"], alone.tensors["keep"])
    for name, tensor in alone.tensors.items():
        assert tensor.dtype in (torch.float64, torch.bool, torch.int64)
        torch.testing.assert_close(two.tensors[name], tensor, rtol=0, atol=1e-10, msg=name)
    for row, other in zip(alone.facts["history"], two.facts["history"], strict=True):
        assert row == pytest.approx(other, rel=0, abs=1e-10)


def test_the_comparison_would_see_a_gradient_of_one_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # what process 0 would reach if nothing were averaged: the test above cannot hold by accident
    whole = together.state(together.trained("sgd"))
    monkeypatch.setattr(distributed, "share", lambda count: slice(0, count // 2))
    alone = together.state(together.trained("sgd"))
    assert not torch.equal(alone.tensors["positions"], whole.tensors["positions"])
    assert (alone.tensors["values"][0] - whole.tensors["values"][0]).abs().max() > 0.01


@pytest.mark.parametrize("case", CASES)
def test_all_processes_hold_the_same_bits(folder: Path, case: str) -> None:
    first, second = left(folder, 0, case), left(folder, 1, case)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert first.facts == second.facts


@pytest.mark.parametrize("case", ["batch norm", "dropout"])
def test_batch_norm_on_the_cpu_and_dropout_are_each_processs_own(folder: Path, case: str) -> None:
    alone, two = together.state(together.trained(case)), left(folder, 0, case)
    assert (alone.tensors["values"] - two.tensors["values"]).abs().max() > 1e-6


def test_only_the_networks_own_randomness_differs_between_processes(folder: Path) -> None:
    first, second = seen(folder, 0), seen(folder, 1)
    assert [first["first"], second["first"]] == [True, False]
    assert first["size"] == second["size"] == 2
    assert first["drawn"]["Z"] == second["drawn"]["Z"]
    assert first["drawn"]["default"] != second["drawn"]["default"]


def test_batch_norm_is_synchronised_on_gpus_and_plain_again_afterwards(folder: Path) -> None:
    for rank in (0, 1):
        assert seen(folder, rank)["norms"] == {
            "before": "BatchNorm2d", "while": "SyncBatchNorm", "after": "BatchNorm2d", "buffer after": 0.0,
            "on the CPU": "BatchNorm2d",
        }  # fmt: skip


def test_no_thread_outlives_the_group(folder: Path) -> None:
    # one that did aborted the interpreter at its end, once in thirty runs
    for rank in (0, 1):
        assert [name for name in json.loads((folder / str(rank) / "threads.json").read_text()) if "gloo" in name] == []


def test_what_processes_cannot_share_is_refused_in_a_sentence(folder: Path) -> None:
    for rank in (0, 1):
        said = seen(folder, rank)["refused"]
        assert "2 processes can share evenly, got 31 examples: choose a batch_size" in said["uneven batch"]
        assert "expected the same state in all 2 processes" in said["another seed"]
        assert "process 1 differs from the first's: seed the network" in said["another seed"]
        assert "expected device cuda with several processes, got 'cuda:0'" in said["one GPU for all"]


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_after_a_kill_bit_for_bit(folder: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*TORCHRUN, "-m", "espalier", "fit", "--config", str(recipe_file), "--out", str(run), "--checkpoint-every", "0"]
    launcher = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not (run / "checkpoint.safetensors").exists():
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.005)
    workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    out, _ = launcher.communicate(timeout=300)
    assert launcher.returncode != 0
    assert "The run is in" not in out
    assert not (run / "record.json").exists()

    words = [*TORCHRUN, "-m", "espalier", "resume", str(run), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["predict"]) >= {"ticket", "pairs", "redraw"}  # one process speaks
    written, resumed = hashes(folder / "whole"), hashes(run)
    assert "record.json" in written
    assert {name: resumed.get(name) for name in written} == written
    assert json.loads((run / "record.json").read_text())["versions"]["processes"] == "2"


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices on this machine")
def test_two_gpus_train_one_network(recipe_file: Path, tmp_path: Path) -> None:
    words = [*TORCHRUN, "-m", "espalier", "fit", "--config", str(recipe_file), "--device", "cuda", "--json"]
    done = subprocess.run([*words, "--out", str(tmp_path / "run")], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predict"]["ticket"]["accuracy"] > 0.5


def test_alone_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    gradient = torch.randn(3)
    with distributed.joined() as first:
        assert first
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.size()) == (0, 1)
        assert distributed.mean(gradient) is gradient
        assert torch.arange(7)[distributed.share(7)].tolist() == list(range(7))
