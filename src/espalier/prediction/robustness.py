"""How a single network does on a split when every input may move within eps: certified, under attack, under noise.

certified <= true robust accuracy <= pgd: what interval bounds prove is a lower bound of it, what no attack has broken an upper
one. All are shares of the same rows, and a row counts only where the network is right at the row itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.bounds import bounds, unstable_ratio
from espalier.calibration import clopper_pearson
from espalier.contracts import Data
from espalier.data.balls import Ball, ball_of
from espalier.likelihoods import Categorical
from espalier.prediction.evaluation import split_of
from espalier.prediction.fit import Fit, How
from espalier.prediction.predict import BATCH, to_device

ROWS = 1000
"""Of a split that are looked at."""
STEPS, RESTARTS = 20, 2
SHARES = ("accuracy", "noise", "fgsm", "pgd", "certified")


def robustness_of(
    fit: Fit,
    data: Data,
    eps: Sequence[float],
    *,
    split: str = "test",
    how: How = "ticket",
    rows: int = ROWS,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """For every eps, in the units of `data.ball_of`, shares of `rows` rows, drawn by the seed, with Clopper-Pearson intervals:

    accuracy at the rows; noise, also under one uniform draw from the box; fgsm, also after one step of the whole radius along
    the sign of the loss's gradient (Goodfellow et al. 2015); pgd, also at every point of `steps` steps from the row and from
    restarts - 1 uniform draws, by the margin's gradient (Madry et al. 2018); certified, where `bounds` prove it; and `unstable`,
    the mean share of ReLUs that may change sides. A fit and `how` name one network: `ticket`, `mean`, `unmasked`, `distilled`.

    Raises ValueError, before any work, for networks, data and numbers that this cannot be had of.
    """
    if rows < 1 or steps < 1 or restarts < 1:
        raise ValueError(f"expected rows, steps and restarts of at least 1, got {rows}, {steps} and {restarts}")
    balls = check(fit, data, eps, how)
    part, net = split_of(data, split), fit.ticket(how)
    index = torch.randperm(len(part.y), generator=torch.Generator().manual_seed(seed))[:rows].sort().values
    device = fit.topology.positions.device
    found = []
    for ball in balls:
        generator = torch.Generator().manual_seed(seed)
        seen: dict[str, list[Tensor]] = {}
        for batch in index.split(BATCH):
            x, y = to_device(part.x[batch], device), part.y[batch].to(device)
            own = looked_at(net, x, y, ball, data.num_classes or 0, steps=steps, restarts=restarts, generator=generator)
            for name, values in own.items():
                seen.setdefault(name, []).append(values.cpu())
        found.append(_summary({name: torch.cat(parts) for name, parts in seen.items()}, ball))
    return found


def check(fit: Fit, data: Data, eps: Sequence[float], how: How = "ticket") -> list[Ball]:
    """The ball of every eps. Raises ValueError where robustness cannot be had: bounds of two training rows tell."""
    if not isinstance(fit, Fit) or how not in fit.ways or how in ("pairs", "redraw", "moments"):
        raise ValueError(f"expected a fit and a way to predict that is one network, got {how}: choose ticket, mean or unmasked")
    if not isinstance(fit.model.likelihood, Categorical) or data.train.y.dim() > 1:
        raise ValueError("expected a categorical likelihood and one label a row to see how robust its classes are")
    balls = [ball_of(data, one) for one in eps]
    if not balls:
        raise ValueError("expected an eps to see how robust the network is, got none")
    x = to_device(data.train.x[torch.arange(min(2, len(data.train.y)))], fit.topology.positions.device)
    with torch.no_grad():
        bounds(fit.ticket(how), *balls[0].box(x))
    return balls


def looked_at(
    net: nn.Module, x: Tensor, y: Tensor, ball: Ball, num_classes: int, *, steps: int, restarts: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Of each row `(n,)`: is the network right in each of the `SHARES`, and which part of its ReLUs is `unstable`? net: in
    evaluation mode; bounds are of a copy in float64, attacks on itself. Of outputs, the first `num_classes` are classes."""

    def logits(inputs: Tensor) -> Tensor:
        output: Tensor = net(inputs)[:, :num_classes]
        return output

    box = ball.box(x)
    with torch.no_grad():
        right = logits(x).argmax(1) == y
        noise = right & (logits(_uniform(*box, generator)).argmax(1) == y)
        exact = bounds(copy.deepcopy(net).double(), *ball.box(x.double()))
        certified = right & (exact.margins(y, num_classes) > 0)
        unstable = unstable_ratio(exact.relus) if exact.relus else torch.zeros(len(y), dtype=torch.float64)
        fgsm = right & (logits(fast_gradient(logits, x, y, ball)).argmax(1) == y)
    pgd = right & unbroken(logits, x, y, ball, steps=steps, restarts=restarts, generator=generator)
    return {"accuracy": right, "noise": noise, "fgsm": fgsm, "pgd": pgd, "certified": certified, "unstable": unstable}


@torch.enable_grad()
def fast_gradient(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """x moved by the whole radius along the sign of the cross-entropy's gradient, within the box (Goodfellow et al. 2015)."""
    at = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits(at), y, reduction="sum"), at)
    return _within(x + ball.radius.to(x) * gradient.sign(), *ball.box(x))


@torch.enable_grad()
def unbroken(
    logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, ball: Ball, *, steps: int, restarts: int, generator: torch.Generator
) -> Tensor:
    """Rows of which every point that PGD came by is of class y, `(n,)`: it falls in the margin z_y - max z_k by steps of 2.5
    radii / `steps` along the sign of its gradient, from x and then from uniform draws (Madry et al. 2018)."""
    lower, upper = ball.box(x)
    step, held = 2.5 * ball.radius.to(x) / steps, torch.ones(len(x), dtype=torch.bool, device=x.device)
    for restart in range(restarts):
        start = x if restart == 0 else _uniform(lower, upper, generator)
        left = held.nonzero()[:, 0]
        at = start[left]
        for taken in range(steps + 1):
            at = at.detach().requires_grad_()
            z, own = logits(at), y[left].unsqueeze(1)
            margin = (z.gather(1, own) - z.scatter(1, own, -torch.inf).amax(1, keepdim=True)).squeeze(1)
            stands = z.argmax(1) == own.squeeze(1)
            held[left[~stands]] = False
            if taken == steps or not stands.any():
                break
            (gradient,) = torch.autograd.grad(margin.sum(), at)
            left, at, gradient = left[stands], at.detach()[stands], gradient[stands]
            at = _within(at - step * gradient.sign(), lower[left], upper[left])
    return held


def _within(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return x.maximum(lower).minimum(upper)


def _uniform(lower: Tensor, upper: Tensor, generator: torch.Generator) -> Tensor:
    share = torch.rand(lower.shape, generator=generator, dtype=lower.dtype).to(lower.device)
    return _within(lower + share * (upper - lower), lower, upper)


def _summary(seen: dict[str, Tensor], ball: Ball) -> dict[str, Any]:
    """Means, and intervals of what is a share of rows."""
    count = len(seen["accuracy"])
    found: dict[str, Any] = {"eps": ball.eps, "unit": ball.unit, "num_examples": count}
    hits = np.array([int(seen[name].sum()) for name in SHARES])
    for name, hit, low, high in zip(SHARES, hits, *clopper_pearson(hits, np.full(len(hits), count)), strict=True):
        found |= {name: int(hit) / count, f"{name}_interval": [float(low), float(high)]}
    return found | {"unstable": float(seen["unstable"].mean())}
