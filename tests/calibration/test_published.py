"""Published network outputs: our ECE beside the numbers that stand with them, and the temperatures of three papers.

The numbers are those of `data/README.md` beside the files: computed there with another program, and for the files that Kull
et al. 2019, Mukhoti et al. 2020 and Gupta et al. 2020 use the papers' own, 4.750 %, 4.35 % and 5.500 %.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from espalier import calibration
from places import SHARED
from probabilities import Array, as_probs

LOGITS = SHARED / "data" / "logits"
pytestmark = pytest.mark.skipif(
    not LOGITS.is_dir(), reason=f"no published outputs at {LOGITS}; ESPALIER_SHARED names the folder that holds data/"
)
SEVEN = {"densenet121": (0.9272, 0.291106, 0.118734, 0.041001), "googlenet": (0.9295, 0.232596, 0.107277, 0.013693),
         "mobilenet_v2": (0.9016, 0.372308, 0.153342, 0.051304), "resnet18": (0.9171, 0.349800, 0.136467, 0.053486),
         "resnet50": (0.9192, 0.345609, 0.133424, 0.053289), "vgg13_bn": (0.9297, 0.301078, 0.114543, 0.042456),
         "vgg19_bn": (0.9368, 0.366565, 0.111371, 0.049183)}  # fmt: skip
"""Network -> accuracy, NLL, Brier, ECE."""
OTHERS = {"vgg16_c10_probs": (0.9359, 0.25707, 0.03978), "lenet5_c10_probs": (0.5308, None, 0.10789),
          "densenet-bc-100_c100_probs": (0.7541, 1.22563, 0.14215)}  # fmt: skip
TOP = {"densenet40_c10_top1": (0.9242, 0.055003), "imagenet_tv_resnet101_top1": (0.77374, 0.049168),
       "imagenet_timm_efficientnet_b3a_top1": (0.81874, 0.123776)}  # fmt: skip
WITH_VALIDATION = {"resnet110_c10": (0.9356, 0.35827, 0.047504, 2.395, 0.20926, 0.011321),
                   "resnet50_c10_cross_entropy": (0.9505, 0.41212, 0.043543, 2.4975, 0.20381, 0.01373)}  # fmt: skip
"""File -> accuracy, NLL, ECE, the temperature, and NLL and ECE after it."""


def read(name: str) -> dict[str, Array]:
    with np.load(LOGITS / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("network", SEVEN)
def test_the_seven_networks_of_widmann_2019_score_as_published(network: str) -> None:
    file = read("pytorch_cifar10_probs")
    probs, labels = file[network], file["labels"].astype(int)
    found = [score(probs, labels) for score in (calibration.accuracy, calibration.nll, calibration.brier, calibration.ece)]
    np.testing.assert_allclose(found, SEVEN[network], atol=2e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_softmaxes_score_as_published(name: str) -> None:
    file = read(name)
    (probs,) = (array for array in file.values() if array.ndim == 2)
    (labels,) = (array.astype(int) for array in file.values() if array.ndim == 1)
    accuracy, nll, ece = OTHERS[name]
    assert calibration.accuracy(probs, labels) == pytest.approx(accuracy, abs=1e-9)
    assert nll is None or calibration.nll(probs, labels) == pytest.approx(nll, abs=1e-5)
    assert calibration.ece(probs, labels) == pytest.approx(ece, abs=1e-5)


@pytest.mark.parametrize("name", TOP)
def test_top_labels_score_as_published_and_within_their_interval(name: str) -> None:
    file = read(name)
    hit, confidence = file["true"] == file["pred"], file["confidence"].astype(float)
    accuracy, ece = TOP[name]
    assert hit.mean() == pytest.approx(accuracy, abs=1e-5)
    table = calibration.reliability(confidence, hit, 15)
    found = np.nansum(table.counts * np.abs(table.accuracy - table.confidence)) / len(hit)
    assert found == pytest.approx(ece, abs=2e-6)
    if "imagenet" not in name:  # of ten classes the top one has the most, so the door takes it
        probs = as_probs(confidence, hit)
        low, high = calibration.ece_interval(*probs)
        assert calibration.ece(*probs) == pytest.approx(ece, abs=2e-6)
        assert low < ece < high


@pytest.mark.parametrize("name", WITH_VALIDATION)
def test_temperatures_fitted_on_validation_are_those_published(name: str) -> None:
    file = read(name)
    probs = {part: softmax(file[f"{part}_logits"].astype(np.float64), axis=1) for part in ("val", "test")}
    labels = {part: file[f"{part}_labels"].ravel().astype(int) for part in ("val", "test")}
    accuracy, nll, ece, temperature, nll_after, ece_after = WITH_VALIDATION[name]
    fitted = calibration.fit_temperature(probs["val"], labels["val"])
    after = calibration.apply_temperature(probs["test"], fitted)
    assert fitted == pytest.approx(temperature, abs=5e-4)
    assert calibration.accuracy(after, labels["test"]) == pytest.approx(accuracy, abs=1e-9)
    assert calibration.nll(probs["test"], labels["test"]) == pytest.approx(nll, abs=1e-5)
    assert calibration.nll(after, labels["test"]) == pytest.approx(nll_after, abs=1e-5)
    assert calibration.ece(probs["test"], labels["test"]) == pytest.approx(ece, abs=1e-6)
    assert calibration.ece(after, labels["test"]) == pytest.approx(ece_after, abs=2e-6)
    vector = calibration.fit_vector(probs["val"], labels["val"])
    assert calibration.nll(calibration.apply_vector(probs["test"], vector), labels["test"]) < nll_after
    assert calibration.smooth_ece(after, labels["test"]) < calibration.smooth_ece(probs["test"], labels["test"]) / 2
    assert calibration.spiegelhalter(probs["test"], labels["test"]).statistic > 20
