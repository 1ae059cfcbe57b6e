"""Corrupted images, made on the fly: thirteen kinds in five severities, by SciPy and Pillow.

Severities are the published ones: of images with one channel MNIST-C's for 28 pixels (Mu & Gilmer 2019, arXiv:1906.02337), of
others CIFAR-10-C's for 32 (Hendrycks & Dietterich 2019, arXiv:1903.12261); lengths are scaled for images of another size.
Rotation and translation are MNIST-C's for colours, too; saturation is of colours alone. The operations are written anew, so
pixels are near those of the published sets and not equal to them; nothing but JPEG rounds to 8 bits.

Whatever is random about a row is decided by the seed, the corruption's name and the row's number: the same bytes in any batch.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float64]
"""One image `(c, h, w)` in [0, 1]."""
Random = np.random.Generator


class Corruption(NamedTuple):
    """One kind. corrupt: of an image, a severity's constants, pixels for one of the published image, and randomness. colour,
    grey: the five constants for images of several channels, and of one; () where there are none. about: one line."""

    corrupt: Callable[[Image, Any, float, Random], Image]
    colour: tuple[Any, ...]
    grey: tuple[Any, ...]
    about: str


def _gaussian_noise(x: Image, sd: float, unit: float, random: Random) -> Image:
    return np.asarray(x + sd * random.standard_normal(x.shape))


def _shot_noise(x: Image, photons: float, unit: float, random: Random) -> Image:
    return random.poisson(x * photons) / photons


def _impulse_noise(x: Image, share: float, unit: float, random: Random) -> Image:
    struck = random.random(x.shape) < share
    return np.where(struck, (random.random(x.shape) < 0.5).astype(np.float64), x)


def disk(radius: float, soft: float) -> NDArray[np.float64]:
    """A kernel of sum 1: pixels within `radius` of the middle, softened by a Gaussian of sd `soft` cut after one pixel (two from
    a radius of 8 on)."""
    reach = int(np.ceil(radius)) + 2
    at = np.arange(-reach, reach + 1)
    inside = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    kernel: NDArray[np.float64] = ndimage.gaussian_filter(inside, soft, radius=2 if radius > 8 else 1, mode="constant")
    return np.asarray(kernel / kernel.sum())


def _defocus_blur(x: Image, form: tuple[float, float], unit: float, random: Random) -> Image:
    kernel = disk(form[0] * unit, form[1])
    return np.stack([ndimage.convolve(channel, kernel, mode="mirror") for channel in x])


def _gaussian_blur(x: Image, sd: float, unit: float, random: Random) -> Image:
    return np.asarray(ndimage.gaussian_filter(x, (0, sd * unit, sd * unit), mode="nearest"))


def _motion_blur(x: Image, form: tuple[float, float], unit: float, random: Random) -> Image:
    """A trail to one side, its weights half a Gaussian, at an angle within 45 degrees of the rows."""
    radius, sd = (value * unit for value in form)
    angle = np.deg2rad(random.uniform(-45, 45))
    steps = np.arange(2 * round(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sd**2))
    down, right = np.rint(steps * np.sin(angle)).astype(int), np.rint(steps * np.cos(angle)).astype(int)
    (_, height, width), reach = x.shape, len(steps)
    wide = np.pad(x, ((0, 0), (reach, reach), (0, reach)), "edge")
    total = np.zeros_like(x)
    for weight, by, along in zip(weights / weights.sum(), reach + down, right, strict=True):
        total += weight * wide[:, by : by + height, along : along + width]
    return total


def _contrast(x: Image, share: float, unit: float, random: Random) -> Image:
    mean = x.mean((1, 2), keepdims=True)
    return np.asarray((x - mean) * share + mean)


def _brightness(x: Image, by: float, unit: float, random: Random) -> Image:
    """More of HSV's value, hue and saturation as they were: all channels in proportion; of black, grey."""
    value = x.max(0)
    more = np.minimum(value + by, 1)
    return np.asarray(np.where(value > 0, x * (more / np.where(value > 0, value, 1)), more))


def _saturate(x: Image, form: tuple[float, float], unit: float, random: Random) -> Image:
    """HSV's saturation times a, plus b, hue and value as they were; a grey pixel, which has no hue, turns to red."""
    value, least = x.max(0), x.min(0)
    was = (value - least) / np.where(value > 0, value, 1)
    now = np.clip(was * form[0] + form[1], 0, 1)
    grey = value * (1 - now * np.array([0.0, 1.0, 1.0])[:, None, None])
    return np.asarray(np.where(was > 0, value - (value - x) * (now / np.where(was > 0, was, 1)), grey))


def _pixelate(x: Image, share: float, unit: float, random: Random) -> Image:
    small = [max(1, int(side * share)) for side in x.shape[1:]]
    return resized(resized(x, small, "box"), x.shape[1:], "box")


def _jpeg(x: Image, quality: int, unit: float, random: Random) -> Image:
    """One colour image, or each channel by itself."""
    from PIL import Image as pillow

    levels = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    parts = [levels.transpose(1, 2, 0)] if len(x) == 3 else list(levels)
    found = []
    for part in parts:
        buffer = io.BytesIO()
        pillow.fromarray(part).save(buffer, format="JPEG", quality=quality)
        with pillow.open(buffer) as image:
            found.append(np.asarray(image, dtype=np.float64) / 255)
    return found[0].transpose(2, 0, 1) if len(x) == 3 else np.stack(found)


def _moved(x: Image, matrix: NDArray[np.float64], offset: NDArray[np.float64]) -> Image:
    """Pixel p is what was at matrix @ p + offset, in rows and columns, bilinear; what comes from outside is black."""
    moved = [ndimage.affine_transform(channel, matrix, offset, order=1, mode="constant") for channel in x]
    return np.stack(moved)


def _rotation(x: Image, radians: float, unit: float, random: Random) -> Image:
    angle = radians * random.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(x.shape[1:]) - 1) / 2
    return _moved(x, turn, middle - turn @ middle)


def _translation(x: Image, pixels: float, unit: float, random: Random) -> Image:
    return _moved(x, np.eye(2), pixels * unit * random.choice([-1, 1], 2))


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian noise": Corruption(
        _gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38), "normal noise; its sd"),
    "shot noise": Corruption(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3), "Poisson noise; photons of a white pixel"),
    "impulse noise": Corruption(
        _impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27), "salt and pepper; share struck"),
    "defocus blur": Corruption(
        _defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), "a disk; its radius, and the sd that softens it"),
    "gaussian blur": Corruption(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6), "a Gaussian; its sd in pixels"),
    "motion blur": Corruption(
        _motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "a trail at an angle within 45 degrees; radius and sd in pixels"),
    "contrast": Corruption(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05), "less contrast; share left"),
    "brightness": Corruption(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5), "brighter; HSV's value gains"),
    "saturate": Corruption(
        _saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), (), "HSV's saturation times a, plus b"),
    "pixelate": Corruption(_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), "coarser; share of a side"),
    "jpeg": Corruption(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7), "compressed; quality"),
    "rotation": Corruption(_rotation, (0.2, 0.4, 0.6, 0.8, 1.0), (0.2, 0.4, 0.6, 0.8, 1.0), "turned either way; radians"),
    "translation": Corruption(_translation, (1, 2, 3, 4, 5), (1, 2, 3, 4, 5), "shifted along both axes, either way; pixels"),
}  # fmt: skip
"""By name."""
SEVERITIES = (1, 2, 3, 4, 5)


def corruptions(channels: int = 3) -> tuple[str, ...]:
    """The names of what images of so many channels can suffer."""
    return tuple(name for name, one in CORRUPTIONS.items() if _constants(one, channels) and (name != "saturate" or channels == 3))


def _constants(one: Corruption, channels: int) -> tuple[Any, ...]:
    return one.grey if channels == 1 else one.colour


def corrupted(
    x: NDArray[Any], name: str, severity: int, *, seed: int = 0, rows: Sequence[int] | NDArray[Any] | None = None
) -> NDArray[np.float32]:
    """Images x `(n, c, h, w)` in [0, 1], corrupted: float32 in [0, 1].

    severity: 1 to 5. rows `(n,)`: the images' numbers, which with the seed decide what is random about them; None counts from 0.

    Raises ValueError for another shape or range, a name that is not there, another severity, and a corruption that is of colours
    for images that have none.
    """
    x = np.asarray(x)
    if x.ndim != 4 or x.dtype.kind != "f" or 0 in x.shape[1:]:
        raise ValueError(f"expected images (n, c, h, w) as floats, got {x.dtype} of shape {x.shape}: divide bytes by 255")
    if len(x) and not (x.min() >= -1e-5 and x.max() <= 1 + 1e-5):
        raise ValueError(
            f"expected images in [0, 1], got {x.min():.4g} to {x.max():.4g}: undo their standardisation first, as "
            "espalier.data.shifted does"
        )
    if name not in CORRUPTIONS:
        raise ValueError(f"expected a corruption of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"expected a severity of 1 to 5, got {severity!r}")
    if name not in corruptions(x.shape[1]):
        raise ValueError(f"expected images of three colours for {name!r}, got {x.shape[1]} channel(s): take another corruption")
    numbers = np.arange(len(x)) if rows is None else np.asarray(rows)
    if len(numbers) != len(x):
        raise ValueError(f"expected a row number for each of {len(x)} images, got {len(numbers)}")
    one = CORRUPTIONS[name]
    constant = _constants(one, x.shape[1])[severity - 1]
    unit = min(x.shape[2:]) / (28 if x.shape[1] == 1 else 32)
    key, out = zlib.crc32(name.encode()), np.empty(x.shape, np.float32)
    for place, (image, number) in enumerate(zip(x, numbers, strict=True)):
        random = np.random.default_rng([seed, key, int(number)])
        out[place] = np.clip(one.corrupt(np.clip(image.astype(np.float64), 0, 1), constant, unit, random), 0, 1)
    return out


def resized(x: Image, size: Sequence[int], by: str = "bilinear") -> Image:
    """An image `(c, h, w)` at another size (rows, columns), each channel by Pillow's `box` or (antialiased) `bilinear` filter."""
    from PIL import Image as pillow

    filters = {"box": pillow.Resampling.BOX, "bilinear": pillow.Resampling.BILINEAR}
    across = (int(size[1]), int(size[0]))
    channels = [pillow.fromarray(channel.astype(np.float32)).resize(across, filters[by]) for channel in x]
    return np.stack([np.asarray(channel, dtype=np.float64) for channel in channels])
