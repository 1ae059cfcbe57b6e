"""A folder of images as rows: `train/CLASS/*` and `test/CLASS/*`, looked over at the start and decoded when asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from espalier.data.archives import said
from espalier.data.readers import PART_NAMES, Raw, one_of
from espalier.data.streamed import Streamed

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_OTHERS = {".tif", ".tiff", ".gif", ".avif", ".heic", ".jp2", ".jxl", ".ppm", ".pgm", ".dcm"}
"""Of images that are not read."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # whatever the suffix says; Pillow runs Ghostscript on an EPS
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_SD = (0.229, 0.224, 0.225)


@final
class ImageFiles(Dataset[Tensor]):
    """Image files `root / name` as uint8 `(3, size, size)`: RGB, shorter side resized to `size` (bilinear), centre cropped.

    Raises ValueError where a file cannot be decoded.
    """

    def __init__(self, root: Path, names: Sequence[str], sizes: Sequence[int], image_size: int) -> None:
        self.root, self.names, self.sizes, self.image_size = root, names, sizes, image_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Tensor:
        from PIL import Image, ImageOps

        size = self.image_size
        with _opened(self.root / self.names[row]) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            image = _central(opened)
            shorter = min(image.size)
            width, height = (max(size, round(side * size / shorter)) for side in image.size)
            image_rgb = _eight_bits(image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        return torch.from_numpy(np.array(image_rgb.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """An image of which the header is read. Raises ValueError, in one sentence, for what goes wrong until it is closed."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of metadata that nothing here looks at
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    except Exception as error:  # a damaged image may raise nearly anything
        reason = "of no known format" if isinstance(error, UnidentifiedImageError) else said(error)
        raise ValueError(f"{_shown(path)} is no readable image ({reason}): replace or remove it") from error


def _shown(path: Path) -> str:
    """A path as a sentence can hold it: a file's name may hold a new line, or be no text at all."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _central(image: Image) -> Image:
    """The middle of an image that is more than eight times as long as wide: the rest would be cropped, after it was resized."""
    width, height = image.size
    longest = 8 * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _eight_bits(image: Image) -> Image:
    """16-bit grey levels by their upper byte, dark images too: Pillow's own conversion makes all above 255 white."""
    from PIL import Image as pillow

    if not image.mode.startswith("I"):
        return image
    return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@final
class ImageRows(Streamed):
    """Image files as `Rows`: float32 `(b, 3, size, size)`, standardised with the mean and sd of ImageNet."""

    dataset: ImageFiles

    @property
    def names(self) -> list[str]:
        """Of the files, below their folder."""
        return [self.dataset.names[row] for row in self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), 3, self.dataset.image_size, self.dataset.image_size)

    def select(self, rows: NDArray[np.int64]) -> ImageRows:
        return ImageRows(self.dataset, self.rows[rows], workers=self.workers)

    def identity(self) -> Iterator[bytes]:
        """Names and sizes in bytes: reading every pixel would take hours."""
        for row in self.rows:
            yield os.fsencode(f"{self.dataset.names[row]}\0{self.dataset.sizes[row]}\n")

    @property
    def scale(self) -> tuple[Tensor, Tensor]:
        """Of levels from 0 to 255."""
        mean, sd = (255 * torch.tensor(values, dtype=torch.float64) for values in (_IMAGENET_MEAN, _IMAGENET_SD))
        return mean, sd

    def finish(self, batch: Tensor) -> Tensor:
        mean, sd = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_SD))
        return (batch / 255 - mean) / sd


def folder(root: Path, image_size: int = 224, workers: int | None = None) -> Raw:
    """A folder of images: `train/CLASS/*`, `test/CLASS/*` and, where they are set apart too, `val/CLASS/*` and
    `calibration/CLASS/*`; or `CLASS/*` and nothing published. Without `test`, `val` is the test split.

    Classes are numbered in the alphabetical order of their folders; files end in png, jpg, jpeg, webp or bmp. The header of
    every file is read. Raises FileNotFoundError where `train` stands without `test`, ValueError for a class that is empty or not
    in `train`, for a folder that would go unused, and for a file that is no image.
    """
    folders = _parts(root)
    classes = [sub.name for sub in _class_folders(folders.get("train", root))]
    of_parts = {name for aliases in PART_NAMES.values() for name in aliases}
    if len(flat := [name for name in classes if name in of_parts]) > 1:
        raise ValueError(f"{root}: expected class folders, also in {' and '.join(flat)}, got no classes: train/CLASS/IMAGE")
    if len(classes) < 2:
        raise ValueError(f"{root}: expected two or more class folders, got {classes}; put each class into its own")
    found = {part: _listed(root, where, classes) for part, where in folders.items()}
    names, sizes, labels = (
        list(column) for column in zip(*(entry for part in found.values() for entry in part), strict=True)
    )
    for name in names:
        with _opened(root / name):
            pass
    files = ImageFiles(root, names, sizes, image_size)
    ends = np.cumsum([len(part) for part in found.values()])
    rows = dict(zip(found, np.split(np.arange(len(names))[None], ends[:-1], axis=1), strict=True))
    published = rows if "train" in rows else {}
    return Raw(ImageRows(files, workers=workers), np.array(labels), len(classes), published, tuple(classes))


def files_below(root: Path, image_size: int) -> ImageFiles:
    """All images below a folder, by name. Raises ValueError where there are none, and for a file that cannot be read."""
    names = names_below(root)
    if not names:
        raise ValueError(f"{_shown(root)} holds no images: expected {', '.join(sorted(_SUFFIXES))}")
    sizes = [_size(root / name) for name in names]
    for name in names:
        with _opened(root / name):
            pass
    return ImageFiles(root, names, sizes, image_size)


def names_below(root: Path) -> list[str]:
    """Of the images in a folder and its folders, sorted; what macOS leaves (._name.png) is none."""
    every = (path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."))
    return sorted(path.relative_to(root).as_posix() for path in every)


def _parts(root: Path) -> dict[str, Path]:
    """Part -> its folder; where there are no parts, the root under a name of none."""
    train = root / "train"
    if not (train.is_dir() and _class_folders(train)):
        return {"all": root}
    found = {
        part: root / name
        for part, aliases in PART_NAMES.items()
        if (name := one_of(root, aliases, [name for name in aliases if (root / name).is_dir()]))
    }
    if "test" not in found:
        if "validation" not in found:
            raise FileNotFoundError(f"{root} has a folder train, expected test or val beside it, got neither; add one")
        found["test"] = found.pop("validation")
    classes = {sub.name for sub in _class_folders(train)}
    for other in set(_class_folders(root)) - set(found.values()):
        if classes & {sub.name for sub in _class_folders(other)}:
            known = ", ".join(name for aliases in PART_NAMES.values() for name in aliases)
            raise ValueError(f"{_shown(other)} holds classes, expected a name of {known}: rename or move it")
    return found


def _class_folders(part: Path) -> list[Path]:
    return sorted(sub for sub in part.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _listed(root: Path, part: Path, classes: list[str]) -> list[tuple[str, int, int]]:
    """(name below the root, bytes, label) of every image, by class and name."""
    listed = []
    for sub in _class_folders(part):
        if sub.name not in classes:
            raise ValueError(
                f"{_shown(sub)} is a class without training images: expected one of {classes}; move or remove it"
            )
        if not sub.name.isprintable():
            raise ValueError(f"{_shown(sub)}: expected a class that can be printed, got this name; rename it")
        entries = sorted(path for path in sub.iterdir() if not path.name.startswith("."))  # macOS leaves ._name.png
        images = [path.name for path in entries if path.suffix.lower() in _SUFFIXES]
        others = [path for path in entries if path.suffix.lower() not in _SUFFIXES]
        if unused := [path for path in others if path.suffix.lower() in _OTHERS or path.is_dir()]:
            raise ValueError(
                f"{_shown(unused[0])} would go unused: expected images ({', '.join(sorted(_SUFFIXES))}) in the folder of "
                "their class itself; convert, move or remove it"
            )
        if not images:
            raise ValueError(
                f"{_shown(sub)} holds no images: expected {', '.join(sorted(_SUFFIXES))}; fill or remove it"
            )
        below, label = sub.relative_to(root).as_posix(), classes.index(sub.name)
        listed += [(f"{below}/{name}", _size(sub / name), label) for name in images]
    if not listed:
        raise ValueError(f"{_shown(part)} holds no class folders, expected those of train: fill or remove it")
    return listed


def _size(path: Path) -> int:
    """In bytes. Raises ValueError for what is no file: a pipe would be waited for."""
    if not path.is_file():
        raise ValueError(f"{_shown(path)} is no readable image (no file): replace or remove it")
    return path.stat().st_size
