"""The loss of one batch and its gradient: `TraceMeanField_ELBO` of model and guide, by Pyro or in closed form.

Pyro's is the definition, and the way of programs that are not ours. Where both are, the same loss

    L = (1/b) sum_i -log p(y_i | x_i, w) + kl_scale KL(q || prior) / N + L2,        w ~ q once, or the mean of several draws

is written down: one forward and one backward pass of the first term, and the gradients of the other two, which are linear
or known, added to what it leaves. Same Z, same loss, same gradient; no trace, and no density that the ELBO would not use.
"""

from __future__ import annotations

import operator
import traceback
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from espalier import nested
from espalier.distributions import masked
from espalier.distributions.priors import FlatNormal
from espalier.guides.masked import MaskedGuide
from espalier.likelihoods import Categorical, is_soft, matched
from espalier.network import BayesianNetwork
from espalier.sparse.trial import unmoved

NO_LABEL = -(1 << 62)
FEW = 8
"""Rows on which a model is asked for its sites."""
OURS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "model": (BayesianNetwork, ("__call__", "forward", "evaluate", "outcome", "_said", "_called", "prior", "l2")),
    "guide": (MaskedGuide, ("__call__", "forward", "draw")),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Alone(Messenger):
    """Refuses a site of which `is_ours` has not heard: it would be missing from the objective."""

    def _pyro_sample(self, msg: Any) -> None:
        raise RuntimeError(
            f"expected the network and the likelihood to have the same sites at every step, but {msg['name']!r} was not there "
            "before the first: let it be there from the start"
        )


class Terms(NamedTuple):
    """-log-likelihood, KL (times kl_scale) and L2: nats per example, without their graphs."""

    fit: Tensor
    kl: Tensor
    l2: Tensor

    @property
    def loss(self) -> Tensor:
        """-ELBO / N, up to the guide's constant."""
        return self.fit + self.kl + self.l2


def is_ours(model: BayesianNetwork, guide: MaskedGuide, x: Any, y: Tensor) -> bool:
    """Do model and guide say to Pyro just what they say in our classes, and nobody around them says more? A network or a
    likelihood may have sites of its own, so they are asked, once, on a few rows: with nothing moved."""
    if pyro.poutine.runtime.am_i_wrapped() or not (_is_as_written(model) and _is_as_written(guide)):
        return False
    few, labels = nested.each(lambda rows: rows[:FEW], x), y[:FEW]
    try:
        with unmoved(*model.children(), device=guide.values.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of frozen parameters
            drawn = {"weights": guide.distribution().mean}
            trace = pyro.poutine.trace(pyro.poutine.condition(model, drawn)).get_trace(few, labels)
    except Exception:  # few rows are not enough for it, say: then Pyro has the say
        return False
    return {name for name, site in trace.nodes.items() if site["type"] == "sample"} <= {"weights", "l2", "data", "y"}


def _is_as_written(program: BayesianNetwork | MaskedGuide) -> bool:
    """Are its methods that make up the objective those of our classes, and does nobody listen in on its calls?"""
    ours, names = OURS["model" if isinstance(program, BayesianNetwork) else "guide"]
    same = all(getattr(getattr(program, name), "__func__", None) is getattr(ours, name) for name in names)
    return same and not any(getattr(program, hooks) for hooks in HOOKS)


def by_pyro(
    model: BayesianNetwork, guide: MaskedGuide, x: Any, y: Tensor, autocast: AbstractContextManager[Any]
) -> Terms:
    """The terms of a step's draws, their gradient added to the parameters'."""
    given, num_data, found = model.num_data, model.num_data or len(y), []
    try:
        model.num_data = num_data  # of a part it would be the part
        for rows, labels, share in passes(guide, x, y):
            with autocast:
                loss = TraceMeanField_ELBO().differentiable_loss(model, guide, rows, labels) * (share / num_data)
            backward(loss)
            found.append(loss.detach())
    finally:
        model.num_data = given
    loss = torch.stack(found).sum()
    with torch.no_grad():
        kl = guide.kl_scale * kl_divergence(guide.distribution(), model.prior()) / num_data
        l2 = model.l2() if model.weight_decay else torch.zeros_like(kl)
        return Terms(loss - kl - l2, kl, l2)


def closed_form(
    model: BayesianNetwork,
    guide: MaskedGuide,
    x: Any,
    y: Tensor,
    autocast: AbstractContextManager[Any] = nullcontext(),  # noqa: B008 - of no state
) -> Terms:
    """The same."""
    num_data = model.num_data or len(y)
    found = []
    for rows, labels, share in passes(guide, x, y):
        with autocast, _Alone():
            weights = guide.draw()
            fit = negative_log_likelihood(model, model.evaluate(weights, rows), labels)
            if model.loss is not None and (beside := model.loss.beside(weights, rows, model)) is not None:
                fit = fit + beside.mean()
            fit = fit * share
        if fit.requires_grad:
            backward(fit)
        found.append(fit.detach())
    kl = _with_gradient_of_kl(model, guide, num_data)
    l2 = _with_gradient_of_l2(model) if model.weight_decay else torch.zeros_like(kl)
    return Terms(torch.stack(found).sum(), kl, l2)


def passes(guide: MaskedGuide, x: Any, y: Tensor) -> list[tuple[Any, Tensor, float]]:
    """What the draws of a step see, a draw each: rows, their labels and their share in the mean. A move of the topology looks at
    the gradient of one draw."""
    draws, cuts = (1, 1) if guide.tapped else (guide.num_particles, guide.microbatches)
    return [(rows, labels, len(labels) / len(y) / draws) for rows, labels in parts(cuts, x, y) * draws]


def backward(loss: Tensor) -> None:
    """The gradients of a loss. Raises ValueError for a network that calls parts of itself once more for them (activation
    checkpointing): its weights stand in it for a forward pass alone."""
    try:
        loss.backward()
    except TypeError as error:  # torch's for a product with no weight
        called = {Path(frame.filename).parts[-3:] for frame in traceback.extract_tb(error.__traceback__)}
        if ("torch", "utils", "checkpoint.py") not in called:
            raise
        raise ValueError(
            "expected a network that keeps its activations, but a part of it was called again in the backward pass, when its "
            f"masked weights are not there ({error}): turn activation checkpointing off"
        ) from error


def parts(count: int, *batch: Any) -> list[tuple[Any, ...]]:
    """A batch in `count` parts of equal size, to a row; of fewer rows, as many parts as rows."""
    rows = nested.num_rows(batch)
    count = min(count, rows)
    if count <= 1:
        return [batch]
    cuts = [slice(rows * number // count, rows * (number + 1) // count) for number in range(count)]
    return [nested.each(operator.itemgetter(cut), batch) for cut in cuts]


def cast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Under which a network is computed: bf16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def negative_log_likelihood(model: BayesianNetwork, output: Any, y: Tensor) -> Tensor:
    """-log p(y | output), the mean over the batch, nats; or the model's own loss. Labels may be soft."""
    if model.loss is not None:
        return model.loss(output, y).sum() / len(y)
    if type(model.likelihood) is Categorical:
        logits = output
        soft = y.is_floating_point()
        if isinstance(logits, Tensor) and logits.dim() > 1 and y.shape == (logits.shape if soft else logits.shape[:-1]):
            labels = y.flatten(0, -2).to(logits.dtype) if soft else y.flatten().long()
            # One kernel for both kinds of labels; without an index that it would pass over in silence.
            return F.cross_entropy(logits.flatten(0, -2), labels, reduction="sum", ignore_index=NO_LABEL) / len(y)
    outcome = model._said(output, {})
    y = matched(y, outcome)
    log_prob: Tensor = (y * outcome.logits).sum(-1) if is_soft(y, outcome) else outcome.log_prob(y)
    return -log_prob.sum() / len(y)


def _with_gradient_of_kl(model: BayesianNetwork, guide: MaskedGuide, num_data: int) -> Tensor:
    """KL per example, its gradient added."""
    prior = model.prior()
    if type(guide) is not MaskedGuide or not isinstance(prior, FlatNormal):
        kl = guide.kl_scale * kl_divergence(guide.distribution(), prior) / num_data
        kl.backward()
        return kl.detach()
    values, prior_scale = guide.values.data, prior.scale
    if guide.values.grad is None:  # the output has nothing to do with them
        guide.values.grad = torch.zeros_like(values)
    probs = guide.probs
    if isinstance(probs, Tensor):
        pull = guide.kl_scale * masked.curvature(probs, prior_scale) * guide.scale**2 / num_data * values
        guide.values.grad.add_(pull)
        return 0.5 * torch.dot(pull, values)
    curvature = guide.kl_scale * masked.curvature(probs, prior_scale) * guide.scale**2 / num_data
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
