"""`espalier certify` and `espalier verify`: from a run to its certificate and back, and everything that must not pass."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import runs, store
from espalier.certificates import certificate, pvalues
from espalier.certificates.certificate import Promise
from espalier.certificates.certify import Settings, certify_fit, certify_fits, check_unseen
from espalier.certificates.pruning import Frozen, layerwise
from espalier.certificates.risks import named
from espalier.certificates.runs import load_pruned
from espalier.certificates.verification import verify
from espalier.cli.main import main
from espalier.contracts import Split

WORDS = ["--alpha", "0.12", "--delta", "0.1", "--step", "0.05"]


def write_data(path: Path, seed: int = 0) -> None:
    """Three overlapping clouds, 1,600 rows, of which 200 are test rows."""
    rng = np.random.default_rng(seed)
    y = np.arange(1600) % 3
    x = rng.normal(size=(1600, 8)) + 3.2 * np.eye(8)[y]
    np.savez(path, x=x, y=y, test=np.arange(1400, 1600))


def fit(folder: Path, name: str, *words: str) -> Path:
    own = [
        "--model",
        "mlp",
        "--hidden",
        "24,16",
        "--inference",
        "cigl",
        "--data",
        str(folder / "clouds.npz"),
        "--calibration",
        "0.5",
    ]
    own += [
        "--epochs",
        "12",
        "--batch-size",
        "25",
        "--delta-t",
        "20",
        "--sparsity",
        "0.5",
        "--drop-rate",
        "0.1",
        *words,
    ]
    assert main(["fit", *own, "--out", str(folder / name)]) == 0
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certify")
    write_data(made / "clouds.npz")
    fit(made, "run")
    return made


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that no one has looked at, with data of its own beside it."""
    shutil.copy(folder / "clouds.npz", tmp_path / "clouds.npz")
    shutil.copytree(folder / "run", tmp_path / "run")
    text = (
        (tmp_path / "run" / "config.yaml").read_text().replace(str(folder / "clouds.npz"), str(tmp_path / "clouds.npz"))
    )
    (tmp_path / "run" / "config.yaml").write_text(text)
    record = store.check_signed(tmp_path / "run" / "record.json")
    record["programs"]["config.yaml"] = store.sha256(text.encode())
    store.write_bytes(tmp_path / "run" / "record.json", store.canonical(store.signed(record)).encode())
    return tmp_path / "run"


def certified(run: Path, *words: str) -> dict[str, Any]:
    levels = WORDS[2:] if "--abstain" in words else WORDS
    assert main(["certify", str(run), *levels, *words]) == 0
    found: dict[str, Any] = json.loads((run / "certificate.json").read_text())
    return found


def test_a_run_is_pruned_as_far_as_its_calibration_split_certifies(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = certified(run)
    assert "With confidence 0.9 over the draw of 700 calibration examples" in capsys.readouterr().out
    text = (run / "certificate.json").read_text()
    assert text == json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert (facts["alpha"], facts["delta"], facts["n"]) == (0.12, 0.1, 700)
    data, whole = runs.data_of(run), runs.load(run)
    labels = data.calibration.y.numpy()
    place = facts["rejected"][-1]
    assert facts["rejected"] == list(range(place + 1))
    assert facts["lambda"] == facts["grid"][place] > 0.2
    pruned = load_pruned(run)
    assert facts["chosen"]["num_active"] == pruned.topology.num_active
    assert pruned.topology.num_active == whole.topology.num_active - round(facts["lambda"] * whole.topology.num_active)
    errors = int((pruned.predict(data.calibration.x).argmax(1) != labels).sum())
    assert facts["p_values"][place] == float(pvalues.binomial(errors, 700, 0.12)) <= 0.1 < facts["p_values"][place + 1]
    assert facts["p_values"][place + 2 :] == [None] * (len(facts["grid"]) - place - 2)
    page = (run / "certificate.md").read_text()
    for said in ("# Certificate", "## Assumptions", "certified |", facts["hashes"]["pruned"], "independent"):
        assert said in page
    assert (run / "certificate.png").stat().st_size > 5000
    assert facts["help"][0]["lambda"] == facts["grid"][place + 1]
    assert main(["verify", str(run / "certificate.json")]) == 0
    assert "The certificate holds." in capsys.readouterr().out


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
    looks = store.read_json(run / "looks.json")
    looks[0]["alpha"], looks[0]["settings"]["alphas"] = 0.05, [0.05]
    store.write_bytes(run / "looks.json", store.canonical(looks).encode())
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


def test_a_second_question_to_the_same_split_is_refused_or_declared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = certified(run)
    assert certified(run) == first  # the same question has the same answer
    assert main(["certify", str(run), *WORDS, "--delta", "0.2"]) == 2
    assert "expected a first look at the calibration split" in capsys.readouterr().err
    assert main(["certify", str(run), *WORDS, "--by", "snr", "--out", str(run / "elsewhere")]) == 2
    assert not (run / "certificate-2.json").exists()
    assert main(["certify", str(run), *WORDS, "--delta", "0.2", "--again"]) == 0
    second = json.loads((run / "certificate-2.json").read_text())
    assert [look["delta"] for look in second["looks"]] == [0.1, 0.2]
    assert "**Look 2 at this calibration split.**" in (run / "certificate-2.md").read_text()
    later = verify(run / "certificate.json")[-1]
    assert later.what == "later looks"
    assert "looked at 2 times by now" in later.says
    assert "at least 0.7 = 1 - the sum of their deltas" in " ".join((run / "certificate-2.md").read_text().split())
    assert json.loads((run / "certificate.json").read_text()) == first
    assert main(["verify", str(run / "certificate-2.json")]) == 0
    assert main(["certify", str(run), *WORDS, "--split", "test"]) == 0  # other examples: a first look


def test_nothing_certified_is_written_down_with_what_would_help(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", str(run), "--alpha", "0.01", "--step", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Nothing certified: that classification error is at most 0.01 could not be shown")
    assert "on a fresh calibration set, would" in out
    facts = json.loads((run / "certificate.json").read_text())
    assert facts["lambda"] is None
    assert facts["rejected"] == []
    assert facts["help"][0]["lambda"] == 0
    assert not (run / "pruned.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="nothing was certified there"):
        load_pruned(run)
    assert main(["verify", str(run / "certificate.json")]) == 0


REFUSED = {
    "seed": (["--alpha", "0.1", "--seed", "-1"], "expected a seed of 0 or more"),
    "draws": (["--alpha", "0.1", "--num-samples", "0"], "num_samples of 1 or more"),
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
    "two alphas": (["--alpha", "0.1", "--alpha", "0.2"], "expected an alpha for every risk, got 1 risks and 2 alphas"),
    "training": (["--alpha", "0.1", "--split", "train"], "train guided training or a choice"),
    "validation": (["--alpha", "0.1", "--split", "validation"], "validation guided training or a choice"),
    "unknown risk": (["--alpha", "0.1", "--risk", "loss"], "expected a risk of error"),
    "alpha": (["--alpha", "1.5"], r"expected alpha in (0, 1) for error, got 1.5"),
    "delta": (["--alpha", "0.1", "--delta", "0"], "expected delta in (0, 1), got 0"),
    "step": (["--alpha", "0.1", "--step", "0"], "expected a step in (0, 1), got 0"),
    "anchor": (["--alpha", "0.1", "--anchor", "0.1", "0.1"], "expected risk disagreement alone with an anchor"),
    "way": (["--alpha", "0.1", "--predict", "distilled"], "expected one of ticket"),
    "by": (["--alpha", "0.1", "--by", "size"], "expected by of magnitude"),
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


def test_examples_that_training_has_seen_are_refused(run: Path) -> None:
    data = runs.data_of(run)
    assert check_unseen(data, data.calibration) == 0
    few = torch.cat([data.calibration.x[:-5], data.train.x[:5]])  # 5 of 700: said, not refused
    assert check_unseen(data, Split(few, data.calibration.y)) == 5
    many = torch.cat([data.calibration.x[:-20], data.validation.x[:20]])
    with pytest.raises(ValueError, match="20 of 700 inputs are training or validation inputs"):
        check_unseen(data, Split(many, data.calibration.y))
    with pytest.raises(ValueError, match="a certificate would be worthless"):
        certify_fit(runs.load(run), data.train, Settings(alphas=(0.12,)), data)


VARIANTS: dict[str, list[str]] = {
    "two risks": ["--risk", "error", "--risk", "brier", "--alpha", "0.15"],
    "label-free with an anchor": ["--risk", "disagreement", "--anchor", "0.12", "0.05"],
    "gap": ["--risk", "gap"],
    "selective": ["--risk", "selective:0.6"],
    "prediction sets": ["--risk", "miscoverage:0.95"],
    "calibration error": ["--risk", "ece", "--delta", "0.3"],
    "monte carlo": ["--predict", "redraw", "--num-samples", "4"],
    "channels": ["--structure", "channels"],
    "snr": ["--by", "snr", "--procedure", "multi-start"],
    "inclusion": ["--by", "inclusion", "--procedure", "holm"],
    "biases": ["--biases", "--procedure", "bonferroni"],
    "anytime": ["--test", "anytime"],
    "pruning x abstention": ["--abstain", "0.4", "0.6", "0.8", "--alpha", "0.06"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_certificate_is_verified(name: str, run: Path) -> None:
    facts = certified(run, *VARIANTS[name])
    assert facts["lambda"] is not None
    checks = verify(run / "certificate.json")
    assert [check.what for check in checks if not check.holds] == []
    if name == "label-free with an anchor":
        data = runs.data_of(run)
        wrong = int((runs.load(run).predict(data.calibration.x)[0].argmax(1) != data.calibration.y).sum())
        assert facts["anchor"]["p_value"] == float(pvalues.binomial(wrong, 700, 0.12))
        assert facts["anchor"]["certified"]
    if name == "pruning x abstention":
        place = facts["rejected"][0]
        assert facts["grid"].count(facts["lambda"]) == 3
        assert facts["threshold"] in (0.4, 0.6, 0.8)
        assert [entry["name"] for entry in facts["risks"]] == [f"selective:{facts['threshold']:g}"]
        assert f"confidence {facts['threshold']:g} or more is at most 0.06" in certificate.sentence(facts)
        assert facts["p_values"][facts["order"][0]] <= 0.1
        assert place in facts["order"]
        assert "answers from confidence" in (run / "certificate.md").read_text()
        data, pruned = runs.data_of(run), load_pruned(run)
        probs = pruned.predict(data.test.x)
        taken = probs.max(1) >= facts["threshold"]
        assert (probs.argmax(1) != data.test.y.numpy())[taken].mean() < 0.1


def test_covariate_shift_by_known_weights(run: Path) -> None:
    data = runs.data_of(run)
    weights = np.where(data.calibration.x[:, 0].numpy() > 0, 1.5, 0.5)
    np.save(run.parent / "weights.npy", weights)
    facts = certified(run, "--weights", str(run.parent / "weights.npy"), "--weight-bound", "1.5")
    probs = load_pruned(run).predict(data.calibration.x)
    losses = weights * named("error").losses(probs, data.calibration.y.numpy(), probs)
    place = facts["rejected"][-1]
    order = np.random.default_rng(0).permutation(700)
    assert facts["observed"][place][0] == pytest.approx(losses.mean())
    assert facts["p_values"][place] == pytest.approx(float(pvalues.wsr(losses[order], 0.12, 0.1, 1.5)))
    assert verify(run / "certificate.json")[-1].holds
    np.save(run.parent / "weights.npy", weights[::-1].copy())
    assert not all(check.holds for check in verify(run / "certificate.json"))
    again = ["certify", str(run), *WORDS, "--weights", str(run.parent / "weights.npy"), "--weight-bound", "1.5"]
    assert main(again) == 2  # other weights are another question


@pytest.mark.parametrize(
    ("weights", "bound", "sentence"),
    [
        (np.zeros(700), 2.0, "expected weights of mean 1, as dQ/dP has, got 0 over 700"),
        (np.full(700, 0.05), 2.0, "expected weights of mean 1"),
        (np.ones(700), 0.5, "expected a weight_bound of 1 or more, got 0.5"),
        (np.ones(699), 2.0, "expected a finite weight for each of 700 calibration examples"),
        (np.ones((700, 1)), 2.0, "expected a finite weight for each of"),
        (np.full(700, np.nan), 2.0, "expected a finite weight for each of"),
        (np.repeat([0.5, 3.0], [560, 140]), 2.0, "expected weights in [0, 2], got 0.5..3"),
    ],
)
def test_weights_that_are_no_density_ratio_are_refused_before_any_look(
    weights: np.ndarray, bound: float, sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(run.parent / "w.npy", weights)
    words = ["certify", str(run), *WORDS, "--weights", str(run.parent / "w.npy"), "--weight-bound", str(bound)]
    assert main(words) == 2
    assert sentence in capsys.readouterr().err
    assert not (run / "looks.json").exists()
    anchored = [*words, "--risk", "disagreement", "--anchor", "0.1", "0.1"]
    assert main(anchored) == 2


def test_a_ready_family_of_runs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        fit(folder, f"sparse{level}", "--sparsity", level, "--drop-rate", "0", "--epochs", "6")
        for level in ("0.8", "0.0", "0.95")
    ]
    words = ["certify", *map(str, names), *WORDS, "--predict", "unmasked", "--out", str(tmp_path / "chosen")]
    assert main(words) == 0
    facts = json.loads((tmp_path / "chosen" / "certificate.json").read_text())
    np.testing.assert_allclose(facts["grid"], [0.0, 0.8, 0.95], atol=0.01)
    assert facts["rejected"] == list(range(len(facts["rejected"])))
    assert facts["lambda"] in facts["grid"]
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "chosen" / "certificate.json")]) == 0
    chosen = load_pruned(tmp_path / "chosen")
    (own,) = (f for f in map(runs.load, names) if f.topology.num_active == facts["chosen"]["num_active"])
    x = runs.data_of(names[0]).test.x
    np.testing.assert_allclose(chosen.predict(x), own.predict(x, "unmasked")[0].double().numpy(), atol=1e-6)
    assert facts["pruning"]["structure"] == "a ready family"
    assert main(["certify", *map(str, names), *WORDS]) == 2
    assert "expected --out DIR" in capsys.readouterr().err
    fits = [runs.load(name) for name in names]
    again = certify_fits(
        fits, runs.data_of(names[0]).calibration, Settings(alphas=(0.12,), delta=0.1, predict="unmasked")
    )
    assert again.facts["p_values"] == facts["p_values"]


def test_a_fit_is_certified_without_a_folder(run: Path) -> None:
    data = runs.data_of(run)
    facts, chosen = certify_fit(runs.load(run), data.calibration, Settings(alphas=(0.12,), delta=0.1, step=0.05))
    assert chosen is not None
    assert facts["lambda"] == certified(run)["lambda"]
    assert not (run.parent / "certificate.json").exists()


def test_a_ratio_for_each_layer_by_pareto_testing(run: Path) -> None:
    data, base = runs.data_of(run), Frozen.of(runs.load(run))
    labels, error = data.calibration.y.numpy(), named("error")
    plane = list(itertools.product((0.0, 0.4, 0.8), repeat=len(base.topology.counts)))
    members = [layerwise(base, fractions) for fractions in plane]
    for member, fractions in zip(members, plane, strict=True):
        for before, after, fraction in zip(base.topology.counts, member.topology.counts, fractions, strict=True):
            assert after == before - round(fraction * before)
    losses = np.stack([error.losses(member.predict(data.calibration.x), labels, labels) for member in members])
    cost = [member.topology.num_active for member in members]
    chosen, order, p = certificate.pareto([losses], cost, [Promise(error, 0.15)], 0.1)
    assert chosen is not None
    assert 0 < cost[chosen] < cost[0]
    assert chosen in order
    assert np.nanmin(p) <= 0.1
    wrong = members[chosen].predict(data.test.x).argmax(1) != data.test.y.numpy()
    assert wrong.mean() < 0.2
    with pytest.raises(ValueError, match="expected a fraction for each of 3 layers, got 2"):
        layerwise(base, (0.1, 0.2))


def test_the_same_question_from_elsewhere_is_the_same_and_a_moved_run_verifies(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(run)
    monkeypatch.chdir(run)
    assert main(["certify", ".", *WORDS]) == 0
    assert not (run / "certificate-2.json").exists()
    shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["verify", "moved"]) == 0  # a folder will do
    (tmp_path / "moved" / "looks.json").write_text("{}\n")
    assert main(["verify", "moved"]) == 1
    assert "expected moved/looks.json to be a list of looks" in capsys.readouterr().out
    assert main(["verify", "moved/record.json"]) == 2
    assert "expected a certificate of this version of Espalier" in capsys.readouterr().err


def test_what_speaks_against_a_certificate_is_noted(run: Path) -> None:
    assert main(["evaluate", str(run), "--split", "calibration"]) == 0
    shutil.copytree(run, run.parent / "twin")
    certified(run.parent / "twin")
    notes = certified(run)["notes"]
    assert "has scored the calibration split before" in notes[0]
    assert "1 other runs in the same folder were certified on these examples" in notes[1]
    assert f"**Note:** {notes[1]}" in (run / "certificate.md").read_text()
    assert all(check.holds for check in verify(run / "certificate.json"))
