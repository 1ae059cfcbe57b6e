"""`espalier theory`: all claims or some, the list, and what cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from espalier import theory
from espalier.cli.main import main
from espalier.theory.claims import Claim, Curve, Finding, Line, Picture


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


@pytest.mark.parametrize(("recorded", "verdict", "code"), [(False, 1.0, 1), (True, 1.0, 0), (False, 0.0, 0), (True, 0.0, 0)])
def test_a_claim_that_fails_and_is_not_recorded_as_failing_is_an_exit_code(
    recorded: bool, verdict: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    finding = Finding("one with two", verdict, 0.5, "nats")
    claim = Claim("mine", "says", "source", lambda quick: finding, fails=recorded)
    monkeypatch.setattr("espalier.theory.chosen", lambda names: {"mine": claim})
    line = Line("mine", "says", "source", finding, 0.1)
    monkeypatch.setattr("espalier.theory.run.run", lambda *_: iter([line]))
    assert main(["theory", "mine", "--out", str(tmp_path / "out")]) == code
    assert ("mine failed" in capsys.readouterr().err) == bool(code)


def test_the_page_goes_on_and_nothing_of_a_strangers_is_overwritten(tmp_path: Path, capsys) -> None:
    def of(*words: str) -> int:
        return main(["theory", *words, "--quick", "--out", str(tmp_path), "--jobs", "1"])

    def there() -> list[str]:
        return [claim["name"] for claim in json.loads((tmp_path / "theory.json").read_text())["claims"]]

    assert of("objective-prior-scale") == 0
    assert of("kl-gal") == 0
    assert there() == ["kl-gal", "objective-prior-scale"]  # as the catalogue has them
    page = (tmp_path / "index.html").read_text()
    assert "2 of 2 claims hold" in page
    assert "kl-gal-1.png" in page
    result = json.loads((tmp_path / "theory.json").read_text())
    (tmp_path / "theory.json").write_text(json.dumps({**result, "version": "0.0.1"}))
    (tmp_path / "kl-gal-1.png").write_bytes(b"a picture of mine")
    assert of("kl-gal") == 2
    assert "not Espalier's" in capsys.readouterr().err
    assert (tmp_path / "kl-gal-1.png").read_bytes() == b"a picture of mine"
    assert of("objective-prior-scale") == 0
    assert there() == ["objective-prior-scale"]  # those of another version are not of this page


def test_what_an_ended_run_has_found_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Line(name, "says", "source", Finding("one with two", 0.0, 0.5, "nats"), 0.1) for name in ("kl-bound", "kl-gal")]

    def ended(*_: object):
        yield lines[0]
        raise KeyboardInterrupt

    monkeypatch.setattr("espalier.theory.run.run", ended)
    main(["theory", "kl-bound", "kl-gal", "--out", str(tmp_path)])
    assert [claim["name"] for claim in json.loads((tmp_path / "theory.json").read_text())["claims"]] == ["kl-bound"]


def test_a_quick_check_stands_beside_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page says which is which, and pictures have titles of their own."""
    def line(name: str, quick: bool) -> Line:
        pictures = tuple(Picture(f"{side} of {name}", "x", "y", (Curve("a", [0, 1], [0, 1]),)) for side in ("Left", "Right"))
        return Line(name, "says", "source", Finding("one with two", 0.0, 0.5, "nats", pictures=pictures), 0.1, quick)

    for quick, name in ((False, "kl-bound"), (True, "kl-gal")):
        monkeypatch.setattr("espalier.theory.run.run", lambda *_, quick=quick, name=name: iter([line(name, quick)]))
        assert main(["theory", name, *(["--quick"] if quick else []), "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "theory.json").read_text())
    assert [(claim["name"], claim["quick"]) for claim in kept["claims"]] == [("kl-bound", False), ("kl-gal", True)]
    assert kept["quick"] is True
    page = (tmp_path / "index.html").read_text()
    assert "2 of 2 claims hold (1 of a quick run: fewer draws, smaller grids)" in page
    for said in ("Left of kl-bound", "Right of kl-bound", "Left of kl-gal"):
        assert f"{said}: says" in page
    monkeypatch.setattr("espalier.theory.run.run", lambda *_: iter([line("kl-bound", True)]))
    assert main(["theory", "kl-bound", "--quick", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "theory.json").read_text()) == kept, "what was checked in full stays"


def test_the_list_as_json(capsys) -> None:
    assert main(["theory", "--list", "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert [claim["name"] for claim in claims] == list(theory.catalogue())
    assert set(claims[0]) == {"name", "claim", "source"}
