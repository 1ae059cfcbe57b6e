"""The model card, README.md of an exported folder: Markdown under a YAML header, as model hubs read it.

The header's `model-index` holds the scores in the hub's evaluation format, each with its interval in `args`. Names that come from
data or from users are text, never markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.distributions import Normal

from espalier import calibration, nested
from espalier.certificates import certificate
from espalier.contracts import Data, Split
from espalier.data.streamed import selected
from espalier.deployment.spread import DRAWS
from espalier.prediction import evaluation
from espalier.prediction.costs import PER_MULTIPLY_ADD, forward
from espalier.prediction.mixture import Mixture
from espalier.prediction.predict import in_units, outcome_of, parameters_of
from espalier.prediction.propagation import products
from espalier.reports.tables import CLASSIFICATION, REGRESSION, TITLES, entry

if TYPE_CHECKING:
    from espalier.deployment.export import Chosen

TRAIN_ROWS = 10_000
"""Training rows, at most, that tell the regime."""
MARK = "library_name: espalier"
"""A line of every card."""
FITTED = 0.99
"""Accuracy on training rows from which a network fits them."""
TYPES = {"brier": "brier_score", "ece_15": "expected_calibration_error", "nll": "negative_log_likelihood"}
"""Our names of scores -> those of the hub's metrics, where they differ."""


def page(
    chosen: Chosen, config: Mapping[str, Any], record: Mapping[str, Any], data: Data | None, name: str, licence: str
) -> str:
    """The whole card. data: whose test split is scored, where there are some."""
    from jinja2 import Environment, StrictUndefined

    scores = scores_of(chosen, data, "test") if data is not None and len(data.test.y) else {}
    trained = scores_of(chosen, _head(data), "train") if data is not None else {}
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((resources.files("espalier.deployment") / "templates" / "card.md").read_text("utf-8"))
    shown = [one for one in (*CLASSIFICATION, *REGRESSION) if one in scores]
    floor = (
        "An ECE is never 0: `its floor` is what a perfectly calibrated network of these confidences would score on so many rows."
        if "ece_15_floor" in scores
        else "In the units of the target; coverage is the share of targets within the central 95 % of what is predicted."
    )
    return template.render(
        header=yaml.safe_dump(header(config, record, scores, name, licence), sort_keys=False, allow_unicode=True),
        name=plain(name),
        what=_what(chosen, config, record),
        usage=_usage(config),
        scores=[(TITLES[one], entry(scores, one)) for one in dict.fromkeys(shown)],
        num_examples=f"{len(data.test.y):,}" if data is not None else "",
        floor=floor,
        regime=_regime(config, trained, data),
        costs=_costs(chosen, config),
        promises=_promises(record.get("certificates", ())),
        untested=_untested(config),
        provenance=_provenance(record),
    )


def scores_of(chosen: Chosen, data: Data, split: str) -> dict[str, Any]:
    """Scores of the network on a split, as `evaluation.evaluate` has them."""
    return evaluation.score({"network": _predicted(chosen, data, split)}, data, split)["network"]


def _predicted(chosen: Chosen, data: Data, split: str) -> Any:
    """As `evaluation.predictions` has them."""
    if chosen.fit is not None:
        return evaluation.predictions(chosen.fit, data, split, ways=["moments"], num_samples=DRAWS)["moments"]
    outcome = outcome_of(chosen.model, chosen.weights, evaluation.split_of(data, split).x, chosen.state)
    said = parameters_of(outcome).detach()
    if data.num_classes is not None:
        return said.numpy()
    units = data.target_shift, data.target_scale
    normal = isinstance(outcome, Normal) and said.dim() == 2
    return in_units(said, *units)[None].numpy() if normal else Mixture([outcome], *units)


def header(
    config: Mapping[str, Any], record: Mapping[str, Any], scores: Mapping[str, Any], name: str, licence: str
) -> dict[str, Any]:
    """What stands in the YAML header."""
    task, data = _task(config), shown_name(record["data"]["name"])
    metrics = [
        {
            "type": TYPES.get(one, one),
            "value": _digits(scores[one]),
            "name": TITLES[one],
            "args": {
                "interval": [_digits(bound) for bound in scores[f"{one}_interval"]],
                "level": calibration.LEVEL,
                **({"floor": _digits(scores[f"{one}_floor"])} if f"{one}_floor" in scores else {}),
            },
        }
        for one in dict.fromkeys((*CLASSIFICATION, *REGRESSION))
        if f"{one}_interval" in scores
    ]
    result = {"task": {"type": task}, "dataset": {"name": data, "type": data, "split": "test"}, "metrics": metrics}
    return {
        "license": one_line(licence),
        "library_name": "espalier",
        "pipeline_tag": task,
        "tags": ["espalier", "sparse", "bayesian", "calibration"],
        "datasets": [data],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": one_line(name), "results": [result] if metrics else []}],
    }


def _digits(value: Any) -> float:
    """Nine of them, whatever the target's unit."""
    return float(f"{float(value):.9g}")


def shown_name(name: str) -> str:
    """Of a data set: of a path its last part, as the rest is nobody's business."""
    return one_line(Path(name).stem if "/" in name else name)


def one_line(text: Any) -> str:
    """Without what cannot be printed."""
    return "".join(letter for letter in str(text) if letter.isprintable())


def plain(text: Any) -> str:
    """A name as text in Markdown: what could be markup is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~])", r"\\\1", one_line(text))


def _head(data: Data) -> Data:
    """The data with only the first rows to train on; rows are in random order."""
    rows = torch.arange(min(TRAIN_ROWS, len(data.train.y)))
    return data._replace(train=Split(nested.rows_of(selected(data.train.x, rows)), data.train.y[rows]))


def _task(config: Mapping[str, Any]) -> str:
    image = isinstance(config["shape"], list) and len(config["shape"]) == 3
    if config["task"] == "regression":
        return "tabular-regression" if not image else "other"
    return "image-classification" if image else "tabular-classification"


def _what(chosen: Chosen, config: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    own = config["network"]
    built = f"`{own['program']}` of Espalier's shelf" if "program" in own else f"a network of its author's own, `{own['own']}`"
    varying = "" if chosen.fit is None else " with the variances of its weights, which go through it with their means,"
    said = (
        f"One sparse network, {built},{varying} trained on {plain(shown_name(record['data']['name']))} "
        f"({record['data']['rows']['train']:,} rows); which of a fit's ways to predict it is: {chosen.way}."
    )
    if config["task"] == "regression":
        return f"{said} It says a mean and a standard deviation for every row, in the units of the target."
    names = [plain(label) for label in config["classes"]]
    listed = ", ".join(names if len(names) <= 20 else [*names[:20], f"and {len(names) - 20} more"])
    return f"{said} It says a probability for each of {len(names)} classes: {listed}."


def _usage(config: Mapping[str, Any]) -> str:
    network = "" if "program" in config["network"] else ", network=mine"
    rows = f"(n, {', '.join(map(str, config['shape']))})" if isinstance(config["shape"], list) else "as it was trained on"
    doubt = "net.with_doubt(x)  # and what its weights leave open\n" if "moments" in config else ""
    return (
        f'import espalier\n\nnet = espalier.from_pretrained("FOLDER"{network})  # or a hub\'s id, owner/name\n'
        f"net(x)  # rows {rows}, as they come: not scaled\n{doubt}"
    )


def _regime(config: Mapping[str, Any], trained: Mapping[str, Any], data: Data | None) -> str:
    if data is None:
        return "Not known: it was exported without its data."
    rows = f"{min(TRAIN_ROWS, len(data.train.y)):,} training rows"
    if config["task"] == "regression":
        return f"On {rows}: RMSE {entry(trained, 'rmse')}, NLL {entry(trained, 'nll')}. The scores hold for rows like these."
    fits = trained["accuracy"] >= FITTED
    verdict = (
        "It fits its training rows: the regime in which networks are over-confident unless something is done about it."
        if fits
        else "It does not fit its training rows: what is said of networks that do, and of their confidence, does not follow here."
    )
    return f"On {rows}: accuracy {entry(trained, 'accuracy')}, NLL {entry(trained, 'nll')}. {verdict}"


def _costs(chosen: Chosen, config: Mapping[str, Any]) -> list[str]:
    topology, model = chosen.topology, chosen.model
    work = forward(model, config)
    densities = {
        weight.name: count / weight.size for weight, count in zip(model.weights, topology.counts, strict=True)
    }
    passes = 1 if chosen.fit is None else products(chosen.fit)
    sparse, sparsity = work.sparse(densities), 100 * (1 - topology.density)
    return [
        f"{topology.num_active:,} of {topology.num_weights:,} maskable weights are active: {sparsity:.4g} % sparse.",
        f"One row costs {passes * PER_MULTIPLY_ADD * sparse:,.0f} floating-point operations where kernels use every zero, "
        f"{sparse / work.dense:.3g} of the {passes * PER_MULTIPLY_ADD * work.dense:,} of the dense network, which is what is "
        "done without such kernels. Time was not measured.",
        f"In the file, the masked weights are {config['weights']['form']}.",
    ]


def _promises(certificates: Any) -> list[str]:
    if not certificates:
        return ["Nothing: there is no certificate for it."]
    said = []
    for facts in certificates:
        sentence = " ".join([certificate.sentence(dict(facts)), *certificate.caveats(dict(facts))])
        if facts["own"]:
            said.append(f"{sentence} This is the network that was certified. It rests on:")
            said.append("\n".join(f"- {line}" for line in facts["assumptions"]))
        else:
            said.append(f"Of this network nothing. A certificate of the same run speaks of a pruned one, not of this: {sentence}")
    return said


def _untested(config: Mapping[str, Any]) -> list[str]:
    images = _task(config) == "image-classification"
    return [
        "Rows that are not drawn like the test split: other "
        + ("cameras, sizes and lighting, corrupted images" if images else "sources, times and units")
        + ", a shift over time.",
        *(["Rows of none of its classes: it has to name one, and its confidence need not be low."] if config["classes"] else []),
        "Groups of rows: whether it is as good, and as calibrated, for all of them (`espalier evaluate --by`).",
        "Inputs made to mislead it.",
        "Other arithmetic than float32: half precision or quantised weights.",
    ]


def _provenance(record: Mapping[str, Any]) -> list[str]:
    recipe, versions = record.get("recipe", {}), record.get("versions", {})
    trained = f"inference `{recipe['inference']}`, seed {recipe.get('seed', 0)}" if recipe else "from Python, without a recipe"
    hashes = record["data"].get("hashes", {})
    kept = record["keep_prob"]
    told = ", ".join(f"{one:g}" for one in kept) + " by layer" if isinstance(kept, list | tuple) else f"{kept:g}"
    return [
        f"Method: {trained}; {record['num_pairs']} collected pairs, keep probability {told}.",
        "Versions: " + (", ".join(f"{one} {versions[one]}" for one in sorted(versions)) or "not recorded") + ".",
        *(f"SHA-256 of the {split} rows: `{hashes[split]}`" for split in ("train", "test") if split in hashes),
    ]
