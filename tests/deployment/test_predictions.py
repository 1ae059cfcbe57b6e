"""Claims about tables of predictions: they are what the network says, by name, and read back to the last digit."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from scipy.optimize import brentq
from scipy.stats import norm

from commands import TINY
from commands import fit as fitted
from espalier import runs
from espalier.calibration import mutual_information
from espalier.cli.main import main
from espalier.deployment import predict
from espalier.deployment.predictions import classes, quantile, targets
from shelved import made, rows, words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert fitted(folder, "--hidden", "32,16", "--sparsity", "0.5", "--drop_rate", "0.2") == 0
    return folder


def file_of(name: str, tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", x=rows(name)[0].numpy())
    return tmp_path / "x.npz"


def read(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [line[name] for line in lines] for name in lines[0]}


OWN = {kind: f"""from torch import nn
import pyro.distributions as dist
from espalier import BayesianNetwork


def model(shape, num_outputs):
    def likelihood(o):
        return {said}
    return BayesianNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), likelihood=likelihood)
""" for kind, said in (("poisson", "dist.Poisson(o.squeeze(-1).exp())"), ("lognormal", "dist.LogNormal(o.squeeze(-1), 0.7)"))}

# ------------------------------------------------------------------------------------------------------------ a folder


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_holds_every_row_of_a_classifier_by_name(suffix: str, tmp_path: Path) -> None:
    (fit, (raw, data)), out = (made("mlp"), rows("mlp")), tmp_path / f"said.{suffix}"
    folder = fit.export(tmp_path / "net", program=words("mlp"), how="ticket")
    predict(folder, file_of("mlp", tmp_path), out)
    probs = fit.predict(data.inputs(raw))[0].numpy()
    found = parquet.read_table(out).to_pydict() if suffix == "parquet" else read(out)
    assert list(found) == ["row", "class", "confidence", "p(ash)", "p(elm)", "p(oak)"]
    assert [int(row) for row in found["row"]] == list(range(len(raw)))
    assert found["class"] == [("ash", "elm", "oak")[place] for place in probs.argmax(1)]
    assert np.allclose(np.array(found["confidence"], float), probs.max(1), atol=1e-6)
    assert np.allclose(np.array(found["p(elm)"], float), probs[:, 1], atol=1e-6)


def test_a_regression_has_means_and_intervals_in_its_units(tmp_path: Path) -> None:
    fit, (raw, data) = made("regression"), rows("regression")
    folder = fit.export(tmp_path / "net", program=words("regression"), how="ticket")
    found = predict(folder, file_of("regression", tmp_path), tmp_path / "said.csv")
    mean, sd = fit.predict(data.inputs(raw))[0].numpy().T
    assert list(found) == ["row", "mean", "sd", "low", "high"]
    assert np.allclose(found["mean"], mean, atol=1e-4)
    assert np.allclose(found["low"], mean - norm.ppf(0.975) * sd, atol=1e-4)
    assert np.allclose(found["high"], mean + norm.ppf(0.975) * sd, atol=1e-4)
    assert read(tmp_path / "said.csv")["mean"] == [str(value) for value in found["mean"].tolist()]  # to the last digit


def test_several_targets_are_numbered(tmp_path: Path) -> None:
    folder = made("two targets").export(tmp_path / "net", program=words("two targets"))
    found = predict(folder, file_of("two targets", tmp_path), tmp_path / "said.csv")
    assert list(found) == ["row", *(f"{name}_{place}" for place in (0, 1) for name in ("mean", "sd", "low", "high"))]
    assert abs(found["mean_0"].mean() - 500) < 200
    assert abs(found["mean_1"].mean() + 3) < 1


def test_a_mask_for_every_row_is_no_table(tmp_path: Path) -> None:
    folder = made("unet").export(tmp_path / "net", program=words("unet"))
    with pytest.raises(ValueError, match="expected one label a row for a table, got draws of shape"):
        predict(folder, file_of("unet", tmp_path), tmp_path / "said.csv")
    assert not (tmp_path / "said.csv").exists()


# --------------------------------------------------------------------------------------------------------------- a run


def test_of_a_run_the_draws_say_what_they_differ_in(run: Path, tmp_path: Path) -> None:
    fit, data = runs.load(run), runs.data_of(run)
    mean, sd = (float(values[0]) for values in data.input_scale)
    np.savez(tmp_path / "x.npz", x=np.rint(data.test.x.numpy() * sd + mean).astype(np.uint8)[:, 0])
    found = predict(run, tmp_path / "x.npz", tmp_path / "said.csv", num_samples=5)
    draws = fit.predict(data.test.x, "redraw", num_samples=5).numpy()
    assert list(found)[-1] == "mutual_information"
    assert np.allclose(found["mutual_information"], mutual_information(draws), atol=1e-5)
    assert found["mutual_information"].max() > 1e-4
    assert np.allclose(found["p(3)"], draws.mean(0)[:, 3], atol=1e-5)
    one = predict(run, tmp_path / "x.npz", tmp_path / "ticket.csv", how="ticket")
    assert "mutual_information" not in one
    assert np.allclose(one["p(3)"], fit.predict(data.test.x)[0, :, 3], atol=1e-5)


@pytest.mark.parametrize("kind", ["poisson", "lognormal"])
def test_bounds_are_those_of_the_likelihood(kind: str, tmp_path: Path) -> None:
    """Of counts none is below 0, and of a skewed one the bounds are no mirror images."""
    (tmp_path / "own.py").write_text(OWN[kind])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), np.exp(rng.normal(size=200)).round() + (kind == "lognormal")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    told = ["--model", str(tmp_path / "own.py"), "--inference=cigl", f"--data={tmp_path / 'data.npz'}", "--standardise=inputs"]
    told += ["--sparsity=0.5", "--epochs=3", "--batch-size=16", "--drop-rate=0.1", "--learning-rate=0.01", "--delta-t=5"]
    assert main(["fit", *told, "--out", str(tmp_path / "run")]) == 0
    np.savez(tmp_path / "x.npz", x=x[:20])
    found = predict(tmp_path / "run", tmp_path / "x.npz", tmp_path / "said.csv", num_samples=4)
    assert list(found) == ["row", "mean", "sd", "low", "high"]
    fit, data = runs.load(tmp_path / "run"), runs.data_of(tmp_path / "run")
    drawn = fit.mixture(data.inputs(x[:20]), "redraw", num_samples=4).sample(200_000, seed=7).numpy()
    inside = ((drawn >= found["low"]) & (drawn <= found["high"])).mean(0)
    assert (found["low"] >= 0).all()
    assert (inside > 0.93).all()
    assert np.allclose(found["mean"], drawn.mean(0), rtol=0.1)
    if kind == "lognormal":
        assert (inside < 0.97).all()
        assert (found["high"] - found["mean"] > found["mean"] - found["low"]).all()


def test_outputs_that_no_class_has_stand_there_by_number() -> None:
    found = classes(np.full((1, 2, 4), 0.25), ["a", "b"])
    assert list(found)[2:] == ["p(a)", "p(b)", "p(output 2)", "p(output 3)"]


def test_a_run_with_batch_norm_finds_the_statistics_of_its_masks(tmp_path: Path) -> None:
    words = ["fit", "--model", "wide_resnet", "--depth", "10", "--widen", "1", "--inference", "cigl", *TINY, "--epochs", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 8), np.uint8))
    found = predict(tmp_path / "run", tmp_path / "x.npz", tmp_path / "said.csv", num_samples=2)
    fit, data = runs.load(tmp_path / "run"), runs.data_of(tmp_path / "run")
    fit.look_at(data)
    expected = fit.predict(data.inputs(np.zeros((3, 1, 8, 8))), "redraw", num_samples=2).mean(0)
    assert np.allclose(found["p(0)"], expected[:, 0], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ by hand


def test_quantiles_of_a_mixture_are_roots_of_its_distribution_function() -> None:
    rng = np.random.default_rng(0)
    mean, sd = rng.normal(size=(4, 6)) * 3, rng.uniform(0.2, 2, size=(4, 6))
    for level in (0.025, 0.3, 0.975):
        found = quantile(mean, sd, level)
        for row in range(6):

            def gap(y: float, own: int = row, at: float = level) -> float:
                return float(norm.cdf(y, mean[:, own], sd[:, own]).mean() - at)

            assert found[row] == pytest.approx(brentq(gap, -40, 40, xtol=1e-13), abs=1e-9)


def test_draws_of_a_regression_add_up() -> None:
    rng = np.random.default_rng(1)
    mean, sd = rng.normal(size=(5, 3)), rng.uniform(0.5, 1, size=(5, 3))
    found = targets(np.stack([mean, sd], -1))
    assert np.allclose(found["sd"] ** 2, (sd**2).mean(0) + mean.var(0))
    assert np.allclose(found["epistemic_sd"], mean.std(0))


def test_a_class_is_the_one_of_the_mean_probability() -> None:
    draws = np.array([[[0.6, 0.4, 0.0]], [[0.0, 0.45, 0.55]]])
    found = classes(draws, ["a", "b", "c"])
    assert found["class"].tolist() == ["b"]
    assert found["confidence"] == pytest.approx([0.425])


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_file_that_is_there_stays_and_nothing_is_written_where_something_is_wrong(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, out = file_of("mlp", tmp_path), tmp_path / "said.csv"
    folder = made("mlp").export(tmp_path / "net", program=words("mlp"))
    out.write_text("mine")
    with pytest.raises(ValueError, match="expected a new file, but .*said.csv exists: choose another --out, or remove it"):
        predict(folder, x, out)
    assert out.read_text() == "mine"
    with pytest.raises(ValueError, match="expected the name of a .csv or .parquet file, got .*said.xlsx"):
        predict(folder, x, tmp_path / "said.xlsx")
    with pytest.raises(ValueError, match="expected no way to predict for an exported folder, which has one, got 'redraw'"):
        predict(folder, x, tmp_path / "new.csv", how="redraw")
    np.savez(tmp_path / "digits.npz", x=np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="expected one of ticket, pairs, .*, got 'tiket'"):
        predict(run, tmp_path / "digits.npz", tmp_path / "new.csv", how="tiket")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeError, match=r"expected pyarrow for a .parquet file: pip install 'espalier\[parquet\]'"):
        predict(folder, x, tmp_path / "new.parquet")
    assert not list(tmp_path.glob("new.*"))
