"""Claims about espalier.data.arrays: one's own arrays come in as a named set would, labels and units are given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espalier import BayesianNetwork, Data, Training, calibration
from espalier.data import from_arrays, load
from espalier.data.cut import Mapped
from espalier.inference import cigl, dense

RNG = np.random.default_rng(7)
X = RNG.normal(3.0, 2.0, (120, 5))
LABELS = RNG.integers(0, 3, 120)
PARTS = ("train", "validation", "calibration", "test")


def rows_of(data: Data) -> dict[str, np.ndarray[Any, Any]]:
    """Row numbers of every part, of inputs whose first column is the row number."""
    return {
        part: getattr(data, part).x[torch.arange(len(getattr(data, part).y))][:, 0].long().numpy() for part in PARTS
    }


def test_arrays_are_the_data_that_an_npz_of_them_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=X, y=LABELS)
    options = {"validation": 0.2, "calibration": 0.15, "split_seed": 3, "train_size": 50}
    stored, given_ = load(str(tmp_path / "mine.npz"), **options), from_arrays(X, LABELS, **options)
    assert given_.hashes == stored.hashes
    for part in PARTS:
        for ours, theirs in zip(getattr(given_, part), getattr(stored, part), strict=True):
            assert torch.equal(ours, theirs)
    assert (given_.shape, given_.num_classes) == (stored.shape, stored.num_classes)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["sick", "healthy", "unsure"], ("healthy", "sick", "unsure")),
        ([1, 2, 3], (1, 2, 3)),
        ([250, 0, -4], (-4, 0, 250)),
    ],
    ids=["strings", "from one", "with gaps"],
)
def test_labels_of_any_kind_are_numbered_in_their_order_and_recorded(
    names: list[Any], classes: tuple[Any, ...]
) -> None:
    numbered = np.column_stack([np.arange(120.0), X])
    for y in (np.array(names)[LABELS], [names[label] for label in LABELS], pd.Series(np.array(names)[LABELS])):
        data = from_arrays(numbered, y, standardise=False)
        assert data.classes == classes
        assert data.num_classes == data.num_outputs == 3
        assert data.facts()["data"]["classes"] == list(classes)
        for part, rows in rows_of(data).items():
            assert [data.classes[label] for label in getattr(data, part).y] == [names[LABELS[row]] for row in rows]


def test_bools_and_whole_tensors_are_labels_and_floats_are_targets() -> None:
    assert from_arrays(X, LABELS > 0).classes == (False, True)
    assert from_arrays(X, torch.from_numpy(LABELS > 0)).classes == (False, True)
    assert from_arrays(X, torch.from_numpy(LABELS)).classes == (0, 1, 2)
    assert from_arrays(X, LABELS.astype(float)).num_classes is None
    assert from_arrays(X, LABELS.astype(float), classes=[0, 1, 2]).classes == (0, 1, 2)
    assert from_arrays(X, LABELS[:, None]).num_classes == 3


def test_the_order_of_classes_can_be_given_and_hold_one_that_is_absent() -> None:
    data = from_arrays(X, np.array(["a", "b", "c"])[LABELS], classes=["c", "b", "a", "z"])
    assert data.num_classes == 4
    assert int(data.train.y.max()) == 2
    grades = pd.Series(pd.Categorical(np.array(["low", "mid", "high"])[LABELS], categories=["low", "mid", "high"]))
    assert from_arrays(X, grades).classes == ("low", "mid", "high")


@given(st.lists(st.sampled_from(["a", "b", "c", "dé", ""]), min_size=20, max_size=40), st.integers(0, 5))
@settings(max_examples=40)
def test_every_row_keeps_its_label_through_the_cut(names: list[str], seed: int) -> None:
    names = [*names, "a", "b"]
    x = np.column_stack([np.arange(len(names)), np.ones(len(names))]).astype(np.float64)
    data = from_arrays(x, names, standardise=False, split_seed=seed)
    rows = rows_of(data)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(names)))
    for part, own in rows.items():
        assert [data.classes[label] for label in getattr(data, part).y] == [names[row] for row in own]


def test_a_frame_of_numbers_is_its_array() -> None:
    frame = pd.DataFrame(X, columns=list("abcde")).assign(flag=LABELS > 1, count=LABELS)
    plain = np.column_stack([X, LABELS > 1, LABELS]).astype(np.float64)
    assert from_arrays(frame, LABELS).hashes == from_arrays(plain, LABELS).hashes
    assert from_arrays(frame, pd.DataFrame({"y": LABELS})).hashes == from_arrays(plain, LABELS).hashes


def test_targets_are_standardised_and_predictions_come_back_in_their_units() -> None:
    y = 1e4 + 300.0 * (X @ [1.0, -2.0, 0.5, 0.0, 1.0]) + RNG.normal(0, 30.0, 120)
    data = from_arrays(X, y)
    left = data.train.y.double()
    assert abs(float(left.mean())) < 1e-6
    assert float(left.std(correction=0)) == pytest.approx(1, abs=1e-6)
    torch.manual_seed(0)
    net = BayesianNetwork(nn.Sequential(nn.Linear(5, 1)), likelihood="normal")
    fit = dense.infer(net, data, training=Training(epochs=200, batch_size=32, optimizer="adam", learning_rate=0.03))
    mean = fit.predict(data.test.x, "unmasked")[0, :, 0].double().numpy()
    truth = data.test.y.double().numpy() * data.target_scale + data.target_shift
    assert np.isclose(truth[:, None], y[None], rtol=0, atol=0.01).any(1).all()  # the user's own numbers again
    assert np.sqrt(np.mean((mean - truth) ** 2)) < 60  # noise of 30, of targets that spread over 700
    assert calibration.rmse(mean[None], np.ones_like(mean)[None], truth) < 60


def test_new_inputs_are_scaled_as_the_training_ones_were() -> None:
    data = from_arrays(X, LABELS)
    every = torch.cat([getattr(data, part).x for part in PARTS])
    assert {tuple(row) for row in data.inputs(X).tolist()} == {tuple(row) for row in every.tolist()}
    assert torch.equal(data.inputs(torch.from_numpy(X)), data.inputs(pd.DataFrame(X).to_numpy()))
    images = RNG.integers(0, 256, (40, 3, 5, 6), dtype=np.uint8)
    data = from_arrays(images, LABELS[:40])
    assert {row.numpy().tobytes() for row in data.train.x} <= {row.numpy().tobytes() for row in data.inputs(images)}
    plain = from_arrays(X, LABELS, standardise=False)
    assert torch.equal(plain.inputs(X), torch.from_numpy(X).float())
    with pytest.raises(ValueError, match=r"expected inputs of shape \(n, 5\), got \(120, 4\)"):
        plain.inputs(X[:, :4])


def test_nothing_is_standardised_where_that_is_not_wanted() -> None:
    y = X @ np.arange(5.0)
    data = from_arrays(X, y, standardise=False)
    assert (data.target_shift, data.target_scale) == (0.0, 1.0)
    assert np.isin(data.train.x.numpy()[:, 0], X[:, 0].astype(np.float32)).all()
    assert np.isin(data.train.y.numpy(), y.astype(np.float32)).all()


def test_a_test_set_of_ones_own_stays_one_and_is_scaled_by_the_training_rows() -> None:
    extra, answers = X[:30] * 2, LABELS[:30]
    data = from_arrays(X, LABELS, x_test=extra, y_test=answers)
    assert sum(len(getattr(data, part).y) for part in PARTS[:3]) == 120
    assert torch.equal(data.test.y, torch.from_numpy(answers))
    rest = from_arrays(np.concatenate([X, X[:1]]), np.append(LABELS, 0), validation=0.0, calibration=0.0)
    assert rest.test.x.shape != data.test.x.shape
    column, own = extra[:, 2], data.test.x[:, 2].double().numpy()
    slope, shift = np.polyfit(column, own, 1)
    left = np.flatnonzero(np.isclose(X[:, 2] * slope + shift, data.train.x[:, 2].numpy()[:, None], atol=1e-5).any(0))
    assert slope == pytest.approx(1 / X[left, 2].std(), rel=1e-6)
    assert shift == pytest.approx(-X[left, 2].mean() / X[left, 2].std(), rel=1e-6)


def test_a_mapped_array_stays_in_its_file_and_gives_the_same_bits(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (90, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    mapped = from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS[:90])
    held = from_arrays(images, LABELS[:90])
    assert isinstance(mapped.train.x, Mapped)
    assert mapped.hashes == held.hashes
    assert mapped.shape == held.shape == (3, 6, 5)
    index = torch.tensor([5, 0, 17])
    assert torch.equal(mapped.train.x[index], held.train.x[index])
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 16), nn.ReLU(), nn.Linear(16, 3))
    training = Training(epochs=2, batch_size=16)
    fits = [
        cigl.infer(BayesianNetwork(net), data, sparsity=0.5, delta_t=2, training=training) for data in (mapped, held)
    ]
    assert torch.equal(fits[0].pairs.values, fits[1].pairs.values)
    assert torch.equal(fits[0].predict(mapped.test.x), fits[1].predict(held.test.x))


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((40, 3, 8, 9), {}, (3, 8, 9)),
        ((40, 8, 9, 3), {}, (3, 8, 9)),
        ((40, 8, 9, 1), {}, (1, 8, 9)),
        ((40, 3, 8, 3), {"channels": "last"}, (3, 3, 8)),
        ((40, 3, 8, 3), {"channels": "first"}, (3, 8, 3)),
        ((40, 6, 11), {}, (6, 11)),
    ],
)
def test_the_channels_of_images_are_found_or_said(
    shape: tuple[int, ...], options: Any, expected: tuple[int, ...]
) -> None:
    for kind in (np.uint8, np.float32):
        if len(shape) == 3 and kind is np.uint8:
            continue
        x = RNG.integers(0, 9, shape).astype(kind)
        data = from_arrays(x, LABELS[:40], standardise=False, **options)
        assert data.shape == expected
        first = np.moveaxis(x, -1, 1) if shape[1:] != expected else x
        assert {row.tobytes() for row in first.astype(np.float32)} >= {row.tobytes() for row in data.train.x.numpy()}
    grey = from_arrays(RNG.integers(0, 9, (40, 8, 9), dtype=np.uint8), LABELS[:40])
    assert grey.shape == (1, 8, 9)
    assert from_arrays(torch.zeros(40, 2, 8, 2).random_(9), LABELS[:40]).shape == (2, 8, 2)


class Case:
    """What is wrong, and what is said of it."""

    def __init__(self, says: str, x: Any = X, y: Any = LABELS, **options: Any) -> None:
        self.says, self.x, self.y, self.options = says, x, y, options


ROW = np.arange(120)[:, None]
FRAME = pd.DataFrame(X)

WRONG = {
    "other lengths": Case("expected x and y of one length, got 120 and 119 rows", y=LABELS[:-1]),
    "one half of a test set": Case("expected x_test and y_test together", x_test=X),
    "a missing label": Case("expected a label in every row of y, got none in row 3", y=["a", "b", "a", None, *["b"] * 116]),
    "a missing label of pandas": Case("got none in row 1 ", y=pd.array([1, None, *[2] * 118], dtype="Int64")),
    "a label that has no class": Case(r"expected labels of 0, 1 in y, got 2 in row \d+", classes=[0, 1]),
    "a label only the test set has": Case("expected labels of 0, 1, 2 in y_test, got 9 in row 0", x_test=X[:1], y_test=[9]),
    "test rows of another width": Case(r"expected test rows like those to train on, \(5,\)", x_test=X[:2, :4], y_test=[0, 1]),
    "one class": Case("expected two or more classes in y, got only 'a'", y=["a"] * 120),
    "classes twice": Case("expected classes without repeats", classes=[0, 1, 2, 2]),
    "labels of two kinds": Case("expected labels of one kind in y", y=["a", 1] * 60),
    "text among the inputs": Case("expected numbers in x, got .* in column 'b': encode it", x=FRAME.assign(b="t")),
    "NaN among the inputs": Case(r"arrays: expected finite inputs, .*, first in row 1 ", x=np.where(ROW == 1, np.nan, X)),
    "a gap in a frame": Case("expected finite inputs, .*, first in row 2 ", x=FRAME.mask((ROW == 2) & (X > 3))),
    "rows of another index": Case("expected x and y with one index", x=FRAME, y=pd.Series(LABELS, ROW[::-1, 0])),
    "one axis": Case(r"expected x as numbers, features \(n, d\)", x=X[:, 0]),
    "text": Case("expected x as numbers", x=X.astype(str)),
    "images that may be either": Case("cannot tell which of", x=np.zeros((120, 3, 8, 3), np.uint8)),
    "targets of three axes": Case(r"expected real-valued targets of shape \(n,\) or \(n, d\) in y, got", y=np.zeros((120, 2, 2))),
    "targets of no column": Case(r"expected labels or targets for every row, y .*, got \(120, 0\)", y=X[:, :0]),
    "masked inputs": Case("expected x without masked entries, got 9: fill", x=np.ma.masked_greater(X, np.sort(X, None)[-10])),
    "masked labels": Case("expected y without masked entries, got 1: fill", y=np.ma.masked_array(LABELS, np.arange(120) == 3)),
    "test rows of other columns": Case(
        "expected x_test with the columns of training in their order, got 1 in the place of 0", x=FRAME,
        x_test=FRAME[[1, 0, 2, 3, 4]], y_test=LABELS,
    ),
    "frames of other rows": Case("expected the frames of x with one index", x={"a": FRAME, "b": FRAME[::-1]}),
    "test rows of other inputs": Case("x_test with the same ones", x={"a": X, "b": X}, x_test={"a": X, "c": X}, y_test=LABELS),
    "test targets of more columns": Case(
        r"expected y of the test rows like that to train on, one a row, got \[2\]", y=X[:, 0], x_test=X, y_test=X[:, :2]
    ),
    "NaN among the test inputs": Case(r"arrays \(test\): expected finite inputs", x_test=X * np.nan, y_test=LABELS),
    "inputs of other lengths": Case("expected x and y of one length, got 119 and 120 rows", x=(X, X[1:])),
    "no inputs": Case("expected one or more inputs", x={}),
    "test rows without an input": Case("x_test with the same ones", x={"a": X, "b": X}, x_test={"a": X}, y_test=LABELS),
    "a target that is infinite": Case("arrays: expected finite targets", y=np.where(LABELS, X[:, 0], np.inf)),
    "a fraction": Case(r"expected validation in \[0, 1\)", validation=1.0),
    "too much set aside": Case("expected rows left to train on", validation=0.6, calibration=0.5),
    "more training rows than there are": Case("expected train_size in 1..", train_size=1000),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_right_is_refused_in_a_sentence(name: str) -> None:
    case = WRONG[name]
    with pytest.raises(ValueError, match=case.says) as caught:
        from_arrays(case.x, case.y, **case.options)
    assert "\n" not in str(caught.value)


def test_a_frames_columns_are_those_of_new_inputs_too() -> None:
    frame = FRAME.rename(columns=str)
    data, several = from_arrays(frame, LABELS), from_arrays({"a": frame, "b": X}, LABELS)
    assert data.features == tuple("01234")
    assert torch.equal(data.inputs(frame), data.inputs(frame.to_numpy()))
    assert torch.equal(several.inputs({"a": frame, "b": X})["a"], data.inputs(frame))
    for wrong in (frame[["1", "0", "2", "3", "4"]], frame.rename(columns={"3": "x"})):
        with pytest.raises(ValueError, match="expected inputs with the columns of training in their order, got '[1x]' in"):
            data.inputs(wrong)
        with pytest.raises(ValueError, match="expected inputs with the columns of training"):
            several.inputs({"a": wrong, "b": X})


def test_inputs_of_the_test_rows_may_stand_in_another_order() -> None:
    data = from_arrays({"a": X, "b": 2 * X}, LABELS, x_test={"b": 2 * X[:5], "a": X[:5]}, y_test=LABELS[:5])
    assert torch.equal(data.test.x[torch.arange(5)]["a"], from_arrays(X, LABELS, x_test=X[:5], y_test=LABELS[:5]).test.x)


def test_classes_may_come_as_an_array() -> None:
    data = from_arrays(X, LABELS, x_test=X[:3], y_test=LABELS[:3], classes=np.array([2, 1, 0]))
    assert data.test.y.tolist() == [2 - label for label in LABELS[:3]]


def test_several_inputs_are_cut_alike_and_scaled_each_for_itself() -> None:
    series = RNG.normal(5, 3, size=(120, 2, 7))
    alone = from_arrays(X, LABELS, split_seed=3)
    for several in (from_arrays((X, series), LABELS, split_seed=3), from_arrays({0: X, 1: series}, LABELS, split_seed=3)):
        for part in PARTS:
            mine, theirs = getattr(several, part), getattr(alone, part)
            assert torch.equal(mine.y, theirs.y)
            assert torch.equal(mine.x[torch.arange(len(mine.y))][0], theirs.x)
            assert mine.x[torch.arange(2)][1].shape == (2, 2, 7)
        assert several.shape[1] == (2, 7)
        assert several.hashes.keys() == alone.hashes.keys()
        new = several.inputs({0: X, 1: series} if isinstance(several.shape, dict) else (X, series))
        assert torch.equal(new[0], alone.inputs(X))
    other = from_arrays((X, series + 1), LABELS, split_seed=3)
    assert other.hashes["train"] != several.hashes["train"]


def test_several_targets_are_standardised_column_by_column() -> None:
    y = np.stack([1000 + 5 * X[:, 0], -3 + 0.1 * X[:, 1]], 1)
    data, first = from_arrays(X, y), from_arrays(X, y[:, 0])
    assert data.num_outputs == 2
    assert torch.equal(data.train.y[:, 0], first.train.y)
    assert data.target_shift[0] == first.target_shift
    back = torch.cat([data.in_units(getattr(data, part).y) for part in PARTS])
    np.testing.assert_allclose(np.sort(back.numpy(), 0), np.sort(y, 0), rtol=1e-6)
    plain = from_arrays(X, y, standardise="inputs")
    assert plain.target_shift == (0.0, 0.0)


def test_labels_of_several_axes_have_one_vocabulary() -> None:
    words = RNG.choice(["a", "b", "c"], size=(120, 4))
    data = from_arrays(X, words)
    assert data.classes == ("a", "b", "c")
    assert data.train.y.shape[1:] == (4,)
    masks = from_arrays(X, 255 * RNG.integers(0, 2, (120, 5, 6)))
    assert masks.classes == (0, 255)
    assert masks.num_classes == 2
    assert int(masks.train.y.max()) == 1
