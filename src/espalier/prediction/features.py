"""What a layer of a fit's network is given, and what scores of it (`calibration.features`) say: the doubt of a single network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from torch import Tensor, nn

from espalier import nested
from espalier.calibration.features import DensityScore, LaplaceScore, NeighbourScore
from espalier.compiled import uncompiled
from espalier.contracts import Data, Rows
from espalier.data.streamed import selected
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction.fit import Fit, How
from espalier.prediction.one_pass import ONE_NETWORK, has_level
from espalier.prediction.predict import Batches, output_of
from espalier.prediction.predictor import Inputs
from espalier.sparse import Unwritten

MOST_ROWS, FEW_ROWS = 10_000, 8
"""Training rows that scores are fitted on; and rows that show what the last layer gives."""


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


def few(x: Rows) -> Any:
    """The first rows, as many as show what the last layer gives."""
    return selected(x, torch.arange(min(FEW_ROWS, nested.num_rows(x))))


def gives_logits(fit: Fit, x: Rows | Inputs, way: How = "ticket") -> bool:
    """Is the last masked layer a Linear one whose outputs, at these rows, are the logits of a categorical likelihood?"""
    if type(layer_of(fit.model)) is not nn.Linear or not has_level(fit.model):
        return False
    try:
        features = features_of(fit, x, way)
    except ValueError:  # it is called several times, or with several tensors
        return False
    matrix, biases = _head(fit, way)
    weights, state = next(fit.weights(way))
    output = output_of(fit.model, weights, nested.rows_of(x), state)
    if fit.model.output is not None or not isinstance(output, Tensor):
        return False
    logits = features @ matrix.T + biases
    return output.shape == logits.shape and np.allclose(logits, output.numpy(), rtol=1e-3, atol=1e-3 * (1 + np.abs(logits).max()))


def _head(fit: Fit, way: How) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights `(K, D)` and biases `(K,)` of the last masked layer, a Linear one."""
    weights, state = next(fit.weights(way))
    name = fit.model.weights[-1].name
    matrix = fit.model.unflatten(weights)[name].detach().cpu().double().numpy()
    bias = state.get(f"net.{name.removesuffix('weight')}bias")
    return matrix, np.zeros(len(matrix)) if bias is None else bias.detach().cpu().double().numpy()


class OnePass:
    """Doubts of a single network, fitted on training rows: NUQ, the density of its features (DDU), a Laplace approximation of its
    last layer, its energy, and what is left of its largest probability.

    Raises ValueError for a regression, and for a network whose last masked layer is no Linear layer that gives its logits as they
    are: the last by definition, and with nothing after it.
    """

    def __init__(self, fit: Fit, data: Data, way: How = "ticket", *, prior_scale: float | None = None) -> None:
        if data.num_classes is None or data.train.y.dim() > 1:
            raise ValueError("expected one label per example for scores of features, got real-valued targets or several")
        if not gives_logits(fit, few(data.train.x), way):
            last = type(layer_of(fit.model)).__name__
            raise ValueError(f"expected a network whose last layer is Linear and gives logits, got {last} of {fit.model.net}")
        self.fit, self.way = fit, way
        rows = torch.arange(min(MOST_ROWS, len(data.train.y)))
        known, labels = features_of(fit, data.train.x[rows], way), data.train.y[rows].numpy()
        matrix, biases = self.last = _head(fit, way)
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
