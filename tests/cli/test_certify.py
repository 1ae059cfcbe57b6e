"""`espalier certify`: what makes no sense is refused before any look; an order that looks at rows is verified like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clouds
from espalier.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clouds.made(tmp_path_factory.mktemp("certify"))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that no one has looked at, with data of its own beside it."""
    return clouds.copied(folder, tmp_path)


REFUSED = {
    "seed": (["--alpha", "0.1", "--seed", "-1"], "expected a seed of 0 or more"),
    "draws": (["--alpha", "0.1", "--num-samples", "0"], "num_samples of 1 to 10,000"),
    "anchor level": (
        ["--alpha", "0.1", "--risk", "disagreement", "--anchor", "3", "0.1"],
        "of the anchor in (0, 1), got 3",
    ),
    "signed by hb": (["--alpha", "0.1", "--risk", "gap", "--test", "hb"], "gap is signed: use wsr"),
    "brier by binomial": (["--alpha", "0.1", "--risk", "brier", "--test", "binomial"], "brier has others: use wsr"),
    "dice of classes": (["--alpha", "0.1", "--risk", "dice"], "expected masks of two classes for dice"),
    "abstain by holm": (
        ["--alpha", "0.1", "--abstain", "0.5", "--procedure", "holm"],
        "expected no procedure with abstain",
    ),
    "no alpha": (["--delta", "0.1"], "expected --alpha"),
    "two alphas": (["--alpha", "0.1", "--alpha", "0.2"], "expected an alpha for every risk, and a test for each or none"),
    "training": (["--alpha", "0.1", "--split", "train"], "train guided training or a choice"),
    "validation": (["--alpha", "0.1", "--split", "validation"], "validation guided training or a choice"),
    "unknown risk": (["--alpha", "0.1", "--risk", "loss"], "expected a risk of error"),
    "alpha": (["--alpha", "1.5"], r"expected alpha in (0, 1) for error, got 1.5"),
    "delta": (["--alpha", "0.1", "--delta", "0"], "expected delta in (0, 1), got 0"),
    "step": (["--alpha", "0.1", "--step", "0"], "expected a step in [0.0001, 1), got 0"),
    "anchor": (["--alpha", "0.1", "--anchor", "0.1", "0.1"], "expected risk disagreement alone with an anchor"),
    "way": (["--alpha", "0.1", "--predict", "distilled"], "expected one of ticket"),
    "by": (["--alpha", "0.1", "--by", "size"], "expected by of magnitude"),
    "nrs of weights": (["--alpha", "0.1", "--by", "nrs"], "expected structure channels, and data whose training rows show"),
    "procedure": (["--alpha", "0.1", "--procedure", "sidak"], "expected a procedure of fixed-sequence"),
    "test": (["--alpha", "0.1", "--test", "student"], "expected a test of binomial"),
    "abstain": (["--alpha", "0.1", "--abstain", "2"], "expected abstain in (0, 1), got 2.0"),
    "abstain with brier": (["--alpha", "0.1", "--abstain", "0.5", "--risk", "brier"], "expected risk error alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_before_any_look(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = REFUSED[name]
    assert main(["certify", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (run / "looks.json").exists()


def test_channels_by_nrs_are_certified_and_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run), "--alpha", "0.3", "--structure", "channels", "--by", "nrs", "--step", "0.2"]) == 0
    facts = json.loads((run / "certificate.json").read_text())
    assert facts["pruning"] == {"by": "nrs", "structure": "channels", "biases": False}
    assert facts["lambda"] is not None
    assert main(["verify", str(run / "certificate.json")]) == 0
    assert "The certificate holds." in capsys.readouterr().out
