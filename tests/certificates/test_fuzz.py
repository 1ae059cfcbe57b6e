"""Claims about altered run folders and certificates: one sentence or an honest answer, never a traceback, never a false pass."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clouds import certified
from espalier import runs, store
from espalier.certificates import certificate
from espalier.certificates.verification import verify
from espalier.cli.main import main

FLIPS, EDITS, FOLDERS = 20, 20, 20
"""In the suite; `-m slow` has more."""
MUST_NOT_PASS = ("certificate.json", "certificate.md", "certificate.png", "pruned.safetensors", "looks.json",
                 "fit.safetensors", "record.json", "history.json", "config.yaml", "pairs/")  # fmt: skip
HONEST = {("circumstances", "siblings"), ("circumstances", "evaluated"), ("circumstances", "matplotlib"), ("device",),
          ("hashes", "code")}  # fmt: skip
"""What `certify` found when it was run: another lawful value is a note, or cannot be seen."""


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its certificate."""
    import clouds

    run = clouds.copied(folder, tmp_path_factory.mktemp("fuzz"))
    certified(run)
    return run


def again(made: Path, tmp_path: Path) -> Path:
    """A fresh copy of it, beside the data that it names."""
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    return Path(shutil.copytree(made, tmp_path / "run"))


def outcome(run: Path) -> str:
    """What `verify` says of a folder: the check that fails, `refused`, or `holds`. Any other exception is a fault."""
    try:
        checks = verify(run / "certificate.json")
    except (ValueError, OSError):
        return "refused"
    return next((check.what for check in checks if not check.holds), "holds")


def flipped(made: Path, tmp_path: Path, count: int) -> Counter[tuple[str, str]]:
    """One bit of one file, anywhere."""
    chance, tally = random.Random("flips"), Counter[tuple[str, str]]()
    files = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    files = [name for name in files if name.startswith(MUST_NOT_PASS)]
    for number in range(count):
        run, name = again(made, tmp_path), files[number % len(files)]
        content = bytearray((run / name).read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (run / name).write_bytes(content)
        tally[name.split("/")[0], outcome(run)] += 1
    return tally


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the plain values of a JSON tree are."""
    if isinstance(value, dict | list):
        for key, own in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(own, (*path, key))
    else:
        yield path


def edited(chance: random.Random, old: Any) -> Any:
    """Another value, of the same kind or of none that fits."""
    if isinstance(old, bool) or old is None:
        return chance.choice([not old, "yes", 0.5])
    if isinstance(old, int | float):
        return chance.choice([old + 1, old * 1.1 + 0.01, -old - 1, str(old), None])
    return chance.choice([old + " ", "x", old[::-1] + "y", 7, None])


def resigned(made: Path, tmp_path: Path, count: int) -> Counter[tuple[str, str]]:
    """One value of the certificate, the page written anew and the checksum too."""
    chance, tally = random.Random("edits"), Counter[tuple[str, str]]()
    for _ in range(count):
        run = again(made, tmp_path)
        path = run / "certificate.json"
        facts = store.check_signed(path)
        place = chance.choice([*leaves(facts)])
        holder = facts
        for key in place[:-1]:
            holder = holder[key]
        before = holder[place[-1]]
        holder[place[-1]] = edited(chance, before)
        with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):  # of some no page can be made
            path.with_suffix(".md").write_text(certificate.page(facts))
        store.write_bytes(path, (json.dumps(store.signed(facts), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode())
        named = tuple(key for key in place if isinstance(key, str))
        said = outcome(run)
        if said == "holds" and named not in HONEST:
            tally[f"{place}: {before!r} -> {holder[place[-1]]!r}", "holds"] += 1
        else:
            tally["honest" if named in HONEST else str(named[0]), said] += 1
    return tally


def broken_folders(made: Path, tmp_path: Path, count: int) -> Counter[tuple[str, str]]:
    """A file cut short, emptied, gone, or replaced by something else; then every command that reads a run."""
    chance, tally = random.Random("folders"), Counter[tuple[str, str]]()
    rubbish = [b"", b"[]", b"{}", b"null", b"\xff\xfe\x00", b"a: &a [*a]\n", b"- 1\n- 2\n", b"model: 5\n", b"{\"sha256\": 1}"]
    for _ in range(count):
        run = again(made, tmp_path)
        files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != store.LOCK)
        victim = chance.choice(files)
        match chance.choice(["cut", "rubbish", "gone", "folder"]):
            case "cut":
                victim.write_bytes(victim.read_bytes()[: chance.randrange(victim.stat().st_size)])
            case "rubbish":
                victim.write_bytes(chance.choice(rubbish))
            case "gone":
                victim.unlink()
            case "folder":
                victim.unlink()
                victim.mkdir()
        use = chance.choice(["load", "data", "resume", "certify", "verify"])
        words = ["certify", str(run), "--alpha", "0.2", "--step", "0.25"] if use == "certify" else [use, str(run)]
        try:
            if use in ("load", "data"):
                runs.load(run) if use == "load" else runs.data_of(run)
                said = "done"
            else:
                said = f"exit {main(words)}"
                assert said in ("exit 0", "exit 1", "exit 2")
        except (ValueError, OSError):
            said = "refused"
        tally[use, said] += 1
    return tally


def test_what_was_flipped_does_not_pass(made: Path, tmp_path: Path) -> None:
    tally = flipped(made, tmp_path, FLIPS)
    assert [entry for entry in tally if entry[1] == "holds"] == []


def test_what_was_edited_and_signed_again_does_not_pass(made: Path, tmp_path: Path) -> None:
    tally = resigned(made, tmp_path, EDITS)
    assert [entry for entry in tally if entry[1] == "holds" and entry[0] != "honest"] == []


def test_broken_run_folders_get_one_sentence(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(broken_folders(made, tmp_path, FOLDERS).values()) == FOLDERS
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_many_more_of_each(made: Path, tmp_path: Path) -> None:
    for tally in (flipped(made, tmp_path, 300), resigned(made, tmp_path, 300), broken_folders(made, tmp_path, 1000)):
        print("\n".join(f"{count:5d}  {what}" for what, count in sorted(tally.items())), "\n")
        assert [entry for entry in tally if entry[1] == "holds" and entry[0] != "honest"] == []
