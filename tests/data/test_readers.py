"""One reader per file format: IDX, CIFAR and .npz, whole, damaged and hostile."""

from __future__ import annotations

import codecs
import gzip
import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espalier import data
from espalier.data import readers
from written import (
    CLASSES,
    FEATURES,
    RNG,
    changed,
    cifar_parts,
    write_cifar_binary,
    write_cifar_python,
    write_idx,
    write_mnist,
    write_npz,
)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (np.zeros((20, 7)), (7,)),
        (np.zeros((20, 7), np.int64), (7,)),
        (np.zeros((20, 7), np.bool_), (7,)),
        (np.zeros((20, 5, 4), np.uint8), (1, 5, 4)),
        (np.zeros((20, 5, 4, 2), np.uint8), (2, 5, 4)),
        (np.zeros((20, 2, 5, 4), np.float32), (2, 5, 4)),
        (np.zeros((20, 3, 32, 32), np.uint8), (3, 32, 32)),
        (np.zeros((20, 32, 32, 3), np.float32), (3, 32, 32)),
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


def test_a_pickle_that_asks_for_gigabytes_gets_none(tmp_path: Path) -> None:
    write_cifar_python(tmp_path, cifar_parts(), (b"", b""))
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")
    with pytest.raises(ValueError, match="test_batch is refused: it asks for room for 268,435,455 things; fetch it again"):
        data.load("cifar10", data_dir=tmp_path)


def test_the_unpickler_knows_five_names_and_encodes_latin1_alone() -> None:
    assert len(readers._ALLOWED) == 5
    assert readers._ALLOWED["_codecs", "encode"]("\xe9", "rot13") == codecs.encode("\xe9", "latin1")


# ------------------------------------------------------------------------------------------------ folders of images


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": FEATURES, "y": 0 * CLASSES}, r"expected two or more classes in y of .*bad\.npz, got only 0; give float"),
        ({"x": FEATURES, "y": 7 + 2 * np.arange(20)}, r"got 20 that stand alone in 20 rows: give float targets"),
        ({"x": FEATURES, "y": 1j * CLASSES}, r"expected labels as numbers, strings or bool in y of .*, got complex128"),
        (
            {"x": FEATURES, "y": np.zeros(20, "i4,f4")},
            r"expected labels as numbers, strings or bool in y of .*, got \[",
        ),
        ({"x": changed(FEATURES, 7, np.nan), "y": CLASSES}, "expected finite inputs, got .*, first in row 7"),
        ({"x": FEATURES, "y": changed(1.0 * CLASSES, 9, np.inf)}, "expected finite targets, got .*, first in row 9"),
        ({"x": FEATURES, "y": CLASSES[1:]}, r"one y per row, got x \[20, 2\], y \[19\]; store y as \[n\]"),
        ({"x": FEATURES, "y": np.zeros((20, 2, 2))}, r"expected real-valued targets of shape \(n,\) or \(n, d\) in y of"),
        ({"x": FEATURES[:0], "y": 1.0 * CLASSES[:0]}, r"expected x with rows and columns .* got x \[0, 2\]"),
        ({"x": FEATURES[:, :0], "y": CLASSES}, r"expected x with rows and columns .* got x \[20, 0\]"),
        ({"x": FEATURES[:, 0], "y": CLASSES}, r"expected x as features \[n, d\], .* got float64 \[20\]"),
        ({"x": np.zeros((20, 2, 2)), "y": CLASSES}, r"expected x as features .* got float64 \[20, 2, 2\]"),
        ({"x": FEATURES.astype(str), "y": CLASSES}, "expected x as features .* got <U"),
        ({"x": FEATURES, "z": CLASSES}, r"lacks 'y': expected x and y, got \['x', 'z'\]; write it with np.savez"),
        ({"x": FEATURES.astype(object), "y": CLASSES}, "expected an npz of plain arrays, got Python objects in x"),
        ({"x": FEATURES, "y": CLASSES, "test": [3, 20]}, r"expected test rows in 0\.\.19, got 20 in fold 0"),
        ({"x": FEATURES, "y": CLASSES, "train": [-1, 2]}, r"expected train rows in 0\.\.19, got -1"),
        (
            {"x": FEATURES, "y": CLASSES, "train": [1, 2], "test": [2, 3]},
            "every row once in train and test, got row 2 twice",
        ),
        ({"x": FEATURES, "y": CLASSES, "test": [4, 4]}, "expected every row once in test, got row 4 twice in fold 0"),
        ({"x": FEATURES, "y": CLASSES, "test": [0.5]}, r"as integers \[n\] or, .* got float64 \[1, 1\]"),
        ({"x": FEATURES, "y": CLASSES, "train": [[1], [2]], "test": [0]}, r"equally many, .* got int64 \[2, 1\] and"),
        ({"x": FEATURES, "y": CLASSES, "test": [[4], [9]]}, r"row numbers of test as .*, got a column \[2, 1\], which"),
        ({"x": FEATURES, "y": CLASSES, "test_idx": [4, 9]}, "row numbers of parts under train, .* got test_idx; rename"),
        ({"x": FEATURES, "y": CLASSES, "X_test": FEATURES}, "row numbers of parts under train, .* got X_test; rename"),
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


def test_other_arrays_may_lie_beside_and_each_row_may_be_left_out_once(tmp_path: Path) -> None:
    beside = {"feature_values": FEATURES[0], "strain": [1, 2], "y_train_mean": 3.0, "interval": [0.5, 1.5]}
    path = write_npz(tmp_path / "fine.npz", x=FEATURES, y=CLASSES, test=np.arange(20)[:, None], **beside)
    assert data.load(path, fold=7, validation=0.0).facts()["data"]["rows"]["test"] == 1


def test_damaged_idx_files_get_one_sentence(tmp_path: Path) -> None:
    load = partial(data.load, "mnist", data_dir=tmp_path)
    folder = tmp_path / "mnist"
    write_mnist(folder)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged: expected 816 bytes, got 815; fetch it"):
        load()
    images.write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match="is no IDX file of 3 axes: expected 00 00 08 03 first, got 00 00 08 01"):
        load()
    images.unlink()
    for content in (gzip.compress(whole)[:-20], b"not gzip at all"):
        images.with_name(f"{images.name}.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"gz is damaged: expected a whole gzip file, got .*; fetch it again"):
            load()
        images.write_bytes(whole)  # which `espalier data get` does not look at: the damaged one is mended by it
        with pytest.raises(ValueError, match="gz is damaged"):
            load()
        images.unlink()
    images.with_name(f"{images.name}.gz").unlink()
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
    with pytest.raises(ValueError, match="cifar10: expected integer labels, got float64; fetch"):
        data.load("cifar10", data_dir=tmp_path)
