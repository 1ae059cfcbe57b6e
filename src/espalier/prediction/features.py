"""What a layer of a fit's network is given, and what scores of it (`calibration.features`) say: the doubt of a single network."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from espalier import nested
from espalier.calibration.features import DensityScore, LaplaceScore, NeighbourScore
from espalier.compiled import uncompiled
from espalier.contracts import Data, Rows
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction.fit import Fit, How
from espalier.prediction.one_pass import ONE_NETWORK, has_level
from espalier.prediction.predict import Batches
from espalier.prediction.predictor import Inputs
from espalier.sparse import Unwritten

MOST_ROWS = 10_000
"""Training rows that scores are fitted on."""


def layer_of(model: BayesianNetwork, name: str | None = None) -> nn.Module:
    """The module called `name`; None is the last whose weight is masked. Raises ValueError where there is none of that name."""
    if name is None:
        name = model.weights[-1].name.rpartition(".")[0]
    known: dict[str, nn.Module] = dict(model.net.named_modules())
    if name not in known:
        raise ValueError(f"expected a layer of {', '.join(part for part in known if part)}, got {name!r}")
    return known[name]


def features_of(fit: Fit, x: Rows | Inputs, way: How = "ticket", layer: str | None = None) -> NDArray[np.float64]:
    """What a layer is given of every row, `(n, D)` float64, in the network of a way that is one.

    layer: its name; None is the last masked one: what the network made of a row. Raises ValueError for a way of several networks,
    for a name that no layer has, and for a layer that is not called once with one tensor of a row each.
    """
    if way not in ONE_NETWORK or way not in fit.ways:
        raise ValueError(f"expected features of one network, {', '.join(w for w in ONE_NETWORK if w in fit.ways)}, got {way!r}")
    weights, state = next(fit.weights(way))
    seen: list[tuple[object, ...]] = []
    found: list[Tensor] = []
    model = fit.model
    hook = layer_of(model, layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with hook, evaluating(model), uncompiled(model), torch.no_grad():
        dense = weights.dense() if isinstance(weights, Unwritten) else weights
        for batch in Batches(nested.rows_of(x), fit.topology.positions.device):
            seen.clear()
            model.evaluate(dense, batch, state)
            given = seen[0][0] if len(seen) == 1 and len(seen[0]) == 1 else None
            if not isinstance(given, Tensor) or len(given) != nested.num_rows(batch):
                called = layer or "the last"
                raise ValueError(f"expected a layer that is called once, with one tensor of a row each, got {called}")
            found.append(given.flatten(1).cpu().double())
    return torch.cat(found).numpy()


def gives_logits(model: BayesianNetwork) -> bool:
    """Is the last masked layer a Linear one that gives the logits of a categorical likelihood?"""
    last = layer_of(model)
    outputs = not isinstance(model.output, str | int) and model.output is None
    return type(last) is nn.Linear and has_level(model) and outputs and list(_leaves(model.net))[-1] is last


def _leaves(net: nn.Module) -> Iterator[nn.Module]:
    return (part for part in net.modules() if not list(part.children()))


class OnePass:
    """Doubts of a single network, fitted on training rows: NUQ, the density of its features (DDU), a Laplace approximation of its
    last layer, its energy, and what is left of its largest probability.

    Raises ValueError for a regression, and for a network whose last masked layer is no Linear layer that gives the logits.
    """

    def __init__(self, fit: Fit, data: Data, way: How = "ticket", *, prior_scale: float | None = None) -> None:
        if data.num_classes is None or data.train.y.dim() > 1:
            raise ValueError("expected one label per example for scores of features, got real-valued targets or several")
        if not gives_logits(fit.model):
            last = type(layer_of(fit.model)).__name__
            raise ValueError(f"expected a network whose last layer is Linear and gives logits, got {last} of {fit.model.net}")
        self.fit, self.way = fit, way
        rows = torch.arange(min(MOST_ROWS, len(data.train.y)))
        known, labels = features_of(fit, data.train.x[rows], way), data.train.y[rows].numpy()
        weights, state = next(fit.weights(way))
        matrix = fit.model.unflatten(weights)[fit.model.weights[-1].name].detach().cpu().numpy()
        bias = f"net.{fit.model.weights[-1].name.removesuffix('weight')}bias"
        biases = state[bias].detach().cpu().numpy() if bias in state else np.zeros(len(matrix))
        self.last = matrix.astype(np.float64), biases.astype(np.float64)
        scale = prior_scale or fit.record.get("prior_scale") or 1.0
        self.scores = (
            NeighbourScore.fit(known, labels), DensityScore.fit(known, labels),
            LaplaceScore.fit(known, matrix, biases, prior_scale=scale),
        )  # fmt: skip

    def uncertainties(self, x: Rows | Inputs) -> dict[str, NDArray[np.float64]]:
        """By name a score of every row `(n,)`, larger where less is known."""
        own = features_of(self.fit, x, self.way)
        found = {name: score for each in self.scores for name, score in each.uncertainties(own).items()}
        matrix, biases = self.last
        logits = own @ matrix.T + biases
        return found | {"energy": -logsumexp(logits, -1), "max_probability": 1 - softmax(logits, -1).max(-1)}
