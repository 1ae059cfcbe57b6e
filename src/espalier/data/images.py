"""A folder of images as rows: `train/CLASS/*` and `test/CLASS/*`, listed at the start and decoded when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from espalier.data.readers import Raw
from espalier.data.streamed import Streamed

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
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

        path, size = self.root / self.names[row], self.image_size
        try:
            with Image.open(path) as opened:
                image = _central(ImageOps.exif_transpose(opened))
                shorter = min(image.size)
                width, height = (max(size, round(side * size / shorter)) for side in image.size)
                image_rgb = _eight_bits(image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow reports a broken PNG as a SyntaxError
            raise ValueError(f"{path} is no readable image ({error}): replace or remove it") from error
        left, top = (width - size) // 2, (height - size) // 2
        return torch.from_numpy(np.array(image_rgb.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


def _central(image: Image) -> Image:
    """The middle of an image that is more than eight times as long as wide: the rest would be cropped, after it was resized."""
    width, height = image.size
    longest = 8 * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _eight_bits(image: Image) -> Image:
    """16-bit grey levels by their upper byte: Pillow's own conversion makes all above 255 white."""
    from PIL import Image as pillow

    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    return pillow.fromarray((levels >> 8 if levels.max(initial=0) > 255 else levels).astype(np.uint8))


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
            yield f"{self.dataset.names[row]}\0{self.dataset.sizes[row]}\n".encode()

    def finish(self, batch: Tensor) -> Tensor:
        mean, sd = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_SD))
        return (batch / 255 - mean) / sd


def folder(root: Path, image_size: int = 224, workers: int | None = None) -> Raw:
    """A folder of images: `train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), or `CLASS/*` and nothing published.

    Classes are numbered in the alphabetical order of their folders; files end in png, jpg, jpeg, webp or bmp.
    Raises FileNotFoundError where `train` stands without `test`, ValueError where a class is empty or not in `train`.
    """
    parts = [root]
    if (root / "train").is_dir() and _class_folders(root / "train"):
        held_out = [root / name for name in ("test", "val") if (root / name).is_dir()][:1]
        if not held_out:
            raise FileNotFoundError(f"{root} has a folder train, expected test or val beside it, got neither; add one")
        parts = [root / "train", *held_out]
    classes = [sub.name for sub in _class_folders(parts[0])]
    if len(classes) < 2:
        raise ValueError(f"{root}: expected two or more class folders, got {classes}; put each class into its own")
    found = [_listed(root, part, classes) for part in parts]
    names, sizes, labels = (list(column) for column in zip(*(entry for part in found for entry in part), strict=True))
    files = ImageFiles(root, names, sizes, image_size)
    rows, cut = np.arange(len(names))[None], len(found[0])
    published = {"train": rows[:, :cut], "test": rows[:, cut:]} if len(parts) == 2 else {}
    return Raw(ImageRows(files, workers=workers), np.array(labels), len(classes), **published)


def _class_folders(part: Path) -> list[Path]:
    return sorted(sub for sub in part.iterdir() if sub.is_dir() and not sub.name.startswith("."))


def _listed(root: Path, part: Path, classes: list[str]) -> list[tuple[str, int, int]]:
    """(name below the root, bytes, label) of every image, by class and name."""
    listed = []
    for sub in _class_folders(part):
        if sub.name not in classes:
            raise ValueError(f"{sub} is a class without training images: expected one of {classes}; move or remove it")
        with os.scandir(sub) as entries:
            images = sorted(
                (e.name, e.stat().st_size)
                for e in entries
                if Path(e.name).suffix.lower() in _SUFFIXES and not e.name.startswith(".")  # macOS leaves ._name.png
            )
        if not images:
            raise ValueError(f"{sub} holds no images: expected {', '.join(sorted(_SUFFIXES))}; fill or remove it")
        below, label = sub.relative_to(root).as_posix(), classes.index(sub.name)
        listed += [(f"{below}/{name}", size, label) for name, size in images]
    return listed
