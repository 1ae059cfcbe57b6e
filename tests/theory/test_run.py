"""All claims in a run: each is checked, has wrong formulas that are caught, and stands on the page."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espalier import theory
from espalier.cli.main import main
from espalier.theory import run
from espalier.theory.claims import Claim, Finding
from rewritten import Rewrites, assert_all_have_rewrites
from soon import of_children


def tables_of(module: str) -> tuple[dict[str, dict[str, Any]], Rewrites]:
    """What the module's own tests try its checks on: wrong formulas, and wrong code."""
    spec = importlib.util.spec_from_file_location(f"wrong_{module}", Path(__file__).with_name(f"test_{module}.py"))
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    return tests.MUTATIONS, tests.CODE_MUTATIONS


def test_every_claim_has_a_mutation_test() -> None:
    mutations = {name: wrong for module in theory.MODULES for name, wrong in tables_of(module)[0].items()}
    assert mutations.keys() == theory.catalogue().keys()
    assert min(len(wrong) for wrong in mutations.values()) >= 2


def test_every_claim_is_tried_on_wrong_code() -> None:
    rewrites = {name: wrong for module in theory.MODULES for name, wrong in tables_of(module)[1].items()}
    assert_all_have_rewrites(theory.catalogue(), rewrites)


# In the gate the cheap ones: every module's own tests check its claims, at quick, too.
ONCE_MORE = ("kl",)
EVERY = pytest.param(theory.MODULES, marks=pytest.mark.slow, id="every module")


@pytest.mark.parametrize("modules", [pytest.param(ONCE_MORE, id="some modules"), EVERY])
def test_the_quick_run_checks_the_claims_and_leaves_the_page(modules: tuple[str, ...], tmp_path: Path, capsys) -> None:
    start = of_children()
    known = [importlib.import_module(f"espalier.theory.{module}").CLAIMS for module in modules]
    names = [claim.name for claims in known for claim in claims]
    assert main(["theory", *names, "--quick", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(names)]
    assert {line.split()[0] for line in lines} <= {"holds", "fails"}
    assert sorted(line.split()[1] for line in lines) == sorted(f"{name}:" for name in names)  # as they end
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
    assert of_children() - start < 400  # a minute where nothing else runs


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
