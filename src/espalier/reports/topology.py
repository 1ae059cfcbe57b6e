"""Where the weights are: density by layer, how they moved, what is certain to be kept, and how training went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from espalier.pages import Block, Section, Table, Text
from espalier.pictures.data import Curve, Picture
from espalier.reports.figures import figure, grid
from espalier.reports.look import Look
from espalier.topology import graphs

CHAIN = (nn.Linear, nn.Flatten, nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Dropout, nn.Identity)
"""Parts of a network whose layers follow one another, each unit fed by those before it alone."""
CURVES = {
    "loss": "loss, nats",
    "validation_nll": "validation NLL",
    "validation_accuracy": "validation accuracy",
    "validation_ece": "validation ECE",
    "validation_rmse": "validation RMSE",
}


def training(looks: Sequence[Look]) -> Section:
    """The history of every run."""
    blocks: list[Block] = []
    for name, label in CURVES.items():
        curves = []
        for look in looks:
            rows = [row for row in look.fit.history if name in row]
            if len(rows) > 1:
                curves.append(Curve(look.name, [row["epoch"] for row in rows], [row[name] for row in rows]))
        if curves:
            last = "; ".join(f"{curve.label} ends at {float(np.asarray(curve.y)[-1]):.4g}" for curve in curves)
            blocks.append(figure(Picture(label, "epoch", label, tuple(curves)), f"{label} over epochs: {last}."))
    return Section("Training", blocks or [Text("One epoch: nothing to draw.")], "training")


def topology(looks: Sequence[Look]) -> Section:
    """Density, churn, certainty of the mask, agreement between runs, input pixels, magnitudes."""
    blocks: list[Block] = [_layers(looks), *_connected(looks), *_churn(looks), _magnitudes(looks)]
    for look in looks:
        blocks += _pixels(look)
    if len(looks) > 1:
        blocks += _agreement(looks)
    return Section("Topology", blocks, "topology")


def _layers(looks: Sequence[Look]) -> Block:
    rows = []
    for look in looks:
        keep = look.fit.pairs.keep.float().mean(0).cpu()
        parts = keep.split(list(look.fit.topology.counts))
        for weight, count, part in zip(look.fit.model.weights, look.fit.topology.counts, parts, strict=True):
            shape = " × ".join(map(str, weight.shape))
            rows.append(
                [
                    f"{look.name}: {weight.name}",
                    shape,
                    f"{count:,}",
                    f"{count / weight.size:.4f}",
                    f"{float(part.mean()):.3f}",
                ]
            )
    return Table("Layers", ["layer", "shape", "active", "density", "kept by the collected masks"], rows)


def _connected(looks: Sequence[Look]) -> list[Block]:
    """What of a chain of Linear layers lies on no path from an input to an output, and how persistent the rest is."""
    rows, lost = [], []
    for look in looks:
        parts = list(look.fit.model.net.modules())
        if type(parts[0]) is not nn.Sequential or any(type(part) not in CHAIN for part in parts[1:]):
            continue
        weights = next(look.fit.weights("ticket"))[0]
        layers = [own.detach().cpu().double().numpy() for own in look.fit.model.unflatten(weights).values()]
        found = graphs.connected(layers)
        units = np.concatenate([found.inputs[:0], *found.units])
        active = sum(int((layer != 0).sum()) for layer in layers)
        apart = active - sum(found.weights)
        persistence, deep = np.mean(graphs.neural_persistence(layers)), graphs.deep_graph_persistence(layers)
        on_path = [f"{found.inputs.mean():.1%}", f"{units.mean():.1%}" if len(units) else ""]
        rows.append([look.name, *on_path, f"{apart:,} of {active:,}", f"{persistence:.3f}", f"{deep:.3f}"])
        if apart:
            lost.append(f"{look.name} keeps {apart:,} weights that lead from no input to an output: they say nothing")
    if not rows:
        return []
    header = ["run", "inputs on a path", "hidden units on one", "active weights on none", "persistence", "deep graph persistence"]
    return [Table("What is connected", header, rows), *([Text(". ".join(lost) + ".")] if lost else [])]


def _churn(looks: Sequence[Look]) -> list[Block]:
    curves, explored, said = [], [], []
    for look in looks:
        rows = [row for row in look.fit.history if "exchanged" in row and row.get("moves")]
        if rows:
            churn = [row["exchanged"] / row["moves"] / look.fit.topology.num_active for row in rows]
            curves.append(Curve(look.name, [row["epoch"] for row in rows], churn))
        rows = [row for row in look.fit.history if "explored" in row]
        if rows:
            explored.append(Curve(look.name, [row["epoch"] for row in rows], [row["explored"] for row in rows]))
            said.append(
                f"{look.name} has tried {rows[-1]['explored']:.1%} of its weights, {look.fit.topology.density:.1%} at a time"
            )
    blocks: list[Block] = []
    if curves:
        picture = Picture("Churn", "epoch", "share of the active weights exchanged at a move", tuple(curves))
        blocks.append(
            figure(picture, "The share of weights that a move exchanges, until the topology freezes.")
        )
    if explored:
        blocks.append(
            figure(Picture("Ever active", "epoch", "share of all weights", tuple(explored)), "; ".join(said) + ".")
        )
    return blocks


def _magnitudes(looks: Sequence[Look]) -> Block:
    """|u|, and |mean of Z * u|, which is what the ticket keeps of it."""
    curves = []
    for look in looks:
        pairs = look.fit.pairs
        last, ticket = pairs.values[-1].abs().cpu().numpy(), (pairs.values * pairs.keep).mean(0).abs().cpu().numpy()
        top = float(np.quantile(last, 0.995)) or 1.0
        edges = np.linspace(0, top, 41)
        for name, values, style in (("|u|", last, "line"), ("|ticket|", ticket, "dashed")):
            share = np.histogram(values, edges)[0] / len(values)
            curves.append(Curve(f"{look.name}: {name}", (edges[:-1] + edges[1:]) / 2, share, style=style))  # type: ignore[arg-type]
    picture = Picture("Magnitudes of active weights", "magnitude", "share", tuple(curves))
    return figure(
        picture, "Magnitudes of the active weights, and of what the ticket keeps of them: their average under the masks, if any."
    )


def _pixels(look: Look) -> list[Block]:
    """How many weights leave each input pixel, where the first layer looks at all of them."""
    shape, weight = look.data.shape, look.fit.model.weights[0]
    image = isinstance(shape, tuple | list) and len(shape) == 3 and len(weight.shape) == 2
    first_of_all = next(name for name, module in look.fit.model.net.named_modules() if module._parameters)
    if not image or weight.shape[1] != math.prod(shape) or weight.name.rpartition(".")[0] != first_of_all:
        return []
    first = look.fit.topology.positions[: look.fit.topology.counts[0]].cpu().numpy()
    counts = np.bincount(first % weight.shape[1], minlength=weight.shape[1]).reshape(tuple(shape)).sum(0)
    dead = float((counts == 0).mean())
    says = f"Weights that leave each input pixel: {counts.max()} at most, none at {dead:.0%} of the pixels."
    return [grid(counts, says, f"Input pixels of {look.name}", "column", "row", label="weights")]


def _agreement(looks: Sequence[Look]) -> list[Block]:
    """Jaccard index of every two topologies of one network, and what two random ones would have."""
    alike = [look for look in looks if look.fit.model.shapes == looks[0].fit.model.shapes]
    if len(alike) < 2:
        return []
    sets = [look.fit.topology.positions.cpu().numpy() for look in alike]
    rows = []
    for place, look in enumerate(alike):
        rows.append([look.name, *(f"{_jaccard(sets[place], other):.3f}" for other in sets)])
    by_chance = _by_chance(alike[0], alike[1])
    said = Text(
        f"Agreement is the Jaccard index, the weights that both have over those that either has; two random topologies of the "
        f"first two runs' densities, layer by layer, would have {by_chance:.3f}."
    )
    return [said, Table("Agreement of the topologies", ["run", *(look.name for look in alike)], rows)]


def _jaccard(one: NDArray[Any], other: NDArray[Any]) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def _by_chance(one: Look, other: Look) -> float:
    counts = zip(one.fit.topology.counts, other.fit.topology.counts, one.fit.topology.sizes, strict=True)
    both = sum(a * b / size for a, b, size in counts)
    return both / (one.fit.topology.num_active + other.fit.topology.num_active - both)
