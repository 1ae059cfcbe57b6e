"""A folder of images: decoded when asked for, of every mode and format; what is wrong with it is said."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espalier import data
from espalier.data.images import ImageFiles
from written import (
    PARTS,
    declaring,
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


# ------------------------------------------------------------------------------------------------ colours

RED, GREY = (200, 30, 10), (77, 77, 77)
COLOURS = {
    "grey": (Image.new("L", (4, 4), 77), "png", GREY, 0),
    "grey with alpha": (Image.new("LA", (4, 4), (77, 9)), "png", GREY, 0),
    "one bit": (Image.new("1", (4, 4), 1), "png", (255, 255, 255), 0),
    "sixteen bits, dark": (Image.new("I;16", (4, 4), 200), "png", (0, 0, 0), 0),
    "sixteen bits": (Image.new("I;16", (4, 4), 77 * 256 + 3), "png", GREY, 0),
    "colour": (Image.new("RGB", (4, 4), RED), "bmp", RED, 0),
    "colour with alpha": (Image.new("RGBA", (4, 4), (*RED, 128)), "png", RED, 0),
    "wholly transparent": (Image.new("RGBA", (4, 4), (*RED, 0)), "png", RED, 0),
    "a palette": (Image.new("RGB", (4, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE), "png", RED, 0),
    "a palette in a gif": (Image.new("RGB", (4, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE), "gif", RED, 0),
    "inks": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpg", (255, 0, 0), 3),
    "inks, and black": (Image.new("CMYK", (16, 16), (0, 0, 0, 128)), "jpg", (127, 127, 127), 3),
    "luma and chroma": (Image.new("RGB", (16, 16), RED), "jpg", RED, 3),
}


@pytest.mark.parametrize("name", COLOURS)
def test_known_colours_are_decoded_as_such(tmp_path: Path, name: str) -> None:
    image, suffix, colour, off = COLOURS[name]
    image.save(tmp_path / f"a.{suffix}")
    seen = pixels((tmp_path / f"a.{suffix}").rename(tmp_path / "b.png"), 4).astype(
        int
    )  # content counts, not the suffix
    assert abs(seen - np.array(colour)[:, None, None]).max() <= off


def test_the_transparent_entry_of_a_palette_is_a_colour_and_no_warning(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(tmp_path / "a.png", transparency=bytes([255, 7]))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", 4)[:, 0, 0], RED)


def test_the_scale_that_is_kept_is_the_one_that_is_used(images: Path) -> None:
    d = data.load(str(images), image_size=8)
    levels = torch.stack([d.test.x.dataset[row] for row in d.test.x.rows])
    assert levels.dtype == torch.uint8
    assert torch.allclose(d.inputs(levels), d.test.x[torch.arange(len(levels))], atol=1e-6)
    assert d.facts()["inputs"]["mean"] == pytest.approx([255 * 0.485, 255 * 0.456, 255 * 0.406])


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_beside_train_and_test_is_the_validation_split(images: Path, name: str) -> None:
    for kind in ("ant", "bee", "cat"):
        write_images(images / name / kind, 3)
    d = data.load(str(images), image_size=8, validation=0.5, calibration=0.25)
    assert {part: {file.split("/")[0] for file in getattr(d, part).x.names} for part in PARTS} == {
        "train": {"train"},
        "validation": {name},
        "calibration": {"train"},
        "test": {"test"},
    }
    assert d.facts()["data"]["rows"] == {"train": 14, "validation": 9, "calibration": 4, "test": 6}
    assert d.validation.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert d.classes == ("ant", "bee", "cat")


def test_a_calibration_folder_is_the_calibration_split(images: Path) -> None:
    write_images(images / "calibration/bee", 5)  # a part may lack a class of training
    d = data.load(str(images), image_size=8, validation=0.0)
    assert d.calibration.x.names == [f"calibration/bee/image{i}.png" for i in range(5)]
    assert d.facts()["data"]["rows"] == {"train": 18, "validation": 0, "calibration": 5, "test": 6}
    assert d.validation.x[torch.arange(0)].shape == (0, 3, 8, 8)


def test_no_part_goes_unused(images: Path) -> None:
    write_images(images / "val/dog", 1)
    with pytest.raises(
        ValueError, match=r"val/dog is a class without training images: expected one of \['ant', 'bee', 'cat'\]"
    ):
        data.load(str(images))
    (images / "val/dog").rename(images / "val/cat")
    (images / "valid/cat").mkdir(parents=True)
    with pytest.raises(
        ValueError, match="images: expected one of validation, valid, val, got valid and val; join or rename"
    ):
        data.load(str(images))
    (images / "valid").rename(images / "dev")
    with pytest.raises(
        ValueError, match="dev holds classes, expected a name of train, validation, valid, val, calibration"
    ):
        data.load(str(images))
    (images / "dev/cat").rmdir()
    (images / "calibration").mkdir()
    with pytest.raises(
        ValueError, match="calibration holds no class folders, expected those of train: fill or remove it"
    ):
        data.load(str(images))
    (images / "calibration").rmdir()
    assert data.load(str(images), image_size=8).facts()["data"]["rows"]["validation"] == 1


@pytest.mark.parametrize("odd", ["photo.tiff", "more/photo.png"])
def test_no_image_of_a_class_goes_unused(images: Path, odd: str) -> None:
    (images / "train/bee" / odd).parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(images / "train/bee" / odd)
    with pytest.raises(ValueError, match=rf"train/bee/{odd.split('/')[0]} would go unused: expected images .*; convert, move"):
        data.load(str(images))


def test_parts_without_classes_are_no_classes(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        write_images(tmp_path / part, 3)
    with pytest.raises(ValueError, match="expected class folders, also in test and train and val, got no classes: train/CLASS"):
        data.load(str(tmp_path))


# ------------------------------------------------------------------------------------------------ no images


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a socket's name may be 107 bytes long


def huge(path: Path) -> None:
    Image.new("L", (4, 4)).save(path)
    path.write_bytes(declaring(path.read_bytes(), 20_000))


WRONG = {
    "a pipe": (a_pipe, "no file"),
    "a socket": (a_socket, "no file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no file"),
    "a folder": (lambda path: path.mkdir(), "no file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere.png"), "no file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "no file"),
    "nothing": (lambda path: path.write_bytes(b""), "of no known format"),
    "a page": (lambda path: path.write_text("<html>404</html>"), "of no known format"),
    "a program": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "of no known format"),
    "20,000 pixels square": (huge, r"Image size \(400000000 pixels\) exceeds limit"),
}  # fmt: skip


@pytest.mark.parametrize("part", ["train/cat", "test/ant"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_found_before_anything_is_decoded(images: Path, name: str, part: str) -> None:
    make, says = WRONG[name]
    make(images / part / "x.png")
    with pytest.raises(
        ValueError, match=rf"{part}/x\.png is no readable image \({says}.*\): replace or remove it"
    ) as caught:
        data.load(str(images))
    assert str(caught.value).isprintable()


def test_odd_names_are_read_and_shown(images: Path) -> None:
    odd = ["new\nline.png", os.fsdecode(b"\xff.png"), " .png", "日本.png", "%s{}.png"]
    for name in odd:
        Image.new("L", (9, 9)).save(images / "test/cat" / name)
    d = data.load(str(images), image_size=8)
    assert {f"test/cat/{name}" for name in odd} <= set(d.test.x.names)
    assert len(d.hashes["test"]) == 64
    (images / "test/cat" / odd[0]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"test/cat/new\\nline\.png' is no readable image"):
        data.load(str(images))
    (images / "train" / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(ValueError, match=r"\\udcff': expected a class that can be printed, got this name; rename it"):
        data.load(str(images))
