"""Claims about an exported folder: it holds one network of a fit, whole, without code, and nothing of others is overwritten."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import espalier
from commands import fit as fitted
from espalier import Training, runs, shelf, store
from espalier.certificates import Settings, certify_run, load_pruned
from espalier.data import from_arrays
from espalier.deployment import FORMS, export_run
from espalier.likelihoods import Categorical
from espalier.network import BayesianNetwork
from shelved import CASES, made, own_net, rows, untrained, words
from zoo import Words

CLOSE = 1e-6
"""Of probabilities and, by its spread, a target: the network is float32, its inputs may round otherwise."""


def network_for(name: str) -> nn.Module | None:
    return own_net() if CASES[name].program is None else None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_a_folder_says_of_raw_rows_what_the_fit_says_of_scaled_ones(name: str, form: str, tmp_path: Path) -> None:
    fit, (raw, data) = made(name), rows(name)
    folder = fit.export(tmp_path / "out", program=words(name), how="ticket", form=form)
    net = espalier.from_pretrained(folder, network=network_for(name))
    assert not any(part.training for part in net.modules())
    with torch.no_grad():
        said = net(raw)
    expected = fit.predict(data.inputs(raw), "ticket")[0]
    assert said.shape == expected.shape
    assert said.dtype == expected.dtype
    unit = torch.as_tensor(data.target_scale, dtype=torch.float64).unsqueeze(-1)
    assert ((said - expected) / unit).abs().max() < CLOSE


def test_data_that_the_fit_was_not_trained_on_are_refused(tmp_path: Path) -> None:
    fit, (_, data) = made("mlp"), rows("mlp")
    other = data._replace(hashes={**data.hashes, "train": "others"})
    with pytest.raises(ValueError, match="expected the data that the fit was trained on, got other training rows"):
        fit.export(tmp_path / "out", other, program=words("mlp"))
    assert not (tmp_path / "out").exists()
    fit.export(tmp_path / "out", data._replace(test=data.validation), program=words("mlp"))


def test_classes_that_an_older_record_has_not_are_those_of_the_data(tmp_path: Path) -> None:
    fit, (_, data) = made("mlp"), rows("mlp")
    old = copy.copy(fit)
    old.record = {**fit.record, "data": {name: own for name, own in fit.record["data"].items() if name != "classes"}}
    folder = old.export(tmp_path / "out", data, program=words("mlp"))
    assert json.loads((folder / "config.json").read_text())["classes"] == ["ash", "elm", "oak"]


class Three(nn.Module):
    """Classes, of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 3), nn.Linear(2, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.left(a) + self.right(b)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.table(x).mean(1))


@pytest.mark.parametrize("kind", ["two inputs", "tokens"])
def test_networks_of_several_inputs_and_of_tokens_are_exported_with_their_card(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    if kind == "tokens":
        x = rng.integers(0, 9, (90, 5))
        loaded = espalier.data.from_datasets(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), workers=0)
        model = BayesianNetwork(Tokens(), maskable=["*.weight"])
    else:
        loaded = espalier.data.from_arrays({"a": rng.normal(size=(90, 3)), "b": rng.normal(size=(90, 2))}, y)
        model = BayesianNetwork(Three())
    fit = untrained(model, loaded)
    folder = fit.export(tmp_path / "out", loaded)
    assert "floating-point operations" in (folder / "README.md").read_text()
    net = espalier.from_pretrained(folder, network=model.network(model.initial))
    assert net.config["task"] == "classification"


@pytest.mark.parametrize("how", ["ticket", "mean", "unmasked", "distilled"])
def test_every_way_that_is_one_network_can_be_exported(how: str, tmp_path: Path) -> None:
    fit, (raw, data) = made("mlp"), rows("mlp")
    net = espalier.from_pretrained(espalier.export(fit, tmp_path / "out", program=words("mlp"), how=how))
    with torch.no_grad():
        assert torch.allclose(net(raw), fit.predict(data.inputs(raw), how)[0], atol=CLOSE)
    default = espalier.from_pretrained(fit.export(tmp_path / "default", program=words("mlp")))
    assert default.config["weights"]["way"] == "distilled"


def test_positions_and_values_are_the_smaller_file_and_dense_tensors_are_a_state_dict(tmp_path: Path) -> None:
    fit = made("mlp")
    sizes = {}
    for form in FORMS:
        folder = fit.export(tmp_path / form, program=words("mlp"), form=form, how="ticket")
        sizes[form] = (folder / "model.safetensors").stat().st_size
    assert sizes["auto"] == sizes["positions"] < 0.6 * sizes["dense"]
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    state = {name.removeprefix("network."): tensor for name, tensor in dense.items()}
    plain = fit.ticket().state_dict()
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


def test_a_folder_holds_these_files_and_the_same_fit_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again = (made("mlp").export(tmp_path / name, rows("mlp")[1], program=words("mlp"), name="n") for name in "ab")
    names = {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in first.iterdir() if not path.name.startswith(".")} == names
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert made("mlp").export(first, program=words("mlp")) == first  # its own folder is made anew
    assert json.loads((first / "config.json").read_text())["network"]["options"] == {"hidden": [40, 20]}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.top = nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.top(torch.relu(self.b(torch.relu(self.a(x.flatten(1)))))), "else": x}


@pytest.mark.parametrize("form", FORMS)
def test_tied_tensors_and_an_output_by_name_come_back(form: str, tmp_path: Path) -> None:
    raw, data = rows("mlp")
    fit = untrained(BayesianNetwork(Tied(), output="logits"), data)
    net = espalier.from_pretrained(fit.export(tmp_path / "out", form=form, how="ticket"), network=Tied())
    with torch.no_grad():
        assert torch.allclose(net(raw), fit.predict(data.inputs(raw))[0], atol=CLOSE)
    assert net.network.a.weight is net.network.b.weight


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"how": "redraw"}, "expected one network to export, ticket, mean, unmasked, distilled, got 'redraw'"),
        ({"form": "csr"}, "expected a form of auto, dense, positions, got 'csr'"),
        ({"program": {"model": "mlp", "hidden": (40, 21)}}, r"expected a network with 3.weight of shape \[20, 40\]"),
        ({"program": {"model": "mlp", "hidden": (40, 20), "likelihood": "normal"}}, "they do not fit"),
        ({"program": {"model": "mlp", "hiden": (40, 20)}}, "expected options of mlp, hidden, .*, got 'hiden'"),
        ({"program": {"model": "mpl"}}, "expected a program of deep_gp, .*, got 'mpl'"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(
    options: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        made("mlp").export(tmp_path / "out", **{"program": words("mlp"), **options})
    assert list(tmp_path.iterdir()) == []


class Doubled(nn.Linear):
    """Of the same tensors, and another function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_program_of_equal_shapes_that_computes_something_else_is_noticed(tmp_path: Path) -> None:
    _, data = rows("logistic")
    fit = untrained(BayesianNetwork(nn.Sequential(nn.Flatten(), Doubled(6, 3))), data)
    with pytest.raises(ValueError, match="the program that was named says something else: mend program="):
        fit.export(tmp_path / "out", program={"model": "logistic"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.onnx"])
def test_a_file_of_somebody_else_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds {name}, which would be overwritten"):
        made("mlp").export(tmp_path, program=words("mlp"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_card_that_was_edited_stays(tmp_path: Path) -> None:
    folder = made("mlp").export(tmp_path / "out", program=words("mlp"))
    made("mlp").export(folder, program=words("mlp"))  # as it was: written anew
    page = folder / "README.md"
    page.write_text(page.read_text() + "\nTrained by us.\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"expected .*README.md as it was exported, but it was edited: move it away"):
        made("mlp").export(folder, program=words("mlp"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_export_that_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("mlp").export(tmp_path / "out", program=words("mlp"), name="one")
    real = store.write_bytes

    def killed(path: Path, data: bytes) -> None:
        if path.name == "config.json":
            raise KeyboardInterrupt
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            made("mlp").export(folder, program=words("mlp"), name="two")
    with pytest.raises(ValueError, match="has no config.json"):
        espalier.from_pretrained(folder)
    made("mlp").export(folder, program=words("mlp"), name="three")
    espalier.from_pretrained(folder)


def test_an_older_record_asks_for_the_data(tmp_path: Path) -> None:
    fit = untrained(BayesianNetwork(own_net()), rows("own")[1])
    del fit.record["inputs"]
    with pytest.raises(ValueError, match="expected data, as this fit's record does not say how its inputs were scaled"):
        fit.export(tmp_path / "out")
    fit.export(tmp_path / "out", rows("own")[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert fitted(folder, "--hidden", "32,16", "--sparsity", "0.8", "--epochs", "8", "--calibration", "0.3") == 0
    certify_run([folder], Settings(("disagreement",), (0.5,), delta=0.05))
    return folder


def test_a_run_is_exported_by_its_recipe(run: Path, tmp_path: Path) -> None:
    fit, data = runs.load(run), runs.data_of(run)
    net = espalier.from_pretrained(export_run(run, tmp_path / "out"))
    raw = data.test.x * data.input_scale[1][0] + data.input_scale[0][0]
    with torch.no_grad():
        assert torch.allclose(net(raw), fit.predict(data.test.x)[0], atol=1e-5)
    assert net.classes == list(range(10))
    with pytest.raises(ValueError, match="expected a folder of its own, but .* is that of a run"):
        export_run(run, run)


def test_the_certified_network_carries_its_promise_and_another_says_that_it_does_not(run: Path, tmp_path: Path) -> None:
    data = runs.data_of(run)
    net = espalier.from_pretrained(export_run(run, tmp_path / "certified", how="certified"))
    raw = data.test.x * data.input_scale[1][0] + data.input_scale[0][0]
    with torch.no_grad():
        assert abs(net(raw).numpy() - load_pruned(run).predict(data.test.x)).max() < 1e-5
    own, other = ((export_run(run, tmp_path / way, how=way) / "README.md").read_text() for way in ("certified", "ticket"))
    assert "This is the network that was certified." in own
    assert "With confidence 0.95" in own
    assert "Of this network nothing. A certificate of the same run speaks of a pruned one" in other


def test_a_likelihood_of_ones_own_comes_back_with_its_model(tmp_path: Path) -> None:
    class Tempered(Categorical):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def forward(self, output: torch.Tensor):  # type: ignore[no-untyped-def]
            return super().forward(output / self.temperature)

    raw, data = rows("own")
    fit = untrained(BayesianNetwork(own_net(), likelihood=Tempered()), data)
    folder = fit.export(tmp_path / "out", how="ticket")
    with pytest.raises(ValueError, match="expected network= as a BayesianNetwork"):
        espalier.from_pretrained(folder, network=own_net())
    net = espalier.from_pretrained(folder, network=BayesianNetwork(own_net(), likelihood=Tempered()))
    assert net.likelihood.temperature.item() != 1.0
    with torch.no_grad():
        assert torch.allclose(net(raw), fit.predict(data.inputs(raw))[0], atol=CLOSE)


def test_a_program_that_cannot_be_made_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = made("mlp")
    folder = fit.export(tmp_path / "out", program=words("mlp"), how="ticket")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def missing(*_: object) -> None:
        raise RuntimeError("expected onnx, onnxscript and onnxruntime")

    monkeypatch.setattr("espalier.deployment.programs.to_onnx", missing)
    with pytest.raises(RuntimeError, match="expected onnx"):
        fit.export(folder, program=words("mlp"), how="unmasked", onnx=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(RuntimeError, match="expected onnx"):
        fit.export(tmp_path / "new", program=words("mlp"), how="unmasked", onnx=True)
    assert not (tmp_path / "new").exists()


def test_the_page_of_somebody_is_left_alone_where_another_command_has_been(tmp_path: Path) -> None:
    with store.owned(tmp_path):
        (tmp_path / "README.md").write_text("# My project")
    with pytest.raises(ValueError, match=r"README\.md is no model card of ours: choose another, or move it away"):
        made("mlp").export(tmp_path, program=words("mlp"))
    assert (tmp_path / "README.md").read_text() == "# My project"
    (tmp_path / "README.md").unlink()
    for _ in range(2):
        made("mlp").export(tmp_path, program=words("mlp"))


def test_tokens_that_came_as_floats_are_tried_on_their_own_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 9, size=(120, 5))
    data = from_arrays(x, (x[:, 0] > 4).astype(int), standardise=False)
    training = Training(epochs=1, batch_size=30, device="cpu")
    fit = shelf.load("inference", "static")(BayesianNetwork(Words()), data, sparsity=0.5, training=training)
    assert (fit.export(tmp_path / "with", data) / "config.json").is_file()
    with pytest.raises(ValueError, match=r"expected a network that takes made-up inputs, .* say export\(folder, data\)"):
        fit.export(tmp_path / "without")
    assert not (tmp_path / "without").exists()
