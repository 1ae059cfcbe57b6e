"""Claims about a folder that is read: whatever it says, no code of it is run, and what does not fit together is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier import store
from espalier.data import from_arrays
from espalier.deployment import Deployed, Inputs
from espalier.inference import cigl
from espalier.network import BayesianNetwork
from espalier.sparse import SparseLinear
from shelved import Two, made, own_net, rows, untrained, words


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("mlp").export(tmp_path_factory.mktemp("exported") / "mlp", program=words("mlp"))


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    config.pop("sha256", None)  # as whoever means it would
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ------------------------------------------------------------------------------------------------------------- inputs


def test_inputs_are_scaled_as_the_data_scale_them_whatever_their_dtype() -> None:
    raw, data = rows("mlp")
    inputs = Inputs(data.shape, data.preparation())
    mean, sd = (values.numpy().reshape(1, -1, 1, 1) for values in data.input_scale)
    by_hand = ((raw.numpy().astype(np.float64) - mean) / sd).astype(np.float32)
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64):
        assert torch.equal(inputs(raw.to(dtype)), data.inputs(raw))
        assert np.allclose(inputs(raw.to(dtype)).numpy(), by_hand, rtol=0, atol=1e-6)


def test_a_column_far_from_zero_keeps_its_digits() -> None:
    """Seconds of a day in 2026: as float32, unscaled, they would be multiples of 128."""
    x = 1.8e9 + np.arange(100, dtype=np.float64)[:, None]
    data = from_arrays(x, np.arange(100) % 2, classes=[0, 1])
    said = Inputs(data.shape, data.preparation())(torch.from_numpy(x))
    assert len(said.unique()) == 100


def test_several_inputs_are_scaled_each_by_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = {"a": 50 + rng.normal(size=(60, 3)), "b": rng.normal(size=(60, 2))}
    data = from_arrays(raw, np.arange(60) % 2)
    fit = untrained(BayesianNetwork(Two()), data)
    net = espalier.from_pretrained(fit.export(tmp_path / "out", how="ticket"), network=Two())
    x = {name: torch.from_numpy(values) for name, values in raw.items()}
    with torch.no_grad():
        assert torch.allclose(net(x), fit.predict(data.inputs(raw))[0], atol=1e-6)


def test_rows_of_another_shape_are_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match=r"expected rows of shape \(n, 1, 6, 5\), got \(4, 30\)"):
        espalier.from_pretrained(exported)(torch.zeros(4, 30))


# ------------------------------------------------------------------------------------------------------------ own nets


def test_a_network_of_ones_own_is_asked_for_and_copied(tmp_path: Path) -> None:
    folder = made("own").export(tmp_path / "out")
    with pytest.raises(ValueError, match="expected network=, a module like the Sequential that was trained: it is not of"):
        espalier.from_pretrained(folder)
    mine = own_net()
    before = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    espalier.from_pretrained(folder, network=mine)
    assert all(torch.equal(tensor, before[name]) for name, tensor in mine.state_dict().items())
    with pytest.raises(ValueError, match="expected config.json and weights of the same network, but they do not fit"):
        espalier.from_pretrained(folder, network=nn.Sequential(nn.Flatten(), nn.Linear(30, 3)))


# -------------------------------------------------------------------------------------------------------------- sparse


@pytest.mark.parametrize("sparse", [True, "auto"])
def test_a_wide_network_without_its_zeros_says_the_same(sparse: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (60, 1, 12, 12), dtype=np.uint8)
    data = from_arrays(raw, np.arange(60) % 3, channels="first")
    from espalier.models import mlp

    fit = untrained(mlp.model((1, 12, 12), 3, hidden=(256, 256)), data)
    folder = fit.export(tmp_path / "out", program={"model": "mlp", "hidden": (256, 256)})
    dense, lean = espalier.from_pretrained(folder), espalier.from_pretrained(folder, sparse=sparse)
    kinds = [type(part) for part in lean.network]
    assert kinds.count(SparseLinear) == 2
    assert kinds.count(nn.Linear) == 1  # the last one is too small to gain
    with torch.no_grad():
        x = torch.from_numpy(raw)
        assert torch.allclose(lean(x), dense(x), atol=1e-6)
        assert torch.allclose(lean(x[:1]), dense(x[:1]), atol=1e-6)


def test_where_no_layer_gains_auto_is_dense_and_true_is_refused(exported: Path) -> None:
    assert not any(isinstance(part, SparseLinear) for part in espalier.from_pretrained(exported, sparse="auto").modules())
    with pytest.raises(ValueError, match="but no Linear layer of this one would gain: leave it dense"):
        espalier.from_pretrained(exported, sparse=True)


# ------------------------------------------------------------------------------------------------- what is not believed


def test_nothing_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    for name in ("mlp.py", "model.py", "evil.py", "modeling.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')\ndef model(shape, num_outputs): open({str(mark)!r}, 'w')")
    espalier.from_pretrained(folder)
    for program in (str(folder / "evil.py"), "evil.py", "../evil", "os", "__init__"):
        with pytest.raises(ValueError, match=r"expected a program of deep_gp, .* in config.json, got"):
            espalier.from_pretrained(altered(folder, lambda config, named=program: config["network"].update(program=named)))
    assert not mark.exists()


def test_a_network_larger_than_the_machine_is_refused_before_it_is_made(folder: Path) -> None:
    huge = altered(folder, lambda config: config["network"]["options"].update(hidden=[10**6, 10**8]))
    with pytest.raises(ValueError, match="expected arrays that fit into the .* GiB of this machine, got a network 'mlp'"):
        espalier.from_pretrained(huge)


ALTERED: dict[str, Callable[[dict[str, Any]], object]] = {
    "another width": lambda config: config["network"]["options"].update(hidden=[40, 21]),
    "an option that there is not": lambda config: config["network"]["options"].update(hiden=[4]),
    "an option of another kind": lambda config: config["network"]["options"].update(hidden="wide"),
    "another shape": lambda config: config.update(shape=[1, 6, 6]),
    "no shape": lambda config: config.pop("shape"),
    "a shape that is none": lambda config: config.update(shape="wide"),
    "no inputs": lambda config: config.pop("inputs"),
    "a dtype that is none": lambda config: config["inputs"].update(dtype="load"),
    "sd of another length": lambda config: config["inputs"].update(sd="many"),
    "no target": lambda config: config.pop("target"),
    "no network": lambda config: config.pop("network"),
    "a network that is a list": lambda config: config.update(network=[]),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_configuration_is_one_sentence(what: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        espalier.from_pretrained(altered(folder, ALTERED[what]))
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_short_altered_or_missing_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-3], whole[:-1] + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected .*model.safetensors as it was exported, but its SHA-256 differs"):
            espalier.from_pretrained(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"but .* has no model.safetensors"):
        espalier.from_pretrained(folder)


REWRITTEN: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "nothing of it": lambda tensors, facts: tensors.clear(),
    "no values": lambda tensors, facts: tensors.pop("values"),
    "fewer values": lambda tensors, facts: tensors.update(values=tensors["values"][:-1]),
    "positions cut short": lambda tensors, facts: tensors.update({"topology.gaps": tensors["topology.gaps"][:-9]}),
    "no bias": lambda tensors, facts: tensors.pop("network.1.bias"),
    "a bias too many": lambda tensors, facts: tensors.update({"network.9.bias": torch.zeros(2)}),
    "a bias of another length": lambda tensors, facts: tensors.update({"network.1.bias": torch.zeros(2)}),
    "fewer layers": lambda tensors, facts: facts["masked"].pop(),
    "layers of another shape": lambda tensors, facts: facts["masked"][0][1].reverse(),
    "layers without shapes": lambda tensors, facts: facts.update(masked=["1.weight"]),
    "a layer that there is not": lambda tensors, facts: facts["masked"].append(["9.weight", [3]]),
    "no word of layers": lambda tensors, facts: facts.pop("masked"),
}


@pytest.mark.parametrize("what", REWRITTEN)
def test_weights_of_another_network_are_one_sentence(what: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    bundle = store.read_bundle(path)
    REWRITTEN[what](*bundle)
    foreign = store.write_bundle(path, bundle)
    with pytest.raises(ValueError, match="expected") as error:
        espalier.from_pretrained(altered(folder, lambda config: config["weights"].update(sha256=foreign)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"espalier": {"format": 2}}', '{"model_type": "bert"}'])
def test_a_configuration_of_somebody_else_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"expected .*config.json"):
        espalier.from_pretrained(folder)


def test_a_configuration_that_was_changed_by_accident_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["inputs"]["sd"] = [2 * sd for sd in config["inputs"]["sd"]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected .*config.json as it was written, .*: it was altered"):
        espalier.from_pretrained(folder)


def test_a_deployed_network_says_what_it_is(exported: Path) -> None:
    net = espalier.from_pretrained(exported)
    assert isinstance(net, Deployed)
    assert net.classes == ["ash", "elm", "oak"]
    assert "weights active (distilled)" in repr(net)


@pytest.mark.parametrize("name", ["espalier", "weights"])
@pytest.mark.parametrize("value", [None, [], "x"])
def test_a_configuration_of_another_form_is_one_sentence(name: str, value: Any, folder: Path) -> None:
    altered(folder, lambda config: config.update({name: value}))
    with pytest.raises(ValueError, match="as `espalier export` writes it, format|it was altered"):
        espalier.from_pretrained(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="as `espalier export` writes it, format"):
        espalier.from_pretrained(folder)


def test_a_network_of_the_same_tensors_that_says_something_else_is_refused(tmp_path: Path) -> None:
    def net(between: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 12), between, nn.Linear(12, 2))

    data = from_arrays(1000 + 0.5 * np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 2)  # far from made-up units
    training = espalier.Training(epochs=1, device="cpu")
    fit = cigl.infer(BayesianNetwork(net(nn.ReLU())), data, drop_rate=0.2, training=training)
    for how in ("ticket", "moments"):
        folder = fit.export(tmp_path / how, data, how=how)
        assert isinstance(espalier.from_pretrained(folder, network=net(nn.ReLU())), Deployed)
        with pytest.raises(ValueError, match="expected the network and the likelihood that were exported, but .* they say"):
            espalier.from_pretrained(folder, network=net(nn.GELU()))
        config = json.loads((folder / "config.json").read_text())
        assert len(config["told"]) == 4
