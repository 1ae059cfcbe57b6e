"""The reader of recipes and grids: scalars of YAML 1.2, names that stand once, files that are bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from espalier.runs import lines
from soon import soon

MEANT: dict[str, Any] = {
    "1:30": "1:30", "190:20:30": "190:20:30", "1_000": "1_000", "0b1": "0b1", "2020-01-01": "2020-01-01", "=": "=",
    "yes": "yes", "no": "no", "on": "on", "Off": "Off", "y": "y", "nan": "nan", "inf": "inf", "1e": "1e", "0x": "0x",
    "010": 10, "-7": -7, "+5": 5, "0o17": 15, "0x1F": 31, "1e-3": 0.001, "1.": 1.0, "-.5": -0.5, "2.5E+3": 2500.0,
    ".inf": float("inf"), "-.INF": float("-inf"), "true": True, "False": False, "TRUE": True, "~": None, "": None, "null": None,
    "'5'": "5", "!!str 5": "5", "[1, x]": [1, "x"], "{a: &x [1], b: *x}": {"a": [1], "b": [1]}, "{<<: {a: 1}, a: 2}": {"a": 2},
}  # fmt: skip
"""Text -> its value, from the core schema of YAML 1.2.2, section 10.3.2; merges as in YAML 1.1."""


@pytest.mark.parametrize("text", MEANT)
def test_scalars_are_those_of_the_core_schema(text: str) -> None:
    found = lines.load(text)
    assert (found, type(found)) == (MEANT[text], type(MEANT[text]))


REFUSED = {
    "a: 1\nb: 2\na: 3": "'a' stands twice (line 3)",
    "{0.8: 1, 0.80: 2}": "0.8 stands twice (line 1)",
    "{<<: {a: 1}, <<: {b: 1}}": "'<<' stands twice",
    "{a: {b: 1, b: 2}}": "'b' stands twice",
    "!!binary aGk=": "tag:yaml.org,2002:binary",
    "!!timestamp 2020-01-01": "tag:yaml.org,2002:timestamp",
    "!!python/object/apply:os.getcwd []": "python/object",
    "!!int 1:30": "'1:30' is not of kind int",
    "!!bool x": "'x' is not of kind bool",
    "{[1]: 2}": "unhashable",
    "&a [*a]": "more than 20,000 values",
    "{a: &a {b: *a}}": "more than 20,000 values",
    "[" * 30 + "]" * 30: "more than 20 values within one another",
    "- 1\n" * 20_001: "more than 20,000 values",
    "9" * 5000: "limit",
    "[1": "expected ',' or ']'",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_would_surprise_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="^expected .*mine.yaml to be YAML: ") as refused:
        lines.read(path, "a recipe file")
    assert REFUSED[text] in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("link", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{<<: [{0}, {0}, {0}, {0}, {0}, {0}]}}"])
def test_aliases_come_to_no_more_than_a_file_may_hold(link: str) -> None:
    floors = [f"a{i}: &a{i} {link.format(f'*a{i - 1}')}" for i in range(1, 20)]
    with soon(5), pytest.raises(yaml.YAMLError, match="more than 20,000 values"):
        lines.load("\n".join(["a0: &a0 {x: 1}", *floors]))


def test_a_file_is_text_of_bounded_size_with_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    for content, sentence in (
        (b"data: caf\xe9", "to be UTF-8 text .*: save it as UTF-8"),
        (b"#" * 200_000, "expected a grid file of at most 100,000 bytes, but .* has 200,000"),
        (b"5: x", "expected words for the names in .*, got 5: put it in quotes"),
        (b"- x", r"to hold lines of `name: ...`, got \['x'\]"),
        (b"\x00", "to be YAML"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            lines.read(path, "a grid file")
    with pytest.raises(ValueError, match="expected a grid file, but .* is not there"):
        lines.read(tmp_path, "a grid file")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from([*MEANT])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=9)


@given(st.dictionaries(st.text() | st.sampled_from([*MEANT]), values, max_size=5))
def test_what_is_written_is_read_back_in_both_versions_of_yaml(written: dict[str, Any]) -> None:
    assert lines.load(lines.dump(written)) == written
    assert yaml.safe_load(lines.dump(written)) == written
