"""Claims about programs that need no Espalier: they say what the module says, for all of the shelf and a net of one's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier import Training, shelf
from espalier.data import from_arrays
from espalier.deployment import Deployed, programs, to_onnx, to_program
from espalier.network import BayesianNetwork
from shelved import CASES, Two, made, own_net, rows, untrained, words

CLOSE = 1e-5
LARGE = "resnet50"


def module(name: str, tmp_path: Path) -> Deployed:
    network = own_net() if CASES[name].program is None else None
    return espalier.from_pretrained(made(name).export(tmp_path / "out", program=words(name)), network=network)


def apart(mine: Tensor, theirs: Tensor | np.ndarray, net: Deployed) -> float:
    unit = net.scale.unsqueeze(-1) if net.config["task"] == "regression" else torch.ones(())
    return float(((mine.detach() - torch.as_tensor(theirs)) / unit).abs().max())


def test_the_cases_are_every_program_of_the_shelf() -> None:
    assert {case.program for case in CASES.values()} == {*shelf.names("models"), None} - {LARGE}


SLOW = {"two targets", "linear", "deep_gp", "lenet"}
"""Cases whose operators the others have."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_onnxruntime_says_what_the_module_says_of_any_number_of_rows(name: str, tmp_path: Path) -> None:
    net, (raw, _) = module(name, tmp_path), rows(name)
    assert to_onnx(net, tmp_path / "net.onnx") <= CLOSE
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, len(raw)):
        x = raw[:count].float()
        assert apart(net(x), session.run(["said"], {session.get_inputs()[0].name: x.numpy()})[0], net) <= CLOSE
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert classes == net.classes


@pytest.mark.parametrize("name", ["one logit", "two targets", "unet", "own"])
def test_an_exported_program_says_the_same_after_it_was_read(name: str, tmp_path: Path) -> None:
    net, (raw, _) = module(name, tmp_path), rows(name)
    to_program(net, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 2, 7, len(raw)):
        x = raw[:count].float()
        assert apart(net(x), program(x).detach(), net) <= CLOSE


def check_large(tmp_path: Path) -> float:
    data = from_arrays(np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8), np.arange(40) % 5)
    fit = untrained(shelf.load("models", LARGE)((3, 16, 16), 5), data)
    net = espalier.from_pretrained(fit.export(tmp_path / "out", program={"model": LARGE}))
    return to_onnx(net, tmp_path / "net.onnx")


@pytest.mark.slow
def test_the_largest_program_of_the_shelf_too(tmp_path: Path) -> None:
    assert check_large(tmp_path) <= CLOSE


def test_several_inputs_are_several_inputs_of_the_program(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = {"a": 50 + rng.normal(size=(60, 3)), "b": rng.normal(size=(60, 2))}
    fit = untrained(BayesianNetwork(Two()), from_arrays(raw, np.arange(60) % 2))
    net = espalier.from_pretrained(fit.export(tmp_path / "out"), network=Two())
    assert to_onnx(net, tmp_path / "net.onnx") <= CLOSE
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = {name: torch.from_numpy(values).float() for name, values in raw.items()}
    fed = {put.name: own.numpy() for put, own in zip(session.get_inputs(), x.values(), strict=True)}
    assert apart(net(x), session.run(None, fed)[0], net) <= CLOSE


class Moody(nn.Module):
    """Goes by what it computes, which no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        said = self.top(x.flatten(1))
        return said if float(said.sum()) > 0 else -said


def test_a_network_that_cannot_be_traced_is_one_sentence_and_no_file(tmp_path: Path) -> None:
    fit = untrained(BayesianNetwork(Moody()), rows("own")[1])
    net = espalier.from_pretrained(fit.export(tmp_path / "out"), network=Moody())
    for write, file in ((to_program, "net.pt2"), (to_onnx, "net.onnx")):
        with pytest.raises(ValueError, match="expected a network that torch.export can trace, but ") as error:
            write(net, tmp_path / file)
        assert "\n" not in str(error.value)
        assert not (tmp_path / file).exists()


def test_a_difference_is_noticed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = module("logistic", tmp_path)
    monkeypatch.setattr("espalier.deployment.programs.CLOSE", -1.0)
    with pytest.raises(ValueError, match="expected onnxruntime within -1 of torch, got a difference of .*: nothing was written"):
        to_onnx(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_names_that_will_not_do_and_files_that_are_there_are_refused(tmp_path: Path) -> None:
    net = module("logistic", tmp_path)
    (tmp_path / "mine.onnx").write_text("mine")
    with pytest.raises(ValueError, match=r"expected the name of a new .onnx file, got .*mine.onnx, which exists"):
        to_onnx(net, tmp_path / "mine.onnx")
    assert (tmp_path / "mine.onnx").read_text() == "mine"
    with pytest.raises(ValueError, match=r"expected the name of a new .pt2 file, got .*net.pth"):
        to_program(net, tmp_path / "net.pth")


def test_a_network_without_its_zeros_is_not_exported(tmp_path: Path) -> None:
    data = from_arrays(np.random.default_rng(0).normal(size=(60, 128)), np.arange(60) % 3)
    fit = untrained(shelf.load("models", "mlp")((128,), 3, hidden=(256,)), data)
    folder = fit.export(tmp_path / "out", program={"model": "mlp", "hidden": (256,)})
    with pytest.raises(ValueError, match=r"expected a network with its zeros written out to export: .*sparse=False"):
        to_program(espalier.from_pretrained(folder, sparse=True))


def test_without_the_libraries_a_sentence_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = module("logistic", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"pip install 'espalier\[onnx\]'"):
        to_onnx(net, tmp_path / "net.onnx")
    to_program(net)  # which needs torch alone


def test_softplus_is_written_out_for_onnx(tmp_path: Path) -> None:
    """A heteroscedastic likelihood; onnxruntime has no Softplus in double precision, which likelihoods are computed in."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    data = from_arrays(x, 40 * x[:, 0] + 7)
    net = nn.Sequential(nn.Linear(3, 8), nn.Softplus(beta=2.0), nn.Linear(8, 2))
    model = BayesianNetwork(
        net, likelihood=lambda output: dist.Normal(output[:, 0], nn.functional.softplus(output[:, 1], beta=3.0) + 1e-3)
    )
    training = Training(epochs=2, batch_size=30, learning_rate=0.01, device="cpu")
    fit = shelf.load("inference", "cigl")(model, data, sparsity=0.2, drop_rate=0.1, training=training)
    deployed = espalier.from_pretrained(fit.export(tmp_path / "folder", data), network=model)
    assert to_onnx(deployed, tmp_path / "net.onnx") < 1e-5
    outputs = espalier.from_pretrained(fit.export(tmp_path / "moments", data, how="moments"), network=model)
    outputs.spread.count, outputs.spread.points = 4, outputs.spread.points[:4]  # of 128: the graph is as long as there are
    graph = programs._with_softplus_written_out(programs._traced(outputs)).graph_module
    assert not [node for node in graph.graph.nodes if "softplus" in str(node.target)]
    assert [name for name, _ in graph.named_modules() if name] == []  # no graph within the graph, which would keep its own


def test_tokens_are_tried_on_their_own_rows(tmp_path: Path) -> None:
    """Kept as floats, of which made-up ones are no tokens."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(20, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(self.table(x.long()).mean(1))
            return found

    torch.manual_seed(0)
    tokens = np.random.default_rng(0).integers(0, 20, (60, 5)).astype(np.float32)
    data = from_arrays(tokens, tokens.sum(1) > 47, standardise=False)
    training = Training(epochs=1, device="cpu")
    fit = shelf.load("inference", "cigl")(BayesianNetwork(Words()), data, sparsity=0.2, drop_rate=0.1, training=training)
    folder = fit.export(tmp_path / "out", data, onnx=True)
    module = espalier.from_pretrained(folder, network=Words())
    session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    said = session.run(None, {session.get_inputs()[0].name: tokens[:7]})[0]
    np.testing.assert_allclose(said, module(torch.tensor(tokens[:7])).detach().numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="expected a network that takes made-up rows, or rows= to try it on, but index out of"):
        to_onnx(module, tmp_path / "net.onnx")
    assert to_onnx(module, tmp_path / "net.onnx", torch.tensor(tokens[:8])) < 1e-5
