"""A grid of regressions: what a cell keeps is what its run predicts, scored by hand; calibrators and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from espalier import runs
from espalier.calibration import comparison
from espalier.grids import compare, figures, report
from espalier.grids.grid import Grid, expand
from espalier.prediction.evaluation import predictions
from lines import InThisProcess

RIGL = {"run": {"inference": "rigl"}, "predict": "unmasked"}
MASKS = {"run": {"inference": "cigl", "drop_rate": 0.1}, "predict": "redraw"}


def lines_of(
    folder: Path, methods: dict[str, Any], seeds: tuple[int, ...] = (0, 1), targets: int = 1, **base: Any
) -> dict[str, Any]:
    """A grid over waves of our own, `mine.npz` in the folder."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    wave = 40 * np.sin(x[:, 0]) + 9 * rng.normal(size=400)
    np.savez(folder / "mine.npz", x=x, y=np.stack([wave, 3 * x[:, 1]], 1) if targets > 1 else wave)
    own = {"model": "mlp", "hidden": [16], "likelihood": "normal", "data": "mine.npz", "epochs": 4, "learning_rate": 0.01,
           "optimizer": "adam", "batch_size": 50, "delta_t": 4}  # fmt: skip
    return {"base": own | base, "sparsities": [0.5], "seeds": [*seeds], "methods": methods, "num_samples": 5}


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path, compare.Outcome]:
    folder = tmp_path_factory.mktemp("waves")
    methods = {"RigL": RIGL, "RigL + width": {**RIGL, "calibrate": "variance"}, "MC-DP": MASKS, "Two": {**RIGL, "members": 2}}
    grid = expand(lines_of(folder, methods), folder)
    return grid, folder / "out", compare.compare(grid, folder / "out", InThisProcess())


def by_hand(said: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of the first rows, from the density of the mixture of normals alone."""
    rows: dict[str, list[float]] = {"squared_error": [], "nll": [], "crps": [], "covered": []}
    for (mean, scale), y in zip(said.transpose(1, 2, 0), target, strict=True):
        def cdf(t: float, mean: np.ndarray = mean, scale: np.ndarray = scale) -> float:
            return float(stats.norm.cdf(t, mean, scale).mean())

        low, high = mean.min() - 9 * scale.max(), mean.max() + 9 * scale.max()
        low, high = min(low, y - 1), max(high, y + 1)
        below = integrate.quad(lambda t: cdf(t) ** 2, low, y, limit=200)[0]
        above = integrate.quad(lambda t: (1 - cdf(t)) ** 2, y, high, limit=200)[0]
        rows["squared_error"].append((mean.mean() - y) ** 2)
        rows["nll"].append(-np.log(stats.norm.pdf(y, mean, scale).mean()))
        rows["crps"].append(below + above)
        rows["covered"].append(float(0.025 <= cdf(y) <= 0.975))
    return {name: np.array(values) for name, values in rows.items()}


def test_a_cell_keeps_every_score_of_every_example_in_the_targets_units(waves: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = waves
    for cell in (own for own in grid.cells if own.method in ("MC-DP", "RigL + width") and own.seed == 1):
        data = runs.data_of(out / "runs" / cell.runs[0])
        fit = runs.load(out / "runs" / cell.runs[0])
        said = predictions(fit, data, ways=[cell.predict], num_samples=5)[cell.predict]
        target = data.in_units(data.test.y).numpy()
        assert target.std() > 20  # the file's units, not the network's
        if cell.calibrate:
            seen = predictions(fit, data, "validation", ways=[cell.predict])[cell.predict]
            factor = float((((data.in_units(data.validation.y).numpy() - seen[0, :, 0]) / seen[0, :, 1]) ** 2).mean())
            assert outcome.cells[cell.name]["facts"]["variance_factor"] == pytest.approx(factor, rel=1e-6)
            said = said * np.array([1, factor**0.5])
        with np.load(out / "cells" / f"{cell.name}.npz", allow_pickle=False) as kept:
            for name, expected in by_hand(said[:, :12], target[:12]).items():
                np.testing.assert_allclose(kept[name][:12], expected, rtol=1e-5, atol=1e-6, err_msg=name)
            scores = outcome.cells[cell.name]["scores"]
            assert scores["rmse"] == pytest.approx(kept["squared_error"].mean() ** 0.5)
            assert [scores[name] for name in ("nll", "crps")] == pytest.approx([kept[name].mean() for name in ("nll", "crps")])
            assert scores["coverage_95"] == kept["covered"].mean()
        assert {"train_rmse", "train_nll"} <= outcome.cells[cell.name].keys()
        assert not {"train_accuracy", "ece_15_debiased"} & (outcome.cells[cell.name].keys() | scores.keys())


def test_differences_are_of_what_regressions_have_and_the_page_says_so(waves: tuple[Grid, Path, compare.Outcome]) -> None:
    grid, out, outcome = waves
    assert len(outcome.differences) == 3
    _, found = outcome.differences["MC-DP", "RigL", (), 0.5]
    assert [*found] == ["rmse", "nll", "crps", comparison.GAP]
    each = {(row["method"], row["seed"]): row for row in report.cell_rows(grid, outcome)}
    for name in ("rmse", "nll", "crps"):
        own = [each["MC-DP", seed][name] - each["RigL", seed][name] for seed in (0, 1)]
        assert found[name].mean == pytest.approx(np.mean(own))
        assert found[name].t == pytest.approx(comparison.t_interval(own))
    gaps = [abs(each["MC-DP", s]["coverage_95"] - 0.95) - abs(each["RigL", s]["coverage_95"] - 0.95) for s in (0, 1)]
    assert found[comparison.GAP].mean == pytest.approx(np.mean(gaps))
    page = report.summary(grid, outcome)
    assert "| method | training RMSE | training NLL | RMSE | NLL | CRPS | 95 % coverage | seeds |" in page
    assert "| method | RMSE | NLL | CRPS | coverage's distance from 95 % | seeds |" in page
    assert "ECE (15" not in page
    assert not outcome.failures
    names = [name for name, _ in figures.figures(grid, outcome, out)]
    assert names == ["density-rmse", "density-nll", "density-crps", "density-coverage_95", "training-0.5"]


def test_of_several_targets_an_example_is_their_mean(tmp_path: Path) -> None:
    grid = expand(lines_of(tmp_path, {"RigL": RIGL, "MC-DP": MASKS}, (0,), 2, epochs=2), tmp_path)
    outcome = compare.compare(grid, tmp_path / "out", InThisProcess())
    assert not outcome.failures
    for cell in grid.cells:
        with np.load(tmp_path / "out" / "cells" / f"{cell.name}.npz", allow_pickle=False) as kept:
            scores = outcome.cells[cell.name]["scores"]
            assert scores["rmse"] ** 2 == pytest.approx(kept["squared_error"].mean())
            assert scores["rmse"] ** 2 == pytest.approx(np.mean(np.square(scores["rmse_by_output"])))
            assert scores["coverage_95"] == pytest.approx(kept["covered"].mean())
            assert set(np.unique(kept["covered"])) <= {0, 0.5, 1}


@pytest.mark.parametrize(
    ("calibrate", "said"),
    [("temperature", "expected calibrators of variance for .*mine.npz, got 'temperature'"),
     ("width", "expected calibrate of temperature, .*, variance, got 'width'")],
)  # fmt: skip
def test_a_calibrator_of_the_other_kind_is_refused_before_any_work(calibrate: str, said: str, tmp_path: Path) -> None:
    lines, hands = lines_of(tmp_path, {"RigL": {**RIGL, "calibrate": calibrate}}), InThisProcess()
    with pytest.raises(ValueError, match=said):
        compare.compare(expand(lines, tmp_path), tmp_path / "out", hands)
    assert hands.did == []
    assert not (tmp_path / "out").exists()


HEAVY = """
import torch
from pyro.distributions import StudentT
from espalier.network import BayesianNetwork

def model(shape, num_outputs):
    net = torch.nn.Sequential(torch.nn.Linear(*shape, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Flatten(-2))
    return BayesianNetwork(net, likelihood=lambda output: StudentT(4.0, output, 0.5))
"""


def test_a_mixture_that_no_calibrator_knows_sinks_its_own_cell_alone(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(HEAVY)
    lines = lines_of(tmp_path, {"RigL": RIGL, "RigL + width": {**RIGL, "calibrate": "variance"}}, (0,), epochs=1)
    base = {name: value for name, value in lines["base"].items() if name not in ("hidden", "likelihood")}
    grid = expand(lines | {"base": base | {"model": "heavy.py"}}, tmp_path)
    outcome = compare.compare(grid, tmp_path / "out", InThisProcess())
    expected = "expected one normal target to fit the variance on, got another mixture: leave calibrate out"
    assert [*outcome.failures.values()] == [expected]
    ((name, found),) = outcome.cells.items()
    with np.load(tmp_path / "out" / "cells" / f"{name}.npz", allow_pickle=False) as kept:
        assert found["scores"]["nll"] == pytest.approx(kept["nll"].mean())
        assert found["scores"]["crps"] == pytest.approx(kept["crps"].mean())
