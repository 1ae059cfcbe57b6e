"""`espalier evaluate`: every score with its interval, from any folder; what was altered is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from sklearn.datasets import load_digits

import espalier
from commands import WAYS, fit, spoken
from espalier import calibration, store
from espalier.cli.main import main
from espalier.prediction import robustness_of
from places import ROOT


def test_json_is_one_object_with_every_score_and_its_interval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    assert result["split"] == "test"
    assert result["num_active"] == round((1 - 0.8) * result["num_weights"])
    assert result["density"] == result["num_active"] / result["num_weights"]
    assert set(result["predict"]) == WAYS
    for scores in result["predict"].values():
        for name in ("accuracy", "nll", "brier", "ece_10", "ece_15"):
            low, high = scores[f"{name}_interval"]
            assert low <= high
            assert scores[name] >= 0
        assert scores["ece_15_floor"] > 0
    other = run.parent / "other"
    assert fit(other, inference="rigl") == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(other), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["runs"]) == {str(run), str(other)}


def test_an_ensemble_is_scored_beside_its_members(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert fit(other, "--hidden", "32,16", "--sparsity", "0.8", "--drop_rate", "0.2", "--rescale", "--seed", "1") == 0
    capsys.readouterr()
    words = ["evaluate", str(run), "--ensemble", str(run), str(other), "--num-samples", "2"]
    before = sorted(path.name for path in run.iterdir())
    assert main([*words, "--calibrate", "temperature", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert list(found) == [str(run), "ensemble of 2 from run"]
    own = found["ensemble of 2 from run"]
    assert own["members"] == [str(run), str(other)]
    assert own["num_active"] == 2 * found[str(run)]["num_active"]
    data = espalier.runs.data_of(run)
    naive = sum(espalier.load(folder).predict(data.test.x)[0].double().numpy() for folder in (run, other)) / 2
    assert own["predict"]["ticket"]["nll"] == pytest.approx(calibration.nll(naive, data.test.y.numpy()), abs=1e-12)
    assert own["predict"]["ticket + temperature"]["accuracy"] == own["predict"]["ticket"]["accuracy"]
    assert not (other / "evaluation-test.json").exists(), "an ensemble has no folder"
    assert main([*words, "--picture", str(tmp_path / "all.png")]) == 0
    assert re.search(r"ensemble of 2 from run +ticket ", capsys.readouterr().out)
    assert set(before) - {path.name for path in run.iterdir()} == set()
    again = [*words, "--ensemble", str(run), str(other)]
    assert "expected ensembles of different names" in spoken(capsys, again)
    assert "expected two members" in spoken(capsys, ["evaluate", str(run), "--ensemble", str(run)])


def test_compiled_networks_score_the_same_in_every_way(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for words in [], ["--compile"]:
        torch._dynamo.utils.counters.clear()
        assert main(["evaluate", str(run), "--split", "validation", "--num-samples", "2", "--json", *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["predict"])
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == bool(words)
    for way, scores in found[0].items():
        assert found[1][way]["nll"] == pytest.approx(scores["nll"], rel=1e-5)


def test_regression_reports_its_own_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4))
    np.savez(tmp_path / "mine.npz", x=x, y=100 + 20 * x[:, 0] + random.normal(size=300))
    words = ["--model", "deep_gp", "--inference", "cigl", "--data", str(tmp_path / "mine.npz"), "--sparsity", "0.5"]
    words += ["--epochs", "60", "--batch-size", "30", "--learning-rate", "0.02", "--out", str(tmp_path / "run"), "--json"]
    assert main(["fit", *words]) == 0
    scores = json.loads(capsys.readouterr().out)["predict"]["mean"]
    assert scores["rmse"] < 10  # in the user's units: the targets spread by 20
    assert {"rmse", "nll", "crps", "coverage_95", "rmse_interval", "coverage_95_interval"} <= set(scores)
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "RMSE" in capsys.readouterr().out


def test_a_run_can_be_looked_at_and_repeated_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.py").write_text((ROOT / "models" / "mlp.py").read_text())
    np.savez("mine.npz", x=np.random.default_rng(0).normal(size=(90, 3)), y=np.arange(90) % 3)
    words = ["--model", "mine.py", "--hidden", "8", "--inference", "cigl", "--sparsity", "0.3", "--data", "mine.npz"]
    assert main(["fit", *words, "--epochs", "2", "--batch-size", "10", "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert main(["evaluate", "../here/run"]) == 0
    assert main(["fit", "--config", "../here/run/config.yaml", "--out", "again"]) == 0
    first, second = (espalier.load(folder) for folder in ("../here/run", "again"))
    assert torch.equal(first.pairs.values, second.pairs.values)


def test_an_altered_program_is_refused_before_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text())
    assert fit(tmp_path / "run", "--hidden", "8", model=str(mine)) == 0
    capsys.readouterr()
    program = tmp_path / "run" / "model.py"
    program.write_text(program.read_text() + f"\nopen({str(tmp_path / 'was-here')!r}, 'w')\n")
    for command in ("evaluate", "resume"):
        assert "altered" in spoken(capsys, [command, str(tmp_path / "run")])
        assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize("name", ["fit.safetensors", "record.json", "history.json", "config.yaml"])
def test_a_truncated_or_altered_run_file_is_refused(
    run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("cut", "flip"):
        folder = tmp_path / damage
        shutil.copytree(run, folder)
        whole = (folder / name).read_bytes()
        middle = len(whole) // 2
        cut, flipped = whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        (folder / name).write_bytes(cut if damage == "cut" else flipped)
        assert "altered" in spoken(capsys, ["evaluate", str(folder)])


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "resume"):
        assert "expected a run folder" in spoken(capsys, [command, str(tmp_path)])


def test_all_draws_are_saved_as_labelled_arrays_with_runs_as_chains(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run), str(run), "--save", str(tmp_path / "draws.zarr"), "--ways", "redraw", "--num-samples", "3"]
    words += ["--prior", "4"]
    assert main(words) == 0
    assert "draws.zarr, by xarray.open_datatree" in capsys.readouterr().out
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    assert [tree["predictions"].sizes[name] for name in ("chain", "draw", "class")] == [2, 3, 10]
    assert dict(tree["prior_predictive"]["y"].sizes) == {"chain": 2, "draw": 4, "observation": 359}
    for wrong, sentence in (
        ([*words[:4], str(tmp_path / "b.zarr"), "--prior", "-1"], "expected 0 or more draws of the prior, got -1"),
        (words, "draws.zarr exists: choose another name or remove it"),
        ([*words[:4], str(tmp_path / "b.zarr"), "--ways", "pears"], "expected ways to predict of ticket, pairs"),
        ([*words[:4], str(tmp_path / "b.zarr"), "--layers", "z"], "got 'z'"),
    ):
        assert main(wrong) == 2
        assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["draws.zarr"]


def test_calibrated_ways_stand_beside_the_others_and_are_kept(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    assert main(["evaluate", str(own), "--calibrate", "temperature", "vector", "--num-samples", "2"]) == 0
    assert "ticket + vector" in capsys.readouterr().out
    kept = json.loads((own / "calibrators.json").read_text())
    assert kept["redraw + temperature"]["temperature"] > 0
    assert main(["evaluate", str(own), "--calibrate", "platt"]) == 2
    assert "expected calibrators of temperature" in capsys.readouterr().err


def test_robustness_is_a_table_of_its_own_and_refused_before_any_score(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "run"
    shutil.copytree(run, own)
    words = ["evaluate", str(own), "--num-samples", "2"]
    assert main([*words, "--robust", "0.01", "0.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["robust"]
    assert found == {"ticket": robustness_of(espalier.load(own), espalier.runs.data_of(own), [0.01, 0.1])}
    assert json.loads((own / "evaluation-test.json").read_text())["robust"] == found
    assert found["ticket"][0]["certified"] > found["ticket"][1]["certified"]
    assert main([*words, "--robust", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "run, ticket: accuracy when inputs may move by eps (a share of white), 359 examples drawn by the seed" in out
    low, high = found["ticket"][0]["pgd_interval"]
    assert f"{found['ticket'][0]['pgd']:.4f} [{low:.4f}, {high:.4f}]" in out
    before = (own / "evaluation-test.json").read_bytes()
    assert "expected an eps of at most 1 for images" in spoken(capsys, [*words, "--robust", "0.1", "2"])
    together = [*words, "--robust", "0.1", "--ensemble", str(own), str(run)]
    assert "expected single networks with --robust, got an ensemble" in spoken(capsys, together)
    assert (own / "evaluation-test.json").read_bytes() == before


def test_scores_by_group_of_the_sources_rows(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, file = tmp_path / "run", tmp_path / "groups.csv"
    shutil.copytree(run, own)
    target = load_digits().target
    file.write_text("id,half\n" + "".join(f"{k},{'low' if y < 5 else 'high'}\n" for k, y in enumerate(target)))
    words = ["evaluate", str(own), "--num-samples", "2", "--by", str(file)]
    assert main([*words, "half", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["by_group"]["half"]
    assert set(found) == {"ticket", "redraw"}
    rows = espalier.runs.data_of(own).test.y
    assert found["ticket"]["groups"]["low"]["num_examples"] == int((rows < 5).sum())
    assert json.loads((own / "evaluation-test.json").read_text())["by_group"]["half"] == found
    assert main([*words, "half"]) == 0
    assert " tests: accuracy p" in capsys.readouterr().out
    before = (own / "evaluation-test.json").read_bytes()
    assert "got 359: put measurements into intervals" in spoken(capsys, words)
    assert "which are id, half, got 'age'" in spoken(capsys, [*words, "age"])
    file.write_text("half\nlow\nhigh\n")
    assert "expected 1,797 values in column 'half'" in spoken(capsys, words)
    assert (own / "evaluation-test.json").read_bytes() == before


def test_scores_that_cannot_be_kept_are_shown_all_the_same(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store, "write_bytes", full)
    assert main(["evaluate", str(run), "--num-samples", "2"]) == 0
    told = capsys.readouterr()
    assert "redraw" in told.out
    assert "the scores are not kept in" in told.err
    assert "Read-only file system" in told.err


def test_masks_of_images_are_scored_and_have_no_diagram(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(60, 1, 8, 8))
    words, y = ["--model=unet", "--channels=[4,4]"], (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "several.npz", x=x.astype(np.float32), y=y)
    run = tmp_path / "run"
    words += ["--inference=cigl", f"--data={tmp_path / 'several.npz'}", "--epochs=2", "--batch-size=16", "--sparsity=0.5"]
    assert main(["fit", *words, "--drop-rate=0.1", "--delta-t=2", "--device=cpu", "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["predict"]["redraw"]["accuracy"] <= 1
    assert not list(run.glob("reliability*"))
    refused = spoken(capsys, ["evaluate", str(run), "--picture", str(tmp_path / "a.png")])
    assert "expected runs of one label an example for --picture" in refused
    refused = spoken(capsys, ["evaluate", str(run), "--calibrate", "temperature"])
    assert "expected one label or target an example for calibrators, got several" in refused


def test_runs_that_were_standardised_otherwise_make_no_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("all", "none"):
        assert fit(tmp_path / name, "--hidden", "8", "--standardise", name) == 0
    capsys.readouterr()
    refused = spoken(capsys, ["evaluate", str(tmp_path / "all"), str(tmp_path / "none"), "--save", str(tmp_path / "a.zarr")])
    assert "expected fits of inputs that were standardised alike" in refused


@pytest.mark.parametrize(("words", "said"), [
    (["--prior", "3"], "expected --save DIR.zarr"), (["--layers", "0.weight"], "expected --save"),
    (["--ways", "ticket"], "expected --save"), (["--pool", "logits"], "expected --ensemble with --pool"),
])  # fmt: skip
def test_options_of_what_is_not_asked_for_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in spoken(capsys, ["evaluate", str(tmp_path / "none"), *words])
