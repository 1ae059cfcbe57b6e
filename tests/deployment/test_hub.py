"""Claims about the way to a hub and back: these files and no others travel, and a refusal is one sentence. Never the network."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import espalier
from espalier.deployment import hub as wing
from fake_hub import TOKEN, Hub, serving
from shelved import made, rows, words

CACHE = "huggingface_hub.constants.HF_HUB_CACHE"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("mlp").export(tmp_path_factory.mktemp("exported") / "mlp", rows("mlp")[1], program=words("mlp"))


def test_what_is_pushed_comes_back_as_the_same_network(hub: Hub, exported: Path) -> None:
    address = espalier.push_to_hub(exported, "me/net", token=TOKEN, endpoint=hub.endpoint)
    assert address.startswith(f"{hub.endpoint}/me/net/commit/")
    assert hub.repos["me/net"] == {name: (exported / name).read_bytes() for name in wing.FILES[:3]}
    net = espalier.from_pretrained("me/net", endpoint=hub.endpoint)
    raw, _ = rows("mlp")
    with torch.no_grad():
        assert torch.equal(net(raw), espalier.from_pretrained(exported)(raw))


def test_no_other_file_travels_in_either_direction(hub: Hub, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    for name in ("notes.txt", "secret.env", "model.py", "sub/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    espalier.push_to_hub(folder, "me/net", token=TOKEN, endpoint=hub.endpoint)
    assert hub.sent == [sorted(wing.FILES[:3])]
    hub.repos["me/net"] |= {"model.py": b"raise SystemExit", "sub/config.json": b"{}", "pytorch_model.bin": b"pickle"}
    espalier.from_pretrained("me/net", endpoint=hub.endpoint)
    fetched = {line.rsplit("/", 1)[1] for line in hub.asked if line.startswith("GET /me/net/resolve")}
    assert fetched == {"config.json", "model.safetensors"}
    assert not list((tmp_path / "cache").rglob("model.py"))


def test_a_push_to_the_same_place_is_another_commit(hub: Hub, exported: Path, tmp_path: Path) -> None:
    first = espalier.push_to_hub(exported, "me/net", token=TOKEN, endpoint=hub.endpoint)
    other = made("mlp").export(tmp_path / "other", program=words("mlp"), how="ticket")
    assert espalier.push_to_hub(other, "me/net", token=TOKEN, endpoint=hub.endpoint) != first
    assert espalier.from_pretrained("me/net", endpoint=hub.endpoint).config["weights"]["way"] == "ticket"


def test_a_program_of_an_earlier_network_does_not_stay_beside_another(hub: Hub, exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    (folder / "model.onnx").write_bytes(b"of these weights")
    espalier.push_to_hub(folder, "me/net", token=TOKEN, endpoint=hub.endpoint)
    (folder / "model.onnx").unlink()
    espalier.push_to_hub(folder, "me/net", token=TOKEN, endpoint=hub.endpoint)
    assert "model.onnx" not in hub.repos["me/net"]


def test_a_hub_that_refuses_is_one_sentence(hub: Hub, exported: Path) -> None:
    with pytest.raises(ValueError, match="expected a hub that takes me/net from you, but: .*401") as error:
        espalier.push_to_hub(exported, "me/net", token="hf_bad", endpoint=hub.endpoint)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected a folder here, or a model .*, got me/none: .*404") as error:
        espalier.from_pretrained("me/none", endpoint=hub.endpoint)
    assert "\n" not in str(error.value)


def test_a_hub_that_is_not_there_is_one_sentence(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    nowhere = {"endpoint": "http://127.0.0.1:9"}
    with pytest.raises(ValueError, match="expected a folder here, or a model that the hub gives to you, got me/net: "):
        espalier.from_pretrained("me/net", **nowhere)
    with pytest.raises(ValueError, match="expected a hub that takes me/net from you, but: "):
        espalier.push_to_hub(exported, "me/net", token=TOKEN, **nowhere)


def test_a_repository_of_somebody_elses_kind_is_refused(hub: Hub) -> None:
    hub.repos["me/bert"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""}
    with pytest.raises(ValueError, match="expected .*config.json as `espalier export` writes it, format 1, or 2 of .*, got None"):
        espalier.from_pretrained("me/bert", endpoint=hub.endpoint)
    hub.repos["me/empty"] = {"README.md": b""}
    with pytest.raises(ValueError, match="has no config.json"):
        espalier.from_pretrained("me/empty", endpoint=hub.endpoint)


@pytest.mark.parametrize("source", ["nowhere", "./me/net", "a/b/c", "me/ net", "me/net?x", ""])
def test_what_is_neither_a_folder_nor_an_id_asks_no_hub(source: str, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected"):
        espalier.from_pretrained(source, endpoint=hub.endpoint)
    assert hub.asked == []


def test_a_folder_that_is_no_exported_one_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected an exported folder, but .* has no config.json: `espalier export` makes one"):
        espalier.push_to_hub(tmp_path, "me/net", token=TOKEN, endpoint=hub.endpoint)
    assert hub.asked == []


def test_without_the_library_a_sentence_says_which_extra(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match=r"expected huggingface_hub to bring .*: pip install 'espalier\[hub\]'"):
        espalier.push_to_hub(exported, "me/net")
    espalier.from_pretrained(exported)  # which a folder does not need
