"""Claims about files of new rows: as the user has them, labels or not; what cannot be read is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from espalier.data import from_arrays, unlabelled
from espalier.data.unlabelled import digest_of


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (np.arange(12, dtype=np.float64).reshape(4, 3), [3]),
        (np.arange(48, dtype=np.uint8).reshape(4, 3, 4), [1, 3, 4]),
        (np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3), [3, 5, 6]),
        (np.arange(4 * 3 * 5 * 6, dtype=np.float32).reshape(4, 3, 5, 6), [3, 5, 6]),
    ],
)
def test_arrays_come_as_they_are_channels_first_without_labels(x: np.ndarray, shape: list[int], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "xy.npz", x=x, y=np.array(["a", "b", "b", "a"]))
    for file in ("x.npz", "xy.npz"):
        asked = unlabelled.read(tmp_path / file, shape)
        assert len(asked.x) == 4
        assert asked.names == ()
        found = asked.x[torch.arange(1, 3)]
        last = x.ndim == 4 and x.dtype == np.uint8
        expected = (x.transpose(0, 3, 1, 2) if last else x[:, None] if x.ndim == 3 else x)[1:3]
        assert found.dtype == torch.from_numpy(x).dtype
        assert np.array_equal(found.numpy(), expected)


def test_images_below_a_folder_come_by_name_whatever_folders_they_are_in(tmp_path: Path) -> None:
    for name, level in (("b/2.png", 20), ("a/1.png", 10), ("3.png", 30)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 7, 3), level, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not looked at")
    asked = unlabelled.read(tmp_path, [3, 4, 4])
    assert list(asked.names) == ["3.png", "a/1.png", "b/2.png"]
    assert asked.x[torch.arange(2)].shape == (2, 3, 4, 4)
    assert asked.x[torch.arange(3)].float().mean((1, 2, 3)).tolist() == [30, 10, 20]
    assert asked.x[torch.arange(2, 3)].dtype == torch.uint8


@pytest.mark.parametrize(
    ("arrays", "shape", "sentence"),
    [
        ({"y": np.zeros(3)}, [3], r"lacks 'x': expected the rows under this name, got \['y'\]"),
        ({"x": np.zeros((4, 3))}, [2], r"expected rows of shape \(n, 2\) in .*, got \(4, 3\)"),
        ({"x": np.zeros((0, 3))}, [3], r"expected rows of shape \(n, 3\) in .*, got \(0, 3\)"),
        ({"x": np.array([[1.0], [np.nan]])}, [1], r"expected finite inputs, got NaN or infinity, first in row 1"),
        ({"x": np.array([[{}]], dtype=object)}, [1], "cannot be read: expected an npz of plain arrays"),
        ({"x": np.array([["a"]])}, [1], "expected x as features"),
        ({"x": np.zeros((4, 3))}, {"a": [3]}, "expected a network of one input for a file of rows"),
    ],
)
def test_a_file_that_will_not_do_is_one_sentence(arrays: dict, shape: object, sentence: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        unlabelled.read(tmp_path / "x.npz", shape)


def test_what_is_no_file_of_rows_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ValueError, match="expected an .npz file with x, or a folder of images, got .*x.csv"):
        unlabelled.read(tmp_path / "x.csv", [2])
    with pytest.raises(FileNotFoundError, match="expected an .npz file or a folder of images at .*none.npz, got nothing"):
        unlabelled.read(tmp_path / "none.npz", [2])
    with pytest.raises(ValueError, match="expected a network of square colour images for a folder"):
        unlabelled.read(tmp_path, [1, 28, 28])
    with pytest.raises(ValueError, match="holds no images: expected .bmp"):
        unlabelled.read(tmp_path, [3, 8, 8])
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match="broken.png is no readable image"):
        unlabelled.read(tmp_path, [3, 8, 8])


def test_numbers_that_training_takes_are_taken(tmp_path: Path) -> None:
    x = np.arange(12.0).reshape(4, 3)
    for dtype in (np.longdouble, ">f8", ">i4"):
        np.savez(tmp_path / "x.npz", x=x.astype(dtype))
        assert np.array_equal(unlabelled.read(tmp_path / "x.npz", [3]).x[torch.arange(4)].numpy(), x)
    np.savez(tmp_path / "x.npz", x=x * 1e300)
    with pytest.raises(ValueError, match="expected finite inputs, got NaN or infinity in single precision, first in row 0"):
        unlabelled.read(tmp_path / "x.npz", [3])


def test_rows_are_prepared_as_the_run_s_inputs_and_known_by_their_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 3, 4, 4)).astype(np.uint8)
    data = from_arrays(x, np.arange(30) % 3, channels="first")
    np.savez(tmp_path / "x.npz", x=x.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "other.npz", x=x[::-1].transpose(0, 2, 3, 1))
    asked = unlabelled.read(tmp_path / "x.npz", [3, 4, 4])
    prepared = asked.prepared(data)
    mean, sd = (values.numpy()[:, None, None] for values in data.input_scale)
    np.testing.assert_allclose(prepared[torch.arange(30)].numpy(), (x - mean) / sd, rtol=1e-5, atol=1e-6)
    known = digest_of(asked.x)
    assert known == digest_of(unlabelled.read(tmp_path / "x.npz", [3, 4, 4]).x)
    assert known != digest_of(unlabelled.read(tmp_path / "other.npz", [3, 4, 4]).x)
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.fromarray(x[number].transpose(1, 2, 0)).save(tmp_path / "images" / f"{number}.png")
    images = unlabelled.read(tmp_path / "images", [3, 4, 4])
    rows = images.prepared(data)
    assert len(rows) == 5
    assert torch.equal(rows[torch.tensor([3, 1])], prepared[torch.tensor([3, 1])])
    batches = list(rows.stream([torch.tensor([0]), torch.tensor([4, 2])]))
    assert torch.equal(batches[1], prepared[torch.tensor([4, 2])])
    known = digest_of(images.x)
    assert digest_of(rows) == known
    (tmp_path / "images" / "4.png").rename(tmp_path / "images" / "5.png")
    assert digest_of(unlabelled.read(tmp_path / "images", [3, 4, 4]).x) != known
