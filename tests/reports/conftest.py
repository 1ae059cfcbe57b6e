"""Finished runs as the report sees them: two classifiers and a regression."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commands import fit
from espalier.cli.main import main
from espalier.reports import report
from espalier.reports.look import Look, look_at

Named = Callable[[str], Path]


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reported")


@pytest.fixture(scope="package")
def runs(folder: Path) -> list[Path]:
    """CigL and RigL of one small network on digits."""
    common = ("--hidden", "24", "--sparsity", "0.8", "--epochs", "8", "--train_size", "400", "--delta_t", "10")
    common += ("--calibration", "0.2")
    assert fit(folder / "cigl", *common, "--drop_rate", "0.2", "--average_from", "0.8") == 0
    assert fit(folder / "rigl", *common, inference="rigl") == 0
    return [folder / "cigl", folder / "rigl"]


@pytest.fixture(scope="package")
def looks(runs: list[Path]) -> list[Look]:
    return [look_at(run, num_samples=4) for run in runs]


@pytest.fixture(scope="package")
def distilled_look(folder: Path) -> Look:
    """A network that was taught at a rate that was found."""
    words = ("--hidden", "24", "--sparsity", "0.8", "--epochs", "20", "--train_size", "400", "--delta_t", "10")
    assert fit(folder / "distilled", *words, inference="distilled") == 0
    return look_at(folder / "distilled", num_samples=4)


@pytest.fixture(scope="package")
def page(looks: list[Look]) -> str:
    """What is said of both."""
    return report.report(looks)


@pytest.fixture(scope="package")
def regression(folder: Path) -> Look:
    """A line with noise that grows, in units of thousands."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = 5000 + 1000 * x[:, 0] + rng.normal(size=400) * (50 + 100 * np.abs(x[:, 1]))
    np.savez(folder / "line.npz", x=x.astype(np.float32), y=y.astype(np.float32))
    words = [
        "fit",
        "--model",
        "mlp",
        "--likelihood",
        "normal",
        "--hidden",
        "16",
        "--inference",
        "cigl",
        "--data",
        str(folder / "line.npz"),
    ]
    assert (
        main(
            [
                *words,
                "--epochs",
                "6",
                "--sparsity",
                "0.5",
                "--drop_rate",
                "0.05",
                "--delta_t",
                "5",
                "--out",
                str(folder / "line"),
            ]
        )
        == 0
    )
    return look_at(folder / "line", num_samples=4)
