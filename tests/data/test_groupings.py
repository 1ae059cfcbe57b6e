"""Groups of rows from a CSV: the rows of a split find theirs, and what cannot be right is one sentence before any work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from espalier.contracts import Data
from espalier.data import from_arrays
from espalier.data.groupings import MOST, groups_of, read

X = np.arange(60.0)[:, None]
NAMES = np.array(["left", "middle", "right"])[np.arange(60) % 3]


@pytest.fixture
def data() -> Data:
    return from_arrays(X, np.arange(60) % 2, name="lines")


def table(folder: Path, text: str) -> Path:
    path = folder / "groups.csv"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_a_splits_rows_find_their_own_groups(data: Data, tmp_path: Path) -> None:
    path = table(tmp_path, "side,parity\r\n" + "".join(f' {name} ,"n{k % 2}"\r\n' for k, name in enumerate(NAMES)))
    columns = read(path)
    assert list(columns) == ["side", "parity"]
    for part in ("train", "validation", "test"):
        found = groups_of(data, part, columns, path)
        inputs = data.input_scale
        own = getattr(data, part).x[:, 0].double() * inputs[1] + inputs[0]  # the one feature is the row's number
        rows = own.round().long().numpy()
        np.testing.assert_array_equal(found["side"], NAMES[rows])
        np.testing.assert_array_equal(found["parity"], [f"n{k % 2}" for k in rows])
    assert list(read(path, ["parity"])) == ["parity"]


def test_a_byte_order_mark_and_lines_at_the_end_are_no_values(data: Data, tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffside\n" + "\n".join(NAMES) + "\n\n\n")
    assert list(read(path)) == ["side"]
    assert len(read(path)["side"]) == 60


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected a name of its own for every column in the first line of .*groups.csv, got \\[\\]"),
        ("a,a\n1,2\n", "expected a name of its own for every column .* got \\['a', 'a'\\]"),
        ("a,\n1,2\n", "expected a name of its own for every column"),
        ("a,b\n1,2\n1\n", "expected 2 values in every line of .*groups.csv, got 1 for row 1"),
        ('a\n"open\n', "expected a CSV file of groups, comma-separated text in UTF-8, got .*unexpected end of data"),
    ],
)
def test_what_is_no_table_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(table(tmp_path, text))


def test_files_that_are_not_there_or_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a CSV file of groups at .*none.csv, got nothing"):
        read(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(ValueError, match="text in UTF-8"):
        read(tmp_path / "bytes.csv")
    with pytest.raises(ValueError, match=r"expected columns of .*, which are a, b, got 'c'"):
        read(table(tmp_path, "a,b\n1,2\n"), ["a", "c"])


def test_columns_that_do_not_fit_the_source_are_refused(data: Data) -> None:
    for values, sentence in (
        (
            NAMES[:-1],
            "expected 60 values in column 'side' of g.csv, one for each row of lines before it was cut, got 59",
        ),
        (
            np.array(["a"] * 60),
            "expected 2 to 50 groups among the rows of the test split in column 'side' of g.csv, got 1: name",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            groups_of(data, "test", {"side": values}, "g.csv")
    many = from_arrays(np.arange(400.0)[:, None], np.arange(400) % 2)
    with pytest.raises(ValueError, match=f"got {len(many.test.y)}: put measurements into intervals"):
        groups_of(many, "test", {"age": np.arange(400).astype(str)})
    assert len(many.test.y) > MOST
    with pytest.raises(ValueError, match="know which rows of their source the test split has, got lines without"):
        groups_of(data._replace(rows={}), "test", {"side": NAMES})


@pytest.mark.parametrize("nothing", ["", "NA", "NaN", "n/a", "null"])
def test_missing_values_matter_where_the_split_has_them(data: Data, nothing: str) -> None:
    gaps = NAMES.copy()
    row = int(data.rows["test"].min())
    gaps[data.rows["test"]] = nothing
    sentence = f"in column 'side' of the file, got 12 without, first row {row} (counted from 0)"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        groups_of(data, "test", {"side": gaps})
    groups_of(data, "validation", {"side": gaps})
