"""Claims about the page: all that was asked for, one file, right numbers, and nothing a browser complains of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from browser import SHEET, look, needs_chromium, printed, serious
from espalier.cli.main import main
from espalier.prediction import Ensemble
from espalier.reports import report, write_page
from espalier.reports.look import Look, look_at, look_of
from espalier.reports.tables import entry


def test_the_page_says_what_was_run_and_how_to_do_it_again(looks: list[Look], page: str) -> None:
    text = page
    assert "cigl: mlp trained by cigl on digits (400 examples" in text
    assert entry(looks[0].scores["ticket"], "nll") in text
    assert "espalier fit --config config.yaml --out cigl" in text
    for title in ("Every way to predict", "Comparison", "Reliability", "Selective prediction", "Classes: rigl", "Examples",
                  "Calibrators, before and after",
                  "Topology", "Training", "How it was made"):  # fmt: skip
        assert re.search(rf"<h2[^>]*>{title}</h2>", text), title
    assert looks[0].fit.record["data"]["hashes"]["test"] in text


def test_a_rate_that_was_found_is_said_and_one_next_to_none_is_a_reason_not_to(looks: list[Look], distilled_look: Look) -> None:
    rate = distilled_look.fit.record["drop_rate"]["found"]
    assert report.rate_found(looks[0]) == "", "a rate that was given"
    assert f"validation rows while training: {rate:.2g}" in report.rate_found(distilled_look)
    record = distilled_look.fit.record
    try:
        moved = "0.2 (it had come to 0.25 when training ended, and had a last look)"
        for told, said in (({"followed": 0.25}, moved), ({"followed": 0.2001}, "training: 0.2"), ({}, "training: 0.2")):
            own = {**{name: fact for name, fact in record["drop_rate"].items() if name != "followed"}, **told, "found": 0.2}
            distilled_look.fit.record = {**record, "drop_rate": own}
            assert report.rate_found(distilled_look).endswith(f"{said}.")
        distilled_look.fit.record = {**record, "drop_rate": {**record["drop_rate"], "found": 2**-16, "followed": 2**-16}}
        assert "1.5e-05. That is next to none: masks cost more here" in report.rate_found(distilled_look)
        distilled_look.fit.record = {**record, "drop_rate": {**record["drop_rate"], "found": 0.01, "forward_examples": 0}}
        assert "ended before the first look: it is 0.01, where it begins, and says nothing" in report.rate_found(distilled_look)
    finally:
        distilled_look.fit.record = record


def test_the_comparison_is_that_of_the_second_run_less_the_first(looks: list[Look], page: str) -> None:
    difference = looks[1].scores["ticket"]["accuracy"] - looks[0].scores["ticket"]["accuracy"]
    assert re.search(rf"rigl \(ticket\): accuracy</th><td>{re.escape(f'{difference:+.4f}')}</td>", page)
    assert report.comparison(looks[:1]) == []


def test_a_certificate_stands_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    certified = tmp_path / "certified"
    shutil.copytree(runs[0], certified)
    assert main(["certify", str(certified), "--alpha", "0.9", "--step", "0.25"]) == 0
    section = report.certificates([look_at(certified, num_samples=2)])[0]
    assert section.title == "Certificate"
    assert "With confidence 0.95 over the draw of" in str(section.blocks[0])
    assert report.certificates([look_at(runs[0], num_samples=2)]) == []


def test_runs_that_cannot_stand_together_are_refused(
    looks: list[Look], regression: Look, page: str, tmp_path: Path
) -> None:
    for wrong, sentence in (
        ([], "expected at least one run"),
        ([looks[0], regression], "expected runs of one test split"),
        ([looks[0], looks[0]], "expected folders of different names"),
    ):
        with pytest.raises(ValueError, match=sentence):
            report.report(wrong)
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own</p>")
    with pytest.raises(ValueError, match="is there and not Espalier's"):
        report.check_free(mine)
    (tmp_path / "page.html").write_text(page)
    report.check_free(tmp_path / "page.html")


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_has_nothing_to_complain_of(page: str, tmp_path: Path, width: int) -> None:
    found = look(page, tmp_path, width)
    assert found["seen"] == found["asked"] == []
    assert len(found["images"]) > 20
    assert all(found["images"])
    assert found["scroll"] <= width
    assert serious(found) == []


@needs_chromium
def test_on_paper_nothing_is_closed_or_cut(page: str, tmp_path: Path) -> None:
    width, height = SHEET
    found = look(printed(page), tmp_path, width)
    assert found["unseen"] == 0
    assert max(found["figures"]) < height / 2
    assert found["scroll"] <= width


@needs_chromium
def test_a_regressions_page_is_as_good(regression: Look, tmp_path: Path) -> None:
    text = report.report([regression])
    for title in ("Calibration of the distribution", "Coverage", "Residuals", "Examples", "Calibrators, before and after"):
        assert re.search(rf"<h2[^>]*>{title}</h2>", text), title
    found = look(text, tmp_path, 390)
    assert found["seen"] == []
    assert all(found["images"])
    assert found["scroll"] <= 390
    assert serious(found) == []


def test_fits_that_are_at_hand_have_the_page_of_their_runs(looks: list[Look], regression: Look, tmp_path: Path) -> None:
    fits = {"mine": looks[0].fit, "RigL": looks[1].fit, "both": Ensemble([looks[0].fit, looks[1].fit])}
    written = write_page(tmp_path / "fits.html", fits, looks[0].data, num_samples=4, replicates=5)
    text = written.read_text()
    own = look_of("mine", looks[0].fit, looks[0].data, num_samples=4)
    assert own.scores == looks[0].scores
    assert entry(own.scores["ticket"], "nll") in text
    assert "both: 2 fits, whose predictions are averaged" in text
    assert "espalier fit --config" not in text
    assert "config.yaml of" not in text
    for title in ("Comparison", "Topology", "Criticism", "How it was made"):
        assert re.search(rf"<h2[^>]*>[^<]*{title}", text, re.IGNORECASE), title
    assert write_page(written, {"line": regression.fit}, regression.data, replicates=0) == written, "its own page is made anew"
    assert "line: mlp trained by cigl" in written.read_text()


def test_a_page_that_cannot_be_is_refused_before_any_work(looks: list[Look], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.html"
    theirs.write_text("<p>notes</p>")
    fit, data = looks[0].fit, looks[0].data
    with pytest.raises(ValueError, match="expected a new file for the report"):
        write_page(theirs, {"mine": fit}, data)
    assert theirs.read_text() == "<p>notes</p>"
    with pytest.raises(ValueError, match="expected fits by their names, {'mine': fit}, got Fit"):
        write_page(tmp_path / "page.html", fit, data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected at least one run"):
        write_page(tmp_path / "page.html", {}, data)
    with pytest.raises(ValueError, match="expected calibrators of"):
        write_page(tmp_path / "page.html", {"mine": fit}, data, calibrate=["variance"])
    assert not (tmp_path / "page.html").exists()
