"""The published files themselves, where they are: read whole, their digests, folds, mean and sd."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from espalier import data
from espalier.data import cut, downloads, readers
from places import SHARED
from written import PARTS, readers_files


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
    mean, sd = cut.moments(raw.x, raw.train[0])
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(sd / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert hashlib.sha256(raw.x[:50000].transpose(0, 2, 3, 1).tobytes()).hexdigest().startswith("47af8b02cfcfb6cd")
