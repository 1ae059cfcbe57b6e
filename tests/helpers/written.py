"""Tiny data sets, written in the formats that the readers know."""

from __future__ import annotations

import gzip
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PARTS = ("train", "validation", "calibration", "test")
RNG = np.random.default_rng(7)


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


def declaring(png: bytes, side: int) -> bytes:
    """A PNG file that says it is `side` pixels high and wide, with the checksum of such a header."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def rows_of(split: Any, d: Any) -> np.ndarray:
    """The row numbers of a split of `toy`, from its targets."""
    return np.rint(((split.y.double() * d.target_scale + d.target_shift).numpy() - 5) / 2).astype(int)


FEATURES = np.arange(40.0).reshape(20, 2)
CLASSES = np.arange(20) % 2


def changed(array: np.ndarray, row: int, value: float) -> np.ndarray:
    array = array.copy()
    array[row] = value
    return array
