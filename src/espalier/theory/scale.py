"""Scale: what `rescale` is, and what leaving out the factor p does to the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier import calibration
from espalier.data.sets import load as load_data
from espalier.distributions.priors import prior_scale_of
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.evaluation import predictions
from espalier.prediction.fit import How
from espalier.shelf import load
from espalier.theory.claims import Claim, Curve, Finding, Picture, worst
from espalier.topology.masks import erk, random_topology
from espalier.topology.schedules import rigl
from espalier.training.loop import Loop
from espalier.training.options import Training

Recipe = Callable[[float, float, float], tuple[float, float, float]]


def as_rescaled(p: float, learning_rate: float, weight_decay: float) -> tuple[float, float, float]:
    """Factor on the initial weights, learning rate and decay of the arm with W = Z u / p that equals W = Z u: p, p^2, p^-2.

    With u' = p u the gradient in u' is 1/p times that in u, so that a step p^2 times as large moves u' p times as far; wd/2
    sum u^2 = wd/(2 p^2) sum u'^2.
    """
    return p, learning_rate * p**2, weight_decay / p**2


def check_rescale(quick: bool, *, recipe: Recipe = as_rescaled) -> Finding:
    """Two arms through the real loop with equal Z, batches and topology moves; biases have a rate of their own: none here."""
    keep_prob, rate, decay, num_data = 0.7, 0.05, 2e-3, 400
    steps = 60 if quick else 400
    generator = torch.Generator().manual_seed(21)
    net = nn.Sequential(nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False)).double()
    x = torch.randn(num_data, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (num_data,), generator=generator)
    p = round(65536 * keep_prob) / 65536
    factor, other_rate, other_decay = recipe(p, rate, decay)

    def arm(rescale: bool, scale: float, learning_rate: float, weight_decay: float) -> tuple[Loop, MaskedGuide]:
        prior = prior_scale_of(weight_decay, num_data, p, rescale=rescale)
        model = BayesianNetwork(net, prior_scale=prior, num_data=num_data)
        topology = random_topology(model.shapes, erk(model.shapes, 0.5), torch.Generator().manual_seed(22))
        stream = torch.Generator().manual_seed(23)
        guide = MaskedGuide(model, topology, keep_prob, rescale=rescale, generator=stream)
        guide.values.data *= scale
        return Loop(model, guide, rigl(20, steps, 0.3), lambda step: learning_rate), guide

    plain, theirs = arm(False, 1.0, rate, decay)
    rescaled, ours = arm(True, factor, other_rate, other_decay)
    gaps = []
    for step in range(steps):
        rows = torch.arange(16) + 16 * (step % (num_data // 16))
        plain.step(x[rows], y[rows])
        rescaled.step(x[rows], y[rows])
        moved = not torch.equal(theirs.positions, ours.positions)
        gaps.append(math.inf if moved else float((theirs.values - ours.values / p).abs().max().detach()))
        if moved:
            break
    return Finding(
        f"component means u and u' / p after each of {steps} Nesterov steps with topology moves, equal Z; float64",
        worst(*gaps), 1e-10, "absolute", {"at the last step": gaps[-1], "keep_prob": p},
        "Only with init p, learning rate p^2 and decay p^-2: at equal settings the arms differ in effective step, prior and "
        "start; parameters without a mask (biases) need their own, unscaled rate.",
        (Picture("Plain against rescaled", "step", "largest difference in W",
                 (Curve("init p, lr p^2, wd / p^2", np.arange(1, len(gaps) + 1), np.maximum(gaps, 1e-18)),), yscale="log"),),
    )  # fmt: skip


def logit_factor(p: float, layers: int) -> float:
    """What predicting with u instead of E[W] = p u does to the logits of L masked homogeneous layers: p^-L."""
    return p**-layers


def check_logits(quick: bool, *, factor: Callable[[float, int], float] = logit_factor) -> Finding:
    """The ways of one CigL fit of a bias-free MLP: `unmasked` beside `mean` at the temperature that the factor stands for."""
    data = load_data("digits")
    rows: list[dict[str, Any]] = []
    apart, names = 0.0, ("accuracy", "nll", "ece_15")
    x, targets = torch.as_tensor(data.test.x[torch.arange(len(data.test.y))]), data.test.y.numpy()
    for layers, drop_rate in [(2, 0.2), (3, 0.1)] if quick else [(2, 0.1), (2, 0.3), (3, 0.1), (3, 0.2), (4, 0.1)]:
        torch.manual_seed(layers)
        widths = [64, *[48] * (layers - 1), data.num_outputs]
        parts: list[nn.Module] = [nn.Flatten()]
        for fan, width in zip(widths, widths[1:], strict=False):
            parts += [nn.Linear(fan, width, bias=False), nn.ReLU()]
        model = BayesianNetwork(nn.Sequential(*parts[:-1]))
        training = Training(epochs=4 if quick else 40, batch_size=64, device="cpu")
        fit = load("inference", "cigl")(model, data, sparsity=0.8, drop_rate=drop_rate, delta_t=20, training=training)
        by_mean, by_value = (_logits(fit.model, next(fit.weights(way)), x) for way in ("mean", "unmasked"))
        f = factor(fit.keep_prob, layers)
        apart = worst(apart, (by_value - f * by_mean).abs().max() / by_value.abs().max())
        ways: tuple[How, ...] = ("ticket", "mean", "unmasked", "redraw")
        scored = {str(way): probs for way, probs in predictions(fit, data, "test", ways=ways).items()}
        scored["mean at temperature p^L"] = torch.softmax(f * by_mean, -1).numpy()
        summary = {way: calibration.classification_summary(probs, targets) for way, probs in scored.items()}
        rows.append({"layers": layers, "drop_rate": drop_rate, "p^-L": f,
                     **{way: {name: scores[name] for name in names} for way, scores in summary.items()}})  # fmt: skip
    index = np.arange(len(rows))
    shown = ("ticket", "mean", "unmasked", "mean at temperature p^L", "redraw")
    return Finding(
        f"logits at u against p^-L times those at p u, of {len(rows)} trained bias-free MLPs of 2 to 4 masked layers "
        "(digits, 80 % sparse)",
        apart, 1e-4, "relative", {"cells": rows},
        "Layers with biases or normalisation are not homogeneous, and there the factor is not p^-L; with batch norm "
        "re-estimated for the weights it vanishes from every layer but the last.",
        (Picture("One fit, read with and without the factor p (digits, test)",
                 "cell: " + ", ".join(f"{i}: L {r['layers']}, r {r['drop_rate']}" for i, r in enumerate(rows)), "NLL",
                 tuple(Curve(way, index, [row[way]["nll"] for row in rows], style="points") for way in shown)),),
    )  # fmt: skip


def _logits(model: BayesianNetwork, weights: tuple[Tensor, dict[str, Tensor]], x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.evaluate(weights[0].double(), x.double(), {k: v.double() for k, v in weights[1].items()})
        return output


CLAIMS = (
    Claim("scale-rescale", "rescale is an exact reparametrisation: init p, lr p^2, wd / p^2",
          "derived in theory/scale.py", check_rescale),
    Claim("scale-logits", "u instead of p u multiplies the logits of L masked layers by p^-L: a temperature, not a mask",
          "derived in theory/scale.py", check_logits),
)  # fmt: skip
