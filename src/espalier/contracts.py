"""The words of the project that are plain data, in one place, with their reasons.

The seven words (README, "Seven words"): model, topology, schedule, guide, infer, fit, certificate. `BayesianNetwork`
(network.py), `MaskedGuide` (guides/masked.py) and `Fit` (prediction/fit.py) are classes with their own files; what they
exchange is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from espalier import nested


class Rows(Protocol):
    """Inputs that are indexed by row numbers: a tensor, or a folder of images that decodes what is asked for.

    `rows[index]` with an int64 tensor `(b,)` returns a tensor `(b, *shape)`, or a tuple or dict of such, for a network that
    takes several (`nested.py`). Rows that have a `stream(batches, seed)` too are
    asked for many such indices at once, so that they can decode ahead (`data/streamed.py`).
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: Tensor, /) -> Any: ...


class Split(NamedTuple):
    """One part of a data set: `x` `(n, *shape)` float32, standardised; `y` int64 labels or float32 targets, `(n,)`, or
    `(n, ...)` where an example has several: the columns of a regression, a sequence's labels, a mask."""

    x: Rows
    y: Tensor


PARTS = ("train", "validation", "calibration", "test")


def features_of(x: Any) -> tuple[Any, ...] | None:
    """The names of a frame's columns; None of what is no frame."""
    return tuple(x.columns) if hasattr(x, "columns") and hasattr(x, "to_numpy") else None


def check_features(x: Any, features: Sequence[Any] | None, what: str) -> None:
    """Raises ValueError for a frame whose columns are not those of training: by place they would be taken for each other."""
    own = features_of(x)
    if features is None or own is None or own == tuple(features):
        return
    odd = next((pair for pair in zip(own, features, strict=False) if pair[0] != pair[1]), None)
    got = f"{len(own)} columns" if odd is None else f"{odd[0]!r} in the place of {odd[1]!r}"
    raise ValueError(
        f"expected {what} with the columns of training in their order, got {got}: {what}[list of those columns], or encode both "
        "frames together"
    )


class Data(NamedTuple):
    """A data set cut into its four parts. Only `train` is fitted, `validation` may guide choices, `calibration` is for
    certificates and `test` for the last word.

    Regression targets are standardised by the training rows: `in_units(y)` is in the user's.
    """

    name: str
    train: Split
    validation: Split
    calibration: Split
    test: Split
    shape: Any
    """Of one row: `(*shape)`, or a tuple or dict of such."""
    num_classes: int | None
    """None for regression."""
    target_shift: float | tuple[float, ...] = 0.0
    target_scale: float | tuple[float, ...] = 1.0
    """One number, or one for each column of the targets."""
    hashes: dict[str, str] = {}
    """Split name -> SHA-256 of its rows (inputs as stored, and labels): what the record keeps."""
    classes: tuple[Any, ...] = ()
    """What the labels 0, 1, ... stand for, where that was said."""
    input_scale: Any = None
    """Mean and standard deviation `(C,)` of each channel or feature, by which inputs were standardised, float64; a tuple or
    dict of these pairs where inputs are one, None where they were left as they came."""
    features: Any = None
    """The names of the features, of inputs that came as a frame; a tuple or dict of such where inputs are one."""
    rows: dict[str, NDArray[np.int64]] = {}
    """Split name -> which rows of the source these are, counted from 0, `(n,)`; of a source in several files in the order in
    which they are read, rows of a test set given apart after the others. Empty where that is not known."""
    source_rows: int = 0
    """How many rows the source has, those in no split among them."""
    replaced: int = 0
    """How many labels of the training rows are not the source's (`with_label_noise`)."""

    @property
    def num_outputs(self) -> int:
        """Width of the network's last layer: one per class, or one mean for each column of the targets."""
        if self.num_classes is not None:
            return self.num_classes
        return self.train.y.shape[1] if self.train.y.dim() == 2 else 1

    def __repr__(self) -> str:
        rows = " / ".join(str(len(getattr(self, part).y)) for part in PARTS)
        kind = f"{self.num_classes} classes" if self.num_classes is not None else "a regression"
        return f"Data({self.name}: {rows} rows ({', '.join(PARTS)}) of {nested.plain(self.shape)}, {kind})"

    def in_units(self, y: Tensor) -> Tensor:
        """Targets of a split in the user's units, float64."""
        units: Tensor = y.double() * torch.as_tensor(self.target_scale, dtype=torch.float64)
        return units + torch.as_tensor(self.target_shift, dtype=torch.float64)

    def inputs(self, x: Any) -> Any:
        """New inputs x `(n, *shape)`, in the user's units and channels first, as the network takes them, in its dtype."""

        def taken(
            shape: Sequence[int], row: Tensor, own: Any, by: tuple[Tensor, Tensor] | None, features: tuple[Any, ...] | None
        ) -> Tensor:
            check_features(own, features, "inputs")
            if isinstance(own, Tensor):
                plain = own.double()
            else:
                given = np.asarray(own)
                mixed = given.dtype.kind == "O" and all(isinstance(one, Real | np.bool_) for one in given.flat)  # of a frame
                if not mixed and given.dtype.kind not in "biuf":
                    raise ValueError(f"expected inputs that are real numbers, got {given.dtype}")
                plain = torch.from_numpy(np.array(given, np.float64, order="C"))
            if plain.shape[1:] != torch.Size(shape):
                raise ValueError(f"expected inputs of shape (n, {', '.join(map(str, shape))}), got {tuple(plain.shape)}")
            if not row.is_floating_point() and not (torch.isfinite(plain) & (plain == plain.round())).all():
                raise ValueError(f"expected inputs that are whole numbers, as of training ({row.dtype}), got others")
            if by is None:
                return plain.to(row.dtype)
            mean, sd = (values.view(-1, *[1] * (plain.dim() - 2)) for values in by)
            return ((plain / 2 - mean / 2) / (sd / 2)).to(row.dtype)  # of halves no difference overflows

        nothing = nested.by_shape(lambda _: None, self.shape)
        return nested.by_shape(taken, self.shape, self.example(), x, self.input_scale or nothing, self.features or nothing)

    def check(self) -> None:
        """Raises ValueError, in one sentence, for parts that are not tensors of one length, and for labels that are none."""
        for part in PARTS:
            x, y = getattr(self, part)
            if not isinstance(y, Tensor) or isinstance(x, np.ndarray | list | tuple | dict) or hasattr(x, "iloc"):
                got = " and ".join(type(each).__name__ for each in (x, y))
                raise ValueError(
                    f"expected tensors x and y in the {part} split of {self.name}, got {got}: use espalier.data.from_arrays, or"
                    " espalier.data.Together for several inputs"
                )
            if len(x) != len(y):
                raise ValueError(f"expected one y for every x in the {part} split of {self.name}, got {len(x)} x and {len(y)} y")
            if self.num_classes is None or not y.numel():
                continue
            if y.dim() == 1 and (y.is_floating_point() or y.dtype is torch.bool):
                raise ValueError(f"expected whole numbers as labels in the {part} split of {self.name}, got {y.dtype}: y.long()")
            if y.min() < 0 or y.max() >= self.num_classes:
                raise ValueError(
                    f"expected labels 0 to {self.num_classes - 1} in the {part} split of {self.name}, got {y.min()} to {y.max()}"
                )

    def facts(self) -> dict[str, Any]:
        """What a record keeps of the data, JSON-able."""
        rows = {part: len(getattr(self, part).y) for part in PARTS}
        stand_for = [label if isinstance(label, str | int | float) else str(label) for label in self.classes]
        return {
            "shape": nested.plain(self.shape),
            "num_outputs": self.num_outputs,
            "task": "regression" if self.num_classes is None else "classification",
            "target": nested.plain((self.target_shift, self.target_scale)),
            "inputs": self.preparation(),
            "data": {"name": self.name, "rows": rows, "hashes": self.hashes}
            | ({"classes": stand_for} if stand_for else {})
            | ({"features": json.loads(json.dumps(self.features, default=str))} if self.features else {})
            | ({"replaced_labels": self.replaced} if self.replaced else {}),
        }

    def preparation(self) -> Any:
        """How `inputs` scales, and the dtype that the network takes: `{"dtype", "mean", "sd"}`, or a dict or list of such."""

        def of(_: Sequence[int], row: Tensor, by: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
            scale = {} if by is None else {"mean": by[0].tolist(), "sd": by[1].tolist()}
            return {"dtype": str(row.dtype).removeprefix("torch."), **scale}

        scales = self.input_scale or nested.by_shape(lambda _: None, self.shape)
        return nested.plain(nested.by_shape(of, self.shape, self.example(), scales))

    def example(self) -> Any:
        """One of training, if there is one, in a batch of its own: its dtype is what the network takes."""
        return self.train.x[torch.arange(min(1, len(self.train.x)))]


def number(value: Any, kind: type[int] | type[float], what: str) -> Any:
    """As Python's own: NumPy's is none that a record has, and 2.0 is a whole one. Raises ValueError for what is no number."""
    own: Any = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) and value.ndim == 0 else value
    own = int(own) if kind is int and isinstance(own, float) and own.is_integer() else own
    if isinstance(own, bool) or not isinstance(own, Integral if kind is int else Real):
        raise ValueError(f"expected {what} as a {'whole ' if kind is int else ''}number, got {value!r}")
    plain: Any = own
    return kind(plain)


def dtype_of(name: str) -> torch.dtype:
    """By its name, `float32` say. Raises ValueError where none has it."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"expected the name of a dtype, got {name!r}")
    return found


def stand_ins(facts: Mapping[str, Any], count: int, seed: int = 0) -> Any:
    """Made-up inputs `(count, *shape)`, as the network of a record takes them: standard normal numbers, whole ones all 0."""
    stream = torch.Generator().manual_seed(seed)

    def of(shape: Sequence[int], own: Mapping[str, Any] | None) -> Tensor:
        dtype = dtype_of((own or {}).get("dtype", "float32"))
        drawn = torch.randn(count, *shape, generator=stream)
        return drawn.to(dtype) if dtype.is_floating_point else torch.zeros(count, *shape, dtype=dtype)

    return nested.by_shape(of, facts["shape"], facts.get("inputs") or nested.by_shape(lambda _: None, facts["shape"]))


class Topology(NamedTuple):
    """The deterministic mask M: which of the network's maskable weights are active.

    `positions` `(k,)` int64, sorted: places in the flat weight vector (the layers one after the other).
    `counts[l]` of them lie in layer `l`, which has `sizes[l]` weights.
    """

    positions: Tensor
    counts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def num_active(self) -> int:
        return sum(self.counts)

    @property
    def num_weights(self) -> int:
        return sum(self.sizes)

    @property
    def density(self) -> float:
        return self.num_active / self.num_weights


def counts_of(positions: Tensor, sizes: Sequence[int]) -> tuple[int, ...]:
    """How many of the sorted positions `(k,)` each of the layers has."""
    ends = torch.tensor([0, *sizes], device=positions.device).cumsum(0)
    return tuple(torch.searchsorted(positions, ends).diff().tolist())


class Evidence(NamedTuple):
    """What a schedule may look at when it moves the topology at step `step` (counted from 1)."""

    step: int
    values: Tensor
    """u, `(k,)`: the unmasked values of the active weights, never Z * u."""
    gradient: Tensor
    """`(num_weights,)`: gradient of the mean likelihood loss of this batch at Z * u. The schedule's own: it may write into it."""
    generator: torch.Generator
    """For rules that grow at random."""
    scales: Tensor | None = None
    """Standard deviations of the active weights `(k,)`, where the guide learns them."""
    loss_with: Callable[[Tensor], float] | None = None
    """The mean likelihood loss of this batch with only those active weights that are kept, `(k,)` bool, at the values; nats."""


class Move(NamedTuple):
    """A new topology and where its weights come from.

    `source` `(k,)` int64: for each new active weight its place among the old ones, or -1 where it has just grown.
    """

    topology: Topology
    source: Tensor

    @property
    def num_grown(self) -> int:
        return int((self.source < 0).sum())


class Schedule(NamedTuple):
    """When the topology moves and how.

    A schedule keeps no state of its own. All it depends on is the step and the evidence, so a checkpoint needs nothing
    from it and a schedule can be replayed from any point.
    """

    last: int
    """No move happens at or after this step: from here on the topology is frozen."""
    due: Callable[[int], bool]
    """Does the topology move at this step, in place of the optimiser's step?"""
    move: Callable[[Topology, Evidence], Move]
    """The exchange of weights at a step that is due."""
    reached: int = 0
    """From this step on there are as many active weights as were asked for: later than 0 where it prunes. A training may end
    no sooner."""
    asked: Mapping[str, Any] = {}
    """How it moves, JSON-able: another one may not go on from a checkpoint."""
