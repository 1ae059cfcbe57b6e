"""Calibration examples that training has seen are refused, and independent ones are not, however few their columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from espalier.certificates.unseen import check_unseen, near
from espalier.contracts import Data, Split
from espalier.data import from_arrays


def drawn(seed: int, columns: int, train: int, held: int) -> Data:
    x = torch.randn(train + held, columns, generator=torch.Generator().manual_seed(seed))
    none = Split(x[:0], torch.zeros(0, dtype=torch.int64))
    parts = [Split(part, torch.zeros(len(part), dtype=torch.int64)) for part in (x[:train], x[train:])]
    return Data("drawn", parts[0], none, parts[1], none, (columns,), 2)


@pytest.mark.parametrize(("columns", "train", "held"), [(1, 60, 60), (1, 200, 200), (2, 1000, 200), (2, 3000, 300)])
def test_independent_rows_pass_where_neighbours_are_common(columns: int, train: int, held: int) -> None:
    for seed in range(20):
        data = drawn(seed, columns, train, held)
        assert check_unseen(data, data.calibration) == 0


def test_rows_of_a_few_bits_pass() -> None:
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 2, (1000, 6)).astype(float), rng.integers(0, 2, 1000), calibration=0.3)
    assert check_unseen(data, data.calibration) > 0.9 * len(data.calibration.y)


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_copies_are_refused(noise: float) -> None:
    data = drawn(0, 2, 1000, 200)
    x = data.calibration.x.clone()
    x[:50] = data.train.x[:50] + noise * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="expected calibration examples that training has not seen, but "):
        check_unseen(data, Split(x, data.calibration.y))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_copies_are_refused_whatever_columns_are_scaled_to(scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)) * scale * np.array([1, 10, 1, 100, 1])
    data = from_arrays(x, np.arange(200) % 2, standardise=False)
    noise = 1e-3 * scale * torch.tensor([1.0, 10, 1, 100, 1]) * torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="are training inputs with a little noise"):
        check_unseen(data, Split(data.train.x[:40] + noise, data.train.y[:40]))
    others = from_arrays(rng.normal(size=(200, 5)) * scale, np.arange(200) % 2, standardise=False)
    assert check_unseen(data, others.train) == 0


@pytest.mark.parametrize("noise", [0.001, 0.005])
def test_copies_of_images_are_refused_though_some_pixels_hardly_vary(noise: float) -> None:
    images, labels = load_digits(return_X_y=True)
    data = from_arrays(images.reshape(-1, 1, 8, 8), labels, channels="first")
    x = data.train.x[:300]
    drawn_noise = noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="are training inputs with a little noise"):
        check_unseen(data, Split(x + drawn_noise, data.train.y[:300]))


def test_neighbours_are_counted_as_a_loop_counts_them() -> None:
    data = drawn(3, 2, 300, 100)
    train, held = data.train.x.double(), data.calibration.x.double()
    radius = 0.01 * 2**0.5
    copies = (torch.cdist(held, train).min(1).values <= radius).double().mean()
    usual = (torch.cdist(train, train).fill_diagonal_(9).min(1).values <= radius).double().mean()
    assert near(data.train.x, data.calibration.x) == pytest.approx((float(copies), float(usual)))
