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


def pixels(path: Path, size: int) -> np.ndarray:
    """What is decoded, `(3, size, size)` uint8."""
    return ImageFiles(path.parent, [path.name], [1], size)[0].numpy()


def test_sixteen_bits_are_grey_levels_and_not_white(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(tmp_path / "ramp.png")
    seen = pixels(tmp_path / "ramp.png", 64)
    assert len(np.unique(seen)) == 64
    np.testing.assert_array_equal(seen[0, 0], ramp >> 8)


def test_a_camera_that_was_turned_is_turned_back(tmp_path: Path) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[0] = 255  # light from above
    tags = Image.Exif()
    tags[0x0112] = 3  # upside down
    Image.fromarray(upright[::-1, ::-1]).save(tmp_path / "a.png", exif=tags)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", 8)[0], upright[..., 0])


def test_files_that_macos_leaves_are_no_images(images: Path) -> None:
    (images / "train/cat/._image0.png").write_bytes(b"\0\5\26\7")
    d = data.load(str(images), image_size=8, validation=0.0, calibration=0.0)
    assert len(d.train.y) == 18


def test_a_very_long_image_needs_no_more_memory_than_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = np.zeros((1, 20_000, 3), np.uint8)
    pattern[0, 10_000] = 200
    Image.fromarray(pattern).save(tmp_path / "long.png")
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: sizes.append(size) or resize(self, size, *rest)
    )
    seen = pixels(tmp_path / "long.png", 224)
    assert seen.max() == 200
    assert sizes == [(8 * 224, 224)]


def test_a_decompression_bomb_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png is no readable image .*: replace or remove it"):
        pixels(tmp_path / "bomb.png", 8)
