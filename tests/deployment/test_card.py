"""Claims about a model card: a hub reads its header, its numbers are those of `evaluate`, and what it cannot promise it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from espalier.data import from_arrays
from espalier.deployment import card
from espalier.network import BayesianNetwork
from espalier.prediction import evaluate
from shelved import made, own_net, rows, untrained, words


def page_of(name: str, tmp_path: Path, **options: object) -> Path:
    return made(name).export(tmp_path / "net", rows(name)[1], program=words(name), how="ticket", **options) / "README.md"


@pytest.mark.parametrize(("name", "task"), [("mlp", "image-classification"), ("logistic", "tabular-classification")])
def test_a_hub_reads_the_scores_with_their_intervals(name: str, task: str, tmp_path: Path) -> None:
    data = ModelCard.load(page_of(name, tmp_path, licence="mit")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "espalier", task)
    scores = evaluate(made(name), rows(name)[1])["predict"]["ticket"]
    found = {result.metric_type: result for result in data.eval_results}
    for metric, ours in (("accuracy", "accuracy"), ("brier_score", "brier"), ("expected_calibration_error", "ece_15")):
        assert found[metric].metric_value == pytest.approx(scores[ours], abs=1e-6)
        assert found[metric].metric_args["interval"] == pytest.approx(scores[f"{ours}_interval"], abs=1e-6)
    assert found["expected_calibration_error"].metric_args["floor"] == pytest.approx(scores["ece_15_floor"], abs=1e-6)
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_a_regression_is_scored_in_its_units(tmp_path: Path) -> None:
    data = ModelCard.load(page_of("regression", tmp_path)).data
    scores = evaluate(made("regression"), rows("regression")[1])["predict"]["ticket"]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert data.pipeline_tag == "tabular-regression"
    assert found["rmse"] == pytest.approx(scores["rmse"], abs=1e-6)
    assert found["rmse"] > 10  # targets have a spread of 40
    assert found["coverage_95"] == pytest.approx(scores["coverage_95"], abs=1e-6)


@pytest.mark.parametrize("name", ["unet", "unet of classes", "two targets", "one logit", "own"])
def test_every_kind_of_network_has_a_card(name: str, tmp_path: Path) -> None:
    text = page_of(name, tmp_path).read_text()
    assert "## What is promised\n\nNothing: there is no certificate for it." in text
    assert ("network=mine" in text) == (name == "own")
    assert ModelCard.load(tmp_path / "net" / "README.md").data.eval_results


def test_the_regime_is_told_by_the_training_rows() -> None:
    config = {"task": "classification"}
    data = rows("mlp")[1]
    scores = {"nll": 0.1, "nll_interval": (0.0, 0.2), "accuracy_interval": (0.9, 1.0)}
    assert "It fits its training rows" in card._regime(config, {**scores, "accuracy": 0.995}, data)
    assert "It does not fit its training rows" in card._regime(config, {**scores, "accuracy": 0.98}, data)


def test_without_data_it_says_that_nothing_was_scored(tmp_path: Path) -> None:
    folder = made("mlp").export(tmp_path / "net", program=words("mlp"))
    text = (folder / "README.md").read_text()
    assert "Not scored: it was exported without its data." in text
    assert "Not known: it was exported without its data." in text
    assert not ModelCard.load(folder / "README.md").data.eval_results


def test_sparsity_and_costs_are_those_of_the_layers(tmp_path: Path) -> None:
    text, fit = page_of("logistic", tmp_path).read_text(), made("logistic")
    active, size = fit.topology.num_active, fit.topology.num_weights
    assert f"{active} of {size} maskable weights are active" in text
    assert f"One row costs {2 * active} floating-point operations" in text  # of one linear layer: a product for each weight
    assert f"of the {2 * size} of the dense network" in text


def test_names_are_text_never_markup_and_a_path_stays_at_home(tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", "a|b\n\n# Heading", "[link](http://x)", "---\nlicense: mit"]
    x = np.random.default_rng(0).integers(0, 256, (80, 1, 6, 5), dtype=np.uint8)
    data = from_arrays(x, np.array(names)[np.arange(80) % 4], channels="first", name="/home/me/private/leaves.npz")
    net = own_net()
    net[-1] = type(net[-1])(48, 4)
    fit = untrained(BayesianNetwork(net), data)
    text = (fit.export(tmp_path / "net", data, name="n: [x]\n---\n", licence="mit\nevil: yes") / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    told = yaml.safe_load(header)
    assert (told["license"], told["model-index"][0]["name"]) == ("mitevil: yes", "n: [x]---")
    assert "evil" not in told
    assert told["datasets"] == ["leaves"]
    assert "/home/me" not in text
    assert "\\<img src=x onerror=alert\\(1\\)\\>" in body
    assert "\n# Heading" not in body
    assert "[link](http" not in body


@pytest.mark.parametrize(
    ("name", "shown"), [("digits", "digits"), ("/a/b/c.npz", "c"), ("set/images", "images")]
)
def test_of_a_path_the_last_part_is_shown(name: str, shown: str) -> None:
    assert card.shown_name(name) == shown
