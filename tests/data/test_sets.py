"""Data sets: their parts, their scale, their identity, and the sentences for what is wrong with them."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from espalier import data
from espalier.data import downloads, readers, sets
from espalier.data.downloads import Download
from places import SHARED

PARTS = ("train", "validation", "calibration", "test")
RNG = np.random.default_rng(7)


# ------------------------------------------------------------------------------------------------ files to read


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder: Path, name: str, array: np.ndarray, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{name}.gz" if compress else name)
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    return path


def write_mnist(folder: Path, compress: bool = False, train: int = 40, test: int = 10) -> dict[str, np.ndarray]:
    """A tiny set in MNIST's files; the first axis of every array counts images."""
    made = {}
    for part, n in (("train", train), ("t10k", test)):
        made[part] = RNG.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        made[f"{part}-labels"] = (np.arange(n) % 10).astype(np.uint8)
        write_idx(folder, f"{part}-images-idx3-ubyte", made[part], compress)
        write_idx(folder, f"{part}-labels-idx1-ubyte", made[f"{part}-labels"], compress)
    return made


def cifar_parts(n: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(RNG.integers(0, 256, (n, 3072), dtype=np.uint8), RNG.integers(0, 10, n, dtype=np.uint8)) for _ in range(6)]


def write_cifar_binary(root: Path, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (x, y) in zip(readers_files(".bin"), parts, strict=True):
        (folder / name).write_bytes(np.concatenate([y[:, None], x], axis=1).tobytes())


def write_cifar_python(root: Path, parts: list[tuple[np.ndarray, np.ndarray]], replace: tuple[bytes, bytes]) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (x, y) in zip(readers_files(""), parts, strict=True):
        batch = {b"data": x, b"labels": y.tolist(), b"batch_label": b"one of six", b"filenames": [b"a.png"] * len(y)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2).replace(*replace))


def readers_files(suffix: str) -> list[str]:
    return [*(f"data_batch_{i}{suffix}" for i in range(1, 6)), f"test_batch{suffix}"]


def write_npz(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def toy(path: Path, n: int = 50, **more: Any) -> str:
    """A regression set of three features, of which the last is constant, in which x[:, 0] is the row number."""
    x = np.stack([np.arange(n), RNG.normal(3, 0.01, n), np.full(n, 0.1)], axis=1)
    return write_npz(path / "toy.npz", x=x, y=2.0 * x[:, 0] + 5, **more)


def write_images(folder: Path, count: int, size: tuple[int, int] = (20, 12), suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"image{i}.{suffix}")


def rows_of(split: Any, d: Any) -> np.ndarray:
    """The row numbers of a split of `toy`, from its targets."""
    return np.rint(((split.y.double() * d.target_scale + d.target_shift).numpy() - 5) / 2).astype(int)


# ------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize("validation", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("calibration", [0.0, 0.25])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_and_cover_all(tmp_path: Path, validation: float, calibration: float, seed: int) -> None:
    path = toy(tmp_path)
    d = data.load(path, validation=validation, calibration=calibration, split_seed=seed)
    rows = [rows_of(getattr(d, part), d) for part in PARTS]
    assert sorted(np.concatenate(rows)) == list(range(50))
    assert [len(r) for r in rows[1:]] == [round(validation * 40), round(calibration * 40), 10]


def test_published_rows_stay_the_test_split_and_unnamed_rows_stay_out(tmp_path: Path) -> None:
    train, test = np.array([[0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4]], np.uint16), np.array([[6, 7], [2, 0]], np.uint16)
    path = toy(tmp_path, train=train, test=test)
    for fold in (0, 1):
        d = data.load(path, fold=fold, validation=0.2, calibration=0.2)
        assert rows_of(d.test, d).tolist() == test[fold].tolist()
        rest = np.concatenate([rows_of(getattr(d, part), d) for part in PARTS[:3]])
        assert sorted(rest) == sorted(train[fold].tolist())


@pytest.mark.parametrize("given", ["train", "test"])
def test_one_published_part_leaves_the_other(tmp_path: Path, given: str) -> None:
    path = toy(tmp_path, **{given: np.arange(10, 20)})
    d = data.load(path, validation=0, calibration=0)
    assert sorted(rows_of(getattr(d, given), d)) == list(range(10, 20))
    assert len(d.train.y) + len(d.test.y) == 50


def test_the_same_seed_gives_the_same_hashes_and_another_seed_others(tmp_path: Path) -> None:
    path = toy(tmp_path)
    first, again, other = (data.load(path, split_seed=seed).hashes for seed in (3, 3, 4))
    assert first == again
    assert all(first[part] != other[part] for part in PARTS)
    assert len(set(first.values())) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in first.values())


def test_a_hash_is_of_the_stored_rows_and_labels(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 256, (12, 4, 3, 3), dtype=np.uint8), np.arange(12) % 3
    path = write_npz(tmp_path / "a.npz", x=x, y=y.astype(np.int8), test=np.array([5, 2]))
    stored = np.ascontiguousarray(x.transpose(0, 3, 1, 2))[[5, 2]].tobytes() + y[[5, 2]].astype(np.int64).tobytes()
    assert data.load(path).hashes["test"] == hashlib.sha256(stored).hexdigest()


def test_train_sizes_are_nested_and_leave_the_other_parts_alone(tmp_path: Path) -> None:
    path = toy(tmp_path)
    small, large, full = (data.load(path, train_size=size) for size in (7, 20, None))
    assert (len(small.train.y), len(large.train.y), len(full.train.y)) == (7, 20, 32)
    assert torch.equal(small.train.x[:], large.train.x[torch.arange(7)])
    assert torch.equal(large.train.x[:], full.train.x[torch.arange(20)])
    for part in PARTS[1:]:
        assert small.hashes[part] == full.hashes[part]
        assert torch.equal(getattr(small, part).x, getattr(full, part).x)
        assert torch.equal(getattr(small, part).y, getattr(full, part).y)
    assert small.hashes["train"] != full.hashes["train"]


def test_digits_are_cut_by_seed_and_need_no_files(tmp_path: Path) -> None:
    d = data.load("digits", data_dir=tmp_path, train_size=100)
    assert (d.name, d.shape, d.num_classes, d.num_outputs) == ("digits", (1, 8, 8), 10, 10)
    assert [len(getattr(d, part).y) for part in PARTS] == [100, 144, 144, 359]
    assert (d.train.x[:].dtype, d.train.y.dtype) == (torch.float32, torch.int64)


# ------------------------------------------------------------------------------------------------ scale


def test_features_and_targets_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    path = toy(tmp_path)
    d = data.load(path, split_seed=5)
    x = np.load(path)["x"]
    train, test = rows_of(d.train, d), rows_of(d.test, d)
    scale = np.array([*x[train].std(0)[:2], 1.0])  # the constant feature is only centred
    expected = (x[test] - x[train].mean(0)) / scale
    np.testing.assert_allclose(d.test.x[:].numpy(), expected, atol=1e-6)
    assert not d.test.x[:][:, 2].any()
    y = 2.0 * np.arange(50) + 5
    np.testing.assert_allclose([d.target_shift, d.target_scale], [y[train].mean(), y[train].std()])
    np.testing.assert_allclose(d.test.y * d.target_scale + d.target_shift, y[test], rtol=1e-6)
    assert d.train.y.dtype == torch.float32
    assert (d.num_classes, d.num_outputs) == (None, 1)


def test_a_feature_of_large_offset_keeps_its_scale(tmp_path: Path) -> None:
    x = 1e9 + RNG.normal(size=(400, 1))
    d = data.load(write_npz(tmp_path / "far.npz", x=x, y=x[:, 0]))
    assert d.train.x[:].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_constant_targets_keep_their_unit(tmp_path: Path) -> None:
    d = data.load(write_npz(tmp_path / "flat.npz", x=RNG.normal(size=(20, 2)), y=np.full(20, 3.7)))
    assert (d.target_shift, d.target_scale) == (3.7, 1.0)
    assert not d.train.y.any()


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_channels_are_standardised_whatever_the_chunk(tmp_path: Path, monkeypatch: Any, chunk: int) -> None:
    monkeypatch.setattr(sets, "_CHUNK", chunk)
    x = RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
    x[..., 1] = 9
    d = data.load(write_npz(tmp_path / "a.npz", x=x, y=np.arange(30) % 2), validation=0, calibration=0.1)
    train = d.train.x[:]
    assert d.shape == (3, 6, 5)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (np.zeros((20, 7)), (7,)),
        (np.zeros((20, 7), np.int64), (7,)),
        (np.zeros((20, 7), np.bool_), (7,)),
        (np.zeros((20, 5, 4), np.uint8), (1, 5, 4)),
        (np.zeros((20, 5, 4, 2), np.uint8), (2, 5, 4)),
        (np.zeros((20, 2, 5, 4), np.float32), (2, 5, 4)),
    ],
)
def test_npz_inputs_become_float32_channels_first(tmp_path: Path, x: np.ndarray, shape: tuple[int, ...]) -> None:
    d = data.load(write_npz(tmp_path / "a.npz", x=x, y=np.arange(20) % 4))
    assert (d.shape, d.num_classes) == (shape, 4)
    assert d.test.x[torch.tensor([1, 0])].shape == (2, *shape)
    assert d.test.x[:].dtype == torch.float32


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist"])
def test_idx_is_read_from_either_folder_compressed_or_not(tmp_path: Path, folder: str, compress: bool) -> None:
    made = write_mnist(tmp_path / folder, compress)
    d = data.load("mnist", data_dir=tmp_path, validation=0, calibration=0)
    assert (d.shape, d.num_classes, len(d.train.y)) == ((1, 5, 4), 10, 40)
    assert d.test.y.tolist() == made["t10k-labels"].tolist()
    mean, sd = made["train"].mean(), made["train"].std()
    np.testing.assert_allclose(d.test.x[:].numpy()[:, 0], (made["t10k"] - mean) / sd, atol=1e-6)
    assert data.available(tmp_path) == ["digits", "mnist"]


def test_both_versions_of_cifar10_hold_the_same_data(tmp_path: Path) -> None:
    parts = cifar_parts()
    write_cifar_binary(tmp_path / "bin", parts)
    stands = b"numpy._core.multiarray" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else b"numpy.core.multiarray"
    write_cifar_python(tmp_path / "new", parts, (stands, b"numpy._core.multiarray"))
    write_cifar_python(tmp_path / "old", parts, (stands, b"numpy.core.multiarray"))
    binary, new, old = (data.load("cifar10", data_dir=tmp_path / version) for version in ("bin", "new", "old"))
    assert binary.hashes == new.hashes == old.hashes
    assert (binary.shape, binary.num_classes, len(binary.train.y)) == ((3, 32, 32), 10, 24)
    assert torch.equal(binary.train.x[:], new.train.x[:])
    red_first = torch.from_numpy(parts[5][0].reshape(-1, 3, 32, 32)[0]).double()
    seen = binary.test.x[torch.tensor([0])][0].double()
    assert np.corrcoef(seen[0].ravel(), red_first[0].ravel())[0, 1] == pytest.approx(1)
    assert binary.test.y.tolist() == parts[5][1].tolist()


def python2_pickle(x: np.ndarray, labels: bytes) -> bytes:
    """A batch as Python 2 wrote it, opcode by opcode: strings are bytes, and numpy stands where it stood then."""

    def text(s: bytes) -> bytes:
        return b"T" + len(s).to_bytes(4, "little") + s

    def number(n: int) -> bytes:
        return b"J" + n.to_bytes(4, "little", signed=True)

    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = b"".join(map(number, x.shape)) + b"\x86"
    array = empty + b"(" + number(1) + shape + dtype + b"\x89" + text(x.tobytes()) + b"tb"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"eu."


def test_a_batch_that_python_2_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    x = RNG.integers(0, 256, (3, 3072), dtype=np.uint8)
    path.write_bytes(python2_pickle(x, bytes([1, 9, 0])))
    raw = readers.cifar_python([path], "labels", 10)
    assert (raw.x.reshape(3, -1) == x).all()
    assert raw.y.tolist() == [1, 9, 0]


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    x, fine, coarse = RNG.integers(0, 256, (8, 3072), dtype=np.uint8), np.arange(92, 100), np.arange(8)
    for name in ("cifar-100-binary", "cifar-100-python"):
        (tmp_path / name).mkdir()
    for part in ("train", "test"):
        records = np.concatenate([coarse[:, None], fine[:, None], x], axis=1).astype(np.uint8)
        (tmp_path / f"cifar-100-binary/{part}.bin").write_bytes(records.tobytes())
        batch = {"data": x, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
        (tmp_path / f"cifar-100-python/{part}").write_bytes(pickle.dumps(batch, protocol=2))
    binary = data.load("cifar100", data_dir=tmp_path)
    (tmp_path / "cifar-100-binary/test.bin").unlink()
    python = data.load("cifar100", data_dir=tmp_path)
    assert binary.test.y.tolist() == fine.tolist()
    assert (binary.num_classes, binary.hashes) == (100, python.hashes)


class Hostile:
    """What a pickle may do when it is opened: here, make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_anything_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    write_cifar_python(tmp_path, cifar_parts(), (b"", b""))
    victim = tmp_path / "cifar-10-batches-py/data_batch_3"
    victim.write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(ValueError, match=r"batch_3 is refused: it asks for \w+\.mkdir, only numpy arrays are allowed"):
        data.load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [pickle.dumps([1]), pickle.dumps({"data": 3, "labels": [1]}), b"", b"\x80\x02}q"])
def test_a_pickle_that_is_no_batch_is_refused(tmp_path: Path, content: bytes) -> None:
    write_cifar_python(tmp_path, cifar_parts(), (b"", b""))
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"test_batch is (refused|no CIFAR batch): .*; fetch it again"):
        data.load("cifar10", data_dir=tmp_path)


def test_the_unpickler_knows_five_names_and_encodes_latin1_alone() -> None:
    assert len(readers._ALLOWED) == 5
    assert readers._ALLOWED["_codecs", "encode"]("\xe9", "rot13") == codecs.encode("\xe9", "latin1")


# ------------------------------------------------------------------------------------------------ folders of images


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
    assert data.ImageRows(tmp_path, names, [1], 7)[torch.tensor([0])].shape == (1, 3, 7, 7)


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


# ------------------------------------------------------------------------------------------------ bad input


FEATURES = np.arange(40.0).reshape(20, 2)
CLASSES = np.arange(20) % 2


def changed(array: np.ndarray, row: int, value: float) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": FEATURES, "y": changed(CLASSES, 3, -1)}, r"expected labels in 0\.\.1, got -1, first in row 3"),
        ({"x": FEATURES, "y": 0 * CLASSES}, "expected labels of two or more classes, got only 0"),
        ({"x": FEATURES, "y": CLASSES.astype("U1")}, "expected integer labels or float targets, got <U1"),
        ({"x": changed(FEATURES, 7, np.nan), "y": CLASSES}, "expected finite inputs, got .*, first in row 7"),
        ({"x": FEATURES, "y": changed(1.0 * CLASSES, 9, np.inf)}, "expected finite targets, got .*, first in row 9"),
        ({"x": FEATURES, "y": CLASSES[1:]}, r"one y per row, got x \[20, 2\], y \[19\]; store y as \[n\]"),
        ({"x": FEATURES, "y": CLASSES[:, None]}, r"one y per row, got x \[20, 2\], y \[20, 1\]"),
        ({"x": FEATURES[:0], "y": CLASSES[:0]}, r"expected x with rows and columns .* got x \[0, 2\]"),
        ({"x": FEATURES[:, :0], "y": CLASSES}, r"expected x with rows and columns .* got x \[20, 0\]"),
        ({"x": FEATURES[:, 0], "y": CLASSES}, r"expected x as features \[n, d\], .* got float64 \[20\]"),
        ({"x": np.zeros((20, 2, 2)), "y": CLASSES}, r"expected x as features .* got float64 \[20, 2, 2\]"),
        ({"x": FEATURES.astype(str), "y": CLASSES}, "expected x as features .* got <U"),
        ({"x": FEATURES, "z": CLASSES}, r"lacks 'y': expected x and y, got \['x'\]; write it with np.savez"),
        ({"x": FEATURES.astype(object), "y": CLASSES}, "cannot be read: expected an npz of plain arrays, got Object"),
        ({"x": FEATURES, "y": CLASSES, "test": [3, 20]}, r"expected train and test rows in 0\.\.19, got 20 in fold 0"),
        ({"x": FEATURES, "y": CLASSES, "train": [-1, 2]}, r"expected train and test rows in 0\.\.19, got -1"),
        ({"x": FEATURES, "y": CLASSES, "train": [1, 2], "test": [2, 3]}, "disjoint train and test, got row 2 twice"),
        ({"x": FEATURES, "y": CLASSES, "test": [4, 4]}, "disjoint train and test, got row 4 twice in fold 0"),
        ({"x": FEATURES, "y": CLASSES, "test": [0.5]}, r"as integers \[n\] or, .* got float64 \[1, 1\]"),
        ({"x": FEATURES, "y": CLASSES, "train": [[1], [2]], "test": [0]}, r"equally many, .* got int64 \[2, 1\] and"),
        ({"x": FEATURES, "y": CLASSES, "test": range(20)}, "expected rows left to train on, got none of 0"),
    ],
)
def test_a_bad_npz_gets_one_sentence(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        data.load(write_npz(tmp_path / "bad.npz", **arrays))
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", pickle.dumps([1]), b"no archive"])
def test_a_damaged_npz_gets_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz cannot be read: expected an npz of plain arrays"):
        data.load(str(tmp_path / "bad.npz"))


def test_a_plain_array_under_the_name_of_an_archive_gets_one_sentence(tmp_path: Path) -> None:
    with (tmp_path / "bad.npz").open("wb") as file:
        np.save(file, FEATURES)
    with pytest.raises(ValueError, match=r"bad\.npz cannot be read: expected an npz of plain arrays"):
        data.load(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"validation": 1.0}, r"expected validation in \[0, 1\), a fraction of all but the test rows, got 1\.0"),
        ({"validation": -0.1}, r"expected validation in \[0, 1\)"),
        ({"calibration": float("nan")}, r"expected calibration in \[0, 1\), .* got nan"),
        ({"validation": 0.5, "calibration": 0.5}, "expected rows left to train on, got none of 40 .*; lower them"),
        ({"validation": 0.9, "calibration": 0.9}, "expected rows left to train on"),
        ({"train_size": 33}, r"expected train_size in 1\.\.32, the rows left to train on, got 33"),
        ({"train_size": 0}, r"expected train_size in 1\.\.32"),
        ({"fold": 1}, r"expected fold in 0\.\.0, got 1; the set has 1 published split"),
        ({"fold": -1}, r"expected fold in 0\.\.0, got -1"),
        ({"split_seed": -1}, "expected split_seed to be 0 or more, got -1"),
        ({"image_size": 32}, "expected image_size > 0, and for folders of images alone, got 32; drop it"),
    ],
)
def test_a_bad_option_gets_one_sentence(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        data.load(toy(tmp_path), **options)


@pytest.mark.parametrize(("name", "near"), [("fashon-mnst", "fashion-mnist"), ("CIFAR-10", "cifar10")])
def test_an_unknown_name_gets_the_nearest_and_the_list(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"got '{name}' \(did you mean {near}\?\); the names are digits, mnist, "):
        data.load(name)
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        downloads.get(name)


def test_an_empty_or_strange_name_does_not_guess() -> None:
    for name in ("", "zzzz"):
        with pytest.raises(ValueError, match=rf"got '{name}'; the names are"):
            data.load(name)


@pytest.mark.parametrize("name", [name for name in data.names() if name != "digits"])
def test_missing_files_say_what_was_looked_for_where_and_what_to_do(tmp_path: Path, name: str) -> None:
    sentence = rf"{name}: expected a file {re.escape(str(tmp_path))}/.*, got none; run `espalier data get {name}`.*"
    with pytest.raises(FileNotFoundError, match=sentence + "--data-dir or ESPALIER_DATA"):
        data.load(name, data_dir=tmp_path)


def test_an_incomplete_folder_names_the_file_that_is_missing(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path, cifar_parts())
    (tmp_path / "cifar-10-batches-bin/data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-bin/data_batch_4\.bin, got none"):
        data.load("cifar10", data_dir=tmp_path)


def test_a_path_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "no.npz", tmp_path / "folder"):
        with pytest.raises(FileNotFoundError, match=f"folder of images at {re.escape(str(path))}, got nothing"):
            data.load(str(path))


def test_damaged_idx_files_get_one_sentence(tmp_path: Path) -> None:
    load = partial(data.load, "mnist", data_dir=tmp_path)
    folder = tmp_path / "mnist"
    write_mnist(folder)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is truncated: expected 816 bytes, got 815; fetch it"):
        load()
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match="is no IDX file of 3 axes: expected 00 00 08 03 first, got 00 00 08 01"):
        load()
    images.unlink()
    for content in (gzip.compress(whole)[:-20], b"not gzip at all"):
        images.with_name(f"{images.name}.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"gz is damaged: expected a whole gzip file, got .*; fetch it again"):
            load()
    images.write_bytes(whole)
    write_idx(folder, labels.name, np.zeros(39, np.uint8))
    with pytest.raises(ValueError, match="labels-idx1-ubyte holds 39 labels, expected 40, one per image"):
        load()
    write_idx(folder, labels.name, changed(np.zeros(40, np.uint8), 12, 10))
    with pytest.raises(ValueError, match=r"mnist: expected labels in 0\.\.9, got 10, first in row 12"):
        load()


def test_damaged_cifar_files_get_one_sentence(tmp_path: Path) -> None:
    write_cifar_binary(tmp_path, cifar_parts())
    batch = tmp_path / "cifar-10-batches-bin/data_batch_2.bin"
    whole = batch.read_bytes()
    for content in (whole[:-1], b""):
        batch.write_bytes(content)
        with pytest.raises(ValueError, match=r"data_batch_2\.bin is truncated: expected records of 3,073 bytes, got"):
            data.load("cifar10", data_dir=tmp_path)
    batch.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(ValueError, match=r"cifar10: expected labels in 0\.\.9, got 10, first in row 6"):
        data.load("cifar10", data_dir=tmp_path)


def test_fractional_labels_of_a_named_set_are_refused(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, cifar_parts(), (b"", b""))
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0.5, 1.0]}
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match="cifar10: expected integer labels or float targets, got float64"):
        data.load("cifar10", data_dir=tmp_path)


# ------------------------------------------------------------------------------------------------ downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with `files[path]`: what is sent, and the length that is promised."""

    files: dict[str, tuple[bytes, int]] = {}
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.files:
            self.send_error(404)
            return
        content, promised = self.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Server, "files", {})
    monkeypatch.setattr(Server, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def serve(path: str, content: bytes, promised: int | None = None) -> None:
    Server.files[path] = (content, len(content) if promised is None else promised)


def stored(folder: Path) -> list[str]:
    """Every file below, hidden ones too, and every folder that a download may have made for itself."""
    paths = folder.rglob("*")
    return sorted(str(p.relative_to(folder)) for p in paths if p.is_file() or p.name.startswith("."))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_get_stores_what_load_reads_and_downloads_nothing_twice(tmp_path: Path, server: str) -> None:
    write_mnist(tmp_path / "made/MNIST/raw", compress=True)
    parts = []
    for path in sorted((tmp_path / "made/MNIST/raw").iterdir()):
        serve(f"/{path.name}", path.read_bytes())
        content = gzip.decompress(path.read_bytes())
        parts.append(Download(f"{server}/{path.name}", {f"MNIST/raw/{path.name}": digest(content)}))
    seen: list[tuple[str, int, int | None]] = []
    get = partial(downloads.get, "mnist", tmp_path / "here", sources={"mnist": tuple(parts)})
    sentences = get(progress=lambda *progress: seen.append(progress))
    assert [s.rpartition(": stored in ")[0] for s in sentences] == [f for d in parts for f in d.files]
    assert {name: (now, total) for name, now, total in seen} == {
        path[1:]: (total, total) for path, (_, total) in Server.files.items()
    }
    here, made = (data.load("mnist", data_dir=tmp_path / folder) for folder in ("here", "made"))
    assert here.hashes == made.hashes
    assert all(sentence.endswith("already there, SHA-256 as expected") for sentence in get())
    assert len(Server.asked) == 4
    assert len(stored(tmp_path / "here")) == 4


def test_a_file_that_is_there_but_wrong_is_replaced(tmp_path: Path, server: str) -> None:
    (tmp_path / "set").mkdir()
    serve("/a.gz", gzip.compress(b"right"))
    source = {"a": (Download(f"{server}/a.gz", {"set/a.gz": digest(b"right")}),)}
    for wrong in (gzip.compress(b"wrong"), gzip.compress(b"right")[:-3], b"wrong"):
        (tmp_path / "set/a.gz").write_bytes(wrong)
        assert "stored in" in downloads.get("a", tmp_path, sources=source)[0]
        assert gzip.decompress((tmp_path / "set/a.gz").read_bytes()) == b"right"


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    right = gzip.compress(RNG.bytes(100_000))
    serve("/wrong.gz", gzip.compress(b"something else"))
    serve("/cut.gz", right[:50_000], promised=len(right))
    serve("/not.gz", b"<html>moved</html>")
    expected = digest(gzip.decompress(right))
    for file, sentence in {
        "wrong.gz": rf"wrong\.gz: expected SHA-256 {expected}, got {digest(b'something else')}; nothing was stored",
        "cut.gz": r"cut\.gz: expected the whole file, got .*; nothing was stored, try again",
        "not.gz": rf"not\.gz: expected SHA-256 {expected}, got a damaged gzip file; nothing was stored",
        "absent.gz": r"absent\.gz: expected the whole file, got HTTP Error 404: Not Found; nothing was stored",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            downloads.get("a", tmp_path, sources={"a": (Download(f"{server}/{file}", {f"set/{file}": expected}),)})
        assert stored(tmp_path) == []


def test_a_failed_download_leaves_the_file_that_was_there(tmp_path: Path, server: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    serve("/a.bin", b"wrong")
    with pytest.raises(ValueError, match="nothing was stored"):
        downloads.get("a", tmp_path, sources={"a": (Download(f"{server}/a.bin", {"a.bin": digest(b"right")}),)})
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    serve("/a.bin", b"right")
    source = {"a": (Download(f"{server}/a.bin", {"set/a.bin": digest(b"right")}),)}
    with pytest.raises(KeyboardInterrupt):
        downloads.get("a", tmp_path, progress=interrupt, sources=source)
    assert stored(tmp_path) == []


def test_a_server_that_is_not_there_is_said_so(tmp_path: Path, server: str) -> None:
    source = {"a": (Download("http://127.0.0.1:1/a.bin", {"a.bin": digest(b"")}),)}
    with pytest.raises(ValueError, match=r"a\.bin: expected the whole file, got .*refused.*; nothing was stored"):
        downloads.get("a", tmp_path, sources=source)


def tar(**members: bytes | str) -> bytes:
    """A .tar.gz of files (bytes) and symbolic links (str), named with / for __."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("UP", ".."))
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_an_archive_is_unpacked_whole_and_only_as_far_as_wanted(tmp_path: Path, server: str) -> None:
    packed = tar(set__a=b"A", set__b=b"B", UP__escaped=b"!", set__link="/etc/passwd", set__readme=b"?")
    serve("/set.tar.gz", packed)
    files = {"set/a": digest(b"A"), "set/b": digest(b"B")}
    get = partial(downloads.get, "a", tmp_path / "here")
    sentence = get(sources={"a": (Download(f"{server}/set.tar.gz", files, digest(packed)),)})[0]
    assert sentence.startswith("set/a, set/b: stored in")
    assert stored(tmp_path) == ["here/set/a", "here/set/b"]
    assert "already there" in get(sources={"a": (Download(f"{server}/set.tar.gz", files, digest(packed)),)})[0]


def test_a_wrong_archive_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    packed = tar(set__a=b"A", set__b="/etc/passwd")
    serve("/set.tar.gz", packed)
    for files, archive, sentence in (
        ({"set/a": digest(b"A")}, digest(b"another"), rf"expected SHA-256 {digest(b'another')}, got {digest(packed)}"),
        ({"set/a": digest(b"X")}, digest(packed), rf"expected SHA-256 {digest(b'X')}, got {digest(b'A')}"),
        ({"set/a": digest(b"A"), "set/b": ""}, digest(packed), r"set\.tar\.gz: expected set/b in it, got no such file"),
    ):
        with pytest.raises(ValueError, match=sentence + ".*nothing was stored"):
            downloads.get("a", tmp_path, sources={"a": (Download(f"{server}/set.tar.gz", files, archive),)})
        assert stored(tmp_path) == []


def test_sources_name_the_files_that_load_looks_for(tmp_path: Path) -> None:
    for name, parts in downloads.SOURCES.items():
        for download in parts:
            assert download.url.startswith("https://")
            digests = [*download.files.values(), download.archive_sha256 or digest(b"")]
            assert all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
            for file in download.files:
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).touch()
        assert name in data.available(tmp_path)
    assert set(data.available(tmp_path)) == {"digits", *downloads.SOURCES}


def test_sets_without_a_public_file_say_where_they_come_from(tmp_path: Path) -> None:
    assert downloads.get("digits", tmp_path) == ["digits comes with scikit-learn: nothing to download"]
    with pytest.raises(ValueError, match=r"boston: expected a public address, got none.*yaringal/Dropout"):
        downloads.get("boston", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("ESPALIER_DATA", str(tmp_path))
    assert data.available() == ["digits", "mnist"]
    assert data.load("mnist").shape == (1, 5, 4)
    assert data.available(tmp_path / "elsewhere") == ["digits"]


# ------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST, CIFAR-10 and the UCI sets in the formats of their original distributions."""
    if not (SHARED / "unpack.py").is_file():
        pytest.skip(f"no real data at {SHARED}; ESPALIER_SHARED names the folder that holds data/")
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, "-B", SHARED / "unpack.py", folder, "mnist", "uci", "cifar10"], check=True)
    return folder


def test_the_real_mnist_is_read_whole(real: Path) -> None:
    d = data.load("mnist", data_dir=real, train_size=1000)
    assert [len(getattr(d, part).y) for part in PARTS] == [1000, 6000, 6000, 10000]
    content = gzip.decompress((SHARED / "mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)
    flat = d.test.x[torch.arange(200)].reshape(200, 784).numpy()
    slope, offset = np.polyfit(pixels[:200].ravel(), flat.ravel(), 1)
    np.testing.assert_allclose(flat, slope * pixels[:200] + offset, atol=1e-4)
    assert (1 / slope, -offset / slope) == pytest.approx((78.6, 33.3), abs=0.5)  # the published sd and mean
    assert d.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.parametrize(("name", "last"), [("boston", 19), ("protein", 4), ("wine-red", 19)])
def test_the_real_uci_folds_are_the_published_ones(real: Path, name: str, last: int) -> None:
    for fold in (0, last):
        d = data.load(name, data_dir=real, fold=fold, validation=0, calibration=0)
        with np.load(SHARED / f"uci/{name}.npz") as z:
            x, y, train, test = z["x"], z["y"], z["train"][fold].astype(int), z["test"][fold].astype(int)
        scale = x[train].std(0)
        np.testing.assert_allclose(d.test.x[:].numpy(), (x[test] - x[train].mean(0)) / scale, rtol=1e-4, atol=1e-5)
        assert (d.target_shift, d.target_scale) == pytest.approx((y[train].mean(), y[train].std()))
        np.testing.assert_allclose(d.test.y * d.target_scale + d.target_shift, y[test], rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match=rf"{name}: expected fold in 0\.\.{last}, got {last + 1}"):
        data.load(name, data_dir=real, fold=last + 1)


def test_the_real_files_have_the_digests_of_their_sources(real: Path) -> None:
    for name in ("mnist", "cifar10"):
        assert all("already there" in sentence for sentence in downloads.get(name, real))


def test_the_real_cifar10_has_its_published_mean_and_sd(real: Path) -> None:
    raw = readers.cifar_binary([real / "cifar-10-batches-bin" / name for name in readers_files(".bin")], 1, 10)
    mean, sd = sets._moments(raw.x, raw.train[0])
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(sd / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert hashlib.sha256(raw.x[:50000].transpose(0, 2, 3, 1).tobytes()).hexdigest().startswith("47af8b02cfcfb6cd")
