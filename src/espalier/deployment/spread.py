"""What the weights of an exported network vary by, so that it predicts by `moments` where its users work (`propagation.py`).

The network holds the weights' means. In `config.json` stand, under `moments`, the layers' `factors`, the `count` of outputs
that are laid out, and of a mask every layer's variance / mean^2 as `ratios`; of a Gaussian guide variances are in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from espalier.prediction.moments import Moments, Unknown
from espalier.prediction.propagation import by_factors, points_for

DRAWS = 32
"""Of `redraw` that it is as fine as, `EACH` outputs for each."""
LARGE = 1e9
"""Above any factor, or ratio of a keep probability, that there is."""
MOST = 1 << 14
"""Outputs that are laid out, at most: each row has as many."""


class Spread(nn.Module):
    """Of masked tensors by their names: `ratios`, or of what has none its `variances`. factors: of the layers, and last of the
    output."""

    points: Tensor

    def __init__(
        self, ratios: Mapping[str, float], variances: Mapping[str, Tensor], factors: Sequence[float], count: int
    ) -> None:
        super().__init__()
        numbers = (*factors, *ratios.values())
        sound = all(type(number) in (int, float) and 0 <= number < LARGE for number in numbers) and len(factors) > 0
        if not sound or type(count) is not int or not 1 <= count <= MOST:
            got = f"{list(factors)}, {list(ratios.values())} and {count}"
            raise ValueError(f"expected factors, ratios and a count of 1 to {MOST} under moments in config.json, got {got}")
        self.ratios, self.factors, self.count = dict(ratios), [float(factor) for factor in factors], count
        self.places = {name: f"variance_{place}" for place, name in enumerate(variances)}
        for name, variance in variances.items():
            self.register_buffer(self.places[name], variance, persistent=False)
        self.register_buffer("points", torch.zeros(count, 0), persistent=False)

    def moments(self, network: nn.Module, arguments: Any, keywords: Mapping[str, Any], pick: Callable[[Any], Any]) -> Moments:
        """Of the output `(n, ...)` that `pick` takes from what the network gives. Raises Unknown where it goes another way than
        when the factors were found."""
        state = dict(network.named_parameters(remove_duplicate=False))
        random: dict[str, Tensor] = {}
        for name, ratio in self.ratios.items():
            random[name] = Moments(state[name], state[name].square() * ratio, ratio)
        for name, place in self.places.items():
            random[name] = Moments(state[name], getattr(self, place))
        *factors, last = self.factors
        layers = by_factors(factors)
        with layers:
            found = pick(functional_call(network, random, tuple(arguments), dict(keywords)))
        if layers.seen != len(factors) or not isinstance(found, Moments):
            raise Unknown(f"{layers.seen} layers where {len(factors)} were found")
        return Moments(found.loc.double(), found.variance.double() * last)

    def fitted(self, output: Moments) -> None:
        """Lay points out for outputs like this."""
        self.points = points_for(output.loc, self.count)

    def laid_out(self, output: Moments) -> Tensor:
        """Outputs `(count, n, ...)`, float64."""
        return output.loc + output.variance.sqrt() * self.points.view(self.count, *[1] * (output.dim() - 1), -1)
