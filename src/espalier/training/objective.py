"""The loss of one batch and its gradient: `TraceMeanField_ELBO` of model and guide, by Pyro or in closed form.

Pyro's is the definition, and the way of programs that are not ours. Where both are, the same loss

    L = (1/b) sum_i -log p(y_i | x_i, w) + kl_scale KL(q || prior) / N + L2,        w ~ q once

is written down: one forward and one backward pass of the first term, and the gradients of the other two, which are linear
or known, added to what it leaves. Same Z, same loss, same gradient; no trace, and no density that the ELBO would not use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from espalier import nested
from espalier.guides.masked import MaskedGuide
from espalier.likelihoods import Categorical, is_soft, matched
from espalier.network import BayesianNetwork, evaluating


class Terms(NamedTuple):
    """-log-likelihood, KL (times kl_scale) and L2: nats per example, without their graphs."""

    fit: Tensor
    kl: Tensor
    l2: Tensor

    @property
    def loss(self) -> Tensor:
        """-ELBO / N, up to the guide's constant."""
        return self.fit + self.kl + self.l2


def is_ours(model: BayesianNetwork, guide: MaskedGuide, x: Any) -> bool:
    """Do model and guide say to Pyro just what they say in our classes? A network or a likelihood may have sites of its own,
    so it is asked, once, on two rows: with nothing moved."""
    if type(model).forward is not BayesianNetwork.forward or type(guide).forward is not MaskedGuide.forward:
        return False
    device = guide.values.device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), evaluating(model):
        drawn = {"weights": guide.distribution().mean}
        asked = pyro.poutine.trace(pyro.poutine.condition(model, drawn))
        trace = asked.get_trace(nested.each(lambda rows: rows[:2], x))
    return {name for name, site in trace.nodes.items() if site["type"] == "sample"} <= {"weights", "l2", "data", "y"}


def by_pyro(model: BayesianNetwork, guide: MaskedGuide, x: Any, y: Tensor, autocast: AbstractContextManager[Any]) -> Terms:
    """The terms of one draw, their gradient added to the parameters'."""
    num_data = model.num_data or len(y)
    with autocast:
        loss = TraceMeanField_ELBO().differentiable_loss(model, guide, x, y) / num_data
    loss.backward()
    with torch.no_grad():
        kl = guide.kl_scale * kl_divergence(guide.distribution(), model.prior()) / num_data
        l2 = model.l2() if model.weight_decay else torch.zeros_like(kl)
        return Terms(loss.detach() - kl - l2, kl, l2)


def closed_form(
    model: BayesianNetwork,
    guide: MaskedGuide,
    x: Any,
    y: Tensor,
    autocast: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - of no state
) -> Terms:
    """The same."""
    num_data = model.num_data or len(y)
    with autocast:
        fit = negative_log_likelihood(model, guide.draw(), x, y)
    fit.backward()
    kl = _with_gradient_of_kl(model, guide, num_data)
    return Terms(fit.detach(), kl, _with_gradient_of_l2(model) if model.weight_decay else torch.zeros_like(kl))


def negative_log_likelihood(model: BayesianNetwork, weights: Tensor, x: Any, y: Tensor) -> Tensor:
    """-log p(y | x, w), the mean over the batch, nats. Labels may be soft."""
    if type(model.likelihood) is Categorical:
        logits = model.evaluate(weights, x)
        if isinstance(logits, Tensor) and y.shape in (logits.shape, logits.shape[:-1]):  # one kernel for both kinds of labels
            labels = y.flatten(0, -2) if y.shape == logits.shape else y.flatten()
            return F.cross_entropy(logits.flatten(0, -2), labels, reduction="sum") / len(y)
        outcome = model.likelihood(logits)
    else:
        outcome = model.outcome(weights, x)
    y = matched(y, outcome)
    log_prob: Tensor = (y * outcome.logits).sum(-1) if is_soft(y, outcome) else outcome.log_prob(y)
    return -log_prob.sum() / len(y)


def _with_gradient_of_kl(model: BayesianNetwork, guide: MaskedGuide, num_data: int) -> Tensor:
    """KL per example, its gradient added."""
    if type(guide) is not MaskedGuide:
        kl = guide.kl_scale * kl_divergence(guide.distribution(), model.prior()) / num_data
        kl.backward()
        return kl.detach()
    values, prior_scale = guide.values.data, model.prior().scale
    assert guide.values.grad is not None
    curvature = guide.kl_scale * guide.keep_prob * guide.scale**2 / (prior_scale**2 * num_data)
    guide.values.grad.add_(values, alpha=curvature)
    return 0.5 * curvature * torch.dot(values, values)


@torch.no_grad()
def _with_gradient_of_l2(model: BayesianNetwork) -> Tensor:
    """L2 per example, its gradient added."""
    points = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    if not points:
        return torch.zeros(())
    gradients = []
    for parameter in points:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    torch._foreach_add_(gradients, list[Tensor](points), alpha=model.weight_decay)
    flat = torch.cat([parameter.reshape(-1) for parameter in points])
    return 0.5 * model.weight_decay * torch.dot(flat, flat)
