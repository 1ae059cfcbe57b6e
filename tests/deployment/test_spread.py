"""Claims about an exported folder of `moments`: of raw rows it says what the fit says of scaled ones, and its doubt."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import onnxruntime
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import espalier
from commands import fit as fitted
from espalier import runs, store
from espalier.calibration import mutual_information
from espalier.contracts import Data
from espalier.data import from_arrays
from espalier.deployment import FORMS, Deployed, export_run, predict, to_onnx, to_program
from espalier.network import BayesianNetwork
from espalier.prediction import Fit, equip
from espalier.prediction.evaluation import evaluate
from espalier.prediction.pairs import Pairs
from shelved import CASES, made, own_net, rows, untrained, words

CLOSE = 1e-6


def equipped(fit: Fit, data: Data, **change: Any) -> Fit:
    """A copy that predicts by moments. change: of its posterior."""
    fit = copy.copy(fit)
    fit.record = dict(fit.record)
    for name, value in change.items():
        setattr(fit, name, value)
    equip(fit, data)
    assert "factors" in fit.record["moments"], fit.record["moments"]
    return fit


def gaussian(fit: Fit) -> dict[str, Any]:
    """Its weights with a deviation each, in place of masks."""
    scales = 0.05 + 0.1 * torch.rand(fit.pairs.values.shape, generator=torch.Generator().manual_seed(0))
    return {"keep_prob": 1.0, "pairs": Pairs(fit.pairs.values, torch.ones_like(fit.pairs.keep), fit.pairs.states, scales)}


def exported(name: str, tmp_path: Path, fit: Fit | None = None, **options: Any) -> tuple[Fit, Deployed]:
    fit = fit or equipped(made(name), rows(name)[1])
    network = own_net() if CASES[name].program is None else None
    folder = fit.export(tmp_path / "out", program=words(name), how="moments", **options)
    return fit, espalier.from_pretrained(folder, network=network)


def check(fit: Fit, net: Deployed, name: str) -> None:
    raw, data = rows(name)
    with torch.no_grad():
        draws, (said, doubt) = net.draws(raw), net.with_doubt(raw)
    told = fit.predict(data.inputs(raw), "moments", num_samples=32)
    unit = torch.as_tensor(data.target_scale, dtype=torch.float64).unsqueeze(-1)
    assert draws.shape == told.shape
    assert ((draws - told) / unit).abs().max() < CLOSE
    if data.num_classes is not None:
        assert torch.allclose(said, told.mean(0), atol=CLOSE)
        assert np.allclose(doubt.flatten(), mutual_information(told.flatten(1, -2).numpy()), atol=CLOSE)
        assert doubt.max() > 1e-4
    else:
        means, deviations = told.numpy()[..., 0], told.numpy()[..., 1]
        by_hand = np.stack([means.mean(0), np.sqrt((deviations**2).mean(0) + means.var(0))], -1)  # the law of total variance
        assert torch.allclose(said / unit, torch.from_numpy(by_hand) / unit, atol=CLOSE)
        assert np.allclose(doubt, means.std(0), rtol=1e-4)
        assert doubt.min() > 0
    with torch.no_grad():
        one, own = net.with_doubt(raw[:1])
    assert one.shape == said[:1].shape
    assert own.shape == doubt[:1].shape
    assert torch.allclose(one, said[:1])


@pytest.mark.parametrize("name", CASES)
def test_a_folder_says_of_raw_rows_what_the_fit_says_of_scaled_ones(name: str, tmp_path: Path) -> None:
    check(*exported(name, tmp_path), name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["gaussian", "a rate a layer", "rescaled"])
def test_whatever_the_posterior_and_its_form_in_the_file(kind: str, form: str, tmp_path: Path) -> None:
    fit, (_, data) = made("mlp"), rows("mlp")
    change = {"gaussian": gaussian(fit), "a rate a layer": {"keep_prob": (0.9, 0.5, 1.0)}, "rescaled": {"rescale": True}}[kind]
    check(*exported("mlp", tmp_path, equipped(fit, data, **change), form=form), "mlp")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "wide_resnet")]


@pytest.mark.parametrize("name", ["mlp", "regression", "own", *SLOW])
def test_programs_that_need_no_espalier_say_it_too(name: str, tmp_path: Path) -> None:
    _, net = exported(name, tmp_path)
    raw, _ = rows(name)
    assert to_onnx(net, tmp_path / "net.onnx") <= 1e-5
    to_program(net, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    unit = float(net.scale)
    for count in (1, 7, len(raw)):
        x = raw[:count].float()
        with torch.no_grad():
            said = net.with_doubt(x)
        theirs = session.run(["said", "doubt"], {session.get_inputs()[0].name: x.numpy()})
        for mine, one, other in zip(said, theirs, program(x), strict=True):
            assert tuple(mine.shape) == one.shape == tuple(other.shape)
            assert ((mine - torch.from_numpy(one)) / unit).abs().max() < 1e-5
            assert ((mine - other.detach()) / unit).abs().max() < 1e-5


def test_a_likelihood_of_ones_own_says_it_of_every_output(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = from_arrays(rng.normal(size=(80, 3)), rng.poisson(3, 80) + 0.0, standardise="inputs")

    def model() -> BayesianNetwork:
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        return BayesianNetwork(net, likelihood=lambda output: dist.Poisson(output.squeeze(-1).exp()))

    fit = equipped(untrained(model(), data), data)
    net = espalier.from_pretrained(fit.export(tmp_path / "out", how="moments"), network=model())
    with torch.no_grad():
        said = net(data.test.x * data.input_scale[1] + data.input_scale[0])
    mixture = fit.mixture(data.test.x, "moments", num_samples=32)
    rates = torch.stack([one.mean for one in mixture.distributions])
    assert torch.allclose(said[:, 0], rates.mean(0), rtol=1e-4)
    assert torch.allclose(said[:, 1], (rates.mean(0) + rates.var(0, unbiased=False)).sqrt(), rtol=1e-4)


OF_GPYTORCH: dict[str, tuple[Callable[[], gpytorch.likelihoods.Likelihood], int, bool]] = {
    "softmax": (lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_classes=3, mixing_weights=False), 3, True),
    "mixed softmax": (lambda: gpytorch.likelihoods.SoftmaxLikelihood(num_features=4, num_classes=3), 4, True),
    "gaussian": (gpytorch.likelihoods.GaussianLikelihood, 1, False),
    "student": (gpytorch.likelihoods.StudentTLikelihood, 1, False),
}


@pytest.mark.parametrize("way", ["ticket", "moments"])
@pytest.mark.parametrize("name", OF_GPYTORCH)
def test_a_likelihood_of_gpytorch_says_what_it_says_of_the_fit(name: str, way: Any, tmp_path: Path) -> None:
    likelihood, width, labelled = OF_GPYTORCH[name]
    rng = np.random.default_rng(0)
    y = np.arange(80) % 3 if labelled else rng.normal(2.0, 3.0, 80)
    data = from_arrays(rng.normal(size=(80, 3)), y)

    def model() -> BayesianNetwork:
        return BayesianNetwork(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, width)), likelihood=likelihood())

    fit = untrained(model(), data)
    fit = equipped(fit, data) if way == "moments" else fit
    net = espalier.from_pretrained(fit.export(tmp_path / "out", how=way), network=model())
    raw = data.test.x * data.input_scale[1] + data.input_scale[0]
    for count in (1, width, len(raw)):  # GPyTorch's softmax transposes as many rows as features
        with torch.no_grad():
            said = net.draws(raw[:count])
        assert said.dtype == torch.float64
        assert torch.allclose(said, fit.predict(data.test.x[:count], way, num_samples=32), rtol=1e-5, atol=1e-6)
    if name == "gaussian" and way == "ticket":  # mean and standard deviation of one dtype
        assert to_onnx(net, tmp_path / "net.onnx") < 1e-5


def test_of_one_network_there_is_one_draw_and_nothing_is_said_of_its_doubt(tmp_path: Path) -> None:
    raw, _ = rows("mlp")
    net = espalier.from_pretrained(made("mlp").export(tmp_path / "out", program=words("mlp"), how="ticket"))
    assert torch.equal(net.draws(raw), net(raw)[None])
    with pytest.raises(ValueError, match="expected an export of moments to say .* leave open, got one network, ticket"):
        net.with_doubt(raw)


def test_of_a_run_card_and_table_say_what_evaluate_says(tmp_path: Path) -> None:
    assert fitted(tmp_path / "run", "--hidden", "32,16", "--sparsity", "0.5", "--drop_rate", "0.2") == 0
    folder = export_run(tmp_path / "run", tmp_path / "net", how="moments")
    fit, data = runs.load(tmp_path / "run"), runs.data_of(tmp_path / "run")
    scores = evaluate(fit, data, num_samples=32)["predict"]["moments"]
    page = (folder / "README.md").read_text()
    assert f"value: {float(format(scores['nll'], '.9g'))}" in page
    assert "with the variances of its weights" in page
    assert "net.with_doubt(x)" in page
    mean, sd = (float(values[0]) for values in data.input_scale)
    np.savez(tmp_path / "x.npz", x=np.rint(data.test.x.numpy() * sd + mean).astype(np.uint8)[:, 0])
    found = predict(folder, tmp_path / "x.npz", tmp_path / "said.csv")
    draws = fit.predict(data.test.x, "moments", num_samples=32).numpy()
    assert np.allclose(found["mutual_information"], mutual_information(draws), atol=1e-5)
    assert np.allclose(found["p(3)"], draws.mean(0)[:, 3], atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- refused


def test_a_fit_without_factors_and_a_wish_for_no_zeros_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one network to export, ticket, .*distilled, got 'moments': it has no factors"):
        made("mlp").export(tmp_path / "none", program=words("mlp"), how="moments")
    assert not (tmp_path / "none").exists()
    exported("mlp", tmp_path)
    with pytest.raises(ValueError, match="expected one network to leave the zeros out of, but .* is of moments: leave it dense"):
        espalier.from_pretrained(tmp_path / "out", sparse=True)
    assert espalier.from_pretrained(tmp_path / "out", sparse="auto").spread is not None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda config: config["espalier"].update(format=1), "format 1, or 2 of moments, got 1"),
        (lambda config: config.pop("moments"), "format 1, or 2 of moments, got 2"),
        (lambda config: config["moments"].pop("factors"), "do not fit"),
        (lambda config: config["moments"]["factors"].pop(), "6 layers|3 layers"),
        (lambda config: config["moments"]["ratios"].pop(), "do not fit .*3 ratios, got 2"),
        (lambda config: config["moments"].update(count=10**9), "a count of 1 to 16384"),
        (lambda config: config["moments"].update(count="many"), "a count of 1 to 16384"),
        (lambda config: config["moments"].update(count=2.9), "a count of 1 to 16384"),
        (lambda config: config["moments"].update(factors=["nan"] * 4), "expected factors, ratios and a count"),
        (lambda config: config["moments"].update(factors=[True] * 4), "expected factors, ratios and a count"),
        (lambda config: config["moments"].update(ratios=[-1.0] * 3), "expected factors, ratios and a count"),
        (lambda config: config["moments"].update(ratios=[1e30] * 3), "expected factors, ratios and a count"),
        (lambda config: config.pop("moments") and config["espalier"].update(format=1), "format 1, or 2 of moments, got 1"),
    ],
)
def test_moments_that_were_altered_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    exported("mlp", tmp_path)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config.pop("sha256")
    change(config)
    path.write_bytes(store.canonical(store.signed(config)).encode())
    with pytest.raises(ValueError, match=match):
        espalier.from_pretrained(tmp_path / "out")


def test_of_moments_a_signature_is_asked_for(tmp_path: Path) -> None:
    exported("mlp", tmp_path)
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config.pop("sha256")
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="altered|checksum|sha256|SHA-256"):
        espalier.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("name", ["regression", "one logit"])
def test_a_table_of_one_row_has_one(name: str, tmp_path: Path) -> None:
    exported(name, tmp_path)
    np.savez(tmp_path / "x.npz", x=rows(name)[0][:1].numpy())
    found = predict(tmp_path / "out", tmp_path / "x.npz", tmp_path / "said.csv")
    assert all(len(values) == 1 for values in found.values())
    assert float(found["epistemic_sd" if name == "regression" else "mutual_information"][0]) > 0


def test_it_has_no_gradients_and_says_so_by_having_none(tmp_path: Path) -> None:
    _, net = exported("own", tmp_path)
    x = rows("own")[0][:2].float().requires_grad_()
    assert not net(x).requires_grad
