"""Arrays of an .npz file: damaged, packed in any way, or larger than they say, they are one sentence and little memory."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier import data
from espalier.data import archives, readers
from written import CLASSES, FEATURES, write_mnist, write_npz

METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflate": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def npy(array: np.ndarray[Any, Any], version: tuple[int, int] | None = None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


def packed(path: Path, method: int, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return str(path)


@pytest.mark.parametrize("method", METHODS)
def test_arrays_are_read_however_they_are_packed(tmp_path: Path, method: str) -> None:
    path = packed(tmp_path / "a.npz", METHODS[method], x=npy(FEATURES), y=npy(CLASSES, (2, 0)))
    assert data.load(path).hashes == data.load(write_npz(tmp_path / "b.npz", x=FEATURES, y=CLASSES)).hashes


@pytest.mark.parametrize("method", METHODS)
def test_any_byte_that_is_lost_is_a_sentence(tmp_path: Path, method: str) -> None:
    content = Path(packed(tmp_path / "a.npz", METHODS[method], x=npy(FEATURES), y=npy(CLASSES))).read_bytes()
    path, refused = tmp_path / "bad.npz", list[str]()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        try:
            data.load(str(path))
        except ValueError as error:
            refused.append(str(error))
    assert all(str(path) in sentence and sentence.isprintable() for sentence in refused)
    assert len(refused) > len(content) / 6  # what remains are names of the archive that nobody asks for, and dates


def declaring(shape: str, dtype: str = "<f8", body: bytes = FEATURES.tobytes()) -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("member", "sentence"),
    [
        (declaring("(999999999999, 2)"), r"got x that needs [\d,.]+ GiB"),
        (declaring("(20,)", "<U999999999999"), "write it anew"),
        (declaring("(20,)", "<U99999999"), r"got x of 320 bytes that declares 7,999,999,920|got x that needs"),
        (declaring("(21, 2)"), "got x of 320 bytes that declares 336"),
        (declaring("(19, 2)"), "got x of 320 bytes that declares 304"),
        (declaring("(-20, 2)"), "got x of 320 bytes that declares -320"),
        (declaring("(20, 2)", body=FEATURES.tobytes()[:-1]), "got x of 319 bytes that declares 320"),
        (declaring("(20, 2)", "|O"), "got Python objects in x"),
        (declaring("'twenty'"), "write it anew"),
        (npy(FEATURES, (3, 0)), r"got x in version \(3, 0\) of the format"),
        (b"", "write it anew"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "write it anew"),
    ],
)  # fmt: skip
def test_what_a_header_declares_is_judged_before_it_is_believed(tmp_path: Path, member: bytes, sentence: str) -> None:
    path = packed(tmp_path / "bad.npz", zipfile.ZIP_DEFLATED, x=member, y=npy(CLASSES))
    with pytest.raises(
        ValueError, match=r"bad\.npz cannot be read: expected an npz of plain arrays, .*" + sentence
    ) as caught:
        data.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_what_an_exception_says_is_part_of_a_line() -> None:
    assert archives.said(ValueError("one\ntwo")) == "one"
    assert archives.said(ValueError("a\tb")) == r"'a\tb'"
    assert archives.said(MemoryError()) == "MemoryError"
    assert archives.said(ValueError("x" * 999)) == "x" * 160


def test_what_does_not_fit_into_the_machine_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    archives.check_memory("x", 4096 * 1000 // 5, 1)  # the bytes, and four times as many for float32
    with pytest.raises(ValueError, match=r"that fit into the 0\.0 GiB of this machine, got x that needs"):
        archives.check_memory("x", 4096 * 1000 // 5 + 1, 1)


ALONE = """
import resource, sys
from espalier import data
held = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (held + (200 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        data.load(path) if path.endswith('npz') else data.load('mnist', data_dir=path)
    except ValueError as error:
        print(error)
"""


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    zeros = declaring("(40000000000, 2)", body=bytes(1 << 20))
    says = {packed(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, x=zeros, y=npy(CLASSES)): "got x that needs"}
    head, forty = bytes((0, 0, 8, 3)), b"".join(n.to_bytes(4, "big") for n in (40, 5, 4))
    for name, content, sentence in (
        (
            "more",
            head + forty + bytes(1 << 28),
            "train-images-idx3-ubyte.gz is damaged: expected 816 bytes, got 817; fetch it",
        ),
        (
            "less",
            head + bytes((0, 0, 0, 1, 0, 0, 64, 0, 0, 0, 64, 0)),
            "damaged: expected 268,435,472 bytes, got at most",
        ),
        ("wide", head + b"\xff" * 12, "of this machine, got"),
    ):
        write_mnist(tmp_path / name / "mnist", compress=True)
        (tmp_path / name / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
        says[str(tmp_path / name)] = sentence
    words = [sys.executable, "-c", ALONE, *says]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for line, sentence in zip(done.stdout.splitlines(), says.values(), strict=True):
        assert sentence in line


def test_rows_of_a_part_are_found_by_each_of_its_names_and_no_part_goes_unused(tmp_path: Path) -> None:
    for name in ("val", "valid", "validation"):
        path = write_npz(
            tmp_path / "a.npz", x=FEATURES, y=CLASSES, **{name: [3, 4], "calibration": [5], "test": [0, 1]}
        )
        assert {part: rows.tolist() for part, rows in readers.npz(Path(path)).published.items()} == {
            "validation": [[3, 4]],
            "calibration": [[5]],
            "test": [[0, 1]],
        }
        loaded = data.load(path, validation=0.5, calibration=0.5)
        assert loaded.facts()["data"]["rows"] == {"train": 15, "validation": 2, "calibration": 1, "test": 2}
        assert loaded.validation.y.tolist() == CLASSES[3:5].tolist()
    both = write_npz(tmp_path / "b.npz", x=FEATURES, y=CLASSES, val=[3], validation=[4])
    with pytest.raises(
        ValueError, match=r"b\.npz: expected one of validation, valid, val, got validation and val; join or"
    ):
        data.load(both)
    apart = write_npz(tmp_path / "c.npz", x=FEATURES, y=CLASSES, x_test=FEATURES, y_test=CLASSES)
    with pytest.raises(
        ValueError, match=r"c\.npz: expected all rows in x and y, and row numbers test, got x_test; join them"
    ):
        data.load(apart)
    twice = write_npz(tmp_path / "d.npz", x=FEATURES, y=CLASSES, validation=[3], test=[3])
    with pytest.raises(
        ValueError, match=r"d\.npz: expected every row once in validation and test, got row 3 twice in fold 0"
    ):
        data.load(twice)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "zero.npz"):
        with pytest.raises(
            FileNotFoundError, match=rf"expected an \.npz file or a folder of images at .*{name}, got nothing"
        ):
            data.load(str(tmp_path / name))
