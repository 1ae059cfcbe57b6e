"""Claims about certified selective prediction on the page: the pruned network's answers, beside what was promised of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from espalier.certificates import load_pruned
from espalier.cli.main import main
from espalier.pages import Cell, Figure, Table
from espalier.reports import classes, report
from espalier.reports.look import Look, look_at
from espalier.reports.promises import promised, table


@pytest.fixture(scope="module")
def certified(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Look:
    folder = tmp_path_factory.mktemp("certified") / "certified"
    shutil.copytree(runs[0], folder)
    assert main(["certify", str(folder), "--risk", "selective:0.4", "--alpha", "0.5", "--step", "0.25"]) == 0
    return look_at(folder, num_samples=2)


def test_the_pruned_networks_answers_stand_beside_the_promise(certified: Look) -> None:
    own = promised([certified])[0]
    probs = load_pruned(certified.folders[0]).predict(certified.data.test.x)
    answered = probs.max(1) >= 0.4
    assert (own.threshold, own.alpha, own.delta) == (0.4, 0.5, 0.05)
    assert own.answered == answered.sum() > 0
    assert own.wrong == (answered & (probs.argmax(1) != certified.labels)).sum()
    row = table([own]).rows[0]
    assert row[0] == Cell("certified: certificate", link="#certificate")
    assert str(row[4]).startswith(f"{answered.mean():.4f}")


def test_the_panel_shows_the_point_and_links_to_the_certificate(certified: Look, looks: list[Look]) -> None:
    section = classes.selective([certified])
    figure = next(block for block in section.blocks if isinstance(block, Figure))
    assert figure.data is not None
    point = [row for row in figure.data[1] if row[0] == "certified, certified: at most 0.5"]
    probs = load_pruned(certified.folders[0]).predict(certified.data.test.x)
    assert [row[1:3] for row in point] == [[pytest.approx(np.mean(probs.max(1) >= 0.4)), 0.5]]
    page = report.report([certified])
    assert '<a href="#certificate">certified: certificate</a>' in page
    assert 'id="certificate"' in page
    plain = [block.caption for block in classes.selective(looks).blocks if isinstance(block, Table)]
    assert plain == ["Selective prediction"]


def test_a_risk_that_could_not_be_certified_is_said_to_be_none(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    assert main(["certify", str(folder), "--risk", "selective:0.9", "--alpha", "0.0001", "--step", "0.5"]) == 0
    own = promised([look_at(folder, num_samples=2)])[0]
    assert own.answered is None
    assert "not certified" in str(table([own]).rows[0][2])


def test_a_certificate_that_was_altered_promises_nothing(certified: Look, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(certified.folders[0], folder)
    (path,) = folder.glob("certificate*.json")
    path.write_text(path.read_text().replace('"alpha":0.5', '"alpha":0.05').replace('"alpha": 0.5', '"alpha": 0.05'))
    with pytest.raises(ValueError, match="altered"):
        promised([look_at(folder, num_samples=2)])
