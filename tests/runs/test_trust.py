"""Claims about espalier.runs.trust: whose code is run, and whose is not."""

from __future__ import annotations

import py_compile
from pathlib import Path

import pytest

import espalier
from espalier import runs, shelf, store
from espalier.cli.main import main
from espalier.runs import trust
from espalier.runs.recipes import resolve

WORDS = ["--inference", "static", "--data", "digits", "--epochs", "1", "--sparsity", "0.5"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who never ran anything."""
    monkeypatch.setenv("ESPALIER_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A model of one's own that tells when it is run."""
    path = tmp_path / "own.py"
    ran = f"with open({str(tmp_path / 'ran')!r}, 'a') as file:\n    file.write('x')\n"
    path.write_text(f"{ran}from espalier.models.logistic import model\n")
    return path


def times(program: Path) -> int:
    ran = program.parent / "ran"
    return len(ran.read_text()) if ran.exists() else 0


def a_stranger(state: Path) -> None:
    """Forget what was run."""
    for mark in (state / "trusted").iterdir():
        mark.unlink()


def test_a_program_that_is_named_is_run_and_its_run_needs_no_flag(program: Path, tmp_path: Path, state: Path) -> None:
    run = tmp_path / "run"
    assert main(["fit", "--model", str(program), *WORDS, "--out", str(run)]) == 0
    assert times(program) >= 1
    assert main(["evaluate", str(run)]) == 0
    espalier.load(run)
    assert [path.name for path in (state / "trusted").iterdir()] == [store.sha256(program.read_bytes())]


def test_a_strangers_run_is_loaded_only_when_told(program: Path, tmp_path: Path, state: Path) -> None:
    run = tmp_path / "run"
    runs.start(resolve(["--model", str(program), *WORDS]), run)
    a_stranger(state)
    before = times(program)
    for use in (lambda: espalier.load(run), lambda: runs.data_of(run), lambda: runs.recipe_in(run), lambda: runs.resume(run)):
        with pytest.raises(trust.Untrusted, match=r"run/config.yaml names: .*run/model.py was not run here by you.*--trust"):
            use()
    assert times(program) == before
    espalier.load(run, trust=True)
    espalier.load(run)  # remembered


def test_recipes_and_grids_may_not_bring_their_code_along(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text("model: own.py\ninference: static\ndata: digits\nepochs: 1\nsparsity: 0.5\n")
    (tmp_path / "grid.yaml").write_text(
        "base: {data: digits, model: own.py, epochs: 1}\nsparsities: [0.5]\nmethods: {static: {run: {inference: static}}}\n"
    )
    recipe = ["fit", "--config", str(tmp_path / "recipe.yaml"), "--print-config"]
    grid = ["compare", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--dry-run"]
    for words in (recipe, grid, ["fit", "--config", str(tmp_path / "recipe.yaml"), "--help"]):
        assert main(words) == 2
        assert "own.py was not run here by you" in capsys.readouterr().err
    assert times(program) == 0
    assert main([*grid, "--trust"]) == 0
    assert main(recipe) == 0  # remembered
    program.write_text(program.read_text() + "# another\n")
    assert main(recipe) == 2  # as it is now
    assert main(["fit", "--model", str(program), *WORDS, "--print-config"]) == 0  # named
    assert main(recipe) == 0


def test_a_program_of_no_other_name_is_a_program_too(
    program: Path, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".py").write_bytes(program.read_bytes())
    (tmp_path / "recipe.yaml").write_text("model: .py\ninference: static\ndata: digits\nepochs: 1\nsparsity: 0.5\n")
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--model="]):
        assert main(["fit", "--config", "recipe.yaml", *more, "--print-config"]) == 2
        assert ".py was not run here by you" in capsys.readouterr().err
    assert times(program) == 0


def test_a_run_names_no_program_outside_itself_and_none_unlisted(program: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    runs.start(resolve(["--model", str(program), *WORDS]), run)
    config = run / "config.yaml"
    written = config.read_text()
    for name in ("../own.py", str(program), "inference.py"):
        config.write_text(written.replace("model: model.py", f"model: {name}"))
        with pytest.raises(ValueError, match=r"to name model.py for its model, got .*: it was altered"):
            runs.recipe_in(run)
    config.write_text(written)
    (run / "inference.py").write_text("")
    with pytest.raises(ValueError, match="but inference.py was put there later"):
        espalier.load(run)


def test_what_is_run_is_the_text_and_no_compiled_file_beside_it(program: Path, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise AssertionError('compiled code was run')\n")
    cache = Path(py_compile.compile(str(evil), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH) or "")
    cache.rename(cache.with_name(cache.name.replace("evil", "own")))
    assert callable(shelf.load("models", str(program)))
    assert times(program) == 1


def test_without_a_place_to_remember_it_asks_each_time(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ESPALIER_STATE", str(tmp_path / "file" / "state"))
    trust.remember(program)
    with pytest.raises(trust.Untrusted):
        trust.check(program, Path("recipe.yaml"))
    with trust.told():
        trust.check(program, Path("recipe.yaml"))


def test_marks_lie_where_the_system_keeps_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPALIER_STATE")
    assert trust.state_folder().name == "espalier"
    assert trust.state_folder().is_absolute()
