"""What a network says of new rows, as a table: for people who only use it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

from espalier import calibration, runs, store
from espalier.data import unlabelled
from espalier.deployment.hub import CONFIG
from espalier.deployment.pretrained import Deployed, Inputs, from_pretrained
from espalier.likelihoods import plain
from espalier.pages.blocks import csv_of
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit, How
from espalier.prediction.mixture import Mixture

BATCH, HELD = 500, 20_000_000
"""Rows at a time, and numbers of them."""
TAIL = (1 - calibration.LEVEL) / 2
MIXTURE_DRAWS, FEW = 2000, 5000
"""Of each row, where bounds are had by draws; and rows at a time then."""
Columns = dict[str, NDArray[Any]]


def predict(
    source: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    how: How | None = None,
    num_samples: int = 16,
    seed: int = 0,
    data_dir: str | None = None,
) -> Columns:
    """Write a row for each row of `data` (see `unlabelled.read`) to `out`, a new `.csv` or `.parquet`; returns its columns.

    Classes: `class` by name, `confidence` (its probability), `p(NAME)` of each. A regression: `mean`, `sd` and the bounds of the
    central 95 %, `low` and `high`, in the data's units; of a run whose likelihood is not normal these are quantiles of 2,000
    draws (an exported folder with a likelihood of one's own is for Python). With several draws also what they differ in:
    `mutual_information` in nats, or, of normal ones, `epistemic_sd`.

    source: an exported folder, a hub's id, or a run folder, whose way to predict `how` may choose, by default its
    posterior's (`redraw`, with `num_samples` masks; `pairs` of a chain). data_dir: where the data of an older run are, whose
    record does not say how inputs were scaled.
    Raises ValueError, in one sentence and with nothing written, for what cannot be read, rows that the network does not take, and
    a file that is there.
    """
    out = Path(out)
    _check_new(out)
    folder = Path(source).expanduser()
    if (folder / "config.yaml").is_file() and not (folder / CONFIG).is_file():
        fit, inputs, facts = _of_run(folder, data_dir)
        asked = unlabelled.read(data, facts["shape"])
        way: How = how or fit.posterior
        if facts["task"] == "regression" and not _is_normal(fit, inputs(asked.x[torch.arange(1)])):
            few = _batches(asked, inputs, max(1, FEW // facts["num_outputs"]))
            mixtures = (fit.mixture(x, way, num_samples=num_samples, seed=seed) for x in few)
            return _kept(out, asked, _together([*map(of_mixture, mixtures)]))
        parts: Iterator[Tensor] = (fit.predict(x, way, num_samples=num_samples, seed=seed) for x in _batches(asked, inputs))
    else:
        if how is not None:
            raise ValueError(f"expected no way to predict for an exported folder, which has one, got {how!r}: drop it")
        net = from_pretrained(source)
        facts = net.config
        asked = unlabelled.read(data, facts["shape"])
        first = _said(net, asked.x[torch.arange(min(1, len(asked.x)))])  # which tells how large a row's outcomes are
        if facts["task"] != "regression":
            classes(first.numpy(), _names(facts))
        parts = (_said(net, x) for x in _batches(asked, None, max(1, HELD // max(1, first.numel()))))
    columns = targets if facts["task"] == "regression" else partial(classes, names=_names(facts))
    return _kept(out, asked, _together([columns(part.detach().double().numpy()) for part in parts]))


def _kept(out: Path, asked: unlabelled.Asked, found: Columns) -> Columns:
    columns = {"row": np.arange(len(asked.x)), **({"file": np.array(asked.names)} if asked.names else {})} | found
    store.write_bytes(out, written(columns, out.suffix))
    return columns


def _is_normal(fit: Fit, x: Any) -> bool:
    """Is what the fit says of a row a normal distribution?"""
    return isinstance(plain(next(fit.outcomes(x))), torch.distributions.Normal)


def _together(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def of_mixture(mixture: Mixture) -> Columns:
    """Columns, of n rows `(n,)` or of d targets `(n, d)`, of a likelihood that is not normal: bounds are quantiles of draws."""
    count = max(MIXTURE_DRAWS, len(mixture.distributions))
    drawn = np.sort(mixture.sample(count).numpy(), axis=0)
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], axis=0, method="weibull")
    found = {"mean": mixture.centre(drawn), "sd": mixture.spread(), "low": low, "high": high}
    if low.ndim == 1:
        return found
    return _numbered([{name: values[:, place] for name, values in found.items()} for place in range(low.shape[1])])


def _numbered(each: Sequence[Columns]) -> Columns:
    """Those of several targets together."""
    return {f"{name}_{place}": values for place, own in enumerate(each) for name, values in own.items()}


def classes(draws: NDArray[np.float64], names: Sequence[str]) -> Columns:
    """Columns of class probabilities `(S, n, C)`. Raises ValueError where a row has several labels."""
    if draws.ndim != 3:
        raise ValueError(f"expected one label a row for a table, got draws of shape {draws.shape}: use the module from Python")
    probs = draws[0] + (draws - draws[0]).mean(0)
    names = [*names, *(f"output {place}" for place in range(len(names), probs.shape[1]))]  # that no class has
    best = probs.argmax(1)
    found = {"class": np.array(names)[best], "confidence": probs[np.arange(len(best)), best]}
    found |= {f"p({name})": probs[:, place] for place, name in enumerate(names)}
    return found | ({"mutual_information": calibration.mutual_information(draws)} if len(draws) > 1 else {})


def targets(draws: NDArray[np.float64]) -> Columns:
    """Columns of means and standard deviations `(S, n, 2)` of normal distributions, or `(S, n, d, 2)` of d targets, numbered."""
    if draws.ndim == 3:
        return _target(draws)
    return _numbered([_target(draws[:, :, place]) for place in range(draws.shape[2])])


def _target(draws: NDArray[np.float64]) -> Columns:
    mean, sd = draws[..., 0], draws[..., 1]
    total, apart = np.sqrt(calibration.total_variance(draws)), np.sqrt(calibration.epistemic_variance(draws))
    bounds = {name: quantile(mean, sd, level) for name, level in (("low", TAIL), ("high", 1 - TAIL))}
    found = {"mean": mean.mean(0), "sd": total, **bounds}
    return found | ({"epistemic_sd": apart} if len(draws) > 1 else {})


def quantile(mean: NDArray[np.float64], sd: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The quantile of the mixture 1/S sum_s Normal(mean_s, sd_s), of `(S, n)`: the root of its distribution function, which lies
    between its components' quantiles, by bisection to the last digit; of one component its own."""
    own = mean + sd * ndtri(level)
    low, high = own.min(0), own.max(0)
    for _ in range(60):
        middle = (low + high) / 2
        below = ndtr((middle - mean) / sd).mean(0) < level
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.asarray((low + high) / 2)


def written(columns: Mapping[str, NDArray[Any]], suffix: str) -> bytes:
    """The table as bytes, comma-separated or Parquet; numbers as Python writes them, so that they read back."""
    if suffix == ".csv":
        return csv_of(columns, zip(*(values.tolist() for values in columns.values()), strict=True)).encode()
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({name: pyarrow.array(values.tolist()) for name, values in columns.items()}), file)
    return file.getvalue()


def _check_new(out: Path) -> None:
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"expected the name of a .csv or .parquet file, got {out}")
    if out.exists():
        raise ValueError(f"expected a new file, but {out} exists: choose another --out, or remove it")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise RuntimeError("expected pyarrow for a .parquet file: pip install 'espalier[parquet]', or name a .csv") from error


def _of_run(folder: Path, data_dir: str | None) -> tuple[Fit, Inputs, dict[str, Any]]:
    """The fit of a run, its preprocessing and its record."""
    fit = runs.load(folder)
    facts = dict(fit.record)
    if "inputs" not in facts or batchnorm.has_batchnorm(fit.model):  # an older record; statistics of fresh masks
        loaded = runs.data_of(folder, data_dir)
        fit.look_at(loaded)
        facts |= loaded.facts()
    return fit, Inputs(facts["shape"], facts["inputs"]), facts


def _batches(asked: unlabelled.Asked, inputs: Inputs | None, most: int = HELD) -> Iterator[Any]:
    """Rows as the network takes them, a few at a time; in memory of a fit, whose draws cost more to make, many."""
    size = min(most, BATCH if inputs is None else max(BATCH, HELD // max(1, asked.x[torch.arange(1)].numel())))
    for index in torch.arange(len(asked.x)).split(size):
        x = asked.x[index]
        yield x if inputs is None else inputs(x)


@torch.no_grad()
def _said(net: Deployed, x: Any) -> Tensor:
    return net.draws(x)


def _names(facts: Mapping[str, Any]) -> list[str]:
    """Of the classes: of a run's record, or of an exported folder."""
    known = facts.get("classes") or facts["data"].get("classes") or range(max(2, facts["num_outputs"]))
    return [str(name) for name in known]
