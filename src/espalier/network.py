"""The model: any plain `nn.Module`, a prior on its maskable weights, a likelihood; one Pyro program.

The program has one latent site, `weights`: the maskable weights of the whole network as one flat vector, layer after
layer. It is put back into a copy of the network by `functional_call`, so that the network needs no custom layers and is
never edited. Biases and normalisation stay parameters, point estimates with an L2 of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from espalier import compiled, nested
from espalier.distributions.priors import FlatNormal, MixtureNormal
from espalier.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    is_soft,
    likelihood_of,
    matched,
    said_of,
)
from espalier.losses import Loss
from espalier.maskable import Weight as Weight
from espalier.maskable import maskable_weights, owner_of
from espalier.sparse import Unwritten, trial
from espalier.sparse.trial import evaluating as evaluating

Net = TypeVar("Net", bound=nn.Module)
Output = str | int | Callable[[Any], Any]
"""Which part of a network's output is the likelihood's: a key, a place, or a function of it."""

def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class BayesianNetwork(PyroModule):
    """A Pyro program `model(x, y=None)` of a plain network.

    Sites: `weights` ~ N(0, prior_scale^2) of event shape `(num_weights,)`, dense; `l2`, the factor
    -num_data * weight_decay / 2 * sum b^2 of the point-estimated parameters; `y`, observed, scaled by num_data / len(x).

    net: an `nn.Module` from x `(n, *shape)` to outputs `(n, ...)`. It is copied; its maskable weights become `initial`. Inputs
        that are a tuple are given to it as `net(*x)`, a dict as `net(**x)`.
    prior_scale: standard deviation of the prior, or None for "1, unless an inference's weight_decay implies another".
    likelihood: 'categorical', 'bernoulli', 'normal', or any callable from outputs to a Pyro distribution; GPyTorch's
        likelihoods that ask for nothing else are such (it is given `(n,)` of a network's `(n, 1)`, as they expect).
    output: of a network that gives a tuple or a dict, what the likelihood is given: a key, a place, or a function of it; None
        is all of it.
    num_data: training examples N that a mini-batch stands for; None takes each batch for the whole data set.
    weight_decay: L2 of the point-estimated parameters, per datum.
    maskable: glob patterns of tensor names. By default every Linear and Conv weight that is a parameter of its own;
        parametrised ones stay dense, with a warning, and frozen ones stay as they are, whatever pattern they match. Naming
        one that cannot be masked is refused.
    """

    initial: Tensor
    num_data: int | None
    weight_decay: float

    def __init__(
        self,
        net: nn.Module,
        *,
        prior_scale: float | None = None,
        likelihood: str | Likelihood = "categorical",
        output: Output | None = None,
        num_data: int | None = None,
        weight_decay: float = 0.0,
        maskable: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if prior_scale is not None and not prior_scale > 0:
            raise ValueError(f"expected a prior_scale above 0, got {prior_scale}: it is a standard deviation")
        if num_data is not None and not num_data > 0:
            raise ValueError(f"expected num_data above 0, the number of training examples, got {num_data}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"expected a finite weight_decay of 0 or more, got {weight_decay}")
        self.weights = tuple(maskable_weights(net, maskable))
        self.sizes = tuple(weight.size for weight in self.weights)
        self.shapes = tuple(weight.shape for weight in self.weights)
        parameters = dict(net.named_parameters(remove_duplicate=False))
        parts = [parameters[weight.name].detach().reshape(-1) for weight in self.weights]
        if len({(part.dtype, part.device) for part in parts}) != 1:
            raise ValueError("expected all maskable weights in one dtype on one device: call net.to(...) first")
        # The weights the network came with, `(num_weights,)`: where active ones start. Not part of the state.
        self.register_buffer("initial", torch.cat(parts), persistent=False)
        self.net = _without(net, {name for weight in self.weights for name in weight.names})
        self._homes = _homes(self.net, self.weights)
        self._unwritten: dict[tuple[bool, bool], bool] = {}
        self.compiled: compiled.Compiled = "no"
        self.loss: Loss | None = None
        self.mixture: MixtureNormal | None = None
        self.likelihood, self.output = likelihood_of(likelihood), output
        self.prior_scale = prior_scale
        self.num_data = num_data
        self.weight_decay = weight_decay

    @property
    def num_weights(self) -> int:
        """Maskable weights: the length of the flat vector."""
        return sum(self.sizes)

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        """The Pyro program. x: `(n, *shape)`, y: `(n, ...)` or None to sample it. Returns y.

        Labels may be soft, probabilities `(n, C)`: site `y` is then the factor sum_c y_c log p_c (a Gibbs posterior). Where the
        model has another `loss`, it is the factor -loss.
        """
        weights, rows = pyro.sample("weights", self.prior()), nested.num_rows(x)
        if self.weight_decay:
            pyro.factor("l2", -self.l2() * (self.num_data or rows))
        if self.loss is not None and y is not None:
            with pyro.plate("data", rows), pyro.poutine.scale(scale=(self.num_data or rows) / rows):
                each, beside = self.loss(self.evaluate(weights, x), y), self.loss.beside(weights, x, self)
                pyro.factor("y", -each if beside is None else -each - beside)
            return y
        outcome = self.outcome(weights, x)
        if y is not None:
            y = matched(y, outcome)
        with pyro.plate("data", rows), pyro.poutine.scale(scale=(self.num_data or rows) / rows):
            if y is not None and is_soft(y, outcome):
                pyro.factor("y", (y * outcome.logits).sum(-1).reshape(rows, -1).sum(1))
                return y
            drawn: Tensor = pyro.sample("y", outcome.to_event(len(outcome.batch_shape) - 1), obs=y)
        return drawn

    def prior(self) -> FlatNormal | MixtureNormal:
        """N(0, prior_scale^2) over the flat weight vector, or the `mixture` where there is one."""
        if self.mixture is not None:
            return self.mixture
        return FlatNormal(1.0 if self.prior_scale is None else self.prior_scale, self.num_weights, self.initial)

    def evaluate(self, weights: Tensor, x: Any, state: Mapping[str, Tensor] | None = None) -> Any:
        """The network's output at a flat weight vector, or what `output` picks of it, in float32 or wider.

        `state` stands in for the model's other parameters and buffers, by the names of its `state_dict`.
        """
        if isinstance(weights, Unwritten) and (
            weights.written is not None
            or compiled.is_due(self.compiled, self.net)
            or not trial.is_right(self._tried, weights, x, self.net, self._unwritten)
        ):
            weights = weights.dense()
            x = nested.each(trial.in_order, x)  # such a network may call `view`
        found = self._computed(weights, x, state)
        return nested.each(_single, found if self.output is None else _picked(found, self.output))

    def _computed(self, weights: Tensor, x: Any, state: Mapping[str, Tensor] | None = None) -> Any:
        arguments, keywords = nested.arguments(x)
        tensors, net = self.unflatten(weights), self.net  # which Pyro looks through, so before it holds any weights
        if state is not None or compiled.is_due(self.compiled, net):
            given = {**under("net.", state or {}), **tensors}
            placed = {home: tensor for name, tensor in given.items() for home in self._homes.get(name, (name,))}
            if compiled.is_due(self.compiled, net):
                return compiled.call(net, placed, arguments, keywords)
            return functional_call(net, placed, arguments, keywords, tie_weights=False)
        # Without other tensors to put in their places, what `functional_call` does is a tenth of its price.
        slots = [owner_of(net, name) for name in tensors]
        try:
            for (owner, attribute), tensor in zip(slots, tensors.values(), strict=True):
                owner._parameters[attribute] = tensor  # type: ignore[assignment]
            return net(*arguments, **keywords)
        finally:
            for owner, attribute in slots:
                owner._parameters[attribute] = None

    def _tried(self, weights: Tensor, x: Any) -> Any:
        """Unheard by Pyro: a site of the network's own would be there twice, or, of a PyroModule, which keeps it, not at all."""
        if any(isinstance(part, PyroModule) for part in self.net.modules()):
            raise TypeError("expected a network without PyroModules")
        with pyro.poutine.block():
            return self._computed(weights, x)

    def outcome(self, weights: Tensor, x: Any, state: Mapping[str, Tensor] | None = None) -> dist.TorchDistribution:
        """The distribution of y given x `(n, *shape)`: the likelihood at the network's output."""
        return self._said(self.evaluate(weights, x, state), under("likelihood.", state or {}))

    def says(self, output: Any, state: Mapping[str, Tensor] | None = None) -> dist.TorchDistribution:
        """The distribution of y that the likelihood makes of an output `(n, ...)`, in the output's own precision."""
        like = next(leaf for leaf in nested.leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point())
        tensors: dict[str, Tensor] = {}
        if isinstance(self.likelihood, nn.Module):
            every = self.likelihood.named_parameters, self.likelihood.named_buffers
            tensors = {name: tensor for named in every for name, tensor in named(remove_duplicate=False)}
        tensors |= under("likelihood.", state or {})
        own = {name: t.to(like) if t.is_floating_point() else t.to(like.device) for name, t in tensors.items()}
        return self._said(output, own)

    def _said(self, output: Any, tensors: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """The likelihood at an output, these tensors standing in for its own."""
        if not isinstance(output, Tensor) and isinstance(self.likelihood, tuple(LIKELIHOODS.values())):
            of = f"with keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
            raise ValueError(f"expected a tensor from the network, got a {of}: say by output= which part is meant")
        return said_of(lambda rows: self._called(rows, tensors), self.likelihood, output)

    def _called(self, output: Any, tensors: Mapping[str, Tensor]) -> dist.TorchDistribution:
        if tensors and isinstance(self.likelihood, nn.Module):
            return functional_call(self.likelihood, dict(tensors), (output,), tie_weights=False)
        return self.likelihood(output)

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector `(num_weights,)` by tensor name. By `split`: slices would cost 26 times more backward."""
        if isinstance(weights, Unwritten):
            parts = weights.layers()
        else:
            parts = [part.view(shape) for part, shape in zip(weights.split(self.sizes), self.shapes, strict=True)]
        return {name: part for weight, part in zip(self.weights, parts, strict=True) for name in weight.names}

    def l2(self) -> Tensor:
        """weight_decay / 2 * sum of squares of the point-estimated parameters of the network: their loss per datum."""
        squares = [parameter.square().sum() for parameter in self.net.parameters() if parameter.requires_grad]
        return 0.5 * self.weight_decay * torch.stack(squares).sum() if squares else torch.zeros(())

    def network(self, weights: Tensor, state: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A plain dense `nn.Module` with these weights `(num_weights,)`; `state` as in `evaluate`. Tied tensors stay tied."""
        net = copied(self.net)
        tensors = self.unflatten(weights.detach().clone())
        for weight in self.weights:
            parameter = nn.Parameter(tensors[weight.name].clone())
            for name in weight.names:
                owner, attribute = owner_of(net, name)
                setattr(owner, attribute, parameter)
        own = {name: tensor for name, tensor in under("net.", state or {}).items() if self._homes.get(name, (name,))}
        net.load_state_dict(own, strict=False)  # a second name may still hold what `state` replaced under the first
        return net

    def with_maskable(self, patterns: Sequence[str]) -> BayesianNetwork:
        """The same model with another choice of maskable tensors."""
        return BayesianNetwork(
            self.network(self.initial),
            prior_scale=self.prior_scale,
            likelihood=self.likelihood,
            output=self.output,
            num_data=self.num_data,
            weight_decay=self.weight_decay,
            maskable=patterns,
        )

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Start from pretrained weights: a state dict of the plain network, by its own names and shapes.

        Raises ValueError where a name or a shape does not fit; nothing is changed then.
        """
        net = self.network(self.initial)
        own = net.state_dict()
        for name, tensor in tensors.items():
            if name not in own:
                near = get_close_matches(name, own, 1)
                raise ValueError(
                    f"expected the network's own tensors, got {name!r}"
                    + (f": did you mean {near[0]!r}?" if near else "")
                )
            if own[name].shape != tensor.shape:
                raise ValueError(f"expected {name!r} of shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
        present = {own[name].data_ptr() for name in tensors}  # of tied tensors, a file holds one name
        missing = sorted(name for name, tensor in own.items() if tensor.data_ptr() not in present)
        broken = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
        if broken:
            raise ValueError(f"expected finite weights, but {broken[0]} in the file holds NaN or infinity")
        if missing:
            raise ValueError(f"expected every tensor of the network, but {', '.join(missing[:3])} is missing from the file")
        net.load_state_dict(tensors, strict=False)
        parameters = dict(net.named_parameters(remove_duplicate=False))
        self.initial = torch.cat([parameters[weight.name].detach().reshape(-1) for weight in self.weights])
        self.net.load_state_dict({k: v for k, v in net.state_dict().items() if k in self.net.state_dict()}, strict=False)


def _homes(net: nn.Module, weights: Sequence[Weight]) -> dict[str, tuple[str, ...]]:
    """Of every tensor's first name the places where it stands, each once; of its other names none. `functional_call` puts a
    tensor back once for each name, and of two names of one place the second would put back what the first had put there."""
    everything = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    shared: dict[int, list[str]] = {}
    for name, tensor in everything:
        shared.setdefault(id(tensor), []).append(name)
    homes: dict[str, tuple[str, ...]] = {}
    for names in [*shared.values(), *(weight.names for weight in weights)]:
        places = {(id(owner), attribute): name for name in reversed(names) for owner, attribute in [owner_of(net, name)]}
        homes |= dict.fromkeys(names, ()) | {names[0]: tuple(reversed(places.values()))}
    return homes


def copied(net: Net) -> Net:
    """A deep copy. Raises ValueError, with the way out, for a network that has none."""
    shared = [net.initial] if isinstance(net, BayesianNetwork) else []  # nobody writes into it, and it is as large as the net
    try:
        return copy.deepcopy(net, {id(tensor): tensor for tensor in shared})
    except (RuntimeError, TypeError) as error:
        why = str(error).split("\n")[0]
        remedy = "remove what cannot be copied (a lock, a file, an activation that was kept) before"
        pruned, normed = (_with_parameter(net, ending) for ending in ("_orig", "_g"))
        if pruned is not None:
            remedy = f"call torch.nn.utils.prune.remove on {pruned or 'it'} first"
        elif normed is not None:
            remedy = f"use torch.nn.utils.parametrizations.weight_norm for {normed or 'it'}"
        raise ValueError(f"expected a network that can be copied, but {why}: {remedy}") from error


def _with_parameter(net: nn.Module, ending: str) -> str | None:
    """The name of the first module with a parameter that ends so."""
    owners = (name for name, module in net.named_modules() if any(key.endswith(ending) for key in module._parameters))
    return next(owners, None)


def _without(net: nn.Module, names: set[str]) -> nn.Module:
    """A copy of the network that holds no maskable tensors: they would be dead weight in a parameter store."""
    stripped = copied(net)
    for name in names:
        owner, attribute = owner_of(stripped, name)
        owner.register_parameter(attribute, None)
    return stripped


def _single(tensor: Any) -> Any:
    """16-bit numbers in float32."""
    return tensor.float() if isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _picked(found: Any, output: Output) -> Any:
    """Raises ValueError where the network's output has no such part."""
    if callable(output):
        return output(found)
    try:
        return found[output]
    except (KeyError, IndexError, TypeError) as error:
        there = ", ".join(map(str, found)) if isinstance(found, Mapping) else f"{type(found).__name__}"
        raise ValueError(
            f"expected the network's output to have a part {output!r}, got {there}: mend output="
        ) from error
