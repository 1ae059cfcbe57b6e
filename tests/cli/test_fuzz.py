"""Whatever comes, in words or in a file: a command does its work, or refuses it in one sentence and leaves nothing behind.

Words are odd values of every option that a command's help knows; files are recipes and grids that were damaged. What is
drawn is decided by the command and a number. Nothing here can begin to train.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random

import pytest

from espalier.cli.main import main
from places import ROOT
from soon import soon

RECIPE = (ROOT / "examples" / "digits-cigl.yaml").read_bytes()
GRID = b"""\
base: {model: mlp, hidden: [32, 16], data: digits, batch_size: 50, delta_t: 5}
over:
  regime:
    longer: &long {epochs: 6, train_size: 400}
    short: {epochs: 2, validation: 0.2}
sparsities: [0.8, 0.95]
seeds: [0, 1]
methods:
  RigL:     {run: {inference: rigl}, predict: unmasked, calibrate: temperature}
  CigL:     {run: {inference: cigl, drop_rate: {longer: {0.8: 0.2, 0.95: 0.1}, short: 0.05}}, predict: ticket}
  Ensemble: {run: {inference: rigl}, predict: unmasked, members: 3}
baseline: [RigL, CigL]
num_samples: 8
split: test
"""
ODD = (
    *("", " ", "-", "--", "~", "null", "0", "-1", "1", "2", "0.5", "-0.0", "1e-7", "1e400", "nan", ".nan", ".inf", "1:30", "010"),
    *("1_000", "9" * 20, "9" * 5000, "true", "no", "[", "[]", "[1, 2]", "[[1]]", "[~]", "{a: 1}", "{}", "&a [*a]", "!!set {a}"),
    *("é", "\udcff", "\x00", "a b", "x\ny", "\t", "=", "%s", "@", "'", "2020-01-01", "../x", "~nobody", "x" * 5000, "[" * 3000),
    *("mlp", "cigl", "rigl", "digits", "mnist", "error", "ticket", "distilled", "cuda:99", "nowhere.py", "nowhere.npz", "."),
)  # fmt: skip
SAFE = {
    "fit": [["--print-config"], ["--data", "nowhere.npz", "--out", "run"]],
    "compare": [["--dry-run"]],
    "evaluate": [["nowhere"]],
    "certify": [["nowhere"]],
    "theory": [["--list"]],
}
"""What ends a command before it works, by one of these endings."""
SECONDS = 10.0


def spoken(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, which write as a terminal's do."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, newline="") for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


@pytest.fixture(scope="module")
def options() -> dict[str, list[str]]:
    """The options of every command, read from its help."""
    found = {}
    for command in SAFE:
        out = io.StringIO()
        with redirect_stdout(out), suppress(SystemExit):
            main([command, "--help"])
        found[command] = sorted({*re.findall(r"(?<![\w-])--[a-z][a-z-]*", out.getvalue())} - {"--help"})
        assert len(found[command]) > 4
    return found


def damaged(random: Random, text: bytes) -> bytes:
    for _ in range(random.randint(1, 3)):
        at, lines = random.randrange(len(text) + 1), text.splitlines(keepends=True)
        odd = random.choice(ODD).encode("utf-8", "surrogateescape")
        tokens = [*re.finditer(rb"[\w.]+", text)]
        token = random.choice(tokens).span() if tokens else (0, 0)
        line = random.choice(lines) if lines else b""
        text = random.choice(
            [
                text[:at] + bytes([random.randrange(256)]) + text[at + 1 :],
                text[:at] + text[at + random.randint(1, 20) :],
                text[: token[0]] + odd + text[token[1] :],
                text[: token[0]] + b"&a " + text[token[0] :] + b"\n<<: *a\n",
                text.replace(line, line + line, 1),
                text.replace(line, b"", 1),
                text + odd + b": " + odd + b"\n",
                b"a: &a [x, x, x]\n" + b"".join(b"a%d: &a%d [*a, *a, *a]\n" % (i, i) for i in range(9)) + text,
            ]
        )
    return text


def drawn(random: Random, command: str, options: list[str], folder: Path) -> list[str]:
    """The words of a command; the file that they name is written."""
    words = [command]
    if command == "compare" or (command == "fit" and random.random() < 0.6):
        example = RECIPE if command == "fit" else GRID
        (folder / "mine.yaml").write_bytes(damaged(random, example) if random.random() < 0.7 else example)
        words += ["--config", "mine.yaml"] if command == "fit" else ["mine.yaml"]
    elif command == "fit":
        words += ["--model", random.choice(["mlp", "lenet"]), "--inference", "cigl", "--data", "digits"]
    if command == "certify" and random.random() < 0.8:
        words += ["--alpha", "0.05"]
    for _ in range(random.choice([0, 1, 1, 2, 4])):
        name, value = random.choice(options), random.choice(ODD)
        words += random.choice([[f"{name}={value}"], [name, value], [name], [value], [name, value, value], [f"{name}.x", value]])
    return words + random.choice(SAFE[command])


def outcome(words: list[str], folder: Path) -> str:
    before = sorted(folder.rglob("*"))
    with soon(SECONDS, words):
        code, out, err = spoken(words)
    assert sorted(folder.rglob("*")) == before, words
    if code == 0:
        assert err == "", words
        return "done"
    assert (code, out, err.count("\n")) == (2, "", 1), (words, err)
    assert re.match(r"espalier: \S.{5,1100}\n", err), (words, err)
    return "refused"


def assert_all_end_well(numbers: range, command: str, options: list[str], folder: Path) -> None:
    tally: Counter[str] = Counter()
    for number in numbers:
        tally[outcome(drawn(Random(f"{command} {number}"), command, options, folder), folder)] += 1
    print(command, dict(tally))
    assert tally["refused"] > len(numbers) / 5
    assert tally["done"] > 0 or command in ("evaluate", "certify")


@pytest.mark.parametrize("command", SAFE)
def test_whatever_comes_is_done_or_refused_in_a_sentence(
    command: str, options: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_all_end_well(range(40), command, options[command], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", SAFE)
def test_whatever_comes_a_thousand_times(
    command: str, options: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_all_end_well(range(40, 1240), command, options[command], tmp_path)
