"""`verify`: everything that must not pass is caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clouds import certified
from espalier import runs, store
from espalier.certificates import certificate
from espalier.certificates.runs import picture
from espalier.certificates.verification import verify
from espalier.cli.main import main
from espalier.pictures import plots


def resigned(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a certificate as someone would who knows how it is signed."""
    facts = store.check_signed(path)
    change(facts)
    store.write_bytes(path.with_suffix(".md"), certificate.page(facts).encode())
    store.write_bytes(path, store.canonical(store.signed(facts)).encode())


def flip_one_bit(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_label(run: Path, rows: str) -> None:
    """Change the label of one example of a part, found by its values."""
    path = run.parent / "clouds.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    data = runs.data_of(run)
    part = getattr(data, rows)
    inputs = arrays["x"].astype(np.float32)
    train = data.train.x  # undo the standardisation by two rows that are known to be the same: compare ranks instead
    assert len(train)
    order = np.argsort(inputs[:, 0])
    everything = np.concatenate(
        [getattr(data, name).x[:, 0].numpy() for name in ("train", "validation", "calibration", "test")]
    )
    row = order[int((everything < float(part.x[0, 0])).sum())]
    arrays["y"][row] = (arrays["y"][row] + 1) % 3
    np.savez(path, **arrays)


def set_alpha(facts: dict[str, Any]) -> None:
    facts["alpha"] = 0.05


def set_alpha_everywhere(facts: dict[str, Any]) -> None:
    facts["alpha"] = facts["asked"]["alpha"] = 0.05
    facts["risks"][0]["alpha"] = facts["looks"][0]["alpha"] = 0.05
    facts["looks"][0]["settings"]["alphas"] = [0.05]
    facts["settings"]["alphas"] = facts["asked"]["settings"]["alphas"] = [0.05]


def swap_split(facts: dict[str, Any]) -> None:
    facts["split"] = "test"
    facts["settings"]["split"] = facts["asked"]["settings"]["split"] = "test"


def swap_split_and_hash(run: Path) -> None:
    own = runs.data_of(run).hashes["test"]

    def change(facts: dict[str, Any]) -> None:
        swap_split(facts)
        facts["hashes"]["calibration split"] = own

    resigned(run / "certificate.json", change)


def claim_more(facts: dict[str, Any]) -> None:
    facts["lambda"] = 0.95


def no_hash_of_the_ticket(run: Path) -> None:
    (run / "pruned.safetensors").write_bytes(b"rubbish")
    resigned(run / "certificate.json", lambda facts: facts["hashes"].pop("pruned"))


def other_assumptions(facts: dict[str, Any]) -> None:
    facts["assumptions"] = ["none"]


def better_risks(facts: dict[str, Any]) -> None:
    facts["observed"][0] = [0.0]


def no_looks(facts: dict[str, Any]) -> None:
    facts["looks"] = []


def in_passing(name: str, value: object) -> Callable[[Path], object]:
    """A circumstance edited, and the page with it."""
    return lambda run: resigned(run / "certificate.json", lambda facts: facts["circumstances"].update({name: value}))


def set_to(name: str, value: object) -> Callable[[Path], object]:
    return lambda run: resigned(run / "certificate.json", lambda facts: facts.update({name: value}))


def no_circumstances(run: Path) -> None:
    """So that there is no page."""
    facts = store.check_signed(run / "certificate.json") | {"circumstances": ["none"]}
    store.write_bytes(run / "certificate.json", store.canonical(store.signed(facts)).encode())


def another_picture(run: Path) -> None:
    """Another picture, with its hash."""
    facts = store.check_signed(run / "certificate.json")
    facts["observed"][0] = [0.001]
    drawn = plots.png(plots.curves(picture(facts)))
    (run / "certificate.png").write_bytes(drawn)
    resigned(run / "certificate.json", lambda own: own["hashes"].update({"picture": store.sha256(drawn)}))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of the ticket": (lambda run: flip_one_bit(run / "pruned.safetensors"), "pruned"),
    "one bit of the fit": (lambda run: flip_one_bit(run / "fit.safetensors"), "run and data"),
    "one label of the calibration split": (lambda run: change_label(run, "calibration"), "run and data"),
    "one label of training": (lambda run: change_label(run, "train"), "run and data"),
    "an edited alpha": (
        lambda run: (run / "certificate.json").write_text(
            (run / "certificate.json").read_text().replace('"alpha": 0.12', '"alpha": 0.05')
        ),
        "text",
    ),
    "an edited alpha, signed again": (lambda run: resigned(run / "certificate.json", set_alpha), "decision"),
    "alpha edited everywhere": (lambda run: resigned(run / "certificate.json", set_alpha_everywhere), "looks"),
    "a swapped split": (lambda run: resigned(run / "certificate.json", swap_split), "data"),
    "a swapped split with its hash": (swap_split_and_hash, "looks"),
    "a bolder lambda": (lambda run: resigned(run / "certificate.json", claim_more), "decision"),
    "a page that promises more": (
        lambda run: (run / "certificate.md").write_text((run / "certificate.md").read_text().replace("0.12", "1e-9")),
        "text",
    ),
    "a ticket without a hash": (no_hash_of_the_ticket, "pruned"),
    "no assumptions": (lambda run: resigned(run / "certificate.json", other_assumptions), "decision"),
    "lower risks": (lambda run: resigned(run / "certificate.json", better_risks), "decision"),
    "no looks": (lambda run: resigned(run / "certificate.json", no_looks), "looks"),
    "no ticket": (lambda run: (run / "pruned.safetensors").unlink(), "pruned"),
    "one bit of the picture": (lambda run: flip_one_bit(run / "certificate.png", 2000), "picture"),
    "no picture": (lambda run: (run / "certificate.png").unlink(), "picture"),
    "another picture, with its hash": (another_picture, "picture"),
    "notes that praise": (in_passing("repeated", "No doubt is possible: 0"), "circumstances"),
    "repeats concealed": (in_passing("repeated", -1), "circumstances"),
    "a sibling that is text": (in_passing("siblings", "no"), "circumstances"),
    "an edited device": (set_to("device", "an audited device"), "circumstances"),
    "an edited run": (set_to("certified_run", "../famous"), "circumstances"),
    "a fact more": (set_to("audited_by", "somebody"), "decision"),
    "circumstances that are none": (no_circumstances, "text"),
    "no ledger": (lambda run: (run / "looks.json").unlink(), "looks"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_verify_catches(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certified(run)
    change, what = TAMPERED[name]
    change(run)
    capsys.readouterr()
    assert main(["verify", str(run / "certificate.json")]) == 1
    out = capsys.readouterr().out
    assert f"FAIL  {what}: " in out
    assert "The certificate does not hold." in out


def test_verify_catches_alpha_edited_in_the_ledger_too(run: Path) -> None:
    certified(run)
    ledger = store.check_signed(run / "looks.json")
    ledger["looks"][0]["alpha"], ledger["looks"][0]["settings"]["alphas"] = 0.05, [0.05]
    store.write_bytes(run / "looks.json", store.canonical(store.signed(ledger)).encode())
    resigned(run / "certificate.json", set_alpha_everywhere)
    failed = [check.what for check in verify(run / "certificate.json") if not check.holds]
    assert failed[0] == "p-values"


def test_a_ticket_that_does_not_follow_from_the_run_is_seen(run: Path) -> None:
    certified(run)
    path = run / "pruned.safetensors"
    bundle = store.read_bundle(path)
    bundle.tensors["values"][0, 0] += 1e-3
    digest = store.write_bundle(path, bundle)

    def change(facts: dict[str, Any]) -> None:
        facts["hashes"]["pruned"] = digest

    resigned(run / "certificate.json", change)
    assert [check.what for check in verify(run / "certificate.json") if not check.holds] == ["tensors"]


# --- What training saw ------------------------------------------------------------------------------------------------
CHEAT = """
\"\"\"Trains on the calibration split too.\"\"\"

import torch

from espalier import Split, Training
from espalier.inference import rigl


def infer(model, data, *, seed=0, training=None, watch=None):
    both = [torch.cat([getattr(data.train, part), getattr(data.calibration, part)]) for part in ("x", "y")]
    fit = rigl.infer(model, data._replace(train=Split(*both)), sparsity=0.5, training=training, seed=seed, watch=watch)
    fit.record["num_data"] = len(data.train.y)
    return fit
"""


def test_retraining_without_the_split_gives_the_fit_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certified(run)
    capsys.readouterr()
    assert main(["verify", str(run), "--retrain"]) == 0
    out = capsys.readouterr().out
    assert "ok    training: run, trained again without calibration and test rows, is equal bit for bit" in out
    assert "that training did not see the split" not in out
    assert "that nobody looked at the split before" in out


def test_an_inference_that_trains_on_the_calibration_split_is_found_by_retraining(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cheat.py").write_text(CHEAT)
    words = ["--model", "mlp", "--hidden", "24", "--inference", str(tmp_path / "cheat.py"), "--epochs", "2"]
    words += ["--data", str(run.parent / "clouds.npz"), "--calibration", "0.5", "--batch-size", "25"]
    assert main(["fit", *words, "--out", str(tmp_path / "cheating")]) == 0
    assert main(["certify", str(tmp_path / "cheating"), "--alpha", "0.5"]) == 0
    assert main(["verify", str(tmp_path / "cheating")]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "cheating"), "--retrain"]) == 1
    assert "FAIL  training: cheating, trained again without calibration and test rows, is another fit" in capsys.readouterr().out


def test_a_sibling_that_the_page_does_not_tell_of_is_pointed_out(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run, run.parent / "sibling")
    assert main(["certify", str(run.parent / "sibling"), "--alpha", "0.12", "--delta", "0.1"]) == 0
    certified(run)
    assert store.check_signed(run / "certificate.json")["circumstances"]["siblings"] == 1
    assert not [check for check in verify(run / "certificate.json") if "certified on these examples by now" in check.says]
    in_passing("siblings", 0)(run)
    said = [check.says for check in verify(run / "certificate.json")]
    assert any(one.startswith("note: 1 other runs beside it are certified on these examples by now") for one in said)
    other = run.parent / "sibling" / "looks.json"
    other.write_text(other.read_text().replace("0.12", "0.13"))
    checks = verify(run / "certificate.json")
    assert any(check.says == "note: a looks.json of another run beside it cannot be read" for check in checks)
    capsys.readouterr()


# --- Whose code is run ------------------------------------------------------------------------------------------------
def test_a_strangers_program_is_not_run_to_verify(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certified(run)
    evil = run / "model.py"
    evil.write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nfrom espalier.models.mlp import model\n")
    config = (run / "config.yaml").read_text().replace("model: mlp", "model: model.py")
    (run / "config.yaml").write_text(config)
    record = store.check_signed(run / "record.json")
    record["programs"] |= {"config.yaml": store.sha256(config.encode()), "model.py": store.sha256(evil.read_bytes())}
    store.write_bytes(run / "record.json", store.canonical(store.signed(record)).encode())
    for words in (["verify", str(run)], ["evaluate", str(run)], ["resume", str(run)], ["certify", str(run), "--alpha", "0.1"]):
        assert main(words) == 2
        assert "expected to be told before code is run" in capsys.readouterr().err
        assert not (tmp_path / "ran").exists()
    assert main(["verify", str(run), "--trust"]) in (0, 1)
    assert (tmp_path / "ran").exists()
