"""Three overlapping clouds, a run that is trained on them, and its certificate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from espalier import store
from espalier.cli.main import main

WORDS = ["--alpha", "0.12", "--delta", "0.1", "--step", "0.05"]


def write_data(path: Path, seed: int = 0) -> None:
    """Three overlapping clouds, 1,600 rows, of which 200 are test rows."""
    rng = np.random.default_rng(seed)
    y = np.arange(1600) % 3
    x = rng.normal(size=(1600, 8)) + 3.2 * np.eye(8)[y]
    np.savez(path, x=x, y=y, test=np.arange(1400, 1600))


def fit(folder: Path, name: str, *words: str) -> Path:
    own = ["--model", "mlp", "--hidden", "24,16", "--inference", "cigl", "--data", str(folder / "clouds.npz")]
    own += ["--calibration", "0.5", "--epochs", "12", "--batch-size", "25", "--delta-t", "20", "--sparsity", "0.5"]
    own += ["--drop-rate", "0.1", *words]
    assert main(["fit", *own, "--out", str(folder / name)]) == 0
    return folder / name


def made(folder: Path) -> Path:
    """The clouds and a run that is trained on them."""
    write_data(folder / "clouds.npz")
    fit(folder, "run")
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy of the run that no one has looked at, with data of its own beside it."""
    shutil.copy(folder / "clouds.npz", to / "clouds.npz")
    shutil.copytree(folder / "run", to / "run")
    text = (to / "run" / "config.yaml").read_text().replace(str(folder / "clouds.npz"), str(to / "clouds.npz"))
    (to / "run" / "config.yaml").write_text(text)
    record = store.check_signed(to / "run" / "record.json")
    record["programs"]["config.yaml"] = store.sha256(text.encode())
    store.write_bytes(to / "run" / "record.json", store.canonical(store.signed(record)).encode())
    return to / "run"


def certified(run: Path, *words: str) -> dict[str, Any]:
    levels = WORDS[2:] if "--abstain" in words else WORDS
    assert main(["certify", str(run), *levels, *words]) == 0
    found: dict[str, Any] = json.loads((run / "certificate.json").read_text())
    return found
