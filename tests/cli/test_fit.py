"""`espalier fit` and `resume`: what a run leaves, whose files train, and one sentence for everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

import espalier
from commands import WAYS, fit, spoken
from espalier import runs, store
from espalier.cli.main import main
from espalier.runs.recipes import resolve
from hashed import hashes
from places import PROGRAM, ROOT
from watches import Killed


def test_a_run_folder_holds_its_recipe_its_fit_and_its_record(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "fit.safetensors", "history.json", "record.json"}
    assert names >= expected | {"evaluation-validation.json", "reliability-validation.png"}
    assert not any(name.startswith((".", "checkpoint")) for name in names - {store.LOCK})
    record = json.loads((run / "record.json").read_text())
    assert record["recipe"]["drop_rate"] == 0.2
    assert record["keep_prob"] == round(65536 * 0.8) / 65536
    assert record["elbo"]["kl"] > 0 > record["elbo"]["log_likelihood"]
    assert set(record["versions"]) >= {"espalier", "torch", "pyro-ppl", "numpy", "python"}
    assert set(record["data"]["hashes"]) == {"train", "validation", "calibration", "test"}
    assert (run / "reliability-validation.png").read_bytes().startswith(b"\x89PNG")


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


WRONG: dict[str, tuple[list[str], str]] = {
    "unknown command": (["fti"], "did you mean 'fit'?"),
    "unknown model": (["--model", "mpl"], "did you mean 'mlp'?"),
    "unknown inference": (["--inference", "cgil"], "did you mean 'cigl'?"),
    "unknown data": (["--data", "digit"], "did you mean digits?"),
    "unknown option": (["--sparsty", "0.5"], "did you mean 'sparsity'?"),
    "option of another inference": (["--inference", "rigl", "--drop-rate", "0.1"], "got --drop-rate"),
    "value out of type": (["--sparsity", "much"], "--sparsity: expected a number, got 'much'"),
    "value out of choice": (["--rule", "riggl"], "--rule: Expected a Literal"),
    "sparsity of one": (["--sparsity", "1"], r"sparsity in [0, 1)"),
    "negative sparsity": (["--sparsity=-0.1"], r"sparsity in [0, 1)"),
    "a layer too small": (["--hidden", "4", "--sparsity", "0.999"], "at least one active weight in every layer"),
    "all weights masked away": (["--drop-rate", "1"], "expected a drop_rate in [0, 1)"),
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
    "several words for one": (["--epochs", "3", "4"], "expected one value for --epochs, got 3 4"),
    "several words for a list": (["--hidden", "300", "100"], "got 300 100: write --hidden [300,100]"),
    "a layer too large for anything": (["--hidden", "99999999999999999999"], "--hidden: expected a number below 1e+09"),
    "a word of no option": (["digits", "--epochs", "3"], "expected one value for --model, got mlp digits"),
    "a part of a name": (["--model.x", "1"], "got --model.x: did you mean 'model'?"),
    "a list to go on with": (["--maskable+", "x"], "got --maskable+: did you mean 'maskable'?"),
    "two dashes": (["--data-dir=--"], "expected a value for --data-dir, got --"),
    "two dashes for the run": (["--out=--"], "expected a value for --out, got --"),
    "sixty seconds": (["--seed", "1:30"], "--seed: expected a whole number, got '1:30'"),
    "a number in Python's words": (["--epochs", "1_000"], "--epochs: expected a whole number, got '1_000'"),
    "yes": (["--rescale=yes"], "--rescale: expected true or false, got 'yes'"),
    "no rate": (["--drop-rate", "best"], "--drop-rate: expected a number or auto or auto-kind or auto-layer, got 'best'"),
    "not a number": (["--drop-rate", ".nan"], "--drop-rate: expected a number below 1e+38, got .nan"),
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


def test_an_inference_of_ones_own_may_leave_the_loop_to_itself(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from espalier import Training, load_program\n\n\ndef infer(model, data, *, sparsity: float = 0.5, seed: int = 0):\n"
        "    return load_program('inference', 'cigl')(model, data, sparsity=sparsity, training=Training(epochs=2), seed=seed)\n"
    )
    words = ["--model", "mlp", "--hidden", "8", "--inference", str(mine), "--data", "digits", "--out", str(tmp_path / "run")]
    assert main(["fit", *words]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_a_program_that_does_not_run_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"syntax": "def model(:", "imports": "import nowhere_at_all", "entry": "x = 1", "leaves": "import sys; sys.exit(0)"}
    for name, text in broken.items():
        (tmp_path / f"{name}.py").write_text(text)
        words = ["fit", "--model", str(tmp_path / f"{name}.py"), "--inference", "cigl", "--data", "digits"]
        assert str(tmp_path) in spoken(capsys, [*words, "--out", str(tmp_path / "run")])


def test_bad_labels_and_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    broken: dict[str, dict[str, Any]] = {
        "finite": {"x": np.where(np.arange(150).reshape(50, 3) == 33, np.nan, x), "y": np.arange(50) % 3},
        "label": {"x": x, "y": np.arange(50) * 1j},
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
    before = hashes(run)
    assert fit(run) == 2
    assert "expected a new folder" in capsys.readouterr().err
    assert before == hashes(run)


def test_named_sets_that_have_moved_are_found_by_resume_and_distil(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, rng = tmp_path / "old", tmp_path / "new", np.random.default_rng(0)
    (old / "uci").mkdir(parents=True)
    x, rows = rng.standard_normal((120, 6)), rng.permutation(120)
    np.savez(old / "uci" / "energy.npz", x=x, y=x[:, 0], train=rows[None, :108], test=rows[None, 108:])
    words = ["--model=mlp", "--hidden=[8]", "--inference=cigl", "--data=energy", "--likelihood=normal", f"--data-dir={old}",
             "--drop-rate=0.1", "--epochs=2", "--delta-t=1", "--device=cpu"]  # fmt: skip
    recipe = resolve(words)
    with pytest.raises(KeyboardInterrupt):
        runs.start(recipe, tmp_path / "run", Killed(epoch=1), every=0)
    old.rename(new)
    assert main(["resume", str(tmp_path / "run")]) == 2
    assert "energy" in capsys.readouterr().err
    moved = ["--data-dir", str(new)]
    assert main(["resume", str(tmp_path / "run"), *moved]) == 0
    assert len(espalier.load(tmp_path / "run").history) == 2
    assert main(["distil", str(tmp_path / "run"), "--out", str(tmp_path / "taught"), "--epochs", "1", *moved]) == 0
    assert "distilled" in capsys.readouterr().out
