"""Claims about espalier.data.corruptions: each does what its line says, by an independent answer; the same bytes in any batch."""

from __future__ import annotations

import colorsys
import io
import re

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from budget import assert_mean, assert_rate
from espalier.data import CORRUPTIONS, SEVERITIES, corrupted
from espalier.data.corruptions import corruptions, disk, resized

RNG = np.random.default_rng(2)


def smooth(n: int, channels: int, side: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(RNG.normal(size=(n, channels, side, side)), (0, 0, 2, 2))
    low, high = noise.min((1, 2, 3), keepdims=True), noise.max((1, 2, 3), keepdims=True)
    return 0.1 + 0.8 * (noise - low) / (high - low)


GREY, COLOUR = smooth(6, 1, 28), smooth(6, 3, 32)
BOTH = [(name, x) for x in (GREY, COLOUR) for name in corruptions(x.shape[1])]
every = pytest.mark.parametrize(("name", "x"), BOTH, ids=[f"{name}-{x.shape[1]}" for name, x in BOTH])


@every
def test_the_same_seed_gives_the_same_bytes_in_any_batch(name: str, x: np.ndarray) -> None:
    whole = corrupted(x, name, 3, seed=7)
    assert whole.dtype == np.float32
    assert whole.shape == x.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    for rows in ([4], [5, 1], [0, 1, 2]):
        assert corrupted(x[rows], name, 3, seed=7, rows=rows).tobytes() == whole[rows].tobytes()
    random = {"gaussian noise", "shot noise", "impulse noise", "motion blur", "rotation", "translation"}
    assert (corrupted(x, name, 3, seed=8).tobytes() != whole.tobytes()) == (name in random)


@every
def test_a_higher_severity_is_worse(name: str, x: np.ndarray) -> None:
    if name == "saturate":
        return  # the published scale goes from too little to too much
    worse = [np.abs(corrupted(x, name, severity) - x).mean() for severity in SEVERITIES]
    assert (np.diff(worse) > -0.1 * max(worse)).all()
    assert worse[-1] > 1.2 * worse[0] > 0


def test_the_three_noises_have_their_moments() -> None:
    x = np.full((40, 3, 32, 32), 0.4)
    noise = corrupted(x, "gaussian noise", 4).astype(float) - 0.4
    assert_mean(noise.ravel(), 0)
    assert_mean(noise.ravel() ** 2, 0.09**2)
    shot = corrupted(x, "shot noise", 5).astype(float)
    assert_mean(shot.ravel(), 0.4)
    assert_mean((shot.ravel() - 0.4) ** 2, 0.4 / 50)
    np.testing.assert_allclose(shot * 50, np.rint(shot * 50), atol=1e-4)
    struck = corrupted(x, "impulse noise", 5)
    assert_rate((struck == 0).sum(), x.size, 0.035, looks=2)
    assert_rate((struck == 1).sum(), x.size, 0.035, looks=2)
    assert (np.isin(struck, np.float32([0, 1, 0.4]))).all()


def point(side: int) -> np.ndarray:
    x = np.zeros((1, 1, side, side))
    x[0, 0, side // 2, side // 2] = 1
    return x


def test_a_disk_is_counted_by_hand_and_softened_by_a_gaussian_of_three_pixels() -> None:
    hard = disk(3, 1e-9)
    assert (hard > 0).sum() == 29  # the pixels within 3 of the middle
    np.testing.assert_allclose(hard[hard > 0], 1 / 29)
    soft = disk(0.4, 0.5)
    g = np.exp(-np.array([1, 0, 1]) / (2 * 0.5**2))
    np.testing.assert_allclose(soft[2:-2, 2:-2], np.outer(g, g) / g.sum() ** 2, rtol=1e-12)
    found = corrupted(point(28), "defocus blur", 1)[0, 0]  # radius 3, softened by 0.1: not at all
    assert ((found > 1e-6).sum(), found.max()) == (29, pytest.approx(1 / 29))
    padded = np.pad(GREY[0, 0], 3, mode="reflect")
    by_hand = sum(padded[3 + i : 31 + i, 3 + j : 31 + j] for i in range(-3, 4) for j in range(-3, 4) if i * i + j * j <= 9) / 29
    np.testing.assert_allclose(corrupted(GREY, "defocus blur", 1)[0, 0], by_hand, atol=1e-6)


def test_gaussian_blur_is_the_gaussian() -> None:
    found = corrupted(point(29)[..., :28, :28], "gaussian blur", 2)[0, 0].astype(float)
    at = np.arange(28) - 14
    g = np.exp(-(at**2) / (2 * 2.0**2))
    g /= np.exp(-(np.arange(-8, 9) ** 2) / 8).sum()
    g[abs(at) > 8] = 0
    np.testing.assert_allclose(found, np.outer(g, g), atol=1e-7)


def test_motion_blur_is_a_trail_of_half_a_gaussian_within_45_degrees() -> None:
    x = np.zeros((20, 3, 64, 64))
    x[..., 32, 32] = 1
    steps = np.arange(25)  # radius 6 of 32 pixels is 12 of 64; sd 2 is 4
    weights = np.exp(-(steps**2) / (2 * 4.0**2))
    length = (weights * steps).sum() / weights.sum()
    angles = []
    for image in corrupted(x, "motion blur", 3)[:, 0].astype(float):
        assert image.sum() == pytest.approx(1, rel=1e-5)
        assert image[32, 32] == pytest.approx(1 / weights.sum(), rel=1e-5)
        down, right = (image.sum(1) * (np.arange(64) - 32)).sum(), (image.sum(0) * (np.arange(64) - 32)).sum()
        assert np.hypot(down, right) == pytest.approx(length, abs=0.5)
        angles.append(np.degrees(np.arctan2(down, -right)))
    assert max(np.abs(angles)) < 50
    assert max(angles) - min(angles) > 45


def test_contrast_keeps_the_mean_of_each_channel_and_scales_its_spread() -> None:
    found = corrupted(COLOUR, "contrast", 2).astype(float)
    np.testing.assert_allclose(found.mean((2, 3)), COLOUR.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.std((2, 3)), 0.5 * COLOUR.std((2, 3)), rtol=1e-5)


@pytest.mark.parametrize(("name", "severity"), [("brightness", 3), ("saturate", 1), ("saturate", 5)])
def test_hue_saturation_and_value_are_colorsys_own(name: str, severity: int) -> None:
    x = RNG.random((1, 3, 12, 12))
    x[0, :, 0, 0], x[0, :, 0, 1] = 0.0, 0.5  # black, and grey
    a, b = CORRUPTIONS["saturate"].colour[severity - 1]
    found = corrupted(x, name, severity)[0]
    for i in range(12):
        for j in range(12):
            h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j])
            s, v = (s, min(v + 0.15, 1)) if name == "brightness" else (min(max(a * s + b, 0), 1), v)
            np.testing.assert_allclose(found[:, i, j], colorsys.hsv_to_rgb(h, s, v), atol=1e-6)


def test_brightness_of_grey_adds() -> None:
    np.testing.assert_allclose(corrupted(GREY, "brightness", 2), np.minimum(GREY + 0.2, 1), atol=1e-6)


def test_pixels_of_half_the_side_are_means_of_four() -> None:
    blocks = GREY.reshape(6, 1, 14, 2, 14, 2).mean((3, 5))
    np.testing.assert_allclose(corrupted(GREY, "pixelate", 2), blocks.repeat(2, 2).repeat(2, 3), atol=1e-6)
    ramp = np.tile(np.arange(16.0) / 16, (1, 16, 1))
    np.testing.assert_allclose(resized(ramp, (16, 8))[0, 3, 2:6], [4.5 / 16, 6.5 / 16, 8.5 / 16, 10.5 / 16], atol=1e-6)
    assert resized(ramp, (5, 9)).shape == (1, 5, 9)


def test_jpeg_is_pillows_at_the_published_quality() -> None:
    for x, quality, mode in ((GREY, 15, "L"), (COLOUR, 58, "RGB")):
        buffer = io.BytesIO()
        pixels = np.rint(x[2] * 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels.squeeze(), mode=None).convert(mode).save(buffer, "JPEG", quality=quality)
        by_hand = np.atleast_3d(np.asarray(Image.open(buffer)))
        np.testing.assert_array_equal(np.rint(corrupted(x, "jpeg", 3)[2] * 255), by_hand.transpose(2, 0, 1))
    two = corrupted(COLOUR[:, :2], "jpeg", 5)
    assert np.abs(two - COLOUR[:, :2]).mean() < 0.05


def test_a_rotation_is_scipys_either_way_and_a_translation_a_roll() -> None:
    seen = set()
    for seed in range(12):
        turned, moved = (corrupted(GREY[:1], name, 2, seed=seed)[0, 0] for name in ("rotation", "translation"))
        ways = {
            sign: ndimage.rotate(GREY[0, 0], sign * np.degrees(0.4), reshape=False, order=1, mode="constant") for sign in (-1, 1)
        }
        seen |= {("turn", sign) for sign, way in ways.items() if np.allclose(way, turned, atol=1e-5)}
        for down in (-2, 2):
            for right in (-2, 2):
                rolled = np.pad(GREY[0, 0], 2)[2 + down : 30 + down, 2 + right : 30 + right]
                seen |= {(down, right)} if np.allclose(rolled, moved, atol=1e-6) else set()
    assert seen == {("turn", -1), ("turn", 1), (-2, -2), (-2, 2), (2, -2), (2, 2)}


def test_lengths_are_those_of_an_image_of_the_published_size() -> None:
    wide = corrupted(point(56), "gaussian blur", 1)[0, 0].astype(float)
    assert wide[28, 29] / wide[28, 28] == pytest.approx(np.exp(-1 / (2 * 2.0**2)))


def test_every_corruption_has_five_severities_and_a_line() -> None:
    for one in CORRUPTIONS.values():
        assert {len(one.colour), len(one.grey)} <= {0, 5}
        assert 10 < len(one.about) < 80
    assert len(corruptions(3)) == len(CORRUPTIONS) == 13
    assert set(corruptions(1)) == set(CORRUPTIONS) - {"saturate"}
    assert corrupted(GREY[:0], "contrast", 1).shape == (0, 1, 28, 28)


@pytest.mark.parametrize(
    ("x", "name", "severity", "sentence"),
    [
        (GREY[0], "contrast", 1, "expected images (n, c, h, w) as floats, got float64 of shape (1, 28, 28)"),
        (GREY.astype(np.uint8), "contrast", 1, "got uint8 of shape (6, 1, 28, 28): divide bytes by 255"),
        (GREY * 255, "contrast", 1, "expected images in [0, 1], got "),
        (GREY - 0.5, "contrast", 1, "undo their standardisation first, as espalier.data.shifted does"),
        (GREY, "frost", 1, "expected a corruption of gaussian noise, shot noise, "),
        (GREY, "contrast", 6, "expected a severity of 1 to 5, got 6"),
        (GREY, "saturate", 1, "expected images of three colours for 'saturate', got 1 channel(s)"),
    ],
)
def test_what_cannot_be_corrupted_gets_a_sentence(x: np.ndarray, name: str, severity: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        corrupted(x, name, severity)
    with pytest.raises(ValueError, match="expected a row number for each of 6 images, got 2"):
        corrupted(GREY, "contrast", 1, rows=[1, 2])
