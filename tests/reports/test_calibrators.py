"""Claims about calibrators on the page: before is the run's own, after is what was fitted on validation or kept with the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier import calibration
from espalier.cli.main import main
from espalier.pages import Figure, Section, Table, Text
from espalier.prediction import recalibrated
from espalier.prediction.recalibration import KEPT
from espalier.reports import calibrators
from espalier.reports.look import Look, look_at
from espalier.reports.tables import entry


def tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def said(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Text))


def test_a_temperature_is_fitted_for_the_page_where_the_run_keeps_nothing(looks: list[Look]) -> None:
    section = calibrators.sections(looks)[0]
    cigl, rigl = tables(section)
    assert [row[0] for row in cigl.rows] == ["ticket", "ticket + temperature", "redraw", "redraw + temperature"]
    assert [row[0] for row in rigl.rows] == ["ticket", "ticket + temperature"], "one network has one way"
    look = looks[0]
    found = recalibrated(look.fit, look.data, "test", ["temperature"], ways=["ticket"], num_samples=4)[0]["ticket + temperature"]
    assert cigl.rows[0][2] == entry(look.scores["ticket"], "nll")
    assert cigl.rows[1][2] == entry(calibration.classification_summary(found, look.labels), "nll")
    gap = calibration.nll(found, look.labels) - calibration.nll(look.probs, look.labels)
    assert str(cigl.rows[1][-1]).startswith(f"{gap:+.4f} [")
    assert cigl.rows[0][-1] == ""
    assert f"fitted for this page on {len(look.data.validation.y)} validation examples" in said(section)


def test_the_picture_holds_the_bins_before_and_after(looks: list[Look]) -> None:
    look = looks[0]
    figure = next(block for block in calibrators.sections(looks[:1])[0].blocks if isinstance(block, Figure))
    assert figure.data is not None
    found = recalibrated(look.fit, look.data, "test", ["temperature"], ways=["ticket"], num_samples=4)[0]["ticket + temperature"]
    for name, probs in (("before", look.probs), ("after", found)):
        rows = [row for row in figure.data[1] if row[0] == name]
        assert [row[3] for row in rows] == np.histogram(probs.max(1), np.linspace(0, 1, 16))[0].tolist()
    assert f"{look.scores['ticket']['ece_15']:.4f}" in figure.says
    assert f"{calibration.ece(found, look.labels):.4f}" in figure.says


def test_what_a_run_keeps_is_what_is_shown_and_another_choice_is_fitted(runs: list[Path], tmp_path: Path) -> None:
    own = tmp_path / "kept"
    shutil.copytree(runs[0], own)
    assert main(["evaluate", str(own), "--calibrate", "vector", "--num-samples", "4"]) == 0
    look = look_at(own, num_samples=4)
    section = calibrators.sections([look])[0]
    assert [row[0] for row in tables(section)[0].rows] == ["ticket", "ticket + vector", "redraw", "redraw + vector"]
    scored = json.loads((own / "evaluation-test.json").read_text())["predict"]["ticket + vector"]
    assert tables(section)[0].rows[1][2] == entry(scored, "nll")
    assert "kept them in calibrators.json" in said(section)
    other = calibrators.sections([look], ["isotonic"])[0]
    assert "ticket + isotonic" in [row[0] for row in tables(other)[0].rows]
    short = '{"ticket + vector": {"parameters": {"weights": [1, 2], "bias": [0, 0]}}}'
    text = '{"ticket + temperature": {"temperature": "x"}}'
    for altered in ('{"ticket + vector": {"weights": 1}}', '{"ticket + platt": {}}', "[1]", text, short):
        (own / KEPT).write_text(altered)
        with pytest.raises(ValueError, match=r"expected calibrators of this run in .*calibrators.json, got others"):
            calibrators.sections([look])


def test_a_regressions_variance_is_shown_by_its_pit(regression: Look) -> None:
    section = calibrators.sections([regression])[0]
    assert [row[0] for row in tables(section)[0].rows] == ["ticket", "ticket + variance", "redraw", "redraw + variance"]
    figure = next(block for block in section.blocks if isinstance(block, Figure))
    assert figure.data is not None
    assert {row[0] for row in figure.data[1]} == {"uniform, 95 % for all bars", "before", "after"}


def test_where_nothing_can_be_calibrated_there_is_no_section(looks: list[Look]) -> None:
    look: Any = looks[0]
    assert calibrators.sections([look._replace(split="validation")]) == []
    empty = look.data.validation._replace(y=look.data.validation.y[:0])
    assert calibrators.sections([look._replace(data=look.data._replace(validation=empty))]) == []
    with pytest.raises(ValueError, match="expected calibrators of temperature"):
        calibrators.check(look, ["platt"])
