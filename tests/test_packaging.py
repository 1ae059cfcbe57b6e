"""The wheel holds the machinery and both shelves; the public surface is a written list."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import espalier
from places import ROOT


def test_the_wheel_holds_the_programs_and_finds_them_without_a_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("src", "models", "inference", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            checkout.mkdir(exist_ok=True)
            shutil.copy(source, checkout / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    for folder in ("models", "inference"):
        installed = {path.name for path in (tmp_path / "installed" / "espalier" / folder).glob("*.py")}
        assert installed == {path.name for path in (ROOT / folder).glob("*.py")}
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r})\n"
        "from espalier import shelf; import espalier; assert 'installed' in espalier.__file__\n"
        "print(shelf.names('models'), shelf.names('inference')); shelf.load('models', 'mlp')((4,), 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "wide_resnet" in done.stdout
    assert "cigl" in done.stdout
    fit = [sys.executable, "-m", "espalier", "fit", "--config", str(ROOT / "examples" / "digits-rigl.yaml")]
    fit += ["--epochs", "1", "--delta-t", "10", "--out", "run"]
    told = subprocess.run(fit, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")}, capture_output=True)
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "run" / "fit.safetensors").exists()


def test_the_public_names_are_these() -> None:
    assert set(dir(espalier)) == {
        "BayesianNetwork", "Data", "Fit", "MaskedGuide", "Split", "Topology", "Training",
        "export", "from_pretrained", "load", "load_data", "load_program", "push_to_hub", "train",
    }  # fmt: skip
    for name in dir(espalier):
        assert getattr(espalier, name).__doc__, name


def test_the_version_is_the_projects() -> None:
    assert f'version = "{espalier.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_citation_is_of_this_version_and_names_the_method() -> None:
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert said["version"] == espalier.__version__
    assert said["license"] == "Apache-2.0"
    assert "Rigged Lottery" in said["references"][0]["title"]


def test_every_place_that_the_guide_to_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    places = re.findall(r"`((?:src|models|inference|tests|docs)/[\w/.]+)", text) + re.findall(r"\]\(([\w/.]+)\)", text)
    assert len(places) > 10
    for place in places:
        assert (ROOT / place).exists(), place


@pytest.mark.slow
def test_type_checkers_see_the_programs_and_their_options(tmp_path: Path) -> None:
    lines = {
        "from espalier import BayesianNetwork, load_data": "",
        "from espalier.inference import cigl": "",
        "from espalier.models import lenet": "",
        "model: BayesianNetwork = lenet.model((1, 28, 28), 10, prior_scale=0.1)": "",
        'cigl.infer(model, load_data("digits"), sparsity=0.9, rule="set").ticket()': "",
        'cigl.infer(model, load_data("digits"), sparsities=0.9)': 'Unexpected keyword argument "sparsities"',
        'cigl.infer(model, load_data("digits"), rule="sett")': 'Argument "rule" to "infer" has incompatible type',
        "lenet.model(28, 10)": 'Argument 1 to "model" has incompatible type "int"',
    }
    (tmp_path / "mine.py").write_text("\n".join(lines) + "\n")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    words = [sys.executable, "-m", "mypy", *options, "mine.py"]  # from elsewhere: what is installed is looked at
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = {int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error: " in line}
    for number, expected in enumerate(lines.values(), 1):
        assert (number in said) == bool(expected), done.stdout
        assert expected in said.get(number, "")
