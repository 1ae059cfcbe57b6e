"""A folder of images: decoded when asked for, of every mode and format; what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espalier import data
from espalier.data.images import ImageFiles
from written import (
    PARTS,
    write_images,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("test", 2)):
        for name, suffix in (("cat", "png"), ("ant", "jpg"), ("bee", "WEBP")):
            write_images(tmp_path / "images" / part / name, count, suffix=suffix)
    (tmp_path / "images/train/cat/notes.txt").write_text("no image")
    return tmp_path / "images"


def eager(path: Path, size: int) -> np.ndarray:
    """One image the long way round, for landscape formats."""
    with Image.open(path) as image:
        width = round(image.width * size / image.height)
        pixels = np.asarray(image.convert("RGB").resize((width, size), Image.Resampling.BILINEAR)) / 255
    left = (width - size) // 2
    pixels = pixels[:, left : left + size]
    return ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)


def test_a_folder_of_images_decodes_what_is_asked_for(images: Path) -> None:
    d = data.load(str(images), image_size=8)
    assert (d.shape, d.num_classes) == ((3, 8, 8), 3)
    assert isinstance(d.test.x, data.ImageRows)
    classes = ("ant", "jpg"), ("bee", "WEBP"), ("cat", "png")
    assert d.test.x.names == [f"test/{name}/image{i}.{suffix}" for name, suffix in classes for i in (0, 1)]
    assert d.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    asked = torch.tensor([4, 0, 4])
    expected = np.stack([eager(images / d.test.x.names[i], 8) for i in asked])
    np.testing.assert_allclose(d.test.x[asked].numpy(), expected, atol=1e-5)
    assert d.test.x[asked].dtype == torch.float32
    assert d.test.x[asked[:0]].shape == (0, 3, 8, 8)
    names = [name for part in PARTS for name in getattr(d, part).x.names]
    assert len(names) == len(set(names)) == 24


@pytest.mark.parametrize(("mode", "size"), [("L", (9, 30)), ("RGBA", (30, 9)), ("P", (4, 4)), ("CMYK", (300, 3))])
def test_images_of_every_mode_and_format_become_square_rgb(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    names = [path.name for path in tmp_path.iterdir()]
    assert data.ImageRows(ImageFiles(tmp_path, names, [1], 7))[torch.tensor([0])].shape == (1, 3, 7, 7)


def test_val_stands_for_test_and_plain_class_folders_are_cut_by_seed(images: Path) -> None:
    published = data.load(str(images), image_size=8)
    (images / "test").rename(images / "val")
    assert [len(getattr(data.load(str(images), image_size=8), part)[1]) for part in PARTS] == [14, 2, 2, 6]
    plain = data.load(str(images / "train"), image_size=8)
    assert [len(getattr(plain, part).x) for part in PARTS] == [12, 1, 1, 4]
    assert plain.hashes["test"] != published.hashes["test"]


def test_a_folder_is_identified_by_names_sizes_and_labels(images: Path) -> None:
    before = data.load(str(images), image_size=8)
    assert data.load(str(images), image_size=16).hashes == before.hashes
    with (images / "test/cat/image0.png").open("ab") as file:
        file.write(b"\0")
    after = data.load(str(images), image_size=8)
    assert [part for part in PARTS if after.hashes[part] != before.hashes[part]] == ["test"]


def test_image_folders_say_what_is_wrong(images: Path) -> None:
    d = data.load(str(images), image_size=8)
    (images / "test/ant/image0.jpg").write_bytes(b"nothing like it")
    with pytest.raises(ValueError, match=r"ant/image0\.jpg is no readable image \(.*\): replace or remove it"):
        d.test.x[torch.tensor([0])]
    (images / "test/dog").mkdir()
    with pytest.raises(ValueError, match=r"dog is a class without training images: expected one of \['ant', 'b"):
        data.load(str(images))
    (images / "train/dog").mkdir()
    with pytest.raises(ValueError, match=r"train/dog holds no images: expected \.bmp, \.jpeg, \.jpg, \.png, \.webp"):
        data.load(str(images))
    with pytest.raises(ValueError, match=r"expected two or more class folders, got \[\]"):
        data.load(str(images / "train/dog"))
    (images / "test").rename(images / "later")
    with pytest.raises(FileNotFoundError, match="has a folder train, expected test or val beside it, got neither"):
        data.load(str(images))
