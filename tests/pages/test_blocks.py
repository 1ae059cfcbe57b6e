"""Claims about what pages are made of: names and data of figures."""

from __future__ import annotations

import csv
import io

from espalier.pages.blocks import Figure, csv_of


def test_the_name_of_a_figures_data_is_its_title_in_plain_letters() -> None:
    assert Figure(b"", "Risk–coverage: a/b (95 %)", "").name == "risk-coverage-a-b-95.csv"


def test_values_come_back_from_csv() -> None:
    rows = [["a,b", 'say "so"', "two\nlines"], [1, 0.1, -3e-17]]
    read = list(csv.reader(io.StringIO(csv_of(["x", "y", "z"], rows))))
    assert read[:2] == [["x", "y", "z"], rows[0]]
    assert [float(value) for value in read[2]] == rows[1]
    assert Figure(b"", "a", "", (["x"], [[1]])).csv == "x\r\n1\r\n"
    assert Figure(b"", "a", "").csv == "\r\n"
