"""A network whose Linear layers keep their active weights alone, for prediction on the CPU: a plain `nn.Module`."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from espalier.sparse import kernels
from espalier.sparse.layout import Indices, Layer, indices_of, is_worthwhile
from espalier.sparse.products import product
from espalier.sparse.trial import agree

PRECISIONS = (torch.float32, torch.float64)
"""That torch has kernels for."""
Sparse = bool | Literal["auto"]
"""Are Linear layers multiplied by their active weights alone? `auto`: where that is faster; True: and somewhere it has to be."""


class SparseLinear(nn.Module):
    """x W^T + b over those weights of a Linear layer that are not zero: x `(..., inputs)` -> `(..., outputs)`.

    values `(k,)` and bias are parameters, so that it can be trained further on its topology; positions and indices are buffers.
    """

    positions: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        flat = linear.weight.detach().reshape(-1)
        self.shape = (linear.out_features, linear.in_features)
        self.register_buffer("positions", flat.nonzero().squeeze(1))
        self.values = nn.Parameter(flat[self.positions])
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
        for name, places in indices_of(self.positions, self.shape)._asdict().items():
            self.register_buffer(name, places)

    def extra_repr(self) -> str:
        return f"in_features={self.shape[1]}, out_features={self.shape[0]}, active={len(self.values)}"

    @property
    def weight(self) -> Tensor:
        """Written out, for whoever reads it."""
        size = self.shape[0] * self.shape[1]
        return self.values.new_zeros(size).index_copy(0, self.positions, self.values).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.values.dtype not in PRECISIONS or self.values.device.type != "cpu":
            return nn.functional.linear(x, self.weight, self.bias)  # torch has no kernels for it
        indices = Indices(*(getattr(self, name) for name in Indices._fields))
        return product(x, self.values, self.bias, Layer(self.shape, self.positions, indices))


def sparsified(net: nn.Module, x: Any, sparse: Sparse = True) -> nn.Module:
    """A copy of a network in evaluation mode whose Linear layers are `SparseLinear` where that is faster (`is_worthwhile`); the
    network itself where `sparse` is False.

    x: rows as the network takes them, 16 or so, on which the copy is tried. Raises ValueError where `sparse` is True and no layer
    would gain, torch has no kernels for it, or the network does something else with its layers than calling them; `auto` then
    gives the network itself.
    """
    if sparse not in (True, False, "auto"):
        raise ValueError(f"expected sparse of True, False or 'auto', got {sparse!r}")
    if sparse is False:
        return net
    slots = [
        (owner, name, part)
        for owner in net.modules()
        for name, part in owner.named_children()
        if type(part) is nn.Linear and is_worthwhile(tuple(part.weight.shape), int(part.weight.count_nonzero()))
    ]
    own = all(part.weight.dtype in PRECISIONS for _, _, part in slots) and kernels.there()
    on_cpu = own and all(tensor.device.type == "cpu" for tensor in net.parameters())
    why = "this machine has no kernels for it" if not on_cpu else "" if slots else "no Linear layer of this one would gain"
    if not why:
        made = {part: SparseLinear(part) for _, _, part in slots}  # a layer that stands in two places is one
        memo = {id(part): own for part, own in made.items()}
        found = copy.deepcopy(net, memo)
        if agree(found, net, x):
            return found.eval()
        why = "this one does something else with its layers than calling them, or reads memory as it lies"
    if sparse is True:
        raise ValueError(f"expected a network on the CPU that is faster without its zeros, but {why}: leave it dense")
    return net
