"""`espalier theory`: every claim is checked, every check catches wrong formulas, and the report says what was found."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espalier import theory
from espalier.cli.main import main
from espalier.pictures import plots
from espalier.theory import claims, run
from espalier.theory.claims import Claim, Curve, Finding, Picture, Ranks


def mutations_of(module: str) -> dict[str, dict[str, Any]]:
    """The wrong formulas that the module's own tests hand to its checks."""
    spec = importlib.util.spec_from_file_location(f"wrong_{module}", Path(__file__).with_name(f"test_{module}.py"))
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    found: dict[str, dict[str, Any]] = tests.MUTATIONS
    return found


def test_every_claim_has_a_mutation_test() -> None:
    mutations = {name: wrong for module in theory.MODULES for name, wrong in mutations_of(module).items()}
    assert mutations.keys() == theory.catalogue().keys()
    assert min(len(wrong) for wrong in mutations.values()) >= 2


def test_every_claim_says_what_and_whence() -> None:
    for name, claim in theory.catalogue().items():
        assert claim.name == name
        assert 20 <= len(claim.says) <= 220
        assert claim.source


# --------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("discrepancy", "verdict"), [(0.0, "holds"), (1.0, "holds"), (1.0001, "fails"), (math.nan, "fails"), (math.inf, "fails")]
)
def test_a_claim_holds_up_to_its_tolerance_and_not_on_a_nan(discrepancy, verdict) -> None:
    assert Finding("a", discrepancy, 1.0, "").verdict == verdict


def test_the_limit_is_the_normal_quantile_shared_by_the_looks() -> None:
    draws = np.abs(np.random.default_rng(0).standard_normal((200_000, 5)).max(1))
    assert claims.limit(1) == pytest.approx(4.8916, abs=1e-3)  # Phi^-1(1 - 5e-7)
    assert claims.limit(5) > claims.limit(1)
    assert (draws > claims.limit(5)).mean() < 1e-4


def test_the_worst_z_is_in_standard_errors_and_forgives_rounding() -> None:
    z, tolerance = claims.worst_z([1.0, 2.5, 3 + 1e-13], [1.0, 2.0, 3.0], [0.1, 0.25, 0.0])
    assert z == pytest.approx(2.0)
    assert tolerance == claims.limit(3)
    assert claims.worst_z([1.0], [2.0], [0.0])[0] == math.inf  # no error bar, yet apart


# ----------------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("quick", [True])
def test_the_quick_run_checks_every_claim_and_leaves_the_page(quick, tmp_path: Path, capsys) -> None:
    start = time.perf_counter()
    assert main(["theory", "--quick", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = list(theory.catalogue())
    for line, name in zip(lines, names, strict=False):
        assert line.split()[0] in ("holds", "fails")
        assert line.split()[1] == f"{name}:"
    result = json.loads((tmp_path / "theory.json").read_text())
    assert [claim["name"] for claim in result["claims"]] == names
    assert result["quick"] is True
    for claim in result["claims"]:
        assert claim["verdict"] == ("holds" if claim["discrepancy"] <= claim["tolerance"] else "fails")
        assert not claim["compared"].startswith("not compared"), claim
        assert claim["verdict"] == "holds" or claim["breaks"], claim
        for picture in claim["pictures"]:
            with Image.open(tmp_path / picture) as image:
                assert image.size[0] > 300
    page = (tmp_path / "index.html").read_text()
    seen = Seen()
    seen.feed(page)
    assert {image for claim in result["claims"] for image in claim["pictures"]} == seen.images
    assert set(names) <= seen.anchors
    assert time.perf_counter() - start < 400  # a minute where nothing else runs


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.images: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        attributes = dict(attrs)
        if tag == "img":
            self.images.add(attributes["src"])
        if "id" in attributes:
            self.anchors.add(attributes["id"])


def test_some_claims_only(tmp_path: Path, capsys) -> None:
    words = ["theory", "kl-bound", "objective-prior-scale", "--quick", "--out", str(tmp_path), "--jobs", "1", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert [claim["name"] for claim in result["claims"]] == ["kl-bound", "objective-prior-scale"]
    assert result == json.loads((tmp_path / "theory.json").read_text())


def test_the_list_says_what_there_is(capsys) -> None:
    assert main(["theory", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(theory.catalogue())


@pytest.mark.parametrize(
    ("words", "message"),
    [(["kl-bond"], r"expected claims of .*, got 'kl-bond'; did you mean 'kl-bound'\?$"),
     (["kl-bound", "--jobs", "0"], "expected at least 1 job, got 0$")],
)  # fmt: skip
def test_what_cannot_run_is_refused(words, message, capsys, tmp_path) -> None:
    import re

    assert main(["theory", *words, "--out", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err.strip())
    assert not list(tmp_path.iterdir())


def test_a_check_that_raises_fails_and_the_others_go_on(monkeypatch) -> None:
    def broken(quick: bool) -> Finding:
        raise RuntimeError("no convergence")

    monkeypatch.setattr(theory, "catalogue", lambda: {"broken": Claim("broken", "says", "source", broken)})
    finding, _ = run.check("broken", True)
    assert finding.verdict == "fails"
    assert finding.compared == "not compared: RuntimeError: no convergence"
    line = run.Line("broken", "says", "source", finding, 0.0)
    assert run.as_json(line, [])["discrepancy"] is None
    assert run.sentence(line).startswith("fails  broken: says [source]")


def test_numbers_become_json() -> None:
    plain = run.plain({"a": np.float64(1.5), "b": np.array([1, 2]), 3: (math.nan, math.inf, True), "c": {"d": None}})
    assert plain == {"a": 1.5, "b": [1, 2], "3": [None, None, True], "c": {"d": None}}
    assert json.loads(json.dumps(plain)) == plain


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_draws_every_style_with_its_band() -> None:
    x = np.arange(1, 6)
    shapes = [Curve(style, x, x**2, x**2 - 0.5, x**2 + 0.5, style) for style in ("line", "dashed", "points", "bars")]
    (axes,) = plots.curves(Picture("title", "x", "y", tuple(shapes), "log", "log")).axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"line", "dashed", "points", "bars"}
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len(axes.patches) == 5  # the bars
    line = next(line for line in axes.lines if line.get_label() == "line")
    assert np.asarray(line.get_ydata()).tolist() == (x**2).tolist()


def test_ranks_are_drawn_with_what_they_should_follow() -> None:
    ranks = np.random.default_rng(0).integers(0, 21, 500)
    expected = np.linspace(1, 2, 21)
    figure = plots.ranks(Ranks("title", ranks, 20, expected / expected.sum()))
    assert figure.axes
