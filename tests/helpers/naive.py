"""A naive float64 replay of Algorithm 1: the oracle that the sparse, vectorised training loop is compared with.

Written from `design/method.md` alone: §3 (Z drawn once per step, W = Z*u, or Z*u/p when rescaled), §4 (mean likelihood
loss plus coupled L2 on u, on every active weight and on the other parameters), §5 (the moves and the "Pinned down"
conventions) and §6 (the ticket). Everything is dense: dense u, dense masks, dense Z, dense moments, Python loops.
Autograd gives the gradient of the mean likelihood loss and nothing else; optimisers, drop and grow are written out.

Each pinned-down convention is a field of `Conventions`, so that a test can change one alone and see the comparison
fail: the first value of each `Literal` is the documented one, the others are wrong on purpose.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Conventions:
    """The conventions of method.md §5; the default, first in each `Literal`, is the documented one."""

    rank_on: Literal["u", "zu"] = "u"  # which magnitudes the drop ranks
    drop_ties: Literal["keep_lower", "drop_lower"] = "keep_lower"  # among equal |u|, what happens to the lower position
    grow_ties: Literal["lower", "higher"] = "lower"  # among equal |gradient|, which position grows
    candidates: Literal["before", "after"] = "before"  # inactive before the drop, or after it (just dropped may return)
    score_at: Literal["zu", "u"] = "zu"  # where the gradient of the grow score is taken
    at_move: Literal["replace", "step_too", "others_step"] = "replace"  # the optimiser step at a moving t
    first_step: Literal[1, 0] = 1  # the t of the first batch
    last_move: Literal["before_end", "at_end"] = "before_end"  # moves at t < t_end, or t <= t_end
    schedule: Literal["cosine", "constant"] = "cosine"  # f(t)
    rounding: Literal["floor", "ceil", "round"] = "floor"  # of f(t) * k
    grown_moments: Literal["zero", "stale", "dense"] = "zero"  # stale: not cleared by a drop; dense: also fed gradients
    surviving_moments: Literal["travel", "reset", "slot"] = "travel"  # slot: stay at the i-th active, whichever it is
    adam_count: Literal["shared", "moves_too", "per_weight"] = "shared"  # per_weight: a grown weight counts from 0
    bn_at_move: Literal["advance", "hold"] = "advance"  # batch-norm buffers at a moving t
    decay_on: Literal["active", "drawn"] = "active"  # L2 on every active weight, or only where Z = 1
    update_undrawn: Literal["optimiser", "frozen"] = "optimiser"  # active weights with Z = 0
    pair: Literal["after", "before"] = "after"  # Z(t) with the u (and others) after, or before, step t

    def __post_init__(self) -> None:
        for name, allowed in choices().items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {allowed}")


def choices() -> dict[str, tuple[str | int, ...]]:
    """The allowed values of every convention, the documented one first."""
    hints = get_type_hints(Conventions)
    return {f.name: get_args(hints[f.name]) for f in fields(Conventions)}


def mutations() -> dict[str, Conventions]:
    """Every `Conventions` that differs from the documented ones in exactly one field, by "field=value"."""
    return {
        f"{name}={value}": replace(Conventions(), **{name: value})
        for name, allowed in choices().items()
        for value in allowed[1:]
    }


@dataclass
class Result:
    """Index i of a list is the state after step t = i + 1; every tensor is a copy."""

    weights: list[Tensors] = field(default_factory=list)  # dense u*M by maskable name
    masks: list[Tensors] = field(default_factory=list)  # dense bool
    others: list[Tensors] = field(default_factory=list)  # every other parameter
    buffers: list[Tensors] = field(default_factory=list)  # of the net (batch norm)
    moments: list[dict[str, tuple[Tensor, Tensor]]] = field(default_factory=list)  # (momentum or 1st, 2nd), dense
    losses: list[float] = field(default_factory=list)  # mean likelihood loss at Z*u, before the step
    moved: list[int] = field(default_factory=list)  # the steps (from 1) that were moves
    pairs: list[tuple[Tensors, Tensors, Tensors]] = field(default_factory=list)  # (Z, u, others), Z False off the mask
    ticket: Tensors = field(default_factory=dict)  # mean over pairs of Z*u (times 1/p when rescaled)
    ticket_others: Tensors = field(default_factory=dict)  # mean over pairs of the others


def replay(
    net: nn.Module,
    maskable: Sequence[str],
    masks: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    draws: Sequence[Mapping[str, Tensor]],
    *,
    num_data: int,
    weight_decay: float,
    learning_rates: Sequence[float],
    optimizer: str,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    keep_prob: float = 1.0,
    rescale: bool = False,
    delta_t: int,
    t_end: int,
    drop_fraction: float,
    collect_at: Sequence[int] = (),
    conventions: Conventions = Conventions(),  # noqa: B008 (frozen)
) -> Result:
    """Train a copy of `net` on `batches`, with the given masks Z, for as many steps as there are batches.

    `optimizer` is "sgd" (no momentum), "momentum", "nesterov" or "adam"; `learning_rates` has one item per step;
    `collect_at` names steps counted from 1, whatever `conventions.first_step` says. `num_data` cancels: the ELBO over N
    (§4) is a mean loss plus `weight_decay`/2 * sum u^2. `keep_prob` is the effective one, used as given and only when
    rescaled. `t_end=0` gives no moves.
    """
    if optimizer not in ("sgd", "momentum", "nesterov", "adam"):
        raise ValueError(f"optimizer={optimizer!r}")
    if not num_data > 0 or not len(batches) == len(draws) == len(learning_rates):
        raise ValueError("num_data must be positive, and batches, draws and learning_rates equally long")
    how, net, result = conventions, copy.deepcopy(net).train(), Result()
    scale = 1.0 / keep_prob if rescale else 1.0
    params = dict(net.named_parameters())
    other_names = [name for name in params if name not in maskable]
    if any(p.dtype != torch.float64 for p in params.values()):
        raise ValueError("the oracle is float64")

    mask = {name: masks[name].clone() for name in maskable}
    value = {name: p.detach().clone() for name, p in params.items()}  # u for maskable names, the parameter otherwise
    for name in maskable:
        value[name] = value[name] * mask[name]
    first = {name: torch.zeros_like(v) for name, v in value.items()}  # momentum buffer, or Adam's first moment
    second = {name: torch.zeros_like(v) for name, v in value.items()}
    count = {name: torch.zeros_like(v) for name, v in value.items()}  # Adam's steps; equal everywhere by default

    for index, (x, y) in enumerate(batches):
        t = index + how.first_step
        z = {name: draws[index][name].bool() & mask[name] for name in maskable}
        moving = t > 0 and t % delta_t == 0 and (t < t_end or (how.last_move == "at_end" and t == t_end))
        before = {name: v.clone() for name, v in value.items()}
        buffers_before = _buffers(net)

        # The gradient of the mean likelihood loss with respect to the dense W, at W = Z*u (or Z*u/p).
        loss, grad = _gradient(net, value | {name: z[name] * value[name] * scale for name in maskable}, x, y)
        if moving:
            score = grad
            buffers_kept = buffers_before if how.bn_at_move == "hold" else _buffers(net)
            if how.score_at == "u":
                _, score = _gradient(net, value, x, y)
            for name, b in net.named_buffers():
                b.copy_(buffers_kept[name])
            for name in maskable:
                _move(name, t, z, score, mask, value, first, second, count, t_end, drop_fraction, how)
            if how.adam_count == "moves_too":
                for name in params:
                    count[name] = count[name] + 1
            result.moved.append(index + 1)

        if not moving or how.at_move == "step_too":
            stepping = list(params)
        else:
            stepping = other_names if how.at_move == "others_step" else []
        for name in stepping:
            if name in maskable:
                g = grad[name] * scale
                here = z[name] & mask[name]  # after a move ("step_too"), Z is the old one and grown weights have none
                decayed = here if how.decay_on == "drawn" else mask[name]
                # Moments off the mask stay 0 because neither term reaches them; "dense" lets the raw gradient in.
                total = here * g + weight_decay * value[name] * decayed
                if how.grown_moments == "dense":
                    total = torch.where(mask[name], total, g)
            else:
                total = grad[name] + weight_decay * value[name]
            lr, new_count = learning_rates[index], count[name] + 1
            if optimizer == "adam":
                new_first = betas[0] * first[name] + (1 - betas[0]) * total
                new_second = betas[1] * second[name] + (1 - betas[1]) * total**2
                mean = new_first / (1 - betas[0] ** new_count)
                root = (new_second / (1 - betas[1] ** new_count)).sqrt() + eps
                new_value = value[name] - lr * mean / root
            else:
                new_first = (0.0 if optimizer == "sgd" else momentum) * first[name] + total
                new_second = second[name]
                ahead = total + momentum * new_first if optimizer == "nesterov" else new_first
                new_value = value[name] - lr * ahead
            if name in maskable:
                if how.update_undrawn == "frozen":
                    frozen = mask[name] & ~z[name]
                    new_value = torch.where(frozen, value[name], new_value)
                    new_first = torch.where(frozen, first[name], new_first)
                    new_second = torch.where(frozen, second[name], new_second)
                new_value = new_value * mask[name]
            value[name], first[name], second[name], count[name] = new_value, new_first, new_second, new_count

        result.losses.append(loss)
        result.weights.append({name: value[name].clone() for name in maskable})
        result.masks.append({name: mask[name].clone() for name in maskable})
        result.others.append({name: value[name].clone() for name in other_names})
        result.buffers.append(_buffers(net))
        result.moments.append({name: (first[name].clone(), second[name].clone()) for name in params})
        if index + 1 in collect_at:
            seen = before if how.pair == "before" else value
            copies = [{name: seen[name].clone() for name in names} for names in (maskable, other_names)]
            result.pairs.append((z, copies[0], copies[1]))
    if result.pairs:
        n = len(result.pairs)
        result.ticket = {name: sum(z[name] * u[name] * scale for z, u, _ in result.pairs) / n for name in maskable}
        result.ticket_others = {name: sum(pair[2][name] for pair in result.pairs) / n for name in other_names}
    return result


def _gradient(net: nn.Module, weights: Tensors, x: Tensor, y: Tensor) -> tuple[float, Tensors]:
    """Mean cross-entropy of the net with these parameters, and its gradient; batch-norm buffers advance."""
    params = dict(net.named_parameters())
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(weights[name])
    loss = nn.functional.cross_entropy(net(x), y)
    return loss.item(), dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def _buffers(net: nn.Module) -> Tensors:
    return {name: b.clone() for name, b in net.named_buffers()}


def _move(name, t, z, score, mask, value, first, second, count, t_end, drop_fraction, how) -> None:
    """Drop and grow in one layer; positions are those of the flattened (row-major) tensor. §5, "Pinned down"."""
    active = [i for i, on in enumerate(mask[name].flatten().tolist()) if on]
    inactive = [i for i, on in enumerate(mask[name].flatten().tolist()) if not on]
    fraction = drop_fraction if how.schedule == "constant" else drop_fraction / 2 * (1 + math.cos(math.pi * t / t_end))
    n = {"floor": math.floor, "ceil": math.ceil, "round": round}[how.rounding](fraction * len(active))
    n = min(n, len(inactive), len(active))

    ranked = value[name] if how.rank_on == "u" else z[name] * value[name]
    size = ranked.flatten().abs().tolist()
    sign = 1 if how.drop_ties == "keep_lower" else -1
    best_first = sorted(active, key=lambda i: (-size[i], sign * i))
    kept, dropped = best_first[: len(active) - n], best_first[len(active) - n :]

    slope = score[name].flatten().abs().tolist()
    sign = 1 if how.grow_ties == "lower" else -1
    candidates = inactive if how.candidates == "before" else inactive + dropped
    grown = sorted(candidates, key=lambda i: (-slope[i], sign * i))[:n]

    now = sorted(kept + grown)
    off = sorted(set(active + inactive) - set(now))
    shape = mask[name].shape
    new_mask, new_value = torch.zeros(mask[name].numel(), dtype=torch.bool), value[name].flatten().clone()
    new_mask[now] = True
    new_value[dropped + grown] = 0.0
    mask[name], value[name] = new_mask.view(shape), new_value.view(shape)
    for moment in (first, second):
        old = moment[name].flatten()
        new = old.clone()
        if how.surviving_moments == "reset":
            new[kept] = 0.0
        elif how.surviving_moments == "slot":
            new[now] = old[active]
        if how.grown_moments == "zero":
            new[grown + off] = 0.0
        moment[name] = new.view(shape)
    if how.adam_count == "per_weight":
        new_count = count[name].flatten().clone()
        new_count[grown] = 0.0
        count[name] = new_count.view(shape)
