"""Claims about `espalier export`: a folder, told file by file, or one sentence and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import espalier
from commands import spoken
from espalier import runs
from espalier.cli.main import main


def test_a_run_becomes_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(run), "--to", str(tmp_path / "net"), "--licence", "mit", "--name", "leaves", "--onnx"]
    assert main(words) == 0
    told = [line.split()[0].rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert told == ["README.md", "config.json", "model.onnx", "model.safetensors"]
    card = (tmp_path / "net" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "\n# leaves\n" in card
    data = runs.data_of(run)
    raw = data.test.x * data.input_scale[1][0] + data.input_scale[0][0]
    with torch.no_grad():
        said = espalier.from_pretrained(tmp_path / "net")(raw)
    assert torch.allclose(said, runs.load(run).predict(data.test.x)[0], atol=1e-5)
    assert main(words[:4]) == 0  # its own folder is made anew, and what belongs to another export is gone
    assert not (tmp_path / "net" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: --to"),
        (["--to", "net", "--how", "redraw"], "expected one network to export, ticket, mean, unmasked, moments, got 'redraw'"),
        (["--to", "net", "--how", "certified"], "expected a certificate of one network in"),
        (["--to", "net", "--form", "csr"], "expected a form of auto, dense, positions, got 'csr'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in spoken(capsys, ["export", str(run), *words])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no config.yaml" in spoken(capsys, ["export", str(tmp_path), "--to", str(tmp_path / "net")])
