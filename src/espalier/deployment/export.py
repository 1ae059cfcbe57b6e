"""A fit as a folder to deploy: weights, how to build the network, a model card; nothing in it is code.

config.json         how the network is built (a program of the shelf, its options), inputs, classes, units, SHA-256 of the weights
model.safetensors   the tensors of one network, by the names of `Deployed`; masked ones dense, or their values and positions
README.md           the model card
model.onnx          where it is asked for
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from espalier import __version__, nested, runs, shelf, store
from espalier.certificates.pruning import Frozen
from espalier.certificates.runs import load_pruned, ticket_of
from espalier.contracts import Data, Topology, stand_ins
from espalier.deployment import card
from espalier.deployment.hub import CARD, CONFIG, FILES, ONNX, WEIGHTS
from espalier.deployment.pretrained import (
    FORMAT,
    LIKELIHOOD,
    NET,
    SPREAD,
    VALUES,
    VARIANCES,
    WITH_SPREAD,
    Deployed,
    assembled,
    told,
)
from espalier.deployment.spread import DRAWS
from espalier.likelihoods import LIKELIHOODS
from espalier.network import BayesianNetwork, copied, under
from espalier.prediction.fit import SINGLE, Fit, How
from espalier.prediction.moments import Moments
from espalier.prediction.propagation import EACH, of_weights
from espalier.reports.promises import certificates_in
from espalier.sparse.layout import MIN_ROWS
from espalier.sparse.trial import agree
from espalier.store import Bundle
from espalier.topology import codes

Form = Literal["auto", "dense", "positions"]
"""Of masked tensors in the file: written out, or values and positions; auto: the smaller one."""
FORMS: tuple[Form, ...] = get_args(Form)
EXPORTED: tuple[How, ...] = (*SINGLE, "distilled", "moments")
CERTIFIED = "certified"
"""The network that the run's certificate speaks of."""


class Chosen(NamedTuple):
    """The network that is exported: a flat weight vector `(num_weights,)` and its other state. way: what it is called. Of
    `moments`, whose weights vary and `weights` are their means, fit: what predicts so; varying: those weights."""

    model: BayesianNetwork
    topology: Topology
    weights: Tensor
    state: Mapping[str, Tensor]
    way: str
    fit: Fit | None = None
    varying: Moments | None = None


def export(
    fit: Fit,
    folder: str | Path,
    data: Data | None = None,
    *,
    how: How | None = None,
    program: Mapping[str, Any] | None = None,
    form: Form = "auto",
    name: str | None = None,
    licence: str = "unknown",
    onnx: bool = False,
) -> Path:
    """Write one network of a fit into a new folder, or one that this wrote before; returns it. `from_pretrained` reads it back.

    data: for the scores on the model card, and for the normalisation where the record of an older fit has none. how: `ticket`,
    `mean`, `unmasked` or `distilled`, or `moments`, the network with what its weights vary by; None is `distilled` where there is
    one, else the ticket. program: how a program of the shelf
    builds the network, as a recipe says it, `{"model": "mlp", "hidden": (64, 64)}`; None: the run's recipe, or the network is
    one's own and `from_pretrained` is to be given it. name, licence: on the card, the latter as hubs spell it ("apache-2.0").
    onnx: also `model.onnx`.

    Raises ValueError, with nothing written, for a way that is not one network, a program that does not build this network, and a
    folder that holds what is not ours.
    """
    way: How = how or ("distilled" if fit.student is not None else "ticket")
    if way not in EXPORTED or way not in fit.ways:
        one = ", ".join(known for known in fit.ways if known in EXPORTED)
        why = "a folder holds no draws" if way != "moments" else fit.record.get("moments", {}).get("unknown", "it has no factors")
        raise ValueError(f"expected one network to export, {one}, got {way!r}: {why}")
    if way == "moments":
        weights, state = of_weights(fit)
        chosen = _on_cpu(fit.model, fit.topology, weights.loc, state, way)._replace(fit=fit, varying=weights)
    else:
        chosen = _on_cpu(fit.model, fit.topology, *next(fit.weights(way)), way)
    words = program or fit.record.get("recipe", {})
    return _written(chosen, fit.record, words, Path(folder), data, form, name, licence, onnx, program is not None)


def export_run(
    run: str | Path,
    folder: str | Path,
    *,
    how: str | None = None,
    form: Form = "auto",
    name: str | None = None,
    licence: str = "unknown",
    onnx: bool = False,
    data_dir: str | None = None,
    data: str | None = None,
) -> Path:
    """`export` of a finished run, its card with the run's scores and certificates. how: also `certified`, the network that the
    first certificate of the run speaks of. data_dir, data: where the run's data have moved."""
    run, folder = Path(run), Path(folder)
    runs.check_finished(run)
    fit, loaded = runs.load(run), runs.data_of(run, data_dir, data)
    promises = certificates_in(run)
    if how != CERTIFIED:
        own: Any = how
        fit.record |= {"certificates": [{**facts, "own": False} for facts in promises.values()]}
        return export(fit, folder, loaded, how=own, form=form, name=name or run.name, licence=licence, onnx=onnx)
    held = {path: facts for path, facts in promises.items() if facts["lambda"] is not None and facts["chosen"]["draws"] == 1}
    if not held:
        raise ValueError(f"expected a certificate of one network in {run}, got none: `espalier certify {run}` makes one")
    path, facts = next(iter(held.items()))
    frozen: Frozen = load_pruned(run, ticket_of(path).name)
    record = {**fit.record, "certificates": [{**facts, "own": True}]}
    chosen = Chosen(frozen.model, frozen.topology, frozen.dense(0), frozen.state(0), CERTIFIED)
    words = fit.record.get("recipe", {})
    return _written(chosen, record, words, folder, loaded, form, name or run.name, licence, onnx, False)


def _written(
    chosen: Chosen,
    record: Mapping[str, Any],
    words: Mapping[str, Any],
    folder: Path,
    data: Data | None,
    form: Form,
    name: str | None,
    licence: str,
    onnx: bool,
    asked: bool,
) -> Path:
    """Everything is made and tried before the first file is written; config.json is the last."""
    if form not in FORMS:
        raise ValueError(f"expected a form of {', '.join(FORMS)}, got {form!r}")
    _check_folder(folder)
    bundle, said = _weights(chosen, form)
    config = _config(chosen, record, words, data, asked) | {"weights": said} | _moments(chosen)
    module = assembled(config, bundle, None if "program" in config["network"] else chosen.model)
    net = chosen.model.network(chosen.weights, dict(chosen.state)).eval()
    try:
        same = agree(module.network, net, _few(config, data))
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        raise ValueError(
            f"expected a network that takes made-up inputs, or data to try it on, but it fails: {error}: say export(folder, data)"
        ) from error
    if not same:
        what = "the program that was named" if asked else f"{words.get('model')} of this installation"
        raise ValueError(f"expected a program that builds the network of this fit, but {what} says something else: mend program=")
    program = _as_onnx(module, _unscaled(config, data)) if onnx else None
    config |= {} if (numbers := told(module)) is None else {"told": numbers}
    facts = ({} if data is None else data.facts()) | dict(record)  # of a network attached to one's own loop the record has none
    page = card.page(chosen, config, facts, data, name or folder.resolve().name, licence)
    with store.owned(folder, FILES):
        for name in (ONNX, CONFIG):  # of another network, by now
            (folder / name).unlink(missing_ok=True)
        digest = store.write_bundle(folder / WEIGHTS, bundle)
        if program is not None:
            store.write_bytes(folder / ONNX, program)
        store.write_bytes(folder / CARD, page.encode())
        config["weights"] |= {"sha256": digest}
        config["card"] = store.sha256(page.encode())
        store.write_bytes(folder / CONFIG, store.canonical(store.signed(config)).encode())
    return folder


def _few(config: Mapping[str, Any], data: Data | None) -> Any:
    """Inputs to try a network on: of training where there are any, as made-up ones may be none (tokens kept as floats)."""
    if data is None:
        return stand_ins(config, MIN_ROWS)
    return data.train.x[torch.arange(min(MIN_ROWS, len(data.train.y)))]


def _unscaled(config: Mapping[str, Any], data: Data | None) -> Any:
    """Some rows of training as a user has them, where nothing was done to them."""
    scaled: list[bool] = []
    nested.by_shape(lambda _, own: scaled.append("mean" in own), config["shape"], config["inputs"])
    return None if data is None or any(scaled) else _few(config, data)


def _as_onnx(module: Deployed, rows: Any) -> bytes:
    from espalier.deployment.programs import to_onnx

    with tempfile.TemporaryDirectory() as scratch:
        to_onnx(module, Path(scratch) / ONNX, rows)
        return (Path(scratch) / ONNX).read_bytes()


def _on_cpu(model: BayesianNetwork, topology: Topology, weights: Tensor, state: Mapping[str, Tensor], way: str) -> Chosen:
    """The fit itself stays where it is."""
    if topology.positions.device.type != "cpu":
        model, topology = copied(model).to("cpu"), topology._replace(positions=topology.positions.cpu())
    return Chosen(model, topology, weights.detach().clone().cpu(), {n: t.cpu() for n, t in state.items()}, way)


def _check_folder(folder: Path) -> None:
    if (folder / "config.yaml").exists() or (folder / "record.json").exists():
        raise ValueError(f"expected a folder of its own, but {folder} is that of a run: choose another")
    store.check_free(folder, FILES)
    page = folder / CARD
    if not page.is_file():
        return
    if (folder / CONFIG).is_file():
        told = store.read_json(folder / CONFIG)
        told = told.get("card") if isinstance(told, dict) else None  # which earlier exports do not say
        if told is not None and told != store.sha256(page.read_bytes()):
            raise ValueError(f"expected {page} as it was exported, but it was edited: move it away, or choose another folder")
    elif card.MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"expected a folder of its own, but {page} is no model card of ours: choose another, or move it away")


def _weights(chosen: Chosen, form: Form) -> tuple[Bundle, dict[str, Any]]:
    """The file's tensors with what its positions are in, and what config.json says of them."""
    model, topology = chosen.model, chosen.topology
    net = model.network(chosen.weights, dict(chosen.state))
    masked = {name for weight in model.weights for name in weight.names}
    first: dict[int, str] = {}
    state = net.state_dict(keep_vars=True)
    every = {name: tensor.detach() for name, tensor in state.items() if first.setdefault(id(tensor), name) == name}
    rest = {f"{NET}{name}": tensor for name, tensor in every.items() if name not in masked}
    rest |= {f"{LIKELIHOOD}{name}": tensor for name, tensor in _likelihood_state(chosen).items()}
    dense = {f"{NET}{weight.name}": every[weight.name] for weight in model.weights}
    gaps, values = codes.to_gaps(topology), chosen.weights[topology.positions]
    if form == "auto":
        small = gaps.numel() + values.numel() * values.element_size()
        form = "positions" if small < topology.num_weights * values.element_size() else "dense"
    said = {
        "form": form,
        "way": chosen.way,
        "num_weights": topology.num_weights,
        "num_active": topology.num_active,
    }
    masked_ones = dense if form == "dense" else {codes.NAME: gaps, VALUES: values}
    if chosen.varying is not None and chosen.varying.ratio is None:  # a factor of their squares is not enough
        variance = chosen.varying.variance.cpu()
        of_tensors = {f"{SPREAD}{weight.name}": model.unflatten(variance)[weight.name].clone() for weight in model.weights}
        masked_ones |= of_tensors if form == "dense" else {VARIANCES: variance[topology.positions]}
    return Bundle(rest | masked_ones, {"masked": [[weight.name, list(weight.shape)] for weight in model.weights]}), said


def _moments(chosen: Chosen) -> dict[str, Any]:
    """What config.json says of `moments`."""
    if chosen.fit is None or chosen.varying is None:
        return {}
    told = {"factors": chosen.fit.record["moments"]["factors"], "count": EACH * DRAWS}
    return {"moments": told | ({} if chosen.varying.ratio is None else {"ratios": list(chosen.varying.ratio)})}


def _likelihood_state(chosen: Chosen) -> dict[str, Tensor]:
    """The likelihood's own tensors, as this network has them."""
    likelihood = chosen.model.likelihood
    if not isinstance(likelihood, torch.nn.Module):
        return {}
    return {**likelihood.state_dict(), **under(LIKELIHOOD, chosen.state)}


def _config(
    chosen: Chosen, record: Mapping[str, Any], words: Mapping[str, Any], data: Data | None, asked: bool
) -> dict[str, Any]:
    """What config.json says, but for the weights."""
    known = record.get("data", {}).get("hashes", {}).get("train")
    if data is not None and known is not None and data.hashes.get("train", known) != known:
        raise ValueError(
            f"expected the data that the fit was trained on, got other training rows in {data.name}: its scaling and class names "
            "are of those. Put new test rows into them (data._replace(test=...)), or leave data out"
        )
    of_data = {} if data is None else data.facts()
    facts = of_data | dict(record)
    if "inputs" not in facts:
        raise ValueError("expected data, as this fit's record does not say how its inputs were scaled: give the data to export")
    model = chosen.model
    known = [name for name, kind in LIKELIHOODS.items() if type(model.likelihood) is kind]
    classes = [of.get("data", {}).get("classes") for of in (record, of_data)]  # an older record has none
    names = classes[0] or classes[1] or list(range(max(2, facts["num_outputs"])))
    return {
        "espalier": {"format": FORMAT if chosen.fit is None else WITH_SPREAD, "version": __version__},
        "network": _network(model, words, asked),
        "likelihood": known[0] if known else "own",
        "shape": nested.plain(facts["shape"]),
        "num_outputs": facts["num_outputs"],
        "inputs": facts["inputs"],
        "task": facts["task"],
        "target": nested.plain(facts["target"]),
        "classes": [] if facts["task"] == "regression" else names,
    }


def _network(model: BayesianNetwork, words: Mapping[str, Any], asked: bool) -> dict[str, Any]:
    """A program of the shelf and its options, or what the network of one's own is called. asked: words of a program alone."""
    named = words.get("model") if isinstance(words, Mapping) else words
    if asked and (not isinstance(words, Mapping) or named not in shelf.names("models")):
        raise ValueError(f"expected a program of {', '.join(shelf.names('models'))}, as {{'model': NAME}}, got {named!r}")
    if named in shelf.names("models"):
        known = inspect.signature(shelf.load("models", str(named))).parameters.values()
        options = {one.name for one in known if one.kind is one.KEYWORD_ONLY}
        if asked and (unknown := sorted(words.keys() - options - {"model"})):
            raise ValueError(f"expected options of {named}, {', '.join(sorted(options))}, got {unknown[0]!r}")
        return {"program": named, "options": {key: nested.plain(words[key]) for key in sorted(options & words.keys())}}
    output = "own" if callable(model.output) else model.output
    return {"own": type(model.net).__name__, **({} if output is None else {"output": output})}
