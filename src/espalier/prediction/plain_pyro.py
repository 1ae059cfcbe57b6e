"""Results of plain Pyro as an ArviZ DataTree: MCMC, or samples of `Predictive`. ArviZ 1.x brings no such converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.poutine.messenger import Messenger
from torch import Tensor

from espalier.randomness import forked

if TYPE_CHECKING:
    import xarray

Samples = Mapping[str, Tensor]


def from_pyro(
    posterior: MCMC | Samples | None = None,
    posterior_predictive: Samples | None = None,
    *,
    prior: Samples | None = None,
    prior_predictive: Samples | None = None,
    predictions: Samples | None = None,
    log_likelihood: Samples | None = None,
    observed_data: Samples | None = None,
    constant_data: Samples | None = None,
    model: Any = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_chains: int = 1,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
) -> xarray.DataTree:
    """A DataTree with a group for everything that is given, dims chain, draw and the sites' own.

    posterior: a finished `MCMC`, its chains kept apart, or samples `(S, ...)` by site as `Predictive` and `get_samples()` return
    them, chain after chain where num_chains is more than one. posterior_predictive, predictions: samples `(S, ...)` of
    `Predictive`; with a model, what posterior has of its observed sites goes to the former. prior, prior_predictive: as many as
    there are, one chain. model, args, kwargs: the program and what it is called with, observations included: then
    `observed_data` is taken from its observed sites, and `log_likelihood` (nats, one number for each independent observation,
    without plate or `scale` factors) computed at every posterior draw, where they are not given.

    Raises ValueError where nothing is given, samples do not divide into `num_chains` chains of one length, or the model has
    latent sites that the posterior has not, a plate that draws its rows, or masked observations.
    """
    from arviz_base import from_dict

    if isinstance(posterior, MCMC):
        own = {name: value.detach() for name, value in posterior.get_samples(group_by_chain=True).items()}
        num_chains = next(iter(own.values())).shape[0]
    else:
        own = {name: _chains(name, value, num_chains) for name, value in (posterior or {}).items()}
    groups: dict[str, Any] = {"posterior": own} if own else {}
    drawn = {"posterior_predictive": posterior_predictive, "predictions": predictions, "log_likelihood": log_likelihood}
    for group, samples in {**drawn, "prior": prior, "prior_predictive": prior_predictive}.items():
        if samples:
            chains = 1 if group.startswith("prior") else num_chains
            groups[group] = {name: _chains(name, value, chains) for name, value in samples.items()}
    if model is not None and own:
        own, predicted = _of_sites(own, model, args, kwargs or {})
        groups["posterior"] = own
        groups |= {"posterior_predictive": predicted | groups.get("posterior_predictive", {})} if predicted else {}
        seen, logs = _of_model(model, own, args, kwargs or {})
        groups.setdefault("log_likelihood", logs)
        observed_data = observed_data or seen
    for group, values in (("observed_data", observed_data), ("constant_data", constant_data)):
        if values:
            groups[group] = dict(values)
    if not groups:
        raise ValueError("expected a posterior, or any other group, got none")
    arrays = {
        group: {name: np.asarray(torch.as_tensor(value).detach().cpu()) for name, value in values.items()}
        for group, values in groups.items()
    }
    tree: xarray.DataTree = from_dict(arrays, coords=coords, dims=dims, pred_dims=dims)
    return tree


def _chains(name: str, samples: Tensor, num_chains: int) -> Tensor:
    """`(S, ...)` as `(chains, S / chains, ...)`."""
    samples = torch.as_tensor(samples).detach()
    if not samples.dim() or num_chains < 1 or len(samples) % num_chains:
        raise ValueError(
            f"expected samples of {name} that divide into {num_chains} chains, got shape {tuple(samples.shape)}: mend num_chains"
        )
    return samples.reshape(num_chains, -1, *samples.shape[1:])


def _of_sites(
    posterior: Samples, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The samples `(chain, draw, ...)` in the shapes of the model's own sites, without the ones that `Predictive` pads them with;
    and those of observed sites apart, which it gives too."""
    first = {name: value[0, 0] for name, value in posterior.items()}
    with torch.no_grad(), forked(), _Standing(first):
        nodes = pyro.poutine.trace(model).get_trace(*args, **kwargs).nodes
    sites = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    latent, seen = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in posterior.items():
        site = sites.get(name, {"value": first[name], "is_observed": False, "infer": {}})
        fits = site["value"].numel() == first[name].numel()
        observed = site["is_observed"] and not site["infer"].get("_deterministic")
        (seen if observed else latent)[name] = value.reshape(*value.shape[:2], *site["value"].shape) if fits else value
    return latent, seen


class _Standing(Messenger):
    """Latent sites have these values, in their own shapes: nothing is drawn there, as a prior may be improper or wild."""

    def __init__(self, values: Samples) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            value, shape = self.values[msg["name"]], msg["fn"].shape()
            msg["value"], msg["done"] = value.reshape(shape) if value.numel() == shape.numel() else value, True


def _of_model(
    model: Any, posterior: Samples, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Observed sites and their log-likelihoods `(chain, draw, ...)`."""
    chains, draws = next(iter(posterior.values())).shape[:2]
    seen: dict[str, Tensor] = {}
    logs: dict[str, list[Tensor]] = {}
    for chain in range(chains):
        for draw in range(draws):
            at = {name: value[chain, draw] for name, value in posterior.items()}
            with torch.no_grad():
                trace = pyro.poutine.trace(pyro.poutine.condition(model, at)).get_trace(*args, **kwargs)
                trace.compute_log_prob()
            sampled = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name not in at}
            _check_known(sampled)
            for name, site in sampled.items():
                if site["is_observed"] and not _is_factor(site):
                    seen[name] = site["value"]
                    logs.setdefault(name, []).append(site["unscaled_log_prob"])
    return seen, {name: torch.stack(own).reshape(chains, draws, *own[0].shape) for name, own in logs.items()}


def _check_known(sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError where a log-likelihood at a posterior draw is not that of the posterior: of sites that it does not say,
    of rows that were drawn, of observations that are masked."""
    for name, site in sites.items():
        plate = site["fn"] if type(site["fn"]).__name__ == "_Subsample" else None
        if plate is not None and plate.subsample_size not in (None, plate.size):
            raise ValueError(
                f"expected all {plate.size} rows of plate {name!r}, got {plate.subsample_size} drawn ones: call the model with "
                "all, or give log_likelihood"
            )
        if not site["is_observed"] and plate is None:
            raise ValueError(
                f"expected samples of every latent site, but the posterior has none of {name!r} (NUTS sums discrete ones out): "
                "draw them, as infer_discrete does, or leave model out and give log_likelihood and observed_data"
            )
        if site["is_observed"] and not (site["mask"] is None or site["mask"] is True):
            raise ValueError(f"expected observations without a mask, got {name!r} under poutine.mask: give log_likelihood")


def _is_factor(site: Mapping[str, Any]) -> bool:
    """A `pyro.factor`, a `pyro.deterministic` or a plate: nothing was observed there."""
    named = bool(site["infer"].get("_deterministic"))
    return named or isinstance(site["fn"], pyro.distributions.Unit) or type(site["fn"]).__name__ == "_Subsample"
