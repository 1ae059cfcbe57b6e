"""Laws over the program shelves, read from the folders themselves."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from functools import cache
from pathlib import Path

import pyro
import pytest
import torch

from espalier import shelf
from espalier.contracts import Data, Split
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.training.options import Training
from places import ROOT

PROGRAMS = {kind: sorted((ROOT / kind).glob("[!_]*.py")) for kind in shelf.ENTRY}
ENTRIES = [(kind, name) for kind in shelf.ENTRY for name in shelf.names(kind)]

models = pytest.mark.parametrize("name", shelf.names("models"))
inferences = pytest.mark.parametrize("name", shelf.names("inference"))
entries = pytest.mark.parametrize(("kind", "name"), ENTRIES)


@cache
def built(name: str) -> BayesianNetwork:
    """The model at a shape that fits every program: small colour images, a hundred outputs. Built once: one is large."""
    torch.manual_seed(0)
    return shelf.load("models", name)((3, 32, 32), 100, prior_scale=0.123)


# --------------------------------------------------------------------------------------------------------- the programs


@pytest.mark.parametrize("kind", shelf.ENTRY)
def test_a_shelf_holds_the_files_of_its_folder(kind):
    assert shelf.names(kind) == [path.stem for path in PROGRAMS[kind]]
    assert len(shelf.names(kind)) >= 5
    for path in PROGRAMS[kind]:
        module = importlib.import_module(f"espalier.{kind}.{path.stem}")
        assert Path(module.__file__).samefile(path)
        assert shelf.load(kind, path.stem) is getattr(module, shelf.ENTRY[kind])


@entries
def test_every_program_says_in_one_line_what_it_is(kind, name):
    summary = shelf.summary(kind, name)
    assert summary == inspect.getdoc(importlib.import_module(f"espalier.{kind}.{name}")).splitlines()[0]
    assert 15 < len(summary) <= 120
    assert inspect.getdoc(shelf.load(kind, name))  # the entry's own: what its options mean


@entries
def test_every_entry_takes_two_arguments_and_options_by_keyword(kind, name):
    signature = inspect.signature(shelf.load(kind, name))
    first, second, *options = signature.parameters.values()
    expected = {"models": ["shape", "num_outputs"], "inference": ["model", "data"]}[kind]
    assert [first.name, second.name] == expected
    for parameter in (first, second):
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameter.default is inspect.Parameter.empty
    for option in options:
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is not inspect.Parameter.empty
        assert option.annotation is not inspect.Parameter.empty
    assert signature.return_annotation == {"models": "BayesianNetwork", "inference": "Fit"}[kind]
    assert {option.name for option in options} >= {
        "models": {"prior_scale"}, "inference": {"training", "seed", "watch"}
    }[kind]  # fmt: skip


@models
def test_every_model_is_a_program_with_sites_weights_and_y(name):
    model = built(name).eval()
    assert isinstance(model, BayesianNetwork)
    start = pyro.poutine.condition(model, {"weights": model.initial})  # the prior N(0, 1) overflows fifty layers
    with pyro.get_param_store().scope():
        trace = pyro.poutine.trace(start).get_trace(torch.randn(2, 3, 32, 32))
    names = [key for key, node in trace.nodes.items() if node["type"] == "sample"]
    assert [key for key in names if key != "data"] == ["weights", "y"]
    assert trace.nodes["weights"]["fn"].event_shape == (model.num_weights,)
    assert len(trace.nodes["y"]["value"]) == 2
    output = model.evaluate(model.initial, torch.randn(3, 3, 32, 32))
    pixels = (32, 32) if name == "unet" else ()  # it decides for each
    assert output.shape == (3, *pixels, 100)
    assert torch.isfinite(output).all()


@models
def test_every_model_takes_a_prior_scale(name):
    assert built(name).prior_scale == 0.123


def test_a_wide_resnet_22_2_has_1_08_million_weights():
    assert shelf.load("models", "wide_resnet")((3, 32, 32), 10).num_weights == pytest.approx(1.08e6, rel=0.005)


def test_lenet_has_exactly_its_430500_weights():
    # 20 x 1 x 5 x 5, 50 x 20 x 5 x 5, 500 x 800, 10 x 500
    sizes = (500, 25_000, 400_000, 5_000)
    model = shelf.load("models", "lenet")((1, 28, 28), 10)
    assert model.sizes == sizes
    assert sum(sizes) == model.num_weights == 430_500


def test_a_resnet50_with_100_classes_has_23_65_million_weights():
    assert built("resnet50").num_weights == pytest.approx(23.65e6, rel=0.0005)
    assert len(built("resnet50").weights) == 54  # fifty layers and four projections of the shortcut


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("lenet", (1, 12, 12), {}, r"^expected images .* at least 16 x 16 for lenet, got shape \(1, 12, 12\)$"),
        ("lenet", (7,), {}, r"^expected images .* for lenet, got shape \(7,\)$"),
        ("wide_resnet", (3, 32, 32), {"depth": 4}, "^expected a depth of 6 n"),
        ("deep_gp", (3,), {"widths": ()}, "^expected widths of one hidden layer or more, got none$"),
        ("deep_gp", (3,), {"noise_precision": 0.0}, "^expected a precision above 0, .* got 0.0$"),
        ("unet", (3, 16, 16), {"channels": ()}, "^expected channels of one level or more, got none$"),
        ("resnet50", (3, 32, 32), {"stem": "CIFAR"}, "^expected a stem of cifar, imagenet, got 'CIFAR'$"),
        ("wide_resnet", (3, 32, 32), {"depth": 21}, r"^expected a depth of 6 n \+ 4 \(10, 16, 22, 28 ...\), got 21$"),
    ],
)
def test_a_shape_or_depth_that_cannot_be_built_is_refused(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        shelf.load("models", name)(shape, 10, **options)


# ----------------------------------------------------------------------------------------------------------- inferences


def tiny(num_classes: int | None = 3) -> Data:
    """Sixty rows of six features; labels, or a linear target."""
    generator = torch.Generator().manual_seed(0)

    def split(rows: int) -> Split:
        x = torch.randn(rows, 6, generator=generator)
        return Split(x, x[:, 0] - x[:, 1] if num_classes is None else x[:, :num_classes].argmax(1))

    return Data("tiny", split(60), split(20), split(20), split(20), (6,), num_classes)


def fitted(name: str, data: Data, seed: int = 0) -> tuple[BayesianNetwork, Fit]:
    infer, net = shelf.load("inference", name), network(data)
    options = {"sparsity": 0.5, "delta_t": 2, "drop_rate": 0.2, "distill_epochs": 1, "refit_epochs": 2}
    options = {key: value for key, value in options.items() if key in inspect.signature(infer).parameters}
    training = Training(epochs=2, batch_size=16, learning_rate=0.05, device="cpu")
    return net, infer(net, data, training=training, seed=seed, **options)


def network(data: Data) -> BayesianNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if data.num_classes is None:
            return shelf.load("models", "linear")(data.shape, data.num_outputs)
        return shelf.load("models", "mlp")(data.shape, data.num_outputs, hidden=(12,))


@inferences
def test_every_inference_returns_a_fit_whose_ways_to_predict_are_probabilities(name):
    data = tiny()
    _, fit = fitted(name, data)
    assert isinstance(fit, Fit)
    for how in fit.ways:
        draws = fit.predict(data.test.x, how, num_samples=3)
        assert draws.shape == ({"redraw": 3, "pairs": fit.record["num_pairs"], "moments": 24}.get(how, 1), 20, 3)
        assert torch.allclose(draws.sum(-1), torch.ones(draws.shape[:-1], dtype=torch.float64), atol=1e-12)
        assert (draws >= 0).all()
    epochs = 3 if name == "distilled" else 2
    assert len(fit.history) == epochs
    assert fit.history[-1]["step"] == epochs * (60 // 16)
    assert json.dumps(fit.record)
    moving = "delta_t" in inspect.signature(shelf.load("inference", name)).parameters
    assert (sum(row["exchanged"] for row in fit.history) > 0) == moving


@inferences
def test_every_inference_keeps_its_sparsity_and_leaves_the_users_model_alone(name):
    model, fit = fitted(name, tiny())
    sparse = "sparsity" in inspect.signature(shelf.load("inference", name)).parameters
    total = 6 * 12 + 12 * 3
    assert fit.topology.num_active == (round(0.5 * total) if sparse else fit.record.get("selected", total))
    assert int((next(fit.weights("ticket"))[0] != 0).sum()) <= fit.topology.num_active
    assert model.num_data is None
    assert model.prior_scale is None
    again = network(tiny())
    assert torch.equal(model.initial, again.initial)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@inferences
def test_every_inference_is_decided_by_its_seed_alone(name):
    data, draws = tiny(), []
    for default, seed in [(5, 0), (99, 0), (5, 1)]:
        torch.manual_seed(default)
        draws.append(fitted(name, data, seed)[1].predict(data.test.x, "ticket"))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@inferences
def test_every_inference_leaves_torchs_stream_and_pyros_store_as_they_were(name):
    torch.manual_seed(5)
    with pyro.get_param_store().scope():
        pyro.param("values", torch.tensor(3.0))
        before = torch.get_rng_state()
        fitted(name, tiny())
        assert torch.equal(torch.get_rng_state(), before)
        assert list(pyro.get_param_store().keys()) == ["values"]
        assert pyro.param("values").item() == 3.0


@inferences
def test_every_inference_regresses(name):
    data = tiny(num_classes=None)
    _, fit = fitted(name, data)
    for how in fit.ways:
        draws = fit.predict(data.test.x, how, num_samples=3)
        assert draws.shape[1:] == (20, 2)
        assert torch.isfinite(draws).all()
        assert (draws[..., 1] > 0).all()


def test_a_fixed_precision_is_trained_around_without_a_warning():
    data = tiny(num_classes=None)
    model = shelf.load("models", "linear")(data.shape, 1, noise_precision=4.0, learn_precision=False)
    training = Training(epochs=1, batch_size=16, learning_rate=0.01, device="cpu")
    fit = shelf.load("inference", "cigl")(model, data, training=training)
    assert fit.predict(data.test.x)[..., 1].unique().tolist() == pytest.approx([0.5])


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own word on it
@pytest.mark.parametrize("delta_t", [2, 100], ids=["where_a_move_is_due", "without_a_move"])
def test_a_training_that_diverges_says_so(delta_t):
    """Also where the topology is due to move on gradients that are no numbers any more."""
    training = Training(epochs=8, batch_size=16, learning_rate=1e20, device="cpu", rate="constant")
    infer, data = shelf.load("inference", "rigl"), tiny()
    with pytest.raises(RuntimeError, match="^the loss stopped being finite at step 2: lower the learn"):
        infer(network(data), data, training=training, sparsity=0.5, delta_t=delta_t)


# ---------------------------------------------------------------------------------------------------- finding a program


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


USERS = '''"""Mine."""
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from espalier.network import BayesianNetwork

@dataclass
class Width:
    value: int = {width}

def model(shape: tuple[int, ...], num_outputs: int, *, width: int = Width().value) -> BayesianNetwork:
    return BayesianNetwork(nn.Sequential(nn.Linear(shape[0], width), nn.Linear(width, num_outputs)))
'''


def test_a_users_own_file_is_a_program(tmp_path, monkeypatch):
    here = write(tmp_path / "a" / "mine.py", USERS.format(width=5))
    there = write(tmp_path / "b" / "mine.py", USERS.format(width=7))
    own = shelf.load("models", here)
    assert own((4,), 2).shapes == ((5, 4), (2, 5))
    assert shelf.load("models", there)((4,), 2).shapes == ((7, 4), (2, 7))  # of the same name, elsewhere
    monkeypatch.chdir(tmp_path / "a")
    assert shelf.load("models", "mine.py")((4,), 2, width=3).shapes == ((3, 4), (2, 3))


def test_a_users_file_that_is_not_there_or_has_no_entry_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^expected a Python file with a function `infer`, but .*gone.py is not there$"):
        shelf.load("inference", str(tmp_path / "gone.py"))
    empty = write(tmp_path / "empty.py", "model = 3\n")
    with pytest.raises(ValueError, match=r"^expected .*empty.py to define a function `model\(...\)`, and it does not$"):
        shelf.load("models", empty)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("models", "wide-resnet", r"^expected a model of .*, got 'wide-resnet'; did you mean 'wide_resnet'\?$"),
        ("inference", "cigle", r"^expected an inference of agent, cigl, .*, got 'cigle'; did you mean 'cigl'\?$"),
        ("models", "qqq", r"^expected a model of .*lenet.* or a file ending in .py, got 'qqq'$"),
    ],
)
def test_an_unknown_name_gets_the_nearest_there_is(kind, name, message):
    with pytest.raises(ValueError, match=message):
        shelf.load(kind, name)


# ------------------------------------------------------------------------------------------------- what a program uses


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", [path for paths in PROGRAMS.values() for path in paths], ids=lambda path: path.stem)
def test_a_program_imports_only_the_machinery_and_the_stack(path):
    allowed = {"espalier", "torch", "pyro", "gpytorch"} | sys.stdlib_module_names
    for name in imports(path):
        assert name.split(".")[0] in allowed
        assert name != "espalier.shelf.load"
