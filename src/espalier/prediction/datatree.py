"""Predictive draws at rows of one's own as labelled arrays: an ArviZ DataTree. Of a data set's rows: `labelled.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

from espalier.likelihoods import plain
from espalier.prediction.mixture import Mixture
from espalier.prediction.predict import in_units, parameters_of

if TYPE_CHECKING:
    import xarray


def to_datatree(mixture: Mixture, y: Tensor, *, seed: int = 0) -> xarray.DataTree:
    """A posterior predictive of n rows as an ArviZ DataTree with dims chain, draw, observation; y: `(n,)`, or `(n, ...)` with
    dims output, or output_0 and so on, too.

    Groups: `posterior_predictive` (y drawn once per draw, from the likelihood's own distribution), `predictions` (class
    probabilities, or mean and standard deviation), `log_likelihood` (of each observation, nats), `observed_data`. On Python 3.11
    it is `arviz.preview` that plots it, later `arviz` itself: `plot_ppc_pava(tree, data_type="categorical")`.
    """
    from arviz_base import from_dict

    classes = isinstance(plain(mixture.distributions[0]), dist.Categorical | dist.Bernoulli)
    parameters = torch.stack([parameters_of(each) for each in mixture.distributions])
    if not classes:
        parameters = in_units(parameters, mixture.shift, mixture.scale)
    name, dims = ("probability", "class") if classes else ("mean_and_scale", "moment")
    outputs = ["output"] if y.dim() == 2 else [f"output_{axis}" for axis in range(y.dim() - 1)]
    sampled = mixture.draws(seed)
    return from_dict(
        {
            "posterior_predictive": {"y": (sampled.long() if classes else sampled)[None].numpy()},
            "predictions": {name: parameters[None].detach().numpy()},
            "log_likelihood": {"y": mixture.log_probs(y)[None].detach().numpy()},
            "observed_data": {"y": y.numpy()},
        },
        dims={"y": ["observation", *outputs]},
        pred_dims={name: ["observation", *outputs, dims]},
    )
