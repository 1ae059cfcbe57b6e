"""Whose example is it? Groups of a source's rows, from a CSV file: a column for each grouping, a line for each row."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from espalier.contracts import PARTS, Data

MISSING = {"", "na", "n/a", "nan", "null"}
"""Words, in any case, that say nothing."""
MOST = 50
"""Groups of a column; more are measurements, or names of single rows."""
Names = NDArray[np.str_]


def read(path: str | Path, columns: Sequence[str] = ()) -> dict[str, Names]:
    """The columns of a CSV file (UTF-8, its first line their names; none are all), words without the space around them.

    Raises FileNotFoundError where it is not there; ValueError, in one sentence, for a file that is no such table, and for a
    column that it has not.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected a CSV file of groups at {path}, got nothing: mend the path")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line or [""] for line in csv.reader(file, strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"expected a CSV file of groups, comma-separated text in UTF-8, got {path}, where {error}"
        ) from error
    while lines and lines[-1] == [""]:
        lines.pop()  # what an editor leaves at the end; of a single column the lines before are values that are missing
    header = [name.strip() for name in lines[0]] if lines else []
    if not header or "" in header or len(set(header)) < len(header):
        raise ValueError(f"expected a name of its own for every column in the first line of {path}, got {header}")
    for place, line in enumerate(lines[1:]):
        if len(line) != len(header):
            raise ValueError(f"expected {len(header)} values in every line of {path}, got {len(line)} for row {place}")
    if unknown := [name for name in columns if name not in header]:
        raise ValueError(f"expected columns of {path}, which are {', '.join(header)}, got {unknown[0]!r}")
    return {
        name: np.array([line[place].strip() for line in lines[1:]], dtype=np.str_)
        for place, name in enumerate(header)
        if name in columns or not columns
    }


def groups_of(data: Data, split: str, columns: Mapping[str, Names], what: object = "the file") -> dict[str, Names]:
    """The groups `(n,)` of a split's examples, by the name of each grouping. columns: `(N,)` each, of all N rows of the source.

    Raises ValueError, in one sentence, where they are not as many, where a value of this split is missing, and where a column has
    a single group or more than `MOST`. `what` they stand in is for that sentence.
    """
    if split not in PARTS or split not in data.rows or len(data.rows[split]) != len(getattr(data, split).y):
        raise ValueError(
            f"expected data that know which rows of their source the {split} split has, got {data.name} without"
        )
    rows, found = data.rows[split], {}
    if not len(rows):
        raise ValueError(f"expected examples in the {split} split, but {data.name} was cut without: use another split")
    for name, values in columns.items():
        if len(values) != data.source_rows:
            raise ValueError(
                f"expected {data.source_rows:,} values in column {name!r} of {what}, one for each row of {data.name} before it "
                f"was cut, got {len(values):,}"
            )
        own = values[rows]
        if (missing := np.flatnonzero([value.lower() in MISSING for value in own])).size:
            raise ValueError(
                f"expected a group for every row of the {split} split in column {name!r} of {what}, got {missing.size:,} "
                f"without, first row {rows[missing].min()} (counted from 0): fill it in"
            )
        count = len(np.unique(own))
        if not 2 <= count <= MOST:
            raise ValueError(
                f"expected 2 to {MOST} groups among the rows of the {split} split in column {name!r} of {what}, got {count}: "
                + ("name other columns" if count < 2 else "put measurements into intervals, or name other columns")
            )
        found[name] = own
    return found
