"""Do network, likelihood and data fit together? Asked before any work, of two examples."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier import nested
from espalier.contracts import Data
from espalier.likelihoods import Categorical, matched, plain
from espalier.network import BayesianNetwork, copied, evaluating
from espalier.prediction import batchnorm
from espalier.prediction.mixture import check_support
from espalier.prediction.predict import to_device
from espalier.randomness import forked


@torch.no_grad()
def check_buffers(model: BayesianNetwork, data: Data) -> None:
    """Raises ValueError for a buffer that training moves and no file keeps: a fit that is loaded would predict otherwise."""
    kept = model.net.state_dict().keys()
    if not (before := {name: buffer.clone() for name, buffer in model.net.named_buffers() if name not in kept}):
        return
    x = to_device(data.train.x[torch.arange(min(2, len(data.train.y)))], model.initial.device)
    twin, said = copied(model), []
    with forked(model.initial.device), suppress(Exception):  # what it fails on is said where it is looked at
        for _ in range(2):  # before it has been trained a step, and after
            with evaluating(twin):
                said.append(nested.leaves(twin.evaluate(twin.initial, x, model.state_dict())))
            twin.net.train()
            twin.evaluate(twin.initial, x)
    moved = [name for name, buffer in twin.net.named_buffers() if name in before and buffer.shape == before[name].shape
             and not torch.allclose(buffer, before[name], rtol=0, atol=0, equal_nan=True)]  # fmt: skip
    if moved and len(said) == 2 and any(not torch.equal(one, other) for one, other in zip(*said, strict=True)):
        raise ValueError(f"expected buffers that training moves in the network's state, but {moved[0]} is not: persistent=True")


@torch.no_grad()
def check_single(model: BayesianNetwork, data: Data) -> None:
    """Raises ValueError for batch norm that has no more than one value, of batches of one example: an image may have more."""
    if not batchnorm.has_batchnorm(model):
        return
    twin, x = copied(model), to_device(data.train.x[torch.arange(1)], model.initial.device)
    with forked(model.initial.device):
        try:
            twin.train()
            twin.evaluate(twin.initial, x)
        except ValueError as error:
            raise ValueError("expected batches of two examples or more for batch norm, got one: raise batch_size") from error


@torch.no_grad()
def check_fit(model: BayesianNetwork, data: Data, soft: bool = False) -> None:
    """Do network, likelihood and data fit together? One forward pass of two examples tells, before any work."""
    labels, y = data.num_classes, data.train.y
    if isinstance(data.train.x, Tensor) and not torch.isfinite(data.train.x).all():
        raise ValueError(f"expected finite inputs, but the training inputs of {data.name} hold NaN or infinity")
    rows = torch.arange(min(2, len(y)))
    x, y = to_device(data.train.x[rows], model.initial.device), y[rows]
    before = [leaf._version for leaf in nested.leaves(x)]
    output: Any = None
    try:
        with evaluating(model):
            output = model.evaluate(model.initial, x)
            outcome = plain(model.says(output))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        reason = str(error).split("\n")[0]
        if "must have the same dtype" in reason and any(p.dtype is torch.float64 for p in model.net.parameters()):
            reason += " (inputs are float32: give it net.float())"
        if "view size is not compatible" in reason and any(leaf.dim() == 4 for leaf in nested.leaves(x)):
            reason += " (inputs of four dimensions lie channels last in memory: reshape in place of view)"
        what = f"network that takes inputs of shape {data.shape}" if output is None else "likelihood that takes its outputs"
        raise ValueError(f"expected a {what}, but it fails on them: {reason}") from error
    if before != [leaf._version for leaf in nested.leaves(x)]:
        raise ValueError(
            "expected a network that leaves its inputs as they are, but it writes into them, and so into the data: give its "
            "first in-place operation a .clone()"
        )
    _check_depends(copied(model), x)  # which may keep what it computes, and could not be copied with a graph
    said = type(outcome).__name__
    if not callable(getattr(outcome, "shape", None)):
        kind = f"{type(outcome).__module__}.{said}"
        raise ValueError(f"expected a distribution of pyro.distributions from the likelihood, got a {kind}: take Pyro's")
    if labels is None and isinstance(outcome, dist.Categorical | dist.Bernoulli):
        raise ValueError(
            f"expected a likelihood for the real-valued targets of {data.name}, got {said}: choose likelihood normal, or "
            "the model linear or deep_gp; where the targets are labels, give them as whole numbers, or say classes"
        )
    if labels is not None and not isinstance(outcome, dist.Categorical | dist.Bernoulli):
        raise ValueError(
            f"expected a likelihood for the {labels} classes of {data.name}, got {said}: choose categorical; where whole numbers "
            "are targets, counts say, give floats, and standardise inputs alone"
        )
    if labels not in (None, 2) and isinstance(outcome, dist.Bernoulli):
        raise ValueError(
            f"expected two classes for a Bernoulli likelihood, but {data.name} has {labels}: choose categorical"
        )
    if outcome.shape() not in (y.shape, (*y.shape, 1)):
        raise ValueError(
            f"expected one outcome per target, {tuple(y.shape)}, but network and likelihood give {tuple(outcome.shape())}"
        )
    if labels is None:
        for part in (data.train, data.validation, data.calibration, data.test):
            check_support(outcome, part.y.view(len(part.y), *outcome.shape()[1:]), data.in_units(part.y))
        _check_double(model, output, y)
    if soft and not (isinstance(outcome, dist.Categorical) and outcome.probs.shape[-1] == labels):
        raise ValueError(
            f"expected a categorical likelihood with one output for each of {labels} classes, to smooth or mix their labels"
        )
    if isinstance(outcome, dist.Categorical) and (found := outcome.probs.shape[-1]) != labels and (
        found < (labels or 0) or type(model.likelihood) is Categorical
    ):
        more = "" if found < (labels or 0) else ": give it as many, or name all that there may be in classes"
        raise ValueError(f"expected a network with {labels} outputs for the classes of {data.name}, got {found}{more}")
    if type(model.likelihood) is Categorical and isinstance(output, Tensor) and _are_chances(output):
        warnings.warn(
            "the network's outputs are chances that sum to one, where the categorical likelihood takes logits: leave its softmax "
            "out",
            stacklevel=5,
        )


def _check_depends(model: BayesianNetwork, x: Any) -> None:
    """Raises ValueError for a network whose output has no gradient by its maskable weights: nothing would be learnt of them."""
    weights = model.initial.detach().clone().requires_grad_()
    rest = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    depends = True
    with suppress(Exception), torch.enable_grad(), forked(weights.device), evaluating(model):  # failures are said elsewhere
        output = model.evaluate(weights, x, rest)
        moving = [leaf for leaf in nested.leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        depends = bool(moving) and torch.autograd.grad([leaf.sum() for leaf in moving], weights, allow_unused=True)[0] is not None
    if not depends:
        raise ValueError(
            "expected outputs that depend on the maskable weights, but they do not: they are detached, or the network calls "
            "weights that it keeps outside its parameters, in a list say"
        )


def _are_chances(output: Tensor) -> bool:
    """Are all its rows on the simplex?"""
    sums = output.detach().float().sum(-1)
    return output.shape[-1] > 1 and bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _check_double(model: BayesianNetwork, output: Any, y: Tensor) -> None:
    """Predictions are float64 from the network's output on. Raises ValueError for a likelihood whose constants do not follow."""
    try:
        found = model.says(nested.each(lambda part: part.double() if part.is_floating_point() else part, output))
        found.log_prob(matched(y.double() if y.is_floating_point() else y, found))
        with forked(model.initial.device):
            found.sample()
    except NotImplementedError:  # there are no draws of it: nobody will ask for any
        return
    except RuntimeError as error:
        raise ValueError(
            f"expected a likelihood that takes outputs in float64 too, as predictions are scored in, but it fails on them: "
            f"{str(error).splitlines()[0]}; make its constants like the output, torch.eye(2).to(output), or buffers of a module"
        ) from error
