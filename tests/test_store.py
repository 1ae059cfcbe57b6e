"""Files are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from espalier import store
from espalier.store import Bundle


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "bits": torch.tensor([1, 255], dtype=torch.uint8), "none": torch.zeros(0)}
    digest = store.write_bundle(tmp_path / "x", Bundle(tensors, {"step": 3, "history": [{"loss": 0.1}]}))
    back = store.read_bundle(tmp_path / "x")
    assert back.facts == {"step": 3, "history": [{"loss": 0.1}]}
    assert set(back.tensors) == set(tensors)
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in tensors.items())
    assert digest == store.sha256((tmp_path / "x").read_bytes())


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    store.write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_orphans_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".checkpoint.safetensors.tmp-0123abcd", ".gitkeep", ".notes.12345678", "fit.safetensors"):
        (tmp_path / name).write_text("x")
    store.remove_orphans(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".gitkeep", ".notes.12345678", "fit.safetensors"}


def test_a_signed_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(store.canonical(store.signed({"sparsity": 0.9, "layers": [1, 2]})))
    assert store.check_signed(path) == {"sparsity": 0.9, "layers": [1, 2]}
    path.write_text(path.read_text().replace("0.9", "0.8"))
    with pytest.raises(ValueError, match="altered"):
        store.check_signed(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="altered"):
        store.check_signed(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="cut short or altered"):
        store.check_signed(path)


def test_a_ledger_goes_on_from_what_is_on_the_disk(tmp_path: Path) -> None:
    file, worked = tmp_path / "new" / "results.jsonl", []

    def work(value: object) -> object:
        worked.append(value)
        return value

    book = store.Ledger(file)
    assert book.of("a", lambda: work({"x": 0.1 + 0.2, "n": [1, 2]})) == {"x": 0.1 + 0.2, "n": [1, 2]}
    assert book.of("b", lambda: work((1, 2))) == [1, 2]  # as JSON has it, at once as later
    again = store.Ledger(file)
    assert again.known == book.known == {"a": {"x": 0.1 + 0.2, "n": [1, 2]}, "b": [1, 2]}
    assert "a" in again
    assert "c" not in again
    assert again.of("a", lambda: work("anew")) == {"x": 0.1 + 0.2, "n": [1, 2]}
    assert len(worked) == 2
    nowhere = store.Ledger(None)
    assert nowhere.of("a", lambda: 1) == nowhere.of("a", lambda: 2) == 1


def test_a_line_of_a_ledger_that_a_kill_cut_short_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    whole = '["a", 1]\n["b", {"x": 2}]\n'
    for end in range(len('["a", 1]\n'), len(whole)):
        file.write_text(whole[:end])
        book = store.Ledger(file)
        there = end == len(whole) - 1  # all but its end
        assert book.known == {"a": 1, **({"b": {"x": 2}} if there else {})}
        assert file.read_text() == whole[:end]  # reading changes nothing
        book.of("b", lambda: {"x": 2})
        book.of("c", lambda: 3)
        assert file.read_text() == whole + '["c", 3]\n'


@pytest.mark.parametrize(
    "text",
    ['[{"weights": [1, 2]}, "a year"]', '["a", 1]\n[1, 2, 3]', "[1, 2]", "a diary", "a diary\n",
     '["a", 1]\n{"b": 2}\n["c", 3]\n', '["a", 1, 2]\n', '["a", 1]\n\xff\n'],
)  # fmt: skip
def test_a_file_that_is_no_ledger_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    file = tmp_path / "diary.txt"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"expected lines \[name, result\] in .*diary.txt, got .*: mend it, or"):
        store.Ledger(file)
    assert file.read_text(encoding="latin-1") == text


def test_a_whole_last_line_without_an_end_is_a_result(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('["a", 1]\n["b", 2]')
    book = store.Ledger(file)
    assert book.known == {"a": 1, "b": 2}
    book.of("c", lambda: 3)
    assert file.read_text() == '["a", 1]\n["b", 2]\n["c", 3]\n'


def test_the_temporary_file_of_a_living_process_is_its_own(tmp_path: Path) -> None:
    living, mine = tmp_path / f".a.tmp-{os.getppid()}-0123abcd", tmp_path / f".b.tmp-{os.getpid()}-0123abcd"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f".c.tmp-{ended.pid}-0123abcd"
    for path in (living, mine, dead):
        path.touch()
    store.remove_orphans(tmp_path)
    assert [path for path in (living, mine, dead) if path.exists()] == [living]


def test_of_two_that_find_a_torn_line_neither_loses_its_own(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(b'["a", 1]\n["b", 2')
    one, two = store.Ledger(file), store.Ledger(file)
    one.of("one", lambda: "first")
    two.of("two", lambda: "second")
    assert store.Ledger(file).known == {"a": 1, "one": "first", "two": "second"}
