"""Claims about `espalier report`: a page, or one sentence and nothing written."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from commands import fit, spoken
from espalier.calibration import UNCERTAINTIES
from espalier.cli.main import main
from espalier.reports.look import look_at
from espalier.reports.report import report


def test_a_run_becomes_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0
    assert "MiB, opens anywhere" in capsys.readouterr().out
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", str(run), "--out", str(page), "--num-samples", "3"]) == 0  # its own page is made anew


def test_groups_and_calibrators_of_ones_choice_stand_on_the_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, file = tmp_path / "page.html", tmp_path / "groups.csv"
    file.write_text("half\n" + "".join(f"{'low' if label < 5 else 'high'}\n" for label in load_digits().target))
    words = ["report", str(run), "--out", str(page), "--num-samples", "2", "--replicates", "0"]
    assert main([*words, "--by", str(file), "half", "--calibrate", "vector"]) == 0
    text = page.read_text()
    assert "By half</h2>" in text
    assert "ticket + vector" in text
    assert "ticket + temperature" not in text
    capsys.readouterr()
    assert main([*words, "--by", str(file), "whole"]) == 2
    assert "which are half, got 'whole'" in capsys.readouterr().err


def test_an_ensemble_is_one_more_arm(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, other, elsewhere = tmp_path / "page.html", tmp_path / "seed-1", tmp_path / "elsewhere"
    assert fit(other, "--hidden", "32,16", "--sparsity", "0.8", "--drop_rate", "0.2", "--rescale", "--seed", "1") == 0
    assert fit(elsewhere, "--hidden", "32,16", "--split_seed", "1") == 0
    capsys.readouterr()
    words = ["report", str(run), "--ensemble", str(run), str(other), "--out", str(page), "--num-samples", "2"]
    assert main([*words, "--replicates", "5", "--corrupt", "contrast", "--ood", str(_noise(tmp_path))]) == 0
    text = page.read_text()
    assert "ensemble of 2 from run: run, seed-1, whose predictions are averaged" in text
    drawn = re.search(r'download="accuracy-under-corruption.csv" href="data:text/csv;base64,([^"]+)"', text)
    assert drawn
    corrupted = base64.b64decode(drawn[1]).decode()
    for way in ("ticket", "pairs", "redraw"):
        assert f"ensemble of 2 from run: {way}</th>" in text
        assert corrupted.count(f"ensemble of 2 from run: {way},") == 6, "severities 0 to 5"
    for said in ("ensemble of 2 from run (ticket): accuracy", "ensemble of 2 from run: confidence",
                 "Classes: ensemble of 2 from run",
                 "Scores of ensemble of 2 from run before and after", "ensemble of 2 from run: predictive entropy",
                 "espalier fit --config config.yaml --out seed-1"):  # fmt: skip
        assert said in text
    for title in ("Checks of", "Input pixels of", "Residuals of"):
        assert f"{title} ensemble" not in text, "it has no network of its own"
    page.unlink()
    capsys.readouterr()
    for members, sentence in (
        ([run, elsewhere], "trained on the same data, got other rows or splits in member 2"),
        ([run, run], "expected members of an ensemble that differ, got one twice: member 2"),
        ([run], "expected two members of an ensemble or more, got 1"),
        ([run, tmp_path], "expected a run folder"),
    ):
        assert sentence in spoken(capsys, ["report", str(run), "--ensemble", *map(str, members), "--out", str(page)])
        assert not page.exists()


def _noise(folder: Path) -> Path:
    random = np.random.default_rng(0)
    np.savez(folder / "noise.npz", x=random.integers(0, 17, (40, 8, 8)).astype(np.uint8), y=np.arange(40) % 2)
    return folder / "noise.npz"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-samples", "0"], "expected --num-samples of 1 to 10,000, got 0"),
        (["--split", "tset"], "expected a split of"),
        (["--out", "."], "expected the name of an HTML file"),
        (["--calibrate", "platt"], "expected calibrators of temperature"),
        (["--by", "none.csv"], "expected a CSV file of groups at none.csv, got nothing"),
    ],
)
def test_what_makes_no_page_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--ood", "mnits"], "did you mean"), (["--corrupt", "rain"], "expected a corruption of")],
)
def test_what_cannot_be_looked_at_is_refused_before_any_prediction(
    run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.setattr("espalier.prediction.evaluation.predictions", lambda *_, **__: pytest.fail("it has begun"))
    assert main(["report", str(run), "--out", str(tmp_path / "page.html"), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_the_page_of_a_chain_speaks_of_its_draws(tmp_path: Path) -> None:
    """`redraw` of a chain is one network, its last; its pairs are the posterior's draws."""
    words = ["--model=mlp", "--inference=sghmc", "--data=digits", "--train-size=150", "--epochs=2", "--batch-size=50"]
    words += ["--hidden=8", "--sparsity=0.5", "--refit-epochs=3", "--refit-temperature=1", "--device=cpu"]
    assert main(["fit", *words, "--out", str(tmp_path / "chain")]) == 0
    look = look_at(tmp_path / "chain", num_samples=4)
    assert look.predictor.posterior == "pairs"
    assert look.unsure["mutual_information"].max() > 0
    draws = look.fit.predict(look.data.test.x, "pairs").numpy()
    np.testing.assert_allclose(look.unsure["mutual_information"], UNCERTAINTIES["mutual_information"](draws), atol=1e-9)
    assert "mean over the draws of chain (`pairs`)" in html.unescape(report([look]))


def test_an_ensemble_of_chains_of_unequal_length_has_the_page_of_their_last_networks(tmp_path: Path) -> None:
    words = ["--model=mlp", "--inference=sghmc", "--data=digits", "--train-size=150", "--epochs=2", "--batch-size=50"]
    words += ["--hidden=8", "--sparsity=0.5", "--refit-temperature=1", "--device=cpu"]
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for seed, (folder, epochs) in enumerate(zip(folders, (2, 3), strict=True)):
        assert main(["fit", *words, f"--refit-epochs={epochs}", f"--seed={seed}", "--out", folder]) == 0
    assert main(["report", folders[0], "--ensemble", *folders, "--out", str(tmp_path / "page.html"), "--replicates", "0"]) == 0
