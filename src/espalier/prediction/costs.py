"""What a fit cost: operations of its training and of one prediction, bytes while it trained and on disk, beside dense.

RigL's accounting (Evci et al. 2020, the appendix on FLOPs; Sundar & Dwaraknath 2021 repeat it). A layer of density d costs d
times its dense forward pass: f_S = sum_l d_l f_l of the dense f_D. A backward pass costs two forward ones,
a step 3 f_S; where growth looks at the dense gradient, 2 f_S + f_D. Only products of linear maps, convolutions and attention
count: no normalisation, no optimiser. A multiply-add is two floating-point operations (FLOPs). It is what kernels that use
every zero would do; what is done without zeros, and what is not, stands in docs/costs.md.

CigL adds what that accounting does not know, and `train_flops` holds it: at every step the draw of Z and the products with it
(three operations for each active weight; so for a Gaussian guide's noise), the running average, and the re-estimation of
batch-norm statistics, a forward pass over some training examples for every pair; a KL of functions, the passes of its context
points and its own algebra. Validation is not counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from espalier import nested
from espalier.contracts import stand_ins
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction import batchnorm, propagation
from espalier.prediction.fit import SINGLE, Fit, How
from espalier.topology import codes

PER_MULTIPLY_ADD = 2
"""Floating-point operations."""


class Forward(NamedTuple):
    """Multiply-adds of one example's forward pass.

    layers: with each masked tensor, by its name. rest: with anything else, tensors left dense and activations.
    """

    layers: dict[str, int]
    rest: int

    @property
    def dense(self) -> int:
        """f_D."""
        return sum(self.layers.values()) + self.rest

    def sparse(self, densities: Mapping[str, float]) -> float:
        """f_S where the masked tensors have these densities."""
        return sum(densities[name] * count for name, count in self.layers.items()) + self.rest


def forward(model: BayesianNetwork, facts: Mapping[str, Any]) -> Forward:
    """Count one forward pass of an example as a record's facts have it (`shape`, and `inputs` where they are not real numbers),
    at the level of torch's own operators: whatever module or function calls them, and as often as it does."""
    counter = _Counter(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention hides its products, and oneDNN's LSTM
    onednn = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        with evaluating(model), torch.inference_mode(False), torch.no_grad(), counter:
            model.evaluate(model.initial, nested.each(partial(_zeros, model.initial), stand_ins(facts, 1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.set_flags(_enabled=onednn)
    return Forward(dict(zip((weight.name for weight in model.weights), counter.layers, strict=True)), counter.rest)


def _zeros(like: Tensor, leaf: Tensor) -> Tensor:
    """Zeros, real ones as the weights are and where these are."""
    return torch.zeros_like(leaf, dtype=like.dtype if leaf.is_floating_point() else leaf.dtype, device=like.device)


class _Counter(TorchDispatchMode):
    """Sees every operator, and which part of the flat weight vector its operands lie in."""

    def __init__(self, model: BayesianNetwork) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storage = model.initial.untyped_storage().data_ptr()
        self.ends = [sum(model.sizes[: layer + 1]) for layer in range(len(model.sizes))]
        self.layers, self.rest = [0] * len(model.sizes), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count, factors = _multiply_adds(func.overloadpacket, args, out)
        own = [factor for factor in factors if factor.untyped_storage().data_ptr() == self.storage]
        if own:
            self.layers[bisect_right(self.ends, own[0].storage_offset())] += count
        else:
            self.rest += count
        return out


def _multiply_adds(operator: Any, args: Sequence[Any], out: Any) -> tuple[int, Sequence[Tensor]]:
    """Of one operator, and the tensors that it multiplies."""
    aten = torch.ops.aten
    if operator in (aten.mm, aten.bmm, aten.mv):
        return out.numel() * args[0].shape[-1], args[:2]
    if operator in (aten.addmm, aten.baddbmm, aten.addmv):
        return out.numel() * args[1].shape[-1], args[1:3]
    if operator is aten.convolution:
        x, weight, transposed = args[0], args[1], args[6]
        return (x if transposed else out).numel() * weight[0].numel(), (x, weight)
    if operator.__name__.startswith("_scaled_dot_product"):
        query, key, value = args[:3]
        return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]), args[:3]
    return 0, ()


def training_work(
    sparse: float, dense: float, steps: int, *, growths: int = 0, excess: float = 0.0, particles: int = 1, moves: int = 0
) -> float:
    """Multiply-adds per example of a batch in `steps` steps, of which `growths` moves look at the dense gradient.

    sparse, dense: f_S and f_D. One growth in delta_t + 1 steps is RigL's (3 f_S delta_t + 2 f_S + f_D) / (delta_t + 1) a
    step; none is SET's and static training's 3 f_S.
    excess: of f_D - f_S, how much was left above f_S, on average over the steps, where a dense start is pruned: 3 E[f].
    particles: masks a step, of all but the moves.
    """
    steps = particles * (steps - moves) + moves
    return 3 * steps * (sparse + excess * (dense - sparse)) + growths * (dense - sparse)


def trained(fit: Fit, *, random_growth: bool | None = None) -> dict[str, Any]:
    """What a training did, JSON-able: steps, moves that looked at the dense gradient, mean density, active weights by layer.

    An inference that trains several times puts those of the earlier ones into the last fit's `record["earlier"]`, and with it
    `vectors`, how many numbers were learned for every active weight, where it is not one; one whose every step asks for the
    gradient of all weights says so, `record["gradients"]`.
    random_growth: did weights grow without a look at the gradient? By default what the run's recipe says: rule `set`.
    """
    recipe = fit.record.get("recipe", {})
    if random_growth is None:
        random_growth = recipe.get("rule", recipe.get("inference")) == "set"
    rows = [row for row in fit.history if "moves" in row]  # those of a distillation have none
    ends = [0, *(row["step"] for row in rows)]
    lengths = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    grew = any(row["exchanged"] for row in rows) and not random_growth
    dense = fit.record.get("gradients") == "dense"
    return {
        "steps": sum(lengths),
        "growths": sum(lengths) if dense else sum(row["moves"] for row in rows) if grew else 0,
        "moves": sum(row["moves"] for row in rows),
        "particles": fit.record.get("num_particles", 1),
        "mean_density": sum(n * row["mean_density"] for n, row in zip(lengths, rows, strict=True)) / sum(lengths),
        "active": {weight.name: count for weight, count in zip(fit.model.weights, fit.topology.counts, strict=True)},
    }


def costs(
    fit: Fit, how: How = "ticket", *, num_samples: int = 16, random_growth: bool | None = None
) -> dict[str, float]:
    """What it cost to train the fit, and costs to predict with it in the way `how`; JSON-able.

    train_flops: of the whole training, with what `how` needs of it (distillation, the drop rate, layer ratios, batch-norm
    statistics); inference_flops: of one example, over all draws. state_bytes: the most that lasted from step to step of what
    training updates (values, positions, moments, other parameters and buffers). disk_bytes: of the tensors that predict this
    way, masks packed. NAME_relative: over the same for a dense network trained for as many steps as the last training.
    num_samples, random_growth: see `Fit.predict` and `trained`.
    """
    record, work = fit.record, forward(fit.model, fit.record)
    sizes = {weight.name: weight.size for weight in fit.model.weights}
    own = trained(fit, random_growth=random_growth)
    batch = min(record["batch_size"], record["num_data"])
    units = sum(_work(phase, work, sizes) for phase in [*record.get("earlier", ()), own])
    sparse = work.sparse({name: own["active"][name] / size for name, size in sizes.items()})
    student = record.get("distilled", {}) if how == "distilled" else {}
    # Three passes of the student a step, and those of its teacher: draws, or one of moments; on the way, as earlier versions
    # taught it, these had been done.
    told = student.get("masks", 1) or propagation.products(fit) * student.get("num_teachers", 1)
    apart = student.get("steps", student.get("epochs", 0) * max(1, record["num_data"] // record["batch_size"]))
    units += sparse * ((3 + told) * apart + 3 * student.get("woven_steps", 0))
    # To find the drop rate; at a snapshot; at context points; for factors of moments. For layers' shares every candidate
    # counts as if it were dense.
    beside = [record.get(what, {}) for what in ("drop_rate", "control_variate", "function_space", "moments")]
    looked = sum(part.get("forward_examples", 0) for part in beside)
    multiply_adds = batch * units + sparse * (looked + _statistics_examples(fit, how, num_samples))
    multiply_adds += sum(part.get("multiply_adds", 0) for part in beside)
    multiply_adds += work.dense * record.get("search", {}).get("forward_examples", 0)
    draws = 3 * own["mean_density"] * own["steps"] * own["particles"] * sum(sizes.values()) if _is_random(fit) else 0.0
    averages = len(fit.pairs.values) * fit.topology.num_active
    passes = propagation.products(fit) if how == "moments" else fit.num_draws(how, num_samples)
    state, dense_state = _state_bytes(fit, own["mean_density"])
    disk, dense_disk = _disk_bytes(fit, how)
    found = {
        "train_flops": (
            PER_MULTIPLY_ADD * multiply_adds + draws + averages,
            PER_MULTIPLY_ADD * batch * training_work(work.dense, work.dense, own["steps"]),
        ),
        "inference_flops": (PER_MULTIPLY_ADD * passes * sparse, PER_MULTIPLY_ADD * work.dense),
        "state_bytes": (state, dense_state),
        "disk_bytes": (disk, dense_disk),
    }
    return {name: ours for name, (ours, _) in found.items()} | {
        f"{name}_relative": ours / theirs for name, (ours, theirs) in found.items()
    }


def ensemble(members: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The costs of several fits that predict together: sums, but for the state, as they need not train at once."""
    return {
        name: max(member[name] for member in members)
        if name.startswith("state_bytes")
        else sum(member[name] for member in members)
        for name in members[0]
    }


def _work(phase: Mapping[str, Any], work: Forward, sizes: Mapping[str, int]) -> float:
    """`training_work` of one training. Pruning from dense takes the same share of every layer's surplus at a time."""
    densities = {name: phase["active"][name] / size for name, size in sizes.items()}
    last = sum(phase["active"].values()) / sum(sizes.values())
    excess = max(0.0, phase["mean_density"] - last) / (1 - last) if last < 1 else 0.0
    many = {"particles": phase.get("particles", 1), "moves": phase.get("moves", 0)}  # older records have one
    return training_work(work.sparse(densities), work.dense, phase["steps"], growths=phase["growths"], excess=excess, **many)


def _is_random(fit: Fit) -> bool:
    return fit.masked or fit.pairs.scales is not None


def _statistics_examples(fit: Fit, how: How, num_samples: int) -> int:
    """Forward passes that re-estimate batch-norm statistics: one set for every pair, and those of the way to predict."""
    record = fit.record
    if record["batchnorm"] == "running" or not batchnorm.has_batchnorm(fit.model):
        return 0
    count = min(record["num_data"], record["bn_batches"] * record["batch_size"])
    count -= count % record["batch_size"] if count >= record["batch_size"] else 0
    own = num_samples if how == "redraw" else int(how in (*SINGLE, "distilled", "moments"))
    return int(count * (len(fit.pairs.values) + own))


def _state_bytes(fit: Fit, mean_density: float) -> tuple[int, int]:
    """Ours and dense torch's. A training that prunes begins with all weights, and that is the most it held, and one that has
    scores for all of them holds these; of several trainings it is the one that held most. A control variate lasts beside them."""
    pairs, total = fit.pairs, fit.topology.num_weights
    pruned = mean_density * total > fit.topology.num_active + 0.5 or fit.record.get("gradients") == "dense"
    most = total if pruned else fit.topology.num_active
    points = {name for name, parameter in fit.model.named_parameters() if parameter.requires_grad}
    moments = 2 if fit.record["optimizer"] == "adam" else int(fit.record["momentum"] > 0)
    others = sum(_bytes(tensor[0]) * (1 + moments if name in points else 1) for name, tensor in pairs.states.items())
    item, vectors = pairs.values.element_size(), 1 if pairs.scales is None else 2
    phases = [(most, vectors)] + [
        (sum(phase["active"].values()), phase.get("vectors", 1)) for phase in fit.record.get("earlier", ())
    ]
    place = fit.topology.positions.element_size()
    held = max(count * (item * lengths * (1 + moments) + place) for count, lengths in phases)
    held += fit.record.get("control_variate", {}).get("state_bytes", 0)
    return held + others, total * item * (1 + moments) + others


def _disk_bytes(fit: Fit, how: How) -> tuple[int, int]:
    """Ours and a dense network's: M by its gaps, values of the active ones, Z a bit each where it is kept."""
    pairs = fit.pairs
    other = sum(_bytes(tensor[0]) for tensor in pairs.states.values())
    values = _bytes(pairs.values[0])
    dense = fit.topology.num_weights * pairs.values.element_size() + other
    draws = how in ("pairs", "redraw")
    network = values * (2 if (draws or how == "moments") and pairs.scales is not None else 1) + other
    if how == "pairs":
        network = len(pairs.values) * (network + (math.ceil(pairs.keep.shape[1] / 8) if fit.masked else 0))
    return codes.to_gaps(fit.topology).numel() + network, dense


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
