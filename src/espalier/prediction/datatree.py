"""Predictive draws as labelled arrays: an ArviZ DataTree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

if TYPE_CHECKING:
    import xarray


def to_datatree(draws: Iterable[Tensor], y: Tensor, *, classes: bool, seed: int = 0) -> xarray.DataTree:
    """Predictive draws as an ArviZ DataTree with dims chain, draw, observation.

    draws: S tensors `(n, C)` of probabilities (`classes`) or `(n, 2)` of means and standard deviations; y: `(n,)`.
    Groups: `posterior_predictive` (y drawn once per draw), `predictions` (the parameters themselves), `log_likelihood`
    (pointwise, nats) and `observed_data`. On Python 3.11 it is
    `arviz.preview` that plots it, later `arviz` itself: `plot_ppc_pava(tree, data_type="categorical")`.
    """
    from arviz_base import from_dict

    parameters = torch.stack(list(draws))
    generator = torch.Generator().manual_seed(seed)
    if classes:
        name, dims = "probability", ["observation", "class"]
        flat = parameters.flatten(0, 1).double()
        sampled = torch.multinomial(flat, 1, generator=generator).view(parameters.shape[:2])
        log_likelihood = dist.Categorical(probs=parameters.double()).log_prob(y.expand(len(parameters), -1))
    else:
        name, dims = "mean_and_scale", ["observation", "moment"]
        mean, scale = parameters.double().unbind(-1)
        sampled = mean + scale * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        log_likelihood = dist.Normal(mean, scale).log_prob(y.double())
    return from_dict(
        {
            "posterior_predictive": {"y": sampled[None].numpy()},
            "predictions": {name: parameters[None].numpy()},
            "log_likelihood": {"y": log_likelihood[None].numpy()},
            "observed_data": {"y": y.numpy()},
        },
        dims={"y": ["observation"]},
        pred_dims={name: dims},
    )
