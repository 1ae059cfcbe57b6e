"""Claims about `espalier distil`: it ends where the training that distils from the start ends, learns from several runs and from
others than masked ones, and refuses what is one network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from espalier import runs, store
from espalier.certificates.verification import retrained
from espalier.cli.main import main
from espalier.runs.recipes import resolve
from espalier.training import Training, distill

pytestmark = pytest.mark.usefixtures("own_store")
WORDS = ["--data=digits", "--train-size=160", "--epochs=4", "--batch-size=16", "--delta-t=6", "--bn-batches=3", "--device=cpu",
         "--learning-rate=0.05", "--augment=crop-flip", "--average-from=0.5", "--freeze=0.5", "--seed=3"]  # fmt: skip
MLP = ["--model=mlp", "--hidden=[24]"]
CONVOLUTIONS = ["--model=wide_resnet", "--depth=10", "--widen=1"]


@pytest.mark.parametrize("words", [
    [*MLP, "--mask=unit", "--drop-rate=0.3", "--rescale"], [*MLP], [*CONVOLUTIONS, "--drop-rate=0.1"],
], ids=["units", "auto", "batch norm"])  # fmt: skip
def test_it_ends_as_a_training_that_distils_from_the_start(words: list[str], tmp_path: Path) -> None:
    assert main(["fit", "--inference=cigl", *words, *WORDS, "--out", str(tmp_path / "plain")]) == 0
    later = ["--out", str(tmp_path / "later"), "--epochs=2", "--rate=0.1", "--masks=2"]
    assert main(["distil", str(tmp_path / "plain"), *later]) == 0
    taught = ["--inference=distilled", "--distill-epochs=2", "--distill-rate=0.1", "--distill-masks=2"]
    assert main(["fit", *taught, *words, *WORDS, "--out", str(tmp_path / "whole")]) == 0
    for name in ("fit.safetensors", "history.json", "config.yaml"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    records = [store.check_signed(tmp_path / name / "record.json") for name in ("later", "whole")]
    assert records[0] == records[1]


def test_a_run_that_has_a_student_can_be_taught_anew(tmp_path: Path) -> None:
    runs.start(resolve(["--inference=distilled", *MLP, "--drop-rate=0.2", *WORDS]), tmp_path / "first")
    before = (tmp_path / "first" / "fit.safetensors").read_bytes()
    fit = runs.distil(tmp_path / "first", tmp_path / "anew", epochs=1)
    assert "distilled" in runs.load(tmp_path / "anew").ways
    assert fit.record["distilled"]["epochs"] == 1
    assert (tmp_path / "first" / "fit.safetensors").read_bytes() == before


def test_several_runs_teach_one_net_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wider dense one, and one of a mean field among them."""
    made = {
        "first": ["--inference=cigl", "--drop-rate=0.2", *MLP], "wide": ["--inference=dense", "--model=mlp", "--hidden=[32,16]"],
        "field": ["--inference=mean_field", *MLP],
    }  # fmt: skip
    for name, words in made.items():
        own = [word for word in WORDS if name != "wide" or word.split("=")[0] not in ("--delta-t", "--average-from", "--freeze")]
        runs.start(resolve([*words, *own]), tmp_path / name)
    every = [str(tmp_path / name) for name in made]
    assert main(["distil", *every, "--out", str(tmp_path / "new"), "--epochs=2"]) == 0
    fit, first = runs.load(tmp_path / "new"), runs.load(tmp_path / "first")
    assert torch.equal(fit.topology.positions, first.topology.positions)
    assert torch.equal(fit.pairs.values, first.pairs.values)
    assert "distilled" in fit.ways
    wanted = [{"run": name, "record": store.sha256((tmp_path / name / "record.json").read_bytes())} for name in made]
    assert fit.record["distilled"]["teachers"] == wanted
    assert fit.record["recipe"] == first.record["recipe"]
    assert main(["evaluate", str(tmp_path / "new"), "--num-samples=2", "--json"]) == 0
    check = retrained(tmp_path / "new", (None, None))
    assert not check.holds
    assert "was taught by first, wide, field, which is in no recipe" in check.says
    capsys.readouterr()
    assert main(["distil", every[0], every[0], "--out", str(tmp_path / "twice")]) == 2
    assert "expected members of an ensemble that differ, got one twice" in capsys.readouterr().err
    elsewhere = [word for word in WORDS if "average" not in word]
    runs.start(resolve(["--inference=rigl", *MLP, *elsewhere, "--split-seed=4"]), tmp_path / "other")
    assert main(["distil", every[0], str(tmp_path / "other"), "--out", str(tmp_path / "twice")]) == 2
    assert "trained on the same data, got other rows or splits in member 2" in capsys.readouterr().err
    assert not (tmp_path / "twice").exists()


def test_a_chain_teaches_by_its_states(tmp_path: Path) -> None:
    words = [word for word in WORDS if word.split("=")[0] not in ("--delta-t", "--freeze")]
    runs.start(resolve(["--inference=sghmc", "--sparsity=0.5", *MLP, *words]), tmp_path / "chain")
    fit = runs.distil(tmp_path / "chain", tmp_path / "new", epochs=1)
    assert runs.recipe_in(tmp_path / "new").inference == "sghmc"
    assert [one["run"] for one in fit.record["distilled"]["teachers"]] == ["chain"]


def test_rows_without_labels_are_learnt_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the call from Python has it; and none that are held out, nor another network's."""
    first = tmp_path / "first"
    runs.start(resolve(["--inference=cigl", "--drop-rate=0.2", *MLP, *WORDS]), first)
    data, rng = runs.data_of(first), np.random.default_rng(0)
    shown = rng.integers(0, 17, (40, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "more.npz", x=shown, y=np.arange(40))
    words = ["distil", str(first), "--epochs=2", "--masks=2", "--inputs"]
    assert main([*words, str(tmp_path / "more.npz"), "--out", str(tmp_path / "new")]) == 0
    found, expected = runs.load(tmp_path / "new"), runs.load(first)
    training = Training(**runs.recipe_in(first).of("training"))
    distill(expected, data, training=training, seed=3, epochs=2, learning_rate=0.02, masks=2, inputs=data.inputs(shown[:, None]))
    assert torch.equal(found.student[0], expected.student[0])
    told = found.record["distilled"]
    assert told["inputs"] == [{"file": "more.npz", "rows": "40", "hash": told["inputs"][0]["hash"]}]
    assert [one["run"] for one in told["teachers"]] == ["first"]
    assert found.record["recipe"] == runs.load(first).record["recipe"]
    assert "was taught by first on 40 rows of more.npz too" in retrained(tmp_path / "new", (None, None)).says
    capsys.readouterr()
    mean, sd = data.input_scale
    np.savez(tmp_path / "held.npz", x=(data.test.x[:, 0].double() * sd + mean).round().byte().numpy())
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 9)))
    for file, sentence in (("held", "rows of the test split are among them: leave them out"), ("wide", "expected rows of shape")):
        assert main([*words, str(tmp_path / f"{file}.npz"), "--out", str(tmp_path / "refused")]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "refused").exists()


def test_what_cannot_be_distilled_is_refused_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {
        "rigl": (["--inference=rigl"], "expected a drop_rate above 0, or several runs: without random masks there is one"),
        "pruned": (["--inference=cigl", "--rule=one-shot", "--drop-rate=0.2"], "but rule is one-shot"),
        "tempered": (["--inference=cigl", "--kl-scale=0.5", "--drop-rate=0.2"], "but kl_scale is 0.5"),
        "good": (["--inference=cigl", "--drop-rate=0.2"], ""),
    }
    new = ["--out", str(tmp_path / "new")]
    for name, (words, sentence) in made.items():
        own = [word for word in WORDS if "average" not in word or name != "rigl"]
        runs.start(resolve([*words, *MLP, *own]), tmp_path / name)
        if sentence:
            assert main(["distil", str(tmp_path / name), *new]) == 2
            assert sentence in capsys.readouterr().err
    said = {"--epochs=-1": "whole distill_epochs", "--rate=0": "a rate above 0", "--masks=-1": "distill_masks of 0"}
    for word, sentence in said.items():
        assert main(["distil", str(tmp_path / "good"), word, *new]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["distil", str(tmp_path), *new]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["distil", str(tmp_path / "good"), "--out", str(tmp_path / "rigl")]) == 2
    assert "expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("last", ["teachers.json", "config.yaml", "fit.safetensors", "history.json"])
def test_killed_it_is_begun_again_and_not_taken_for_its_first_run(
    last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = [tmp_path / name for name in ("a", "b")]
    for place, folder in enumerate(every):
        words = [word for word in WORDS if "seed" not in word]
        runs.start(resolve(["--inference=cigl", "--drop-rate=0.2", *MLP, *words, f"--seed={place}"]), folder)
    np.savez(tmp_path / "more.npz", x=np.random.default_rng(0).integers(0, 17, (20, 8, 8)).astype(np.uint8))
    inputs = tmp_path / "more.npz"
    whole = runs.distil(every[0], tmp_path / "whole", others=every[1:], epochs=1, inputs=inputs)
    real = store.write_bytes

    def killed(path: Path, data: bytes) -> None:
        real(path, data)
        if path.name == last:
            raise KeyboardInterrupt

    new = tmp_path / "new"
    monkeypatch.setattr(store, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.distil(every[0], new, others=every[1:], epochs=1, inputs=inputs)
    monkeypatch.undo()
    sentence = "but a b were teaching that in .*new when it was cut off: `espalier distil` them into it once more"
    for refused in (lambda: runs.resume(new), lambda: runs.load(new), lambda: runs.distil(every[0], new, epochs=1),
                    lambda: runs.distil(every[0], new, others=every[1:], epochs=1),
                    lambda: runs.distil(every[1], new, others=every[:1], epochs=1)):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            refused()
    assert main(["resume", str(new)]) == 2
    assert "a b were teaching" in capsys.readouterr().err
    runs.distil(every[0], new, others=every[1:], epochs=1, inputs=inputs)
    assert (new / "fit.safetensors").read_bytes() == (tmp_path / "whole" / "fit.safetensors").read_bytes()
    assert not (new / "teachers.json").exists()
    assert runs.load(new).record["distilled"] == whole.record["distilled"]
