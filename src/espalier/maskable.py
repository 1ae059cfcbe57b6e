"""Which tensors of a network are masked: Linear and Conv weights, or those that a user names."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.utils import parametrize

_LINEAR_OR_CONV = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class Weight(NamedTuple):
    """A maskable tensor: its names in the network (several where it is tied) and its shape."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def maskable_weights(net: nn.Module, patterns: Sequence[str] | None) -> Iterator[Weight]:
    """The tensors to mask, in the network's order; tied names are gathered under the first."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    candidates = {
        f"{prefix}.weight".lstrip("."): module
        for prefix, module in net.named_modules()
        if isinstance(module, _LINEAR_OR_CONV)
    }
    plain = dict(net.named_parameters(remove_duplicate=False))
    for name, parameter in plain.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"expected an initialised network, but {name} has no shape yet: call the network once first")
    if patterns is None:
        chosen = [name for name in candidates if name in plain and plain[name].requires_grad]
        odd = {name for name in chosen if not plain[name].is_floating_point()}
        chosen = [name for name in chosen if name not in odd]
        for left, why in (({*candidates} - {*plain}, "a parametrised weight"), (odd, "what is not floating")):
            if left:
                warnings.warn(f"{', '.join(sorted(left))} stay dense: {why} cannot be masked", stacklevel=3)
    else:
        known = list(dict.fromkeys([*plain, *candidates]))
        chosen = [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        for name in chosen:
            _refuse_unmaskable(net, name, plain)
        frozen = {name for name in chosen if not plain[name].requires_grad}
        if named := sorted(frozen & set(patterns)):
            raise ValueError(f"{named[0]} cannot be masked: it is frozen; let it require gradients, or leave it out")
        chosen = [name for name in chosen if name not in frozen]
    if not chosen:
        wanted = "a Linear or Conv layer" if patterns is None else f"a tensor that matches {' or '.join(patterns)}"
        raise ValueError(f"expected a network with {wanted}; its parameters are {', '.join(plain) or 'none'}")
    names: dict[int, list[str]] = {}
    slots: set[tuple[int, str]] = set()
    for name, parameter in plain.items():
        owner, attribute = owner_of(net, name)
        if (id(owner), attribute) not in slots:  # a layer that stands in two places has two names and one slot
            names.setdefault(id(parameter), []).append(name)
        slots.add((id(owner), attribute))
    for key in dict.fromkeys(id(plain[name]) for name in chosen):
        yield Weight(tuple(names[key]), tuple(plain[names[key][0]].shape))


def _refuse_unmaskable(net: nn.Module, name: str, plain: Mapping[str, nn.Parameter]) -> None:
    owner, attribute = owner_of(net, name)
    if name not in plain:
        raise ValueError(f"{name} cannot be masked: it is parametrised; leave it dense")
    if (
        isinstance(owner, nn.RNNBase)
        or parametrize.is_parametrized(owner)
        or type(owner).__name__ == "ParametrizationList"
    ):
        raise ValueError(f"{name} cannot be masked: its {type(owner).__name__} keeps a second copy; leave it dense")
    if not plain[name].is_floating_point():
        raise ValueError(f"{name} cannot be masked: it has dtype {plain[name].dtype}, not a floating one")


def owner_of(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return net.get_submodule(path), attribute
