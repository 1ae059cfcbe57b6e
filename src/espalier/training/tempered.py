"""How sure a student may be of inputs that it did not learn on: one number, from its teachers, without labels.

On training inputs a student ends as sure as its teachers; elsewhere it is surer, since where masks disagree is harder to learn
than what they say. So its logits are divided by the T of

    min_T  -(1/n) sum_i sum_c  q_c(x_i) log softmax( f(x_i) / T )_c

at n inputs of the validation split, q what its teachers say there: a temperature (Guo et al. 2017) towards the teachers, not the
labels, which nobody looks at. It goes into the weights of the last layer, so that the student stays a plain network; of one whose
outputs no layer scales it is 1. Derived for this project; measured in `examples/benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from espalier.contracts import Data
from espalier.data.streamed import selected, some
from espalier.likelihoods import plain
from espalier.network import BayesianNetwork, evaluating
from espalier.prediction.fit import Fit
from espalier.prediction.pairs import State
from espalier.prediction.predict import to_device
from espalier.training import distributed
from espalier.training.teachers import Teachers, copied

ROWS, WIDEST = 1000, 3.0
"""Validation inputs that are looked at, and how far from 1 the temperature may be, as a factor."""
FEW, CLOSE = 8, 1e-4
"""Rows on which a layer is asked whether it scales the outputs, and how near to that they have to be."""


@torch.no_grad()
def temper(fit: Fit, data: Data, teachers: Teachers, stream: torch.Generator) -> float:
    """Give the fit's student, of classes, its temperature, which is returned."""
    if not len(data.validation.y):
        return 1.0
    x = selected(data.validation.x, some(len(data.validation.y), ROWS, stream))
    found = temperature(teachers.probs(x).mean(0), fit.predict(x, "distilled")[0])
    found = float(distributed.mean(torch.tensor(found, dtype=torch.float64)))
    few = to_device(data.validation.x[torch.arange(min(FEW, len(data.validation.y)))], fit.topology.positions.device)
    assert fit.student is not None
    scaled = divided(fit, *fit.student, found, few)
    if scaled is None:
        return 1.0
    fit.student = scaled
    return found


def temperature(said: Tensor, own: Tensor) -> float:
    """The T by which the student's own probabilities `(n, ..., C)` come nearest to what its teachers said, in cross-entropy."""
    logs = own.clamp_min(torch.finfo(own.dtype).tiny).log()

    def distance(log_temperature: float) -> float:
        return float(-(said * (logs / math.exp(log_temperature)).log_softmax(-1)).sum(-1).mean())

    bound = math.log(WIDEST)
    return math.exp(minimize_scalar(distance, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4}).x)


def divided(fit: Fit, values: Tensor, state: State, by: float, x: Any) -> tuple[Tensor, State] | None:
    """The network of active weights `(k,)` and other state whose logits at x are these, divided: by its last layer that does it.
    None where there is none."""
    with evaluating(fit.model):
        wanted = (_logits(fit, values, state, x) / by).log_softmax(-1)
        for name, module in reversed([*fit.model.net.named_modules()]):
            parts = {f"{name}.{part}".lstrip(".") for part, _ in module.named_parameters(recurse=False)}
            parts |= {weight.name for weight in fit.model.weights if weight.name.rpartition(".")[0] == name}
            if not parts:
                continue
            own = _scaled(fit.model, fit.topology.counts, values, state, parts, 1 / by)
            if torch.allclose(_logits(fit, *own, x), wanted, rtol=0, atol=CLOSE * (1 + float(wanted.abs().max()))):
                return own
    return None


def _logits(fit: Fit, values: Tensor, state: State, x: Any) -> Tensor:
    """Logs of the probabilities, as a categorical has its logits."""
    logits: Tensor = plain(fit.model.outcome(fit.dense(values), x, copied(state))).logits
    return logits


def _scaled(
    model: BayesianNetwork, counts: tuple[int, ...], values: Tensor, state: State, parts: set[str], factor: float
) -> tuple[Tensor, State]:
    """With the parameters of these names times a factor: masked ones are among the values, others in the state."""
    pieces = zip(values.split(list(counts)), model.weights, strict=True)
    scaled = torch.cat([piece * factor if weight.name in parts else piece for piece, weight in pieces])
    masked = {f"net.{weight.name}" for weight in model.weights}
    rest = {f"net.{part}" for part in parts} - masked
    return scaled, {name: tensor * factor if name in rest else tensor for name, tensor in state.items()}
