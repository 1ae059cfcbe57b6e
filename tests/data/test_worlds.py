"""Claims about espalier.data.worlds: a run's own rows corrupted in its own normalisation, and other worlds in its form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from espalier import Data
from espalier.contracts import Rows
from espalier.data import CORRUPTIONS, corrupted, from_arrays, load, out_of_distribution, shifted
from espalier.data.worlds import Shifted, levels_of
from fitted import digits, trained

RNG = np.random.default_rng(8)
BYTES = RNG.integers(0, 256, (90, 3, 10, 10), dtype=np.uint8)


def colours(**options: object) -> Data:
    return from_arrays(BYTES, np.arange(90) % 3, channels="first", name="colours", **options)


@pytest.mark.parametrize("standardise", [True, False])
def test_a_part_is_corrupted_in_the_datas_own_normalisation(standardise: bool) -> None:
    data = colours(standardise=standardise)
    split = shifted(data, "gaussian noise", 2, seed=3)
    assert torch.equal(split.y, data.test.y)
    mean, sd = (np.zeros(3), np.ones(3)) if data.input_scale is None else (each.numpy() for each in data.input_scale)
    plain = (data.test.x.double().numpy() * sd[:, None, None] + mean[:, None, None]) / 255
    by_hand = corrupted(np.clip(plain, 0, 1), "gaussian noise", 2, seed=3) * 255
    by_hand = (by_hand - mean[:, None, None]) / sd[:, None, None]
    np.testing.assert_allclose(split.x[:], by_hand, rtol=1e-5, atol=2e-4)


def test_levels_are_those_of_the_data() -> None:
    assert levels_of(digits()).white == 16
    assert levels_of(colours()).white == 255
    assert levels_of(from_arrays(BYTES / 255, np.arange(90) % 3, channels="first")).white == 1
    assert levels_of(colours(), white=1000.0).white == 1000
    for white, words in ((None, "0 to 255, say"), (100.0, "0 to 100.0")):
        with pytest.raises(ValueError, match=re.escape(f"expected images with levels from {words}, got -")):
            levels_of(from_arrays(BYTES / 255.0 - 0.5, np.arange(90) % 3, channels="first"), white)
    with pytest.raises(ValueError, match=r"expected a data set of images \(1 or 3, h, w\), got inputs of shape \(4,\)"):
        levels_of(from_arrays(RNG.normal(size=(60, 4)), np.arange(60) % 2))


WIDER = BYTES.astype(np.uint16)


@pytest.mark.parametrize(("x", "high"), [(BYTES / 250, "1.02"), (WIDER * 16, "4080")], ids=["floats", "12 bits"])
def test_levels_that_do_not_tell_what_is_white_are_not_guessed(x: Any, high: str) -> None:
    data = from_arrays(x, np.arange(90) % 3, channels="first")
    with pytest.raises(ValueError, match=rf"expected images of levels that tell which one is white, .* to {high} in arr"):
        shifted(data, "contrast", 1)
    assert levels_of(data, white=float(x.max())).white == x.max()
    assert levels_of(from_arrays(WIDER * 257, np.arange(90) % 3, channels="first")).white == 65535


def test_a_fit_is_scored_on_what_is_corrupted_and_loses() -> None:
    fit, _ = trained("mlp")
    data = digits()
    y = data.test.y

    def accuracy(x: Rows) -> float:
        return float((fit.predict(x)[0].argmax(1) == y).double().mean())

    found = [accuracy(shifted(data, "rotation", severity).x) for severity in (1, 5)]
    assert accuracy(data.test.x) > found[0] > found[1] + 0.1
    again = Shifted(data.test.x, levels_of(data), "rotation", 5)
    assert accuracy(again) == found[1]  # read batch by batch
    assert torch.equal(again[torch.tensor([7, 3])], shifted(data, "rotation", 5).x[torch.tensor([7, 3])])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_reads_every_part(name: str) -> None:
    split = shifted(colours(), name, 5, "validation")
    rows = split.x[torch.arange(len(split.y))]
    assert rows.shape == (len(split.y), 3, 10, 10)
    assert rows.isfinite().all()


def test_a_wrong_part_name_or_severity_gets_a_sentence() -> None:
    for words in (("fog", 1), ("contrast", 0)):
        with pytest.raises(ValueError, match="expected a corruption of gaussian noise, .* and a severity of 1 to 5, got"):
            shifted(colours(), *words)
    with pytest.raises(ValueError, match="expected a part of train, validation, calibration, test, got 'tests'"):
        shifted(colours(), "contrast", 1, "tests")
    with pytest.raises(ValueError, match="expected images of three colours for 'saturate', got grey ones in digits"):
        shifted(digits(), "saturate", 1)


# ----------------------------------------------------------------------------------------------------------- other worlds


def test_colour_becomes_luma_and_grey_becomes_colour_at_the_runs_size(tmp_path: Path) -> None:
    flat = np.tile(np.array([200, 100, 50], np.uint8)[None, None, None], (20, 16, 16, 1))
    flat[1, :, :, :] = np.arange(16, dtype=np.uint8)[None, :, None] * 10
    np.savez(tmp_path / "flat.npz", x=flat, y=np.arange(20) % 2, test=np.arange(12))
    data = digits()
    mean, sd = (float(each) for each in data.input_scale)
    found = out_of_distribution(str(tmp_path / "flat.npz"), data, count=2)
    assert found.shape == (2, 1, 8, 8)
    luma = (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255 * 16
    np.testing.assert_allclose(found[0], (luma - mean) / sd, rtol=1e-5)
    ramp = (np.array([25.0, 45, 65, 85]) / 255 * 16 - mean) / sd  # halfway between columns, bilinear
    np.testing.assert_allclose(found[1, 0, 3, 1:5], ramp, rtol=1e-5)
    own = colours()
    grey = out_of_distribution("digits", own)
    assert grey.shape == (359, 3, 10, 10)
    means, sds = own.input_scale
    levels = grey.double() * sds[:, None, None] + means[:, None, None]
    np.testing.assert_allclose(levels[:, 0], levels[:, 2], atol=1e-3)
    assert levels.min() > -1e-3
    assert 250 < levels.max() < 255.01


def test_a_folder_of_images_is_decoded_at_the_runs_size(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (40, 30), (255, 0, 51)).save(tmp_path / "pets" / label / f"{index}.png")
    own = colours()
    found = out_of_distribution(str(tmp_path / "pets"), own)
    assert found.shape == (2, 3, 10, 10)
    means, sds = own.input_scale
    np.testing.assert_allclose(found[1, :, 4, 4] * sds + means, [255, 0, 51], atol=1e-2)
    pets = load(str(tmp_path / "pets"), image_size=12, validation=0.0, calibration=0.0)
    assert levels_of(pets).white == 255
    bright = shifted(pets, "brightness", 1).x[torch.arange(1)]
    np.testing.assert_allclose(levels_of(pets).shown(bright)[0, :, 0, 0], [1, 0, 0.2], atol=1e-5)
    assert out_of_distribution("digits", pets, count=3).shape == (3, 3, 12, 12)


def test_as_many_features_are_standardised_as_the_runs_own(tmp_path: Path) -> None:
    other = RNG.normal(5, 3, (40, 4))
    np.savez(tmp_path / "other.npz", x=other, y=np.arange(40) % 2, test=np.arange(10))
    run = from_arrays(RNG.normal(size=(60, 4)), RNG.normal(size=60))
    found = out_of_distribution(str(tmp_path / "other.npz"), run)
    np.testing.assert_allclose(found, run.inputs(other[:10]), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_brought_to_the_form_of_the_run_gets_a_sentence(tmp_path: Path) -> None:
    np.savez(tmp_path / "five.npz", x=RNG.normal(size=(40, 5)), y=np.arange(40) % 2)
    run = from_arrays(RNG.normal(size=(60, 4)), RNG.normal(size=60))
    for source, data, got in (
        (str(tmp_path / "five.npz"), run, "(5,)"), (str(tmp_path / "five.npz"), digits(), "(5,)"), ("digits", run, "(1, 8, 8)"),
    ):  # fmt: skip
        sentence = f"expected inputs that can be brought to the run's shape {data.shape}, got {got}"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            out_of_distribution(source, data)
    with pytest.raises(ValueError, match="expected another world than the run's own, got digits"):
        out_of_distribution("digits", digits())
    np.savez(tmp_path / "own.npz", x=RNG.normal(size=(60, 4)), y=np.arange(60) % 2)
    (tmp_path / "link.npz").symlink_to(tmp_path / "own.npz")
    for other in (tmp_path / "link.npz", str(tmp_path / "." / ".." / tmp_path.name / "own.npz")):
        with pytest.raises(ValueError, match="expected another world than the run's own"):
            out_of_distribution(other, load(tmp_path / "own.npz"), part="train")
    with pytest.raises(ValueError, match="expected rows in the validation split of digits, got none"):
        out_of_distribution("digits", colours(), part="validation")
    with pytest.raises(ValueError, match="expected a part of train, .* and a count of at least 1, got 'test', 0"):
        out_of_distribution("digits", colours(), count=0)
    with pytest.raises(ValueError, match="did you mean mnist"):
        out_of_distribution("mnst", digits())
