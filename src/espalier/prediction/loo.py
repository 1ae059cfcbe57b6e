"""Leave-one-out scores from one fit: PSIS-LOO (Vehtari, Gelman & Gabry 2017), by ArviZ, where the draws are of a posterior.

The score of row i under the posterior without row i is had by weighing the draws with 1 / p(y_i | draw), the weights' tail
smoothed by a Pareto law. Its shape k says whether that holds: above min(1 - 1 / log10 S, .7), S the draws, it does not, and
the row's score is not to be trusted (Vehtari et al. 2024).

**What it means for a sparse fit.** The weights can only choose among the draws that are there. Masks of one optimum (`redraw` of
CigL) are a narrow posterior around weights that *every* row has shaped: leaving a row out of them leaves it in the optimum, so
the score is too high, and no k says so. The held-out score is what it should have been: both stand in the result.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.contracts import Data
from espalier.prediction.datatree import to_datatree
from espalier.prediction.fit import Fit, How

if TYPE_CHECKING:
    import xarray

Floats = NDArray[np.float64]
MIN_DRAWS = 100
TIE = 1e-9
WAY_OUT = "score held-out rows instead: K-fold, as `espalier compare` runs it over several `split_seed` (or `fold`)"


class Loo(NamedTuple):
    """elpd: sum over n rows of ln p(y_i | the other rows), nats, of targets in the data's units; se: its standard error over
    rows; p: effective number of parameters. pointwise, pareto_k `(n,)`. bad: rows of too large a k. num_draws, num_rows: of what.
    held_out: mean log score of validation rows by the same draws, nats a row, where there are any: to compare with elpd / n.
    note: how to read it. rows: what tells these rows' outcomes from others. found: ArviZ's own result.
    """

    elpd: float
    se: float
    p: float
    pointwise: Floats
    pareto_k: Floats
    bad: int
    num_draws: int
    num_rows: int
    held_out: float | None
    note: str
    rows: str
    found: Any


class Ranked(NamedTuple):
    """One row of a comparison, best first. difference: elpd of the best minus its own, error: the standard error of that, over
    rows that are paired. weight: of stacking (Yao et al. 2018). bad: rows whose Pareto k is too large."""

    name: str
    elpd: float
    se: float
    difference: float
    error: float
    weight: float
    bad: int


@contextmanager
def _quietly() -> Iterator[None]:
    """ArviZ warns of large k, which the result reports, and of what it asks of pandas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def psis_loo(tree: xarray.DataTree, *, held_out: float | None = None, note: str = "") -> Loo:
    """Of an ArviZ DataTree with `log_likelihood` `(chain, draw, observation)`, of draws of the posterior given those rows: NUTS,
    an exact posterior. `to_datatree(mixture, y)` makes one. Of several chains the effective sample size is that of the total
    log likelihood; one chain counts as independent draws.

    Raises ValueError for fewer than 100 draws, for draws that are all alike, and for a likelihood that is zero of some row.
    """
    from arviz_stats import loo

    logs, y = _log_likelihood(tree), np.ascontiguousarray(tree["observed_data"]["y"].to_numpy())
    with _quietly():
        found = loo(_with_posterior(tree), pointwise=True)
    k, pointwise = (np.asarray(each.to_numpy(), dtype=np.float64).ravel() for each in (found.pareto_k, found.elpd_i))
    most = float(found.good_k)
    bad = int((k > most).sum())
    if bad:
        told = f"{bad} of {len(k)} rows have Pareto k above {most:.3g}: their scores are not to be trusted"
        note = f"{note} {told}; {WAY_OUT}.".strip()
    draws, rows = logs.shape[0] * logs.shape[1], f"{y.shape}".encode() + y.astype(np.float64).tobytes()
    return Loo(
        float(found.elpd), float(found.se), float(found.p), pointwise, k, bad, draws, len(k), held_out, note,
        hashlib.sha256(rows).hexdigest(), found,
    )  # fmt: skip


def leave_one_out(fit: Fit, data: Data, how: How | None = None, *, num_samples: int = 1000, seed: int = 0) -> Loo:
    """PSIS-LOO of a fit on the rows it was trained on, with what it means for that fit in `note`: see the module. how: by default
    `fit.posterior`.

    Of a Gaussian guide (`mean_field`) the draws are of a variational posterior of all active weights, and k reports where it is
    too narrow or too wide for a row. Of masks (`cigl`) they are Z of one optimum: read `held_out`.

    Raises ValueError where there are fewer than 100 draws (`ticket`, `mean`, `unmasked`, `distilled` are one), where the draws
    are all alike (RigL: keep_prob 1), and where the training rows are not those of the fit.
    """
    if not len(data.train.y):
        raise ValueError("expected training rows to leave out one by one, got none")
    own, given = fit.record.get("data", {}).get("hashes", {}).get("train"), data.hashes.get("train")
    if own != given or fit.record.get("data", {}).get("rows", {}).get("train", len(data.train.y)) != len(data.train.y):
        raise ValueError(
            "expected the rows that the fit was trained on, got others: draws are of the posterior given its own rows alone, and "
            "others are held out: score them with espalier.prediction.evaluate"
        )
    how = how or fit.posterior
    if how == "moments":
        raise ValueError(f"expected a way to predict by networks, got moments: take redraw, or {WAY_OUT}")
    count = {"redraw": num_samples, "pairs": len(fit.pairs.values)}.get(how, 1)
    if count < MIN_DRAWS:
        raise ValueError(
            f"expected {MIN_DRAWS} or more draws for leave-one-out, got {count} of {how!r}: "
            f"{'sample a longer chain' if fit.posterior == 'pairs' else 'take how=redraw with more num_samples'}, or {WAY_OUT}"
        )
    if fit.is_one(how):
        raise ValueError(f"expected draws of a posterior, got {count} equal networks (no mask, no Gaussian guide): {WAY_OUT}")
    fit.look_at(data)
    drawn = fit.mixture(data.train.x, how, num_samples=num_samples, seed=seed)
    tree = to_datatree(drawn, _in_units(data, "train"), seed=seed)
    held_out = None
    if len(data.validation.y):
        mixture = fit.mixture(data.validation.x, how, num_samples=num_samples, seed=seed)
        held_out = float(mixture.log_prob(_in_units(data, "validation")).mean())
    found = psis_loo(tree, held_out=held_out)
    per_row = f"LOO gives {found.elpd / found.num_rows:.3f} nats a row"
    beside = "no validation rows say otherwise" if held_out is None else f"held-out rows have {held_out:.3f}"
    if fit.pairs.scales is None:
        note = (
            "The draws are masks of one optimum, which all rows have shaped: a narrow posterior, in which a row is left out of "
            f"the choice among masks alone. {per_row}; {beside}. For a score to report, {WAY_OUT}."
        )
    else:
        of = "The draws are of a variational posterior; biases and noise are points that all rows have shaped"
        note = f"{of}. {per_row}; {beside}."
    if how == "pairs":
        note = f"{note} Pairs are draws of the guide as it was at one epoch after the other."
    more = found.note.replace(f"; {WAY_OUT}", "") if WAY_OUT in note else found.note
    return found._replace(note=f"{note} {more}".strip())


def compare_loo(found: Mapping[str, Loo]) -> tuple[Ranked, ...]:
    """Fits of the same rows by their LOO scores, best first, row by row.

    Raises ValueError for fewer than two, and for scores of other rows (or in other units).
    """
    from arviz_stats import compare

    if len(found) < 2:
        raise ValueError(f"expected two or more fits to compare, got {len(found)}")
    first = next(iter(found))
    for name, one in found.items():
        if one.rows != found[first].rows:
            raise ValueError(
                f"expected LOO scores of the same rows, but those of {first!r} and {name!r} have other outcomes: fit both to one "
                "data set"
            )
    with _quietly():
        table = compare({name: one.found for name, one in found.items()})
    numbers = {name: [float(row[key]) for key in ("elpd", "se", "elpd_diff", "dse", "weight")] for name, row in table.iterrows()}
    return tuple(
        Ranked(str(name), elpd, se, abs(difference), error, weight, found[str(name)].bad)
        for name, (elpd, se, difference, error, weight) in numbers.items()
    )


def loo_pit(tree: xarray.DataTree, seed: int = 0) -> Floats:
    """P(Y_i <= y_i | the other rows) `(n,)`, by the weights of `psis_loo` and the tree's `posterior_predictive`: uniform where
    predictions are calibrated (Gelfand, Dey & Chang 1992). seed: what breaks ties of whole numbers.

    Raises ValueError for class labels, which have no order, and as `psis_loo` does.
    """
    from arviz_stats import loo_pit as pit

    _log_likelihood(tree)
    if "predictions" in tree.children and "probability" in tree["predictions"]:
        raise ValueError("expected targets that have an order, got class labels: see espalier.pictures.reliability")
    if tree["observed_data"]["y"].ndim > 1:
        raise ValueError("expected one target a row, got several: leave-one-out leaves out all of a row's at once")
    with _quietly():
        found = pit(_with_posterior(tree, "posterior_predictive", "observed_data"), random_state=seed)
    return np.asarray(found["y"].to_numpy(), dtype=np.float64)


def _in_units(data: Data, part: str) -> torch.Tensor:
    y: torch.Tensor = getattr(data, part).y
    return y if data.num_classes is not None else data.in_units(y)


def _log_likelihood(tree: xarray.DataTree) -> Floats:
    """`(chain, draw, n)`. Raises ValueError where that is no posterior to leave rows out of."""
    for group in ("log_likelihood", "observed_data"):
        if group not in tree.children or "y" not in tree[group]:
            there = ", ".join(map(str, tree[group])) if group in tree.children else "no such group"
            raise ValueError(f"expected y in the tree's {group}, as `to_datatree` has it, got {there}: rename yours")
    logs = np.asarray(tree["log_likelihood"]["y"].to_numpy(), dtype=np.float64)
    count = logs.shape[0] * logs.shape[1]
    if count < MIN_DRAWS:
        raise ValueError(f"expected {MIN_DRAWS} or more draws for leave-one-out, got {count}: sample for longer, or {WAY_OUT}")
    if not np.isfinite(logs).all():
        row = int(np.argwhere(~np.isfinite(logs))[0][2])
        raise ValueError(f"expected a likelihood above 0 of every row by every draw, got 0 or NaN in row {row}: {WAY_OUT}")
    if not np.ptp(logs.reshape(count, -1), axis=0).any():
        raise ValueError(f"expected draws of a posterior, got {count} equal networks: {WAY_OUT}")
    return logs


def _with_posterior(tree: xarray.DataTree, *groups: str) -> xarray.DataTree:
    """`log_likelihood` and these groups, with a `posterior` by which ArviZ finds the effective sample size: the total of a draw.
    Draws that tie (equal masks of few weights) are told apart by 1e-9 nats, as no Pareto law fits equal numbers."""
    from arviz_base import from_dict

    held = {name: {"y": tree[name]["y"].to_numpy()} for name in ("log_likelihood", *groups)}
    logs = held["log_likelihood"]["y"].astype(np.float64)
    held["log_likelihood"]["y"] = logs + TIE * np.random.default_rng(0).random(logs.shape)
    whole: xarray.DataTree = from_dict({"posterior": {"total": logs.sum(-1)}, **held}, dims={"y": ["observation"]})
    return whole
