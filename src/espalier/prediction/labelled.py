"""What fits say of a data set as labelled arrays: an ArviZ DataTree in memory, or a Zarr store that is written draw by draw.

Groups and dimensions are ArviZ's: `chain` is a run (a seed, a member of an ensemble), `draw` one network of it, `observation` a
row of the split.

posterior              value: active weights of the layers that were asked for, with coordinates layer, index and weight, the
                       place in the flat vector; keep: 1 where the draw has one, else 0; precision, where one is learned
prior                  where draws of it are asked for: weights of these layers, 0 where a chain's topology has none
prior_predictive       y, drawn once from each network of the prior on the chain's topology (`prior.py`)
posterior_predictive   y, drawn once from every network's own distribution
predictions            its parameters: class probabilities, or mean and standard deviation
log_likelihood         of every observation, nats
observed_data          y
constant_data          row: its number in the split; source_row: its number in the data set before it was cut, where that is
                       known; included, of a chain's weights: are they in its topology?; classes are named by the
                       coordinate `class`
sample_stats           of every collected pair: epoch, loss, density, churn (the share of weights exchanged in that epoch)
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.distributions import TorchDistribution
from torch import Tensor

from espalier.contracts import Data, Rows, Split
from espalier.prediction.ensemble import seen_by
from espalier.prediction.evaluation import check_prepared, split_of
from espalier.prediction.fit import Fit, How
from espalier.prediction.mixture import Mixture
from espalier.prediction.pairs import State
from espalier.prediction.predict import Batches, in_units, outcome_of, parameters_of
from espalier.prediction.prior import of_fit
from espalier.randomness import derived

if TYPE_CHECKING:
    import xarray

DRAW = ("chain", "draw")
FORMAT: Literal[2] = 2
"""Zarr's: its third has no specification for labels of fixed length."""
Coordinates = Mapping[str, tuple[str, Any]]


class Sink(Protocol):
    """Where arrays go."""

    def coordinates(self, group: str, values: Coordinates) -> None:
        """Of the group's dimensions; said before its arrays are made."""

    def make(self, group: str, name: str, dims: Sequence[str], shape: Sequence[int], kind: str) -> Any:
        """An array that can be filled piece by piece."""


class InMemory:
    """NumPy arrays, and the tree of them."""

    def __init__(self) -> None:
        self.groups: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def coordinates(self, group: str, values: Coordinates) -> None:
        self.groups[group] = ({}, dict(values))

    def make(self, group: str, name: str, dims: Sequence[str], shape: Sequence[int], kind: str) -> NDArray[Any]:
        array = np.zeros(shape, kind)
        self.groups[group][0][name] = (tuple(dims), array)
        return array

    def tree(self) -> xarray.DataTree:
        import xarray

        groups = {name: xarray.Dataset(*parts, _attributes()) for name, parts in self.groups.items()}
        return xarray.DataTree.from_dict(groups)


class OnDisk:
    """A Zarr store, a chunk for every chain and draw: what is not being filled is not in memory."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path, self.root = path, zarr.open_group(path, mode="w-", zarr_format=FORMAT)

    def coordinates(self, group: str, values: Coordinates) -> None:
        import xarray

        empty = xarray.Dataset({}, dict(values), _attributes())
        empty.to_zarr(self.path, group=group, mode="a", consolidated=False, zarr_format=FORMAT)

    def make(self, group: str, name: str, dims: Sequence[str], shape: Sequence[int], kind: str) -> Any:
        chunks = tuple(1 if dim in DRAW else max(1, size) for dim, size in zip(dims, shape, strict=True))
        into: Any = self.root[group]
        named = {"_ARRAY_DIMENSIONS": list(dims)}  # by which xarray knows them
        # Without a fill value, which xarray would take for a missing one.
        return into.create_array(
            name, shape=tuple(shape), dtype=kind, chunks=chunks, attributes=named, fill_value=None
        )


def _attributes() -> dict[str, str]:
    from espalier import __version__

    return {"inference_library": "espalier", "inference_library_version": __version__}


def tree_of(
    fits: Fit | Sequence[Fit],
    data: Data,
    *,
    splits: Sequence[str] = ("test",),
    ways: Sequence[How] = ("pairs",),
    layers: Sequence[str] = (),
    num_samples: int = 16,
    prior: int = 0,
    seed: int = 0,
) -> xarray.DataTree:
    """Predictive draws of one fit, or of several as chains, for rows of `data`, with ArviZ's groups (see the module).

    Of one split and one way to predict the groups are the tree's own; of several they stand under `split/way`, and each of
    those is a tree that ArviZ takes. layers: names of masked tensors whose active weights go into `posterior`. prior: draws from
    the prior; with none there are no groups of it. On Python 3.11 it is `arviz.preview` that plots it, later `arviz` itself:
    `plot_ppc_pava(tree, data_type="categorical")`.
    """
    sink = InMemory()
    _fill_all(sink, fits, data, splits, ways, layers, num_samples, prior, seed)
    return sink.tree()


def save_tree(
    path: str | Path,
    fits: Fit | Sequence[Fit],
    data: Data,
    *,
    splits: Sequence[str] = ("test",),
    ways: Sequence[How] = ("pairs",),
    layers: Sequence[str] = (),
    num_samples: int = 16,
    prior: int = 0,
    seed: int = 0,
) -> None:
    """The same as a Zarr store, which `xarray.open_datatree` reads; no more than one draw is held. Written whole or not at all.

    Raises ValueError where the path exists: nothing is overwritten.
    """
    import zarr

    path = Path(path)
    check_new(path)
    beside = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        _fill_all(OnDisk(beside), fits, data, splits, ways, layers, num_samples, prior, seed)
        zarr.consolidate_metadata(str(beside))
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raises ValueError where the path cannot become a store."""
    if path.exists() or not path.name:
        raise ValueError(f"expected a new folder for the labelled results, but {path} exists: choose another name or remove it")


def check(
    fits: Sequence[Fit], data: Data, splits: Sequence[str], ways: Sequence[How], layers: Sequence[str], prior: int = 0
) -> None:
    """Raises ValueError, before any work, where these make no tree."""
    if prior < 0:
        raise ValueError(f"expected 0 or more draws of the prior, got {prior}")
    if not fits or not splits or not ways:
        raise ValueError(f"expected fits, splits and ways to predict, got {len(fits)}, {len(splits)} and {len(ways)} of them")
    for split in splits:
        split_of(data, split)
    for fit in fits:
        if unknown := [way for way in ways if way not in fit.ways]:
            raise ValueError(f"expected ways to predict of {', '.join(fit.ways)}, got {unknown[0]!r}")
    if "moments" in ways and layers:
        raise ValueError("expected ways to predict that draw weights for layers, got moments: leave out one or the other")
    if "pairs" in ways and len(counts := {len(fit.pairs.values) for fit in fits}) > 1:
        raise ValueError(f"expected fits of as many draws each, to be the chains of one tree, got {sorted(counts)}")
    if any(seen_by(fit.record)["standardisation"] != seen_by(fits[0].record)["standardisation"] for fit in fits):
        raise ValueError("expected fits of inputs that were standardised alike, to be the chains of one tree, got different ones")
    check_prepared(fits[0].record, data)
    if any(fit.model.shapes != fits[0].model.shapes for fit in fits):
        raise ValueError("expected fits of one network, to be the chains of one tree, got networks of different shapes")
    places_of(fits, layers)


def _fill_all(
    sink: Sink,
    fits: Fit | Sequence[Fit],
    data: Data,
    splits: Sequence[str],
    ways: Sequence[How],
    layers: Sequence[str],
    num_samples: int,
    prior: int,
    seed: int,
) -> None:
    chains = [fits] if isinstance(fits, Fit) else list(fits)
    check(chains, data, splits, ways, layers, prior)
    alone = len(splits) == len(ways) == 1
    for split in splits:
        for way in ways:
            under = "" if alone else f"{split}/{way}/"
            _fill(sink, under, chains, data, split, way, layers, num_samples, prior, seed)


class _Drawn:
    """The arrays of one tree that have a row for every chain and draw, each made when it is first written."""

    def __init__(self, sink: Sink, under: str, chains: int, draws: int) -> None:
        self.sink, self.under, self.size = sink, under, (chains, draws)
        self.arrays: dict[tuple[str, str], Any] = {}

    def put(self, at: tuple[int, int], group: str, name: str, dims: Sequence[str], values: Any) -> None:
        values = np.asarray(values)
        if (group, name) not in self.arrays:
            shape = (*self.size, *values.shape)
            made = self.sink.make(self.under + group, name, (*DRAW, *dims), shape, str(values.dtype))
            self.arrays[group, name] = made
        self.arrays[group, name][at] = values


def _fill(
    sink: Sink,
    under: str,
    fits: Sequence[Fit],
    data: Data,
    split: str,
    way: How,
    layers: Sequence[str],
    num_samples: int,
    prior: int,
    seed: int,
) -> None:
    part = split_of(data, split)
    targets = part.y if data.num_classes is not None else data.in_units(part.y)
    every = fits[0].num_draws(way, num_samples)
    drawn = _Drawn(sink, under, len(fits), every)
    rows = ("observation", *_axes(targets))
    places, named = places_of(fits, layers)
    precise = any("likelihood.log_precision" in fit.pairs.states for fit in fits)
    stats = [_stats(fit) for fit in fits]
    known = way == "pairs" and all(len(own) == every for own in stats)
    _set_out(sink, under, drawn.size, data, targets, named, stats=known, posterior=precise or len(places) > 0)
    sink.make(f"{under}observed_data", "y", rows, targets.shape, str(targets.numpy().dtype))[...] = targets.numpy()
    sink.make(f"{under}constant_data", "row", rows[:1], (len(targets),), "int64")[...] = np.arange(len(targets))
    if len(source := data.rows.get(split, ())) == len(targets):
        sink.make(f"{under}constant_data", "source_row", rows[:1], (len(targets),), "int64")[...] = source
    if len(places):
        included = np.stack([np.isin(places, fit.topology.positions.cpu().numpy()) for fit in fits])
        sink.make(f"{under}constant_data", "included", ("chain", "weight"), included.shape, "bool")[...] = included
    if prior:
        _fill_prior(sink, under, fits, data, part, (places, named), prior, seed)
    for chain, fit in enumerate(fits):
        fit.look_at(data)
        for draw, (weights, state, outcome) in enumerate(_networks(fit, part.x, way, num_samples, derived(seed, chain))):
            at = (chain, draw)
            mixture = Mixture([outcome], data.target_shift, data.target_scale)
            y, parameters = mixture.draws(derived(seed, chain, draw, 2))[0], parameters_of(outcome).detach()
            if data.num_classes is None:
                moments = in_units(parameters, data.target_shift, data.target_scale)
                drawn.put(at, "predictions", "moments", (*rows, "moment"), moments)
            else:
                drawn.put(at, "predictions", "probability", (*rows, "class"), parameters)
            drawn.put(at, "posterior_predictive", "y", rows, y if data.num_classes is None else y.long())
            drawn.put(at, "log_likelihood", "y", rows[:1], mixture.log_probs(targets)[0].detach())
            if len(places) and weights is not None:
                values = weights.detach()[torch.from_numpy(places)].cpu()
                drawn.put(at, "posterior", "value", ("weight",), values)
                drawn.put(at, "posterior", "keep", ("weight",), (values != 0).to(torch.int8))  # of which ArviZ takes quantiles
            if "likelihood.log_precision" in state:
                precision = _precision(state["likelihood.log_precision"], data)
                drawn.put(at, "posterior", "precision", ("output",)[: precision.ndim], precision)
            for name, value in stats[chain][draw].items() if known else ():
                drawn.put(at, "sample_stats", name, (), value)


def _networks(
    fit: Fit, x: Rows, way: How, num_samples: int, seed: int
) -> Iterator[tuple[Tensor | None, State, TorchDistribution]]:
    """Every draw of a way to predict: weights, where it has any, the other state, and what they say of y given rows x."""
    if way == "moments":
        yield from ((None, fit.pairs.state(-1), one) for one in fit.outcomes(x, way, num_samples=num_samples, seed=seed))
        return
    batches = Batches(x, fit.topology.positions.device)
    for weights, state in fit.weights(way, num_samples=num_samples, seed=seed):
        yield weights, state, outcome_of(fit.model, weights, batches, state)


def _fill_prior(
    sink: Sink,
    under: str,
    fits: Sequence[Fit],
    data: Data,
    part: Split,
    active: tuple[NDArray[np.int64], Coordinates],
    prior: int,
    seed: int,
) -> None:
    """What every chain's network would have said before it was trained."""
    drawn, (places, named) = _Drawn(sink, under, len(fits), prior), active
    coordinates = {name: (name, np.arange(count)) for name, count in zip(DRAW, drawn.size, strict=True)}
    rows = ("observation", *_axes(part.y))
    sink.coordinates(f"{under}prior_predictive", {**coordinates, "observation": ("observation", np.arange(len(part.y)))})
    if len(places):
        sink.coordinates(f"{under}prior", {**coordinates, **named})
    for chain, fit in enumerate(fits):
        batches = Batches(part.x, fit.model.initial.device)
        state = fit.pairs.state(-1)
        for draw, weights in enumerate(of_fit(fit, draws=prior, seed=derived(seed, chain))):
            outcome = outcome_of(fit.model, weights, batches, state)
            y = Mixture([outcome], data.target_shift, data.target_scale).draws(derived(seed, chain, draw, 1))[0]
            drawn.put((chain, draw), "prior_predictive", "y", rows, y if data.num_classes is None else y.long())
            if len(places):
                drawn.put((chain, draw), "prior", "value", ("weight",), weights[torch.from_numpy(places)].cpu())


def _axes(y: Tensor) -> list[str]:
    """What stands beside observation, where an example has several labels or targets."""
    return ["output"] if y.dim() == 2 else [f"output_{axis}" for axis in range(y.dim() - 1)]


def _set_out(
    sink: Sink,
    under: str,
    size: tuple[int, int],
    data: Data,
    targets: Tensor,
    named: Coordinates,
    *,
    stats: bool,
    posterior: bool,
) -> None:
    """The groups and their coordinates."""
    rows = {"observation": ("observation", np.arange(len(targets)))}
    drawn = {name: (name, np.arange(count)) for name, count in zip(DRAW, size, strict=True)}
    if data.num_classes is None:
        parameters: dict[str, tuple[str, Any]] = {"moment": ("moment", ["mean", "sd"])}
    else:
        parameters = {"class": ("class", [str(label) for label in data.classes or range(max(2, data.num_classes))])}
    if posterior:
        sink.coordinates(f"{under}posterior", {**drawn, **named})
    for group, own in {
        "posterior_predictive": {**drawn, **rows},
        "predictions": {**drawn, **rows, **parameters},
        "log_likelihood": {**drawn, **rows},
        "observed_data": rows,
        "constant_data": {**rows, **({"chain": drawn["chain"], **named} if named else {})},
        **({"sample_stats": drawn} if stats else {}),
    }.items():
        sink.coordinates(under + group, own)


def _precision(log_precision: Tensor, data: Data) -> NDArray[np.float64]:
    """1 / variance, per squared unit of the target; of several, of each."""
    return np.asarray(log_precision.double().exp().numpy(force=True) / np.square(data.target_scale))


def _stats(fit: Fit) -> list[dict[str, float]]:
    """Of every collected pair, what the history says of its epoch."""
    rows = [row for row in fit.history if "kl" in row][-len(fit.pairs.values) :]
    active = fit.topology.num_active
    return [{**{name: row[name] for name in ("epoch", "loss", "density")}, "churn": row["exchanged"] / active} for row in rows]


def places_of(fits: Sequence[Fit], layers: Sequence[str]) -> tuple[NDArray[np.int64], Coordinates]:
    """Positions in the flat vector that are active in one of the fits, of these layers, sorted; and their coordinates: these
    places, layer, and index within the layer's flattened tensor. Raises ValueError for a layer that there is not."""
    model = fits[0].model
    known = [weight.name for weight in model.weights]
    if unknown := [name for name in layers if name not in known]:
        raise ValueError(f"expected layers of {', '.join(known)}, got {unknown[0]!r}")
    starts = np.cumsum([0, *model.sizes])
    places, owners, index = [], [], []
    for layer, name in enumerate(known):
        if name in layers:
            every = [fit.topology.positions.cpu().numpy() for fit in fits]
            own = np.unique(np.concatenate([each[(starts[layer] <= each) & (each < starts[layer + 1])] for each in every]))
            places.append(own)
            owners += [name] * len(own)
            index.append(own - starts[layer])
    if not places:
        return np.zeros(0, np.int64), {}
    found = np.concatenate(places)
    return found, {"weight": ("weight", found), "layer": ("weight", owners), "index": ("weight", np.concatenate(index))}
