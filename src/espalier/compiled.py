"""A network's call as one program of torch.compile's, which takes the weights as arguments: compiled once, whatever the mask.

Dense weights only: what torch.compile fuses is what stands between the products, batch norms and activations of a convolutional
network; an MLP above 75 % sparsity is faster by products over its active weights.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

Compiled = Literal["no", "training", "prediction"]
"""Which calls of a model are compiled: none, those with a gradient, or those in evaluation mode."""


def is_due(compiled: Compiled, net: nn.Module) -> bool:
    """Is this call one of them?"""
    return torch.is_grad_enabled() if compiled == "training" else compiled == "prediction" and not net.training


@contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """A `BayesianNetwork`'s network called as it is for the while: a program of tensors has no place for hooks, or intervals."""
    was, model.compiled = model.compiled, "no"
    try:
        yield
    finally:
        model.compiled = was


def check(net: nn.Module) -> None:
    """Raises ValueError for a network with Pyro sites of its own: looked at once, not at every call."""
    if any(isinstance(part, PyroModule) for part in net.modules()):
        raise ValueError("expected a network of plain modules to compile, got one with PyroModules: train it without compile")


def call(net: nn.Module, tensors: Mapping[str, Tensor], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """`functional_call`, compiled, of a network that `check` lets pass; those of one build share the program. Random draws are
    eager torch's own. Raises RuntimeError where torch.compile cannot work here.
    """
    try:
        return _program()(net, dict(tensors), tuple(arguments), dict(keywords))
    except torch._dynamo.exc.TorchDynamoException as error:
        why = str(getattr(error, "inner_exception", error)).strip().split("\n")[0]
        raise RuntimeError(
            f"expected a network and a machine that torch.compile can work with, but {why}: do without compile"
        ) from error


@cache
def _program() -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch, about torch, as it loads its compiler
        importlib.import_module("torch._inductor.compile_fx")
    return torch.compile(_called, options={"fallback_random": True})


def _called(net: nn.Module, tensors: dict[str, Tensor], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return functional_call(net, tensors, arguments, keywords, tie_weights=False)
