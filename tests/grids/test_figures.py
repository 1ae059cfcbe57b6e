"""The figures of a grid: what they show is what the cells hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from espalier.cli.main import main
from espalier.grids import compare
from espalier.grids.figures import COVERAGE, figures, risk, write
from espalier.grids.grid import Grid, read

GRID = """
base: {model: mlp, hidden: [24], data: digits, train_size: 300, epochs: 3, batch_size: 50, delta_t: 3}
over: {regime: {short: {epochs: 2}, long: {}}}
sparsities: [0.5, 0.9]
seeds: [0, 1]
methods:
  RigL + TS: {run: {inference: rigl}, predict: unmasked, calibrate: temperature}
  RigL: {run: {inference: rigl}, predict: unmasked}
  CigL: {run: {inference: cigl, drop_rate: 0.1}, predict: ticket}
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, compare.Outcome, Path]:
    folder = tmp_path_factory.mktemp("grid")
    (folder / "small.yaml").write_text(GRID)
    assert main(["compare", str(folder / "small.yaml"), "--out", str(folder / "out"), "--jobs", "1"]) == 0
    grid = read(folder / "small.yaml")
    return grid, compare.gather(grid, folder / "out"), folder / "out"


def test_risk_is_the_error_rate_of_the_most_confident() -> None:
    rng = np.random.default_rng(0)
    confidence, hit = rng.random(200).round(2), (rng.random(200) < 0.7).astype(float)  # with ties
    found = risk(confidence, hit)
    for coverage, value in zip(COVERAGE, found, strict=True):
        count = max(1, round(float(coverage) * 200))
        last = np.sort(confidence)[-count]
        sure, tied = confidence > last, confidence == last  # of the tied ones each is as likely to be answered
        assert value == pytest.approx(((1 - hit[sure]).sum() + (count - sure.sum()) * (1 - hit[tied]).mean()) / count)
    assert found[-1] == pytest.approx(1 - hit.mean())


def test_every_figure_is_written(drawn) -> None:
    _, _, out = drawn
    names = {path.stem for path in (out / "figures").glob("*.png")}
    variants, levels = ("short", "long"), ("0.5", "0.9")
    assert names == {
        *(f"density-{variant}-{score}" for variant in variants for score in ("accuracy", "nll", "ece_15")),
        *(f"{kind}-{variant}-{level}" for kind in ("coverage", "training") for variant in variants for level in levels),
    }
    for path in (out / "figures").glob("*.png"):
        with Image.open(path) as image:
            assert image.size[0] > 300


def test_a_score_against_density_is_the_mean_of_the_cells_with_its_t_interval(drawn) -> None:
    grid, outcome, out = drawn
    picture = dict(figures(grid, outcome, out))["density-long-nll"]
    assert [curve.label for curve in picture.curves] == ["RigL + TS", "RigL", "CigL"]
    curve = picture.curves[2]
    assert np.asarray(curve.x) == pytest.approx([10, 50])
    for x, mean, low, high in zip(curve.x, curve.y, curve.low, curve.high, strict=True):
        values = [outcome.cells[cell.name]["scores"]["nll"] for cell in grid.cells
                  if cell[:2] == ("CigL", ("long",)) and cell.sparsity == pytest.approx(1 - x / 100)]  # fmt: skip
        assert len(values) == 2
        assert mean == pytest.approx(np.mean(values))
        interval = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
        assert (low, high) == pytest.approx(interval)


def test_the_ece_along_training_is_the_runs_history(drawn) -> None:
    grid, outcome, out = drawn
    picture = dict(figures(grid, outcome, out))["training-long-0.5"]
    assert [curve.label for curve in picture.curves] == ["RigL", "CigL"]  # RigL + TS is RigL's run
    runs = [cell.runs[0] for cell in grid.cells
            if cell.method == "RigL" and cell.variant == ("long",) and cell.sparsity == 0.5]  # fmt: skip
    histories = [json.loads((out / "runs" / run / "history.json").read_text()) for run in runs]
    expected = np.mean([[row["validation_ece"] for row in rows] for rows in histories], axis=0)
    assert np.asarray(picture.curves[0].y) == pytest.approx(expected)


def test_a_finished_cell_whose_run_was_taken_away_stands_in_no_curve_along_training(drawn, tmp_path: Path) -> None:
    grid, outcome, out = drawn
    shutil.copytree(out / "cells", tmp_path / "cells")
    whole = dict(figures(grid, outcome, out))
    assert set(dict(figures(grid, outcome, tmp_path))) == {name for name in whole if not name.startswith("training")}
    for run in (run for cell in grid.cells if cell.method == "CigL" for run in cell.runs):
        shutil.copytree(out / "runs" / run, tmp_path / "runs" / run)
    picture = dict(figures(grid, outcome, tmp_path))["training-long-0.5"]
    assert [curve.label for curve in picture.curves] == ["CigL"]


def test_a_picture_of_somebody_is_left_alone(drawn: tuple[Grid, compare.Outcome, Path], tmp_path: Path) -> None:
    grid, outcome, out = drawn
    own = tmp_path / "out"
    shutil.copytree(out, own)
    (own / "figures" / "density-short-accuracy.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="is there and not Espalier's"):
        write(grid, outcome, own)
    assert (own / "figures" / "density-short-accuracy.png").read_bytes() == b"mine"
