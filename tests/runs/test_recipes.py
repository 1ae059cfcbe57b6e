"""Recipes: programs and options from words and YAML, checked alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import spoken
from espalier import shelf
from espalier.runs import recipes
from places import ROOT


def test_every_option_of_every_program_says_what_it_is() -> None:
    for model in shelf.names("models"):
        for inference in shelf.names("inference"):
            assert [option.name for option in recipes.options(model, inference) if not option.help] == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("optimizer: adamw", "--optimizer"), ("epochs: abc", "--epochs"), ("rescale: 3", "rescale"), ("sparsty: 0.5", "sparsity"),
     ("5: 3", "expected words for the names in"), ("~: 3", "got None"), ("no: 3", "got 'no'"), ("2020-01-01: 3", "'2020_01_01'"),
     ("epochs: 1\nepochs: 2", "'epochs' stands twice (line 5)"), ("drop-rate: 0.1\ndrop_rate: 0.2", "every option once"),
     ("seed: 1:30", "--seed: expected a whole number, got '1:30'"), ("init: {a: 1}", "--init: expected one value"),
     ("sparsity: true", "--sparsity: expected a number, got 'true'"), ("rescale: yes", "--rescale: expected true or false")],
)
def test_a_recipe_file_is_checked_as_the_command_line_is(
    line: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"model: mlp\ninference: cigl\ndata: digits\n{line}\n")
    words = ["fit", "--config", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    assert sentence in spoken(capsys, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--hidden", "8,4"], ["--hidden=8,4"], ["--hidden", "[8, 4]"]])
def test_several_values_are_written_with_commas(words: list[str]) -> None:
    parts = ["--model", "logistic", "--model", "mlp", "--inference", "cigl", "--data", "digits"]  # the last one counts
    recipe = recipes.resolve([*parts, *words, "--maskable", "*.weight,1.*"])
    assert recipe.model == "mlp"
    assert recipe.options["hidden"] == (8, 4)
    assert recipe.options["maskable"] == ["*.weight", "1.*"]


def test_two_options_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text().replace("likelihood: str", "momentum: float = 1, likelihood: str"))
    words = ["fit", "--model", str(mine), "--inference", "cigl", "--data", "digits", "--out", str(tmp_path / "run")]
    assert "'momentum' belongs to" in spoken(capsys, words)


def test_a_recipe_means_what_the_command_line_means(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    lines = "drop-rate: 1e-1\nseed: 010\nrescale: false\nhidden: 0x20\nweight_decay: ~\ndata_dir: no"
    path.write_text(f"model: mlp\ninference: cigl\ndata: digits\n{lines}\n")
    options = recipes.resolve(["--config", str(path)]).options
    wanted = {"drop_rate": 0.1, "seed": 10, "rescale": False, "hidden": (32,), "weight_decay": None, "data_dir": "no"}
    assert {name: options[name] for name in wanted} == wanted
    words = ["--drop-rate", "1e-1", "--seed", "010", "--no-rescale", "--hidden", "0x20", "--data-dir", "no"]
    assert recipes.resolve(["--model", "mlp", "--inference", "cigl", "--data", "digits", *words]).options == options
    assert recipes.resolve(["--config", str(path), "--rescale=true"]).options["rescale"] is True


@pytest.mark.parametrize(
    "option",
    ["clip: float = float('inf')", "clip: float = float('nan')", "heads: dict = {}", "limit: int = 2**31", "opt: set = {1}",
     "raw: bytes = b'x'", "act=torch.nn.ReLU", "place=pathlib.Path('x')", "how: Unknown = 1"],
)
def test_a_program_whose_options_no_file_can_hold_is_refused_before_any_work(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nimport pathlib\nimport torch\nfrom espalier import BayesianNetwork\n"
        f"def model(shape, num_outputs, *, {option}):\n"
        "    return BayesianNetwork(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs)))\n"
    )
    words = ["fit", "--model", str(tmp_path / "own.py"), "--inference", "rigl", "--data", "digits", "--train-size", "160"]
    told = spoken(capsys, [*words, "--epochs", "2", "--delta-t", "1", "--out", str(tmp_path / "run")])
    assert "expected" in told
    assert not (tmp_path / "run").exists()
