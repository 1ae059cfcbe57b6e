"""Claims about the page: all that was asked for, one file, right numbers, and nothing a browser complains of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from browser import SHEET, look, needs_chromium, printed, serious
from espalier.cli.main import main
from espalier.reports import report
from espalier.reports.look import Look, look_at
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
    assert report.rate_found(distilled_look).endswith(f"validation rows while training: {rate:.2g}.")
    record = distilled_look.fit.record
    try:
        distilled_look.fit.record = {**record, "drop_rate": {**record["drop_rate"], "found": 2**-16}}
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
