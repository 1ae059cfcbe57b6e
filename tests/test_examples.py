"""Every recipe and every script under examples/ runs, and does what it says."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blobs import blobs
from espalier import runs
from espalier.cli.main import main
from places import ROOT

EXAMPLES = ROOT / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
GRIDS = sorted(path.name for path in (EXAMPLES / "grids").glob("*.yaml"))
# Script -> arguments of main, and what its result must satisfy.
SCRIPTS: dict[str, tuple[dict[str, Any], Any]] = {
    "certificate.py": ({"epochs": 20, "alpha": 0.2}, lambda code: code == 0),
    "criticism.py": (
        {"replicates": 100},
        lambda found: found["constant noise: spread over input"] < 0.03 < found["growing noise: spread over input"],
    ),
    "deploy.py": (
        {"epochs": 10},
        lambda found: found["accuracy"] > 0.9
        and max(found[name] for name in ("from the fit", "without its zeros", "in the table", "onnxruntime")) < 1e-5
        and found["bytes"] < 0.2 * found["bytes of a dense one"],
    ),
    "out_of_distribution.py": ({"epochs": 15, "num_samples": 8}, lambda found: found["redraw predictive_entropy"] > 0.75),
    "report.py": ({"epochs": 3, "replicates": 5}, lambda page: page.read_text().count("<h2") > 10),
    "selective.py": ({"epochs": 15}, lambda found: found["redraw 80 %"] < found["redraw all"]),
    "estimators.py": ({"epochs": 20}, lambda found: found["sparse Bayesian"] < 0.3 and found["coverage"] > 0.85),
    "inclusion.py": ({"steps": 80}, lambda found: (found > 0.95).sum() > 30 and abs(float(found.sum()) - 355) < 0.1),
    "own_loop.py": ({"epochs": 20}, lambda found: min(found.values()) > 0.9),
    "own_network.py": ({"epochs": 25}, lambda found: min(found.values()) > 0.9),
    "plain_pyro.py": ({"steps": 600}, lambda error: error < 0.2),
    "polyps.py": ({"data": blobs(), "epochs": 6, "channels": (8, 16), "learning_rate": 0.01}, lambda dice: dice > 0.6),
    "tune.py": (
        {"trials": 10, "epochs": 8},
        lambda study: {"COMPLETE", "PRUNED"} == {trial.state.name for trial in study.trials} and study.best_value < 1,
    ),
    "regression.py": ({"epochs": 150}, lambda found: found["rmse"] < 0.2 and found["outside"] > found["inside"]),
}
# Benchmark -> arguments that make it small. {small}: 300 made-up images; {out}: a folder.
BENCHMARKS = {
    "choose.py": ["--help"],
    "confident_mnist.py": ["--help"],
    "confident_polyps.py": ["--help"],
    "criticism.py": ["--help"],
    "distilled_data.py": [
        "--data={small}", "--rows=150", "--methods=dense", "--seeds=1", "--steps=1", "--epochs", "1", "1", "--out={out}",
    ],  # fmt: skip
    "total_time.py": ["mlp-300-100", "--rounds", "1", "--epochs", "1"],
    "channels.py": ["--rounds", "2", "--batch", "2"],
    "draws.py": ["mlp-512", "--draws", "2", "--rows", "600", "--rounds", "1", "--device", "cpu"],
    "exchangeable.py": ["--help"],
    "fashion.py": ["--help"],
    "fashion_report.py": ["--help"],
    "gpu.py": ["--help"],
    "growth.py": ["--help"],
    "label_noise.py": ["--help"],
    "last_look.py": ["--help"],
    "loading.py": ["--rows", "300", "--workers", "0", "--side", "32"],
    "one_pass_moments.py": ["--help"],
    "one_long.py": ["--data={small}", "--rows=100", "--epochs=1", "--seeds=0", "--longest", "--out={out}"],
    "one_student.py": [
        "--data={small}", "--rows=150", "--model=mlp", "--epochs=12", "--seeds=0", "--share=20", "--out={out}",
    ],  # fmt: skip
    "onnx_parity.py": ["--help"],
    "orderings.py": ["--help"],
    "persistence.py": ["--data={small}", "--rows=150", "--epochs=1", "--seeds=1", "--batches=1"],
    "pnc.py": ["--help"],
    "power.py": ["--help"],
    "predictive_memory.py": ["--help"],
    "prune_further.py": ["--help"],
    "rate_bias.py": ["--help"],
    "rate_trials.py": ["--help"],
    "robustness.py": ["--help"],
    "several_teachers.py": ["--data={small}", "--rows=100", "--epochs=1", "--taught=1", "--seeds=0", "--out={out}"],
    "sparse_inference.py": ["--width", "256", "--batch", "32", "--rounds", "2", "--threads", "1"],
    "state_bytes.py": [],
    "step_time.py": ["--help"],
    "transfer.py": [
        "--data={small}", "--rows=50", "--targets=digits", "--sparsities=.95", "--shots=1", "--seeds=1", "--epochs=1",
        "--out={out}",
    ],  # fmt: skip
    "uci.py": ["--help"],
    "variable_selection.py": ["--help"],
    "versions.py": ["--help"],
    "lessons.py": ["--data={small}", "--rows=150", "--epochs=12", "--seeds=0", "--out={out}"],
}


def test_no_example_is_left_out() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SCRIPTS)
    assert {path.name for path in (EXAMPLES / "benchmarks").glob("*.py")} == set(BENCHMARKS)
    assert len(RECIPES) >= 5


def image_folder(root: Path) -> Path:
    """Two classes as ImageNet has them: train/CLASS/*.JPEG and val/CLASS/*.JPEG, of many sizes."""
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for label in ("n01440764", "n01443537"):
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (40 + index, 44 - index, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{label}_{index}.JPEG")
    return root


SLOW = {"cifar10-resnet50-cigl.yaml", "imagenet-resnet50-cigl.yaml", "inclusion.py", "transfer.py"}
"""Networks, folders of images and guides that others try in the gate."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in RECIPES])
def test_the_recipe_runs_on_small_data_of_its_kind(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    words = ["fit", "--config", str(EXAMPLES / name), "--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "12"]
    words += ["--warmup", "1", "--bn-batches", "1"]
    if name.startswith("imagenet"):
        words += ["--data", str(image_folder(tmp_path / "images")), "--image-size", "32", "--validation", "0"]
    elif not name.startswith("digits"):
        side = 16 if "resnet50" in name else 32  # a quarter of the work of the largest
        shape = (60, side, side, 3) if name.startswith("cifar") else (60, 28, 28)
        np.savez(tmp_path / "small.npz", x=random.integers(0, 256, shape, dtype=np.uint8), y=np.arange(60) % 10)
        words += ["--data", str(tmp_path / "small.npz"), "--train-size", "24", "--validation", "0"]
    if "sghmc" in name:  # a spike for 24 examples
        words += ["--spike-from", "2", "--spike-to", "1", "--slab-scale", "4", "--slab-probability", "0.999"]
    if "resnet50" in name:
        words += ["--sparsity", "0.99"]
    assert main(words) == 0
    fit = runs.load(tmp_path / "run")
    wanted = 0.99 if "resnet50" in name else 0.9
    assert fit.topology.num_active == fit.record.get("selected", round((1 - wanted) * fit.topology.num_weights))


@pytest.mark.parametrize("name", GRIDS)
def test_the_grid_says_what_it_would_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(EXAMPLES / "grids" / name), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    runs_line, *_ = capsys.readouterr().out.splitlines()
    assert int(runs_line.split()[0]) >= 12
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SCRIPTS])
def test_the_script_does_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"example_{name[:-3]}", EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments, holds = SCRIPTS[name]
    result = module.main(**arguments)
    assert holds(result), result
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in BENCHMARKS])
def test_the_benchmark_starts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = EXAMPLES / "benchmarks" / name
    if BENCHMARKS[name] == ["--help"]:  # here, where the libraries are: a process of its own would only load them again
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        monkeypatch.syspath_prepend(str(script.parent))
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(script), run_name="__main__")
        assert not left.value.code
        return
    if "--data={small}" in BENCHMARKS[name]:
        pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
        np.savez(tmp_path / "small.npz", x=pixels, y=np.arange(300) % 10)
    words = [word.format(small=tmp_path / "small.npz", out=tmp_path / "out") for word in BENCHMARKS[name]]
    words = [sys.executable, str(script), *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
