"""Function-space variational inference (Rudner et al., NeurIPS 2022) on a sparse mean-field Gaussian."""

from __future__ import annotations

from torch import Tensor

from espalier.contracts import Data
from espalier.guides import GaussianGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.topology import initial, schedules
from espalier.topology.options import Allocation, DeltaT, DropFraction, DropScoreName, Freeze, Sparsity, Start
from espalier.topology.scores import drop_score as score_of
from espalier.training import Training, Watches, opened, prepare
from espalier.training.function_space import FunctionSpaceKL, Linearised, context_of
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    context: str | Tensor = "train",
    context_points: int = 32,
    linearised: Linearised = "last-layer",
    noise_scale: float = 0.01,
    drop_score: DropScoreName = "snr-magnitude",
    allocation: Allocation = "erk",
    start: Start = "random",
    delta_t: DeltaT = 100,
    drop_fraction: DropFraction = 0.3,
    freeze: Freeze = 0.75,
    average_from: AverageFrom = 0.8,
    kl_scale: float = 1.0,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """The weights of `mean_field`, held to a prior by what they say: in place of the KL of the weights, at every step that of
    the outputs at fresh context points, under the prior N(0, prior_scale^2) of the active weights.

    context: where these points come from, unlabelled: train, corrupted (training images, in all kinds and severities), a named
    set, an npz file or a folder of images; in Python also a tensor. context_points: of a step. linearised: last-layer, exact
    given a draw of the others, or all, for networks of at most 10,000 weights. noise_scale: where every sigma starts.
    drop_score: as in mean_field. kl_scale: tempering of the KL.
    """
    streams = opened(model, data, training, seed)
    model = prepare(model, data, training)
    function_space = FunctionSpaceKL(
        context_of(context, data), context_points, linearised=linearised, kl_scale=kl_scale, seed=streams.seed
    )
    topology = initial(model.shapes, sparsity, allocation, start, model.initial, streams.topology)
    guide = GaussianGuide(model, topology, noise_scale=noise_scale, kl_scale=0.0, generator=streams.mask)
    last = training.step_at(freeze, data)
    schedule = schedules.rigl(delta_t, last, drop_fraction, score_of(drop_score))
    return train(
        model, guide, schedule, data, training=training, streams=streams, average_from=average_from,
        followers=[function_space], watch=watch,
    )  # fmt: skip
