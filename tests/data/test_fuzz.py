"""Whatever lies in a file or folder, opening it gives `Data`, or one sentence: soon, in little memory, and nothing is written."""

from __future__ import annotations

import io
import os
import re
import socket
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from espalier import Data, data
from soon import soon
from written import PARTS, declaring, write_mnist

SECONDS, MEBIBYTES, LETTERS = 5.0, 300, 400
Rng = np.random.Generator


def pick(rng: Rng, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


def spoilt(content: bytes, rng: Rng) -> bytes:
    """As it is half of the time; else with bytes flipped, cut short, lengthened, or of another kind altogether."""
    kind = rng.integers(10)
    if kind < 6 or not content:
        return content
    if kind < 8:
        flipped = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 9)):
            flipped[at] ^= int(rng.integers(1, 256))
        return bytes(flipped)
    return (
        content[: rng.integers(len(content))]
        if kind == 8
        else pick(rng, content * 2, b"", b"no such thing\n", rng.bytes(99))
    )


# ---------------------------------------------------------------------------------------------------------------- npz


LENGTHS = (b"(-5,", b"(True,", b"(10**9,", b"(9999999999,", b"(%d," % 2**70)
DTYPES = (b"'<U999999999'", b"('<f8', (9999, 9999, 9999))", b"'|a3'")
KINDS = ("f2", "f4", "f8", ">f8", "g", "i1", "u8", "?", "c8", "U3", "S2", "M8[D]", "O", "i4,f4", "V3", "U0", "u1")
SHAPES = ((), (1,), (3,), (5, 4), (2, 5, 4), (5, 4, 3), (0,))


def an_array(rng: Rng, rows: int) -> np.ndarray[Any, Any]:
    shape, kind = (rows + int(rng.random() < 0.1), *pick(rng, *SHAPES)), pick(rng, *KINDS)
    if np.dtype(kind).kind == "V":
        return np.zeros(shape, kind)
    values = rng.integers(0, pick(rng, 2, 3, 100), shape)
    if np.dtype(kind).kind == "f" and rng.random() < 0.3:
        return (values * pick(rng, 1e-320, 1e-160, 1e160, 1e308, np.nan, np.inf, -7.0)).astype(kind)
    return values.astype(kind)


def an_npz(folder: Path, rng: Rng) -> Callable[[], Data]:
    rows = int(pick(rng, 0, 3, 20, 40, 40))
    arrays = {"x": rng.normal(size=(rows, 3)), "y": rng.integers(0, 3, rows) * pick(rng, 1, 250, -1)}
    for name in ("x", "y"):
        if rng.random() < 0.2:
            arrays[name] = an_array(rng, rows)
    for name in ("train", "test", "val", "validation", "calibration", "x_test", "else", "\n"):
        if rng.random() < 0.04:
            arrays[name] = pick(rng, rng.permutation(rows)[:5], an_array(rng, rows), rng.integers(-2, 50, 4))
    out = io.BytesIO()
    method = pick(rng, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=True)
            content = spoilt(member.getvalue(), rng) if rng.random() < 0.1 else member.getvalue()
            if rng.random() < 0.05:
                content = re.sub(rb"\(\d+,", pick(rng, *LENGTHS), content, count=1)
            if rng.random() < 0.05:
                content = re.sub(rb"'[<|>][a-zA-Z]\d+'", pick(rng, *DTYPES), content)
            archive.writestr(name if rng.random() < 0.03 else f"{name}.npy", content)
    (folder / "a.npz").write_bytes(spoilt(out.getvalue(), rng))
    return partial(data.load, str(folder / "a.npz"), validation=pick(rng, 0.0, 0.1), fold=pick(rng, 0, 0, 0, 1))


# ---------------------------------------------------------------------------------------------------- folders of images


def an_image(rng: Rng) -> bytes:
    out, size = io.BytesIO(), pick(rng, (1, 1), (1, 300), (300, 1), (7, 5), (30, 40))
    mode = pick(rng, "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "RGB", "RGB")
    image = Image.new(mode, size, pick(rng, 0, 1, 200) if mode not in ("LA", "RGB", "RGBA", "CMYK", "YCbCr") else None)
    tags = Image.Exif()
    tags[0x0112] = int(rng.integers(0, 10))
    try:
        image.save(out, pick(rng, "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "PNG"), exif=tags)
    except (OSError, ValueError, KeyError):  # a format that does not hold this mode
        return b""
    content = out.getvalue()
    if content[12:16] == b"IHDR" and rng.random() < 0.1:
        content = declaring(content, pick(rng, 20_000, 9_000, 2**31 - 1, 0))
    return spoilt(content, rng) if rng.random() < 0.4 else content


STEMS = ("a", "b", "é", "日本", "-a", " ", "new\nline", os.fsdecode(b"\xff\xfe"), "a" * 200, ".hidden", "%s{}", "a.b")
SUFFIXES = ("1.png", ".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp", ".txt", "")
CLASSES = (("a", "b"), ("0", "10", "2"), ("é", "日本"), ("one",), ("new\nline", "b"), (os.fsdecode(b"\xff"), "b"))
LAYOUTS = ("", "train test", "train val", "train val test", "train valid calibration test", "train", "train val validation",
           "train test dev")  # fmt: skip


def put(path: Path, rng: Rng) -> None:
    """One thing of that name, most often an image."""
    kind = rng.integers(40)
    if path.exists() or path.is_symlink():
        return
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(pick(rng, "nowhere.png", path.name, "..", "/dev/zero"))
    elif kind == 3 and len(str(path).encode(errors="replace")) < 100:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.fsencode(path))
    else:
        path.write_bytes(an_image(rng))


def a_folder(folder: Path, rng: Rng) -> Callable[[], Data]:
    root = folder / "images"
    classes, parts = pick(rng, *CLASSES[:3], *CLASSES), pick(rng, *LAYOUTS[:5], *LAYOUTS).split(" ")
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(rng.integers(0, 6) or 6):
                Image.new("L", (4, 3), 40 * number).save(root / part / name / f"{number}.png")
    if rng.random() < 0.6:
        for _ in range(rng.integers(1, 3)):
            put(root / pick(rng, *parts) / pick(rng, *classes) / (pick(rng, *STEMS) + pick(rng, *SUFFIXES)), rng)
    if rng.random() < 0.2:
        put(root / pick(rng, *parts) / (pick(rng, *STEMS) + pick(rng, *SUFFIXES)), rng)
    return partial(data.load, str(root), image_size=pick(rng, 1, 8, 33), workers=0, validation=pick(rng, 0.0, 0.1))


# ---------------------------------------------------------------------------------------------------------------- IDX


def an_idx(folder: Path, rng: Rng) -> Callable[[], Data]:
    write_mnist(
        folder / "mnist", compress=bool(rng.integers(2)), train=int(rng.integers(2, 50)), test=int(rng.integers(0, 9))
    )
    for path in sorted((folder / "mnist").iterdir()):
        if rng.random() < 0.3:
            content = bytearray(spoilt(path.read_bytes(), rng))
            if len(content) > 16 and rng.random() < 0.3:
                content[4:8] = pick(rng, 2**32 - 1, 10**6, 0, 3).to_bytes(4, "big")
            path.write_bytes(content)
        elif rng.random() < 0.03:
            path.unlink()
            pick(rng, os.mkfifo, os.mkdir, partial(os.symlink, "/dev/zero"))(path)
    return partial(data.load, "mnist", data_dir=folder)


# ---------------------------------------------------------------------------------------------------------------- law


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def peak(reset: bool = False) -> float:
    """The most memory, in MiB, that the process has held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def outcome(opens: Callable[[], Data]) -> str:
    """What comes of it: the data, every row of it read, or the first words of one sentence."""
    try:
        loaded = opens()
        for part in PARTS:
            x, y = getattr(loaded, part)
            rows = x[torch.arange(len(y))]
            assert rows.shape == (len(y), *loaded.shape)
            assert torch.isfinite(rows).all()
        return "Data"
    except (ValueError, FileNotFoundError) as error:
        kind, says = type(error), str(error)
    assert kind in (ValueError, FileNotFoundError), kind
    assert says.isprintable(), ascii(says)
    assert 20 < len(says) < LETTERS, says
    return kind.__name__


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [an_npz, a_folder, an_idx], ids=["npz", "images", "idx"])
def test_whatever_is_opened_gives_data_or_a_sentence(make: Any, count: int, tmp_path: Path) -> None:
    tally: Counter[str] = Counter()
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is made here
            opens = make(folder, np.random.default_rng([count, number]))
        before, held = listed(folder), peak(reset=True)
        try:
            with soon(SECONDS, f"input {number}"):
                tally[outcome(opens)] += 1
        except BaseException as error:
            raise AssertionError(f"input {number}: {error!r}") from error
        assert peak() - held < MEBIBYTES, number
        assert listed(folder) == before, number
    print(make.__name__, dict(tally))
    assert tally["Data"] > count / 20
    assert tally["ValueError"] > count / 5
