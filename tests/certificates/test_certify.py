"""A fit, a calibration split and the question: every kind of certificate, and what must not be asked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clouds import WORDS, certified
from espalier import runs
from espalier.certificates import certificate, pvalues
from espalier.certificates.certificate import Promise
from espalier.certificates.certify import Settings, certify_fit, selective
from espalier.certificates.pruning import Frozen, layerwise
from espalier.certificates.risks import named
from espalier.certificates.runs import load_pruned
from espalier.certificates.unseen import check_unseen
from espalier.certificates.verification import verify
from espalier.cli.main import main
from espalier.contracts import Split


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
        (np.ones(700), 0.5, "expected a finite weight_bound of 1 or more, got 0.5"),
        (np.ones(700), np.inf, "expected a finite weight_bound of 1 or more, got inf"),
        (np.full(700, "w"), 2.0, "expected an .npy file of numbers as weights, got <U1"),
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


def test_a_confidence_to_abstain_below_keeps_its_digits(run: Path) -> None:
    """And what cannot be split, or asked, is refused before the look is spent."""
    data, near = runs.data_of(run), 0.9999994
    settings = Settings(alphas=(0.5,), delta=0.1, step=0.25, abstain=(near,))
    facts, _ = certify_fit(runs.load(run), data.calibration, settings)
    assert set(facts["thresholds"]) == {near}
    sure = np.array([[0.9999992, 8e-7], [0.9999996, 4e-7]])
    accepted = selective(near).losses(sure, np.zeros(2, np.int64), None)[:, 0]
    assert accepted.tolist() == [0, 1]
    with pytest.raises(ValueError, match="expected calibration examples to certify by, got none"):
        certify_fit(runs.load(run), Split(data.calibration.x[:0], data.calibration.y[:0]), settings, data)


def test_weights_that_are_an_archive_are_refused(run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones(700))
    with pytest.raises(ValueError, match="expected an .npy file of numbers as weights, got an archive of several arrays"):
        Settings(weights=str(tmp_path / "w.npz")).read_weights(700)


def test_a_risk_without_labels_needs_none_and_labels_that_are_there_are_one_each(run: Path) -> None:
    data, fit = runs.data_of(run), runs.load(run)
    without = Settings(risks=("disagreement",), alphas=(0.12,))
    rows, none = data.calibration.x, data.calibration.y[:0]
    own, bare = certify_fit(fit, data.calibration, without), certify_fit(fit, Split(rows, none), without)
    assert (bare.facts["n"], bare.facts["lambda"]) == (own.facts["n"], own.facts["lambda"])
    assert own.facts["n"] == len(rows)
    for settings, some in ((without, data.calibration.y[:60]), (Settings(alphas=(0.12,)), none)):
        with pytest.raises(ValueError, match=f"expected a label for each of {len(rows)} calibration inputs, got {len(some)}"):
            certify_fit(fit, Split(rows, some), settings)


def test_a_test_is_each_risks_own_where_none_is_named() -> None:
    both = Settings(risks=("error", "brier"), alphas=(0.15, 0.25)).promises()
    assert both == Settings(risks=("error", "brier"), alphas=(0.15, 0.25), tests=("", "")).promises()
    with pytest.raises(ValueError, match="got 3 risks, 3 alphas and 2 tests"):
        Settings(risks=("error", "brier", "gap"), alphas=(0.1, 0.1, 0.1), tests=("", "wsr")).promises()


@pytest.mark.parametrize(
    ("change", "why"),
    [({"costs": [1.0]}, "expected a finite cost for each of 2 candidates, got shape"), ({"promises": []}, "and 0 promises"),
     ({"costs": [1.0, np.nan]}, "expected a finite cost"), ({"delta": 5.0}, r"expected delta in \(0, 1\), got 5")],
)  # fmt: skip
def test_a_pareto_test_of_what_does_not_fit_is_refused_at_once(change: dict[str, Any], why: str) -> None:
    given = {"costs": [1.0, 2.0], "promises": [Promise(named("error"), 0.2)], "delta": 0.1} | change
    with pytest.raises(ValueError, match=why):
        certificate.pareto([np.zeros((2, 50))], **given)
