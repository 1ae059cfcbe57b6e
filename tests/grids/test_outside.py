"""Cells that are told from another world, and members with options of their own, pooled by their logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from espalier import calibration, runs
from espalier.data import load, out_of_distribution
from espalier.grids import compare, outside, report
from espalier.grids.grid import expand
from espalier.prediction import OnePass
from lines import InThisProcess

RIGL = {"run": {"inference": "rigl"}, "predict": "unmasked"}
METHODS = {
    "RigL": RIGL,
    "RigL + TS": {**RIGL, "calibrate": "temperature"},
    "CigL": {"run": {"inference": "cigl", "drop_rate": 0.2}, "predict": "redraw"},
    "DRO": {**RIGL, "members": [{"loss": "dro:0.5"}, {}], "pool": "logits"},
}


def test_a_cell_is_told_from_another_world_by_what_it_predicts(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 17, (150, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "noise.npz", x=noise, y=np.arange(150) % 10)
    text = {
        "base": {
            "model": "mlp", "data": "digits", "hidden": [20], "epochs": 3, "delta_t": 4, "batch_size": 64, "train_size": 300,
            "device": "cpu",
        },
        "sparsities": [0.5], "methods": METHODS, "num_samples": 4, "outside": str(tmp_path / "noise.npz"),
    }  # fmt: skip
    grid = expand(text)
    outcome = compare.compare(grid, tmp_path / "out", InThisProcess())
    assert not outcome.failures
    by_name = {cell.method: (cell, outcome.cells[cell.name]["scores"]) for cell in grid.cells}
    folders = {method: [tmp_path / "out" / "runs" / name for name in cell.runs] for method, (cell, _) in by_name.items()}
    data = runs.data_of(folders["RigL"][0])
    elsewhere = outside.world(text["outside"], data, None)
    assert elsewhere.shape == (30, 1, 8, 8)  # its own test split

    def area(inside: np.ndarray, other: np.ndarray) -> float:
        return float(roc_auc_score([0] * len(inside) + [1] * len(other), np.concatenate([inside, other])))

    fit = runs.load(folders["CigL"][0])
    draws = [fit.predict(x, "redraw", num_samples=4).numpy() for x in (data.test.x, elsewhere)]
    scores = by_name["CigL"][1]
    for name, score in calibration.UNCERTAINTIES.items():
        assert scores[f"auroc_{name}"] == pytest.approx(area(*map(score, draws)), abs=1e-9)
        low, high = scores[f"auroc_{name}_interval"]
        assert low < scores[f"auroc_{name}"] < high
    assert "auroc_mutual_information" not in by_name["RigL"][1]  # one network, which has scores of its features
    alone = OnePass(runs.load(folders["RigL"][0]), data, "unmasked")
    inside, other = (alone.uncertainties(x) for x in (data.test.x, elsewhere))
    for name in inside:
        assert by_name["RigL"][1][f"auroc_{name}"] == pytest.approx(area(inside[name], other[name]), abs=1e-9)
    assert "auroc_density" not in scores

    members = [runs.load(folder) for folder in folders["DRO"]]
    assert [fit.record.get("loss") for fit in members] == ["dro:0.5", None]
    assert folders["DRO"][0] != folders["RigL"][0]
    pooled = []
    for x in (data.test.x, elsewhere):
        logits = [member.predict(x, "unmasked")[0].log().numpy() for member in members]
        pooled.append(softmax(sum(logits) / 2, -1))
    scores = by_name["DRO"][1]
    assert scores["accuracy"] == calibration.accuracy(pooled[0], data.test.y.numpy())
    assert scores["nll"] == pytest.approx(calibration.nll(pooled[0], data.test.y.numpy()), rel=1e-9)
    assert scores["auroc_max_probability"] == pytest.approx(area(*(1 - p.max(-1) for p in pooled)), abs=1e-9)

    cell, scores = by_name["RigL + TS"]
    t = outcome.cells[cell.name]["facts"]["temperature"]
    fit = runs.load(folders["RigL"][0])
    warm = [softmax(fit.predict(x, "unmasked")[0].log().numpy() / t, -1) for x in (data.test.x, elsewhere)]
    expected = area(*(calibration.predictive_entropy(p[None]) for p in warm))
    assert scores["auroc_predictive_entropy"] == pytest.approx(expected, abs=1e-9)
    page = report.summary(grid, outcome)
    assert "AUROC (MI)" in page
    assert "noise.npz told from the split" in page


def test_what_makes_no_ensemble_and_no_world_is_refused(tmp_path: Path) -> None:
    base = {"base": {"model": "mlp", "data": "digits"}, "sparsities": [0.5]}
    for lines, said in (
        ({"methods": {"A": {**RIGL, "pool": "logits"}}}, "method 'A': expected pool probabilities or logits, of several"),
        ({"methods": {"A": {**RIGL, "members": 2, "pool": "mean"}}}, "of several members, got 'mean'"),
        ({"methods": {"A": {**RIGL, "members": [{"loss": "dro:1"}]}}}, "expected members from 2 to 100, got 1"),
        ({"methods": {"A": {**RIGL, "members": [{"loss": "dro"}, {}]}}}, "expected a loss dro:TEMPERATURE"),
        ({"methods": {"A": RIGL}, "outside": 3}, "expected outside as the name of a set of images"),
    ):
        with pytest.raises(ValueError, match=said):
            expand({**base, **lines})
    grid = expand({**base, "methods": {"A": RIGL}, "outside": "digits"})
    with pytest.raises(ValueError, match="expected another world than the run's own"):
        compare.compare(grid, tmp_path / "out", InThisProcess())


def test_a_cell_has_another_name_where_its_scores_differ() -> None:
    lines = {"base": {"model": "mlp", "data": "digits"}, "sparsities": [0.5], "methods": {"A": {**RIGL, "members": 2}}}
    pooled = {**lines, "methods": {"A": {**RIGL, "members": 2, "pool": "logits"}}}
    names = {expand(one).cells[0].name for one in (lines, pooled, {**lines, "outside": "mnist"})}
    assert len(names) == 3


def test_another_world_lies_beside_its_grid_and_counts_by_content(tmp_path: Path) -> None:
    lines = {"base": {"model": "mlp", "data": "digits"}, "sparsities": [0.5], "methods": {"A": RIGL}, "outside": "noise.npz"}
    names = []
    for seed in (0, 1):
        np.savez(tmp_path / "noise.npz", x=np.random.default_rng(seed).random((20, 1, 8, 8)), y=np.arange(20) % 2)
        grid = expand(lines, tmp_path)
        assert grid.outside == str(tmp_path / "noise.npz")
        names.append(grid.cells[0].name)
    assert len(set(names)) == 2


def test_another_world_is_brought_to_the_form_of_each_run(tmp_path: Path) -> None:
    """Data whose rows are the same as stored, and standardised for one of two."""
    np.savez(tmp_path / "noise.npz", x=np.random.default_rng(0).random((20, 1, 8, 8)), y=np.arange(20) % 2)
    both = [load("digits", standardise=how) for how in ("all", "none", "all")]
    found = [outside.world(str(tmp_path / "noise.npz"), data, None) for data in both]
    for ours, data in zip(found, both, strict=True):
        assert torch.equal(ours, out_of_distribution(tmp_path / "noise.npz", data))
