"""Certificates of run folders and their ledger of looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clouds import WORDS, certified, fit
from espalier import Split, runs, store
from espalier.certificates import certificate, pvalues
from espalier.certificates.certify import Settings, certify_fits, check_num_data
from espalier.certificates.runs import load_pruned
from espalier.certificates.unseen import check_unseen
from espalier.certificates.verification import verify
from espalier.cli.main import main
from espalier.deployment import export_run
from espalier.reports.look import look_at
from espalier.reports.report import report


def test_a_run_is_pruned_as_far_as_its_calibration_split_certifies(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = certified(run)
    assert "With confidence 0.9 over the draw of 700 calibration examples" in capsys.readouterr().out
    text = (run / "certificate.json").read_text()
    assert text == json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert (facts["alpha"], facts["delta"], facts["n"]) == (0.12, 0.1, 700)
    data, whole = runs.data_of(run), runs.load(run)
    labels = data.calibration.y.numpy()
    place = facts["rejected"][-1]
    assert facts["rejected"] == list(range(place + 1))
    assert facts["lambda"] == facts["grid"][place] > 0.2
    pruned = load_pruned(run)
    assert facts["chosen"]["num_active"] == pruned.topology.num_active
    assert pruned.topology.num_active == whole.topology.num_active - round(facts["lambda"] * whole.topology.num_active)
    errors = int((pruned.predict(data.calibration.x).argmax(1) != labels).sum())
    assert facts["p_values"][place] == float(pvalues.binomial(errors, 700, 0.12)) <= 0.1 < facts["p_values"][place + 1]
    assert facts["p_values"][place + 2 :] == [None] * (len(facts["grid"]) - place - 2)
    page = (run / "certificate.md").read_text()
    for said in ("# Certificate", "## Assumptions", "certified |", facts["hashes"]["pruned"], "independent"):
        assert said in page
    assert (run / "certificate.png").stat().st_size > 5000
    assert facts["help"][0]["lambda"] == facts["grid"][place + 1]
    assert main(["verify", str(run / "certificate.json")]) == 0
    assert "The certificate holds." in capsys.readouterr().out


def test_a_second_question_to_the_same_split_is_refused_or_declared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = certified(run)
    assert certified(run) == first  # the same question has the same answer
    assert main(["certify", str(run), *WORDS, "--delta", "0.2"]) == 2
    assert "expected a first look at the calibration split" in capsys.readouterr().err
    assert main(["certify", str(run), *WORDS, "--by", "snr", "--out", str(run / "elsewhere")]) == 2
    assert not (run / "certificate-2.json").exists()
    assert main(["certify", str(run), *WORDS, "--delta", "0.2", "--again"]) == 0
    second = json.loads((run / "certificate-2.json").read_text())
    assert [look["delta"] for look in second["looks"]] == [0.1, 0.2]
    assert "**Look 2 at this calibration split.**" in (run / "certificate-2.md").read_text()
    later = verify(run / "certificate.json")[-1]
    assert later.what == "later looks"
    assert "looked at 2 times by now" in later.says
    assert "at least 0.7 = 1 - the sum of their deltas" in " ".join((run / "certificate-2.md").read_text().split())
    assert json.loads((run / "certificate.json").read_text()) == first
    assert main(["verify", str(run / "certificate-2.json")]) == 0
    (run / "pruned.safetensors").rename(run / "away")
    with pytest.raises(FileNotFoundError, match=r"pruned.safetensors, but there are pruned-2.safetensors: say name="):
        load_pruned(run)
    (run / "away").rename(run / "pruned.safetensors")
    assert load_pruned(run, "pruned-2.safetensors").topology.num_active == second["chosen"]["num_active"]
    joint = "Look 2 at this calibration split. All certificates from it hold together with probability at least 0.7"
    shown = capsys.readouterr().out
    assert joint in shown
    card = (export_run(run, run / "exported") / "README.md").read_text()
    assert joint in " ".join(card.split())
    assert joint in report([look_at(run, num_samples=2)])
    assert main(["certify", str(run), *WORDS, "--split", "test"]) == 0  # other examples: a first look


def test_nothing_certified_is_written_down_with_what_would_help(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run), "--alpha", "0.01", "--step", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Nothing certified: that classification error is at most 0.01 could not be shown")
    assert "on a fresh calibration set, would" in out
    facts = json.loads((run / "certificate.json").read_text())
    assert facts["lambda"] is None
    assert facts["rejected"] == []
    assert facts["help"][0]["lambda"] == 0
    assert not (run / "pruned.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="nothing was certified there"):
        load_pruned(run)
    assert main(["verify", str(run / "certificate.json")]) == 0
    assert "The record holds: it says that nothing was certified." in capsys.readouterr().out


def test_a_ready_family_of_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        fit(folder, f"sparse{level}", "--sparsity", level, "--drop-rate", "0", "--epochs", "6")
        for level in ("0.8", "0.0", "0.95")
    ]
    words = ["certify", *map(str, names), *WORDS, "--predict", "unmasked", "--out", str(tmp_path / "chosen")]
    assert main(words) == 0
    facts = json.loads((tmp_path / "chosen" / "certificate.json").read_text())
    np.testing.assert_allclose(facts["grid"], [0.0, 0.8, 0.95], atol=0.01)
    assert facts["rejected"] == list(range(len(facts["rejected"])))
    assert facts["lambda"] in facts["grid"]
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "chosen" / "certificate.json")]) == 0
    chosen = load_pruned(tmp_path / "chosen")
    (own,) = (f for f in map(runs.load, names) if f.topology.num_active == facts["chosen"]["num_active"])
    x = runs.data_of(names[0]).test.x
    np.testing.assert_allclose(chosen.predict(x), own.predict(x, "unmasked")[0].double().numpy(), atol=1e-6)
    assert facts["pruning"]["structure"] == "a ready family"
    assert main(["certify", *map(str, names), *WORDS]) == 2
    assert "expected --out DIR" in capsys.readouterr().err
    fits = [runs.load(name) for name in names]
    again = certify_fits(
        fits, runs.data_of(names[0]).calibration, Settings(alphas=(0.12,), delta=0.1, predict="unmasked")
    )
    assert again.facts["p_values"] == facts["p_values"]


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Path]:
    """Of other widths, trained apart."""
    words = ["--drop-rate", "0", "--epochs", "6"]
    wide = fit(folder, "wide", "--sparsity", "0.5", "--hidden", "32,16", *words)
    return [wide, fit(folder, "narrow", "--sparsity", "0.8", *words)]


def test_of_several_runs_and_confidences_the_certified_run_is_the_chosen_ones(two: list[Path], tmp_path: Path) -> None:
    for alpha, thresholds in (("0.12", ["0.05", "0.9"]), ("0.5", ["0.05", "0.1", "0.15"])):
        out = tmp_path / alpha
        words = ["--alpha", alpha, "--abstain", *thresholds, "--delta", "0.1", "--predict", "unmasked", "--again"]
        assert main(["certify", *map(str, two), *words, "--out", str(out)]) == 0
        facts = json.loads((out / "certificate.json").read_text())
        (own,) = (f for f in two if runs.load(f).topology.num_active == facts["chosen"]["num_active"])
        assert Path(facts["certified_run"]).name == own.name
        assert main(["verify", str(out / "certificate.json")]) == 0
        assert load_pruned(out).predict(runs.data_of(own).test.x).shape == (200, 3)


def test_earlier_looks_of_any_of_the_runs_count(two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in two:
        (folder / "looks.json").unlink(missing_ok=True)
    assert main(["certify", str(two[1]), *WORDS, "--predict", "unmasked"]) == 0
    words = [*map(str, two), *WORDS, "--predict", "unmasked", "--out", str(tmp_path / "chosen")]
    capsys.readouterr()
    assert main(["certify", *words]) == 2
    assert f"{two[1] / 'looks.json'} has 1 for other questions" in capsys.readouterr().err
    assert main(["certify", *words, "--again"]) == 0
    assert main(["verify", str(tmp_path / "chosen" / "certificate.json")]) == 0


def test_the_same_question_from_elsewhere_is_the_same_and_a_moved_run_verifies(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(run)
    monkeypatch.chdir(run)
    assert main(["certify", ".", *WORDS]) == 0
    assert not (run / "certificate-2.json").exists()
    shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["verify", "moved"]) == 0  # a folder will do
    (tmp_path / "moved" / "looks.json").write_text("{}\n")
    assert main(["verify", "moved"]) == 1
    assert "expected moved/looks.json as it was written" in capsys.readouterr().out
    assert main(["verify", "moved/record.json"]) == 2
    assert "expected a certificate of this version of Espalier" in capsys.readouterr().err


def test_what_speaks_against_a_certificate_is_noted(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "calibration"]) == 0
    shutil.copytree(run, run.parent / "twin")
    certified(run.parent / "twin")
    notes = certificate.notes(certified(run))
    assert "has scored the calibration split before" in notes[0]
    assert "1 other run in the same folder had certificates on these examples" in notes[1]
    assert f"**Note:** {notes[1]}" in (run / "certificate.md").read_text()
    assert all(check.holds for check in verify(run / "certificate.json"))


def test_rows_that_the_drop_rate_was_found_on_are_named(tmp_path: Path) -> None:
    run = tmp_path / "auto"
    words = ["--model=mlp", "--hidden=[16]", "--inference=cigl", "--data=digits", "--epochs=8", "--delta-t=10", "--device=cpu"]
    assert main(["fit", *words, "--out", str(run)]) == 0  # drop_rate auto is the default
    notes = certificate.notes(certified(run))
    rows = len(runs.data_of(run).validation.y)
    assert notes == [f"The drop rate was found on {rows} rows of the validation split, none of which are certified on."]
    assert all(check.holds for check in verify(run / "certificate.json"))
    facts = store.check_signed(run / "certificate.json")
    facts["circumstances"]["searched"] = 0
    store.write_bytes(run / "certificate.json", store.canonical(store.signed(facts)).encode())
    assert not all(check.holds for check in verify(run / "certificate.json"))


def test_a_ledger_cannot_be_lost_alone_and_a_bit_of_it_is_not_a_second_look(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(run)
    written = (run / "looks.json").read_bytes()
    other = ["certify", str(run), "--alpha", "0.2", "--delta", "0.1", "--step", "0.05"]
    (run / "looks.json").unlink()
    assert main(other) == 2
    assert "expected a first look at the calibration split" in capsys.readouterr().err
    place = written.index(b'"alpha"') + 12
    (run / "looks.json").write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
    for words in (other, [*other, "--again"]):
        assert main(words) == 2
        assert "does not fit its own SHA-256: it was altered" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["certificate.json", "certificate.md", "pruned.safetensors"])
def test_a_folder_of_the_users_is_left_alone_and_no_look_is_spent(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_text("mine")
    for out in (mine, mine / name):
        assert main(["certify", str(run), "--alpha", "0.12", "--out", str(out)]) == 2
        assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in mine.iterdir()] == [name]
    assert (mine / name).read_text() == "mine"
    assert not (run / "looks.json").exists()


def test_noisy_copies_of_training_rows_are_no_calibration_set(run: Path) -> None:
    data = runs.data_of(run)
    count = len(data.calibration.y)
    noise = 1e-3 * torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    copies = Split(data.train.x[torch.arange(count) % len(data.train.y)] + noise, data.calibration.y)
    with pytest.raises(ValueError, match="100 % are training inputs with a little noise"):
        check_unseen(data, copies)
    assert check_unseen(data, data.calibration) == 0


def test_a_record_of_more_rows_than_training_has_is_refused(run: Path) -> None:
    data, fit = runs.data_of(run), runs.load(run)
    check_num_data([fit], data)
    fit.record["num_data"] += 700
    with pytest.raises(ValueError, match="its inference may have trained on the calibration split"):
        check_num_data([fit], data)
