"""The result of an inference: collected draws, the averaged ticket, the topology and the record of how they came to be.

A fit predicts in five ways (Lei et al. 2023, sec. 3.2 and 5.4; names of the paper in brackets):

    ticket    one sparse net, the running mean of Z * u over the pairs      (CigL)
    pairs     mean prediction over the collected (Z, u) pairs               (CigL without weight & mask averaging)
    redraw    the last u with fresh masks Z                                 (MC dropout)
    mean      the last u times E[Z]: the posterior mean of the last guide
    unmasked  the last u, no Z, no factor                                   (weight dropout; RigL where keep_prob = 1)

and in two more, where it has them:

    moments   what all fresh masks say together, by one pass of means and variances (`propagation.py`)
    distilled one sparse net, taught by the masked ones (`distillation.py`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import espalier
from espalier import nested, store
from espalier.contracts import Data, Rows, Topology, stand_ins
from espalier.distributions.masked import KeepProb, mean_keep_prob, per_weight
from espalier.guides.masked import Mask, draw_mask
from espalier.network import BayesianNetwork, under
from espalier.prediction import batchnorm, propagation, recognised
from espalier.prediction.pairs import Pair, Pairs, State, gaussian
from espalier.prediction.predict import Batches, outcome_of, sent
from espalier.prediction.predictor import Inputs, Predictor
from espalier.sparse import Layout, Sparse, scatter, sparsified
from espalier.sparse.layout import MIN_ROWS
from espalier.store import Bundle
from espalier.topology import codes
from espalier.topology.masks import pack_bits

if TYPE_CHECKING:
    import xarray

How = Literal["ticket", "pairs", "redraw", "mean", "unmasked", "moments", "distilled"]
WAYS: tuple[How, ...] = get_args(How)[:5]
"""What every fit has."""
SINGLE: tuple[How, ...] = ("ticket", "mean", "unmasked")
"""The ways that are one network, and so have batch-norm statistics of their own."""
PAIRS = "pairs"
"""The folder of a fit's pairs, a file each, named by its content: they are written once, when they are collected."""


class Fit(Predictor):
    """What `infer` returns.

    model, topology, pairs: see their classes. keep_prob, rescale, mask: the guide's. record: what was run, JSON-able.
    history: one row per epoch. inputs: batches of training inputs for batch-norm statistics; a loaded fit has none until
    it is given some, and then only `redraw` of a network with batch norm asks for them. student: the distilled network's
    values `(k,)` and its other state.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        topology: Topology,
        pairs: Pairs,
        *,
        keep_prob: KeepProb,
        rescale: bool,
        mask: Mask = "weight",
        record: dict[str, Any],
        history: list[dict[str, Any]],
        inputs: Sequence[Tensor] | None = None,
        statistics: Mapping[str, State] | None = None,
        student: tuple[Tensor, State] | None = None,
    ) -> None:
        self.model, self.topology, self.pairs = model, topology, pairs
        self.keep_prob, self.rescale, self.mask = keep_prob, rescale, mask
        self.record, self.history = record, history
        self.inputs = inputs
        self.student = student
        self._layout: tuple[Tensor, Layout | None] | None = None
        self.statistics = dict(statistics) if statistics is not None else self._estimate_statistics()

    def __repr__(self) -> str:
        where = f"{self.topology.num_active} of {self.topology.num_weights} weights active"
        return f"Fit({where}, {len(self.pairs.values)} pairs, keep_prob {mean_keep_prob(self.keep_prob, self.topology.counts):g})"

    def look_at(self, data: Data) -> None:
        """Take the training inputs that batch-norm statistics are estimated on. A loaded fit has none until then."""
        if self.inputs is None and batchnorm.has_batchnorm(self.model):
            batches, size = self.record["bn_batches"], self.record["batch_size"]
            self.inputs = batchnorm.training_batches(data, batches, size, self.topology.positions.device)

    @property
    def masked(self) -> bool:
        """Are there random masks, of any layer?"""
        return min(self.keep_prob) < 1 if isinstance(self.keep_prob, tuple) else self.keep_prob < 1

    @property
    def fits(self) -> tuple[Fit, ...]:
        return (self,)

    @property
    def ways(self) -> tuple[How, ...]:
        more: dict[How, bool] = {"moments": "factors" in self.record.get("moments", {}), "distilled": self.student is not None}
        return (*WAYS, *(way for way, there in more.items() if there))

    def num_draws(self, how: How, num_samples: int = 16) -> int:
        """How many draws a way to predict has; of one network one."""
        return {"pairs": len(self.pairs.values), "redraw": num_samples, "moments": propagation.EACH * num_samples}.get(how, 1)

    def outcomes(
        self, x: Rows | Inputs, how: How = "ticket", *, num_samples: int = 16, seed: int = 0, on_device: bool = False
    ) -> Iterator[dist.TorchDistribution]:
        if how not in self.ways:
            raise ValueError(f"expected one of {', '.join(self.ways)}, got {how!r}{propagation.why_not(self, how)}")
        if num_samples < 1:
            raise ValueError(f"expected num_samples of at least 1, got {num_samples}")
        rows, shape = nested.rows_of(x), self.record.get("shape")
        given = nested.shape_of(rows[torch.arange(1)]) if len(rows) else "no rows"
        if not len(rows) or (shape is not None and given != shape):
            raise ValueError(f"expected rows of shape {shape or []}, got {given}")
        products = self.layout is not None and all(len(shape) == 2 for shape in self.model.shapes)
        batches = Batches(rows, self.topology.positions.device, across=products and how != "moments")
        one, count = self.is_one(how), self.num_draws(how, num_samples)
        if how == "moments":
            every = propagation.outcomes(self, batches, count=count, seed=seed, on_device=on_device)
        else:
            networks = islice(self.weights(how, num_samples=num_samples, seed=seed), 1 if one else None)
            every = (outcome_of(self.model, own, batches, state, on_device=on_device) for own, state in networks)
        while True:
            try:
                if (outcome := next(every, None)) is None:
                    return
            except RuntimeError as error:
                own = {leaf.dtype for leaf in nested.leaves(rows[torch.arange(1)])}
                if own == {self.model.initial.dtype} or not re.search("dtype|type \\(", str(error)):
                    raise
                got = " and ".join(map(str, sorted(own, key=str))) + ": data.inputs(x) makes them so"
                raise ValueError(f"expected rows of {self.model.initial.dtype}, got {got}") from error
            yield from repeat(outcome, count if one else 1)

    def is_one(self, how: How) -> bool:
        """Are all draws of a way to predict the same network, bit for bit?"""
        if how == "redraw":
            return not self.masked and self.pairs.scales is None
        return how not in ("pairs", "moments") or (how == "pairs" and self.pairs.equal)

    def alike(self, ways: Sequence[How]) -> dict[How, How]:
        known: dict[How, tuple[Tensor, State]] = {}
        found: dict[How, How] = {}
        for way in ways:
            own = next(self.values(way, num_samples=1)) if self.is_one(way) else None
            same = (other for other, network in known.items() if own is not None and _equal(own, network))
            found[way] = next(same, way)
            if own is not None and found[way] == way:
                known[way] = own
        return found

    @property
    def probs(self) -> float | Tensor:
        """P(Z = 1): one number, or that of each active weight, `(k,)`, where layers differ."""
        return per_weight(self.keep_prob, self.topology.counts, self.topology.positions.device, self.pairs.values.dtype)

    @property
    def scale(self) -> float | Tensor:
        """What an active weight is times its value: 1 / P(Z = 1) with `rescale`."""
        return 1 / self.probs if self.rescale else 1.0

    def weights(self, how: How, *, num_samples: int = 16, seed: int = 0) -> Iterator[tuple[Tensor, State]]:
        """The flat dense weight vectors `(num_weights,)` that a way to predict evaluates, each with its other state; of `moments`
        there is none."""
        for values, state in self.values(how, num_samples=num_samples, seed=seed):
            yield self.dense(values), state

    def values(self, how: How, *, num_samples: int = 16, seed: int = 0) -> Iterator[tuple[Tensor, State]]:
        """Of these vectors the active weights `(k,)`, each with its other state."""
        last, state = self.pairs.values[-1], self.pairs.state(-1)
        if how == "ticket":
            yield (self.pairs.values * self.pairs.keep).mean(0) * self.scale, {**self.pairs.mean_state(), **self.statistics[how]}
        elif how == "mean":
            yield last * (self.probs * self.scale), {**state, **self.statistics[how]}
        elif how == "unmasked":
            yield last, {**state, **self.statistics[how]}
        elif how == "distilled" and self.student is not None:
            yield self.student
        elif how == "pairs":
            for index in range(len(self.pairs.values)):
                yield self.pairs.pair(index).draw(index) * self.scale, self.pairs.state(index)
        elif how == "redraw":
            for values in self.redrawn(num_samples, seed):
                yield values, self._with_statistics(values, state)
        else:
            way_out = "`espalier distil` teaches one" if how == "distilled" else "take redraw"
            raise ValueError(f"expected a way to predict by networks, got {how}, of which there is none: {way_out}")

    def redrawn(self, num_samples: int, seed: int = 0) -> Iterator[Tensor]:
        """The active weights `(k,)` of the draws of `redraw`: the last u under a fresh Z, or a fresh draw of N(u, sigma^2)."""
        generator, last, scales = torch.Generator().manual_seed(seed), self.pairs.values[-1], self.pairs.scales
        masks = self.topology.positions.cpu(), self.model.shapes, self.mask, self.keep_prob  # the same wherever the fit is
        for _ in range(num_samples):
            if scales is None:
                yield last * sent(draw_mask(*masks, generator), last.device) * self.scale
            else:
                yield gaussian(last, scales[-1], generator) * self.scale

    def ticket(self, how: How = "ticket", *, sparse: Sparse = False) -> nn.Module:
        """The averaged (or the `distilled`) sparse network as a plain dense `nn.Module` with zeros, in evaluation mode; `sparse`:
        without the zeros of its Linear layers, on the CPU (`sparsified`). Raises ValueError for a way of several networks."""
        if how not in (*SINGLE, "distilled"):
            raise ValueError(f"expected one network, {', '.join(SINGLE)} or distilled, got {how!r}: a module holds no draws")
        weights, state = next(self.weights(how))
        net = self.model.network(weights, state).eval()
        return net if sparse is False else sparsified(net, stand_ins(self.record, MIN_ROWS), sparse)

    def export(self, folder: str | Path, data: Data | None = None, **options: Any) -> Path:
        """A folder to deploy: weights, how to build the network, a model card; see `espalier.export`."""
        return espalier.export(self, folder, data, **options)

    def to_datatree(
        self,
        data: Data,
        *,
        splits: Sequence[str] = ("test",),
        ways: Sequence[How] = ("pairs",),
        layers: Sequence[str] = (),
        num_samples: int = 16,
        prior: int = 0,
        seed: int = 0,
    ) -> xarray.DataTree:
        """Predictive draws for the rows of `data` as an ArviZ DataTree: `tree_of` this fit alone. Of rows and outcomes
        of your own, `espalier.prediction.to_datatree(fit.mixture(x, way), y)`."""
        from espalier.prediction.labelled import tree_of

        options: dict[str, Any] = {"layers": layers, "num_samples": num_samples, "prior": prior, "seed": seed}
        return tree_of(self, data, splits=splits, ways=ways, **options)

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        self.topology = self.topology._replace(positions=self.topology.positions.to(device))
        states = {name: tensor.to(device) for name, tensor in self.pairs.states.items()}
        scales = None if self.pairs.scales is None else self.pairs.scales.to(device)
        self.pairs = Pairs(self.pairs.values.to(device), self.pairs.keep.to(device), states, scales)
        self.statistics = {how: {n: t.to(device) for n, t in s.items()} for how, s in self.statistics.items()}
        if self.student is not None:
            self.student = (self.student[0].to(device), {n: t.to(device) for n, t in self.student[1].items()})
        self.inputs = None if self.inputs is None else [nested.each(lambda leaf: leaf.to(device), batch) for batch in self.inputs]
        return self

    def __getitem__(self, name: str) -> Tensor:
        """The collected draws Z * u of one tensor of the network, dense: `(P, *shape)`."""
        named = [self.model.unflatten(weights) for weights, _ in self.weights("pairs")]
        if name not in named[0]:
            raise KeyError(f"expected a masked tensor of {', '.join(named[0])}, got {name!r}")
        return torch.stack([tensors[name] for tensors in named])

    def dense(self, values: Tensor) -> Tensor:
        """Values of the active weights `(k,)` as a flat weight vector `(num_weights,)`, written out when it has to be."""
        return scatter(values, self.topology.positions, self.topology.num_weights, self.layout)

    @property
    def layout(self) -> Layout | None:
        """What lets a draw stay unwritten, where that is faster."""
        positions, counts, _ = self.topology
        if self._layout is None or self._layout[0] is not positions:
            self._layout = positions, Layout.where_worthwhile(positions, counts, self.model.shapes)
        return self._layout[1]

    def _with_statistics(self, values: Tensor, state: State) -> State:
        if self.record.get("batchnorm") == "running" or not batchnorm.has_batchnorm(self.model):
            return state
        if not self.inputs:
            raise ValueError("expected training inputs for batch-norm statistics of fresh masks: fit.look_at(data) first")
        return batchnorm.estimate(self.model, self.dense(values), state, self.inputs)

    def _estimate_statistics(self) -> dict[str, State]:
        """Batch-norm buffers of the three single networks."""
        return {how: self.statistics_of(how) for how in SINGLE}

    def statistics_of(self, how: How) -> State:
        """Of one of them, estimated anew."""
        self.statistics = {**getattr(self, "statistics", {}), how: {}}
        values, state = next(self.values(how))
        estimated = self._with_statistics(values, state)
        return {name: tensor for name, tensor in estimated.items() if tensor is not state[name]}

    def bundle(self) -> Bundle:
        """Everything as tensors and JSON: bit-packed masks, values for active weights only."""
        tensors = {codes.NAME: codes.to_gaps(self.topology), "values": self.pairs.values}
        if self.masked:
            tensors["keep"] = pack_bits(self.pairs.keep)
        if self.pairs.scales is not None:
            tensors["scales"] = self.pairs.scales
        if self.student is not None:
            tensors |= {"student.values": self.student[0]}
            tensors |= {f"student.state.{name}": tensor for name, tensor in self.student[1].items()}
        tensors |= {f"state.{name}": tensor for name, tensor in self.pairs.states.items()}
        for how, state in self.statistics.items():
            tensors |= {f"statistics.{how}.{name}": tensor for name, tensor in state.items()}
        facts = {"sizes": self.topology.sizes, "keep_prob": self.keep_prob, "rescale": self.rescale,
                 "mask": self.mask}  # fmt: skip
        return Bundle(tensors, facts)

    def save(self, folder: str | Path) -> list[str]:
        """Write `pairs/`, `fit.safetensors`, `history.json` and, last, `record.json` with their digests and a checksum. Returns
        the digests of the pairs.

        Raises ValueError where the folder already holds a fit: nothing is overwritten.
        """
        folder = Path(folder)
        if (folder / "record.json").exists():
            raise ValueError(f"expected a folder without a fit, but {folder} holds one: choose another or remove it")
        store.check_free(folder, ("fit.safetensors", "history.json"))
        pairs = [Bundle(self.pairs.pair(index).tensors(), {}) for index in range(len(self.pairs.values))]
        # What a checkpoint has written is not written again: of a long run the pairs are nearly all.
        digests = [store.add_bundle(folder / PAIRS, pair) for pair in pairs]
        tensors, facts = self.bundle()
        rest = Bundle({name: t for name, t in tensors.items() if not _is_of_pairs(name)}, {**facts, "pairs": digests})
        digest = store.write_bundle(folder / "fit.safetensors", rest)
        history = store.canonical(self.history).encode()
        store.write_bytes(folder / "history.json", history)
        files = {"fit.safetensors": digest, "history.json": store.sha256(history)}
        store.write_bytes(
            folder / "record.json",
            store.canonical(store.signed({**self.record, "told": recognised.told(self), "files": files})).encode(),
        )
        return digests

    @classmethod
    def load(cls, folder: str | Path, model: BayesianNetwork) -> Fit:
        """Read a saved fit of `model`, a program of the same network. Nothing is unpickled.

        Raises FileNotFoundError where there is no finished fit, and ValueError where a file was cut short or altered or
        belongs to another network.
        """
        folder = Path(folder)
        if not (folder / "record.json").is_file():
            raise FileNotFoundError(f"expected a finished run in {folder}, but it has no record.json")
        record = store.check_signed(folder / "record.json")
        for name, digest in record["files"].items():
            if store.sha256((folder / name).read_bytes()) != digest:
                raise ValueError(f"expected {folder / name} as it was written, but its SHA-256 differs: it was altered")
        tensors, facts = store.read_bundle(folder / "fit.safetensors")
        if tuple(facts["sizes"]) != model.sizes:
            raise ValueError(f"expected a network with layers of {tuple(facts['sizes'])} weights, got {model.sizes}")
        own = [(weight.name, tuple(weight.shape)) for weight in model.weights]
        saved = [(layer["name"], tuple(layer["shape"])) for layer in record.get("layers", [])] or own
        if other := [pair for pair in zip(saved, own, strict=True) if pair[0] != pair[1]]:
            raise ValueError(f"expected a network with {other[0][0][0]} {list(other[0][0][1])}, got {other[0][1][0]} "
                             f"{list(other[0][1][1])} in its place")  # fmt: skip
        topology = codes.read(tensors, facts["sizes"])
        if "values" in tensors:  # as files were before pairs had their own
            count = len(tensors["values"])
            stacked = {name: tensor for name, tensor in tensors.items() if _is_of_pairs(name)}
            pairs = [Pair.of({name: tensor[index] for name, tensor in stacked.items()}) for index in range(count)]
        else:
            pairs = [Pair.of(store.added_bundle(folder / PAIRS, digest).tensors) for digest in facts["pairs"]]
        buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}  # whose shapes the data may have had a say in
        wanted, given = (
            {name: None if name in buffers else tuple(t.shape) for name, t in state.items()}
            for state in (model.state_dict(), pairs[-1].state)
        )
        if wanted != given:
            odd = min(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise ValueError(f"expected a network with {odd} of shape {given.get(odd)}, got {wanted.get(odd)}")
        statistics: dict[str, State] = {how: {} for how in SINGLE}
        for name, tensor in tensors.items():
            if name.startswith("statistics."):
                _, how, key = name.split(".", 2)
                statistics[how][key] = tensor
        student = None
        if "student.values" in tensors:
            student = (tensors["student.values"], under("student.state.", tensors))
        fit = cls(
            model, topology, Pairs.of(pairs), rescale=facts["rescale"], mask=facts.get("mask", "weight"),
            keep_prob=tuple(facts["keep_prob"]) if isinstance(facts["keep_prob"], list) else facts["keep_prob"],
            record={key: value for key, value in record.items() if key not in ("files", "told")},
            history=store.read_json(folder / "history.json"), statistics=statistics, student=student,
        )  # fmt: skip
        return recognised.checked(fit, record.get("told"))


def _equal(one: tuple[Tensor, State], other: tuple[Tensor, State]) -> bool:
    """The same network, bit for bit?"""
    (values, state), (theirs, their_state) = one, other
    return (
        torch.equal(values, theirs)
        and state.keys() == their_state.keys()
        and all(torch.equal(tensor, their_state[name]) for name, tensor in state.items())
    )


def _is_of_pairs(name: str) -> bool:
    """Is this tensor of a bundle a stack over the pairs?"""
    return name in ("values", "keep", "scales") or name.startswith("state.")
