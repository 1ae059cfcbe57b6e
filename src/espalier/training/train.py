"""The one loop: steps, pairs collected at the end of late epochs, a checkpoint at every epoch.

for each epoch:  for each batch:  Loop.step   ->  watch.on_epoch (may end it)  ->  collect a pair (Z, u)  ->  checkpoint
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from espalier import calibration, nested, store
from espalier.contracts import Data, Schedule, Topology, number
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork, under
from espalier.prediction import batchnorm, propagation
from espalier.prediction.fit import Fit
from espalier.prediction.mixture import Mixture
from espalier.prediction.pairs import Pair, Pairs
from espalier.prediction.predict import outcome_of, parameters_of
from espalier.randomness import forked
from espalier.sparse import scatter
from espalier.store import Bundle
from espalier.training import distributed
from espalier.training.batches import batches
from espalier.training.loop import Info, Loop
from espalier.training.options import Training
from espalier.training.stopping import EarlyStopping, check_patience, ending
from espalier.training.streams import Streams, one_at_a_time
from espalier.training.watch import Watches, as_one


@one_at_a_time
def train(
    model: BayesianNetwork,
    guide: MaskedGuide,
    schedule: Schedule,
    data: Data,
    *,
    training: Training,
    streams: Streams,
    average_from: float = 1.0,
    followers: Sequence[Follower] = (),
    watch: Watches = None,
) -> Fit:
    """Train the guide and return its fit.

    followers: go along, and leave their traces in the history and the fit (the drop rate that is found).
    A pair (Z, u, other parameters) is collected at the end of every epoch after the fraction `average_from` of training,
    and of the last epoch in any case: of the one, too, at whose end `training.patience` is over or a watch ends it. (Where a
    pruning rule has not reached its sparsity then, training goes on until it has.)
    Raises ValueError, before any work, where averaging would start while the topology
    still moves, and RuntimeError where the loss stops being finite (the last checkpoint stays).
    """
    check_patience(training.patience, data)
    watch = as_one([as_one(watch), EarlyStopping(training.patience)] if training.patience else watch)
    per_epoch, steps = training.steps_per_epoch(data), training.steps(data)
    check_average_from(average_from)
    first = round(average_from * training.epochs, 9)
    if schedule.last > first * per_epoch:
        raise ValueError(
            f"expected averaging to start after the topology is frozen, got average_from {average_from} and a freeze at "
            f"step {schedule.last} of {steps}: raise one or lower the other"
        )
    rows = min(training.batch_size, len(data.train.y))
    distributed.check_shares(rows, model.num_data)
    _check_microbatches(model, guide, rows // distributed.size())
    guide.to(streams.device)
    followers = followers if model.loss is None else [*followers, model.loss]
    moves = [schedule.last, schedule.reached, sum(map(schedule.due, range(1, steps + 1)))]
    asked = _asked(model, guide, training, streams) | {"average_from": average_from, "moves": moves, **schedule.asked}
    asked["preparation of the data"] = prepared_as(data)
    for follower in followers:
        asked |= follower.asked()
    loop = Loop(
        model,
        guide,
        schedule,
        training.learning_rates(steps),
        optimizer=training.optimizer,
        momentum=training.momentum,
        precision=training.precision,
        topology_stream=streams.topology,
        followers=followers,
    )
    inputs = []
    if batchnorm.has_batchnorm(model):
        inputs = batchnorm.training_batches(data, training.bn_batches, training.batch_size, streams.device)
    pairs: list[Pair] = []
    history: list[dict[str, Any]] = []
    stopped = ""
    # A parameter store of our own: Pyro's global one would hand this guide the values of the last one of its name.
    with (
        forked(streams.device),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Encountered NaN")  # the loop raises instead
        warnings.filterwarnings("ignore", ".* was not registered in the param store because requires_grad=False")
        streams.seed_default()
        saved = watch.resume()
        if saved is not None:
            history, pairs, stopped = _restore(saved, loop, streams, data, asked)
        distributed.check_alike({**_checkpoint(loop, streams, history, pairs, stopped, data, asked).tensors, **data.hashes})
        watch.on_begin(history)
        model.train()
        over = len(history) >= training.epochs or (stopped != "" and loop.taken >= schedule.reached)
        while not over:
            infos, epoch = [], len(history) + 1
            streams.part_ways(epoch)
            with distributed.synchronised(model.net, streams.device):
                for x, y in batches(data, training, streams):
                    infos.append(loop.step(x, y))
                    watch.on_step(infos[-1])
            loop.finite.settle()
            history.append(_row(epoch, infos, loop, data))
            said = distributed.first_said(watch.on_epoch(history[-1]))
            stopped = stopped or said
            over = epoch >= training.epochs or (stopped != "" and loop.taken >= schedule.reached)
            if epoch > first or over:
                pairs.append(_collect(loop, training, inputs, len(pairs)))
            watch.keep(partial(_checkpoint, loop, streams, history, pairs, stopped, data, asked))
        distributed.check_alike(loop.state().tensors)
    model.eval()  # so that evaluating it leaves the batch-norm buffers alone
    fit = _fit(model, guide, data, training, history, pairs, inputs)
    fit.record |= ending(history, stopped, training.epochs)
    for follower in followers:
        follower.end(fit, data)
    if "moments" not in fit.record:  # a look at the rate has found its factors
        propagation.equip(fit, data)
    return fit


def _asked(model: BayesianNetwork, guide: MaskedGuide, training: Training, streams: Streams) -> dict[str, Any]:
    """What a checkpoint is of, beside when and how the topology moves and the followers: another training may not go on from
    it. Where it runs, and when it is to be ended early, is not among it."""
    rate = guide.keep_prob if isinstance(guide.keep_prob, float) else list(guide.keep_prob)
    return {"kind": "training", **training.said(), **guide.asked(), "keep_prob": rate, "seed": streams.default,
            "weights": [weight.name for weight in model.weights], "active": list(guide.counts),
            "prior_scale": model.prior_scale}  # fmt: skip


def check_average_from(average_from: float) -> None:
    """Raises ValueError for what is no fraction of training: for programs whose last training has it, at once."""
    if not 0 <= number(average_from, float, "average_from") <= 1:
        raise ValueError(f"expected average_from in [0, 1], got {average_from}: it is a fraction of training")


def prepared_as(data: Data) -> str:
    """A digest of how inputs and targets are scaled: hashes are of what they are made of."""
    own = [data.preparation(), nested.plain(data.target_shift), nested.plain(data.target_scale)]
    return store.sha256(store.canonical(own).encode())[:12]


def _check_microbatches(model: BayesianNetwork, guide: MaskedGuide, rows: int) -> None:
    """Raises ValueError where a batch of so many rows is not to be in so many parts."""
    least = 2 if batchnorm.has_batchnorm(model) else 1
    if guide.microbatches > max(1, rows // least):
        raise ValueError(f"expected microbatches of {least} rows or more, of a batch of {rows}, got {guide.microbatches} of them")
    if guide.microbatches > 1 and model.loss is not None:
        raise ValueError("expected one microbatch with a loss other than the likelihood, which may look at a batch as a whole")


@torch.no_grad()
def _collect(loop: Loop, training: Training, inputs: list[Tensor], index: int) -> Pair:
    """The pair at an epoch's end: Z of the last step with u after it, and the other parameters and statistics."""
    model, guide = loop.model, loop.guide
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pair = Pair(guide.collected(), loop.keep.clone(), state, guide.scales())
    if training.batchnorm == "re-estimate":
        weights = scatter(pair.draw(index) * guide.scale, guide.positions, model.num_weights)
        pair = pair._replace(state=batchnorm.estimate(model, weights, state, inputs))
    return pair


@torch.no_grad()
def _row(epoch: int, infos: list[Info], loop: Loop, data: Data) -> dict[str, Any]:
    """One line of the history: means over the epoch's steps, and the posterior mean on the validation split."""
    loss, log_likelihood, kl = (
        float(torch.stack([getattr(info, name) for info in infos]).mean()) for name in ("loss", "log_likelihood", "kl")
    )
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": loop.taken,
        "loss": loss,
        "log_likelihood": log_likelihood,
        "kl": kl,
        "learning_rate": loop.learning_rate(loop.taken),
        "density": loop.guide.topology.density,
        "explored": loop.ever.density,
        "exchanged": sum(info.grown for info in infos),
        "moves": sum(info.moved for info in infos),
        "mean_density": sum(info.active for info in infos) / (len(infos) * loop.model.num_weights),
    }
    for follower in loop.followers:
        row |= follower.row()
    if len(data.validation.y):
        row |= _validate(loop, data)
    return row


def _validate(loop: Loop, data: Data) -> dict[str, float]:
    """How the posterior mean does on the validation split, with the batch-norm statistics as they run: an indication."""
    return validation_scores(outcome_of(loop.model, loop.guide.distribution().mean, data.validation.x), data)


@torch.no_grad()
def validation_scores(outcome: dist.TorchDistribution, data: Data) -> dict[str, float]:
    """A history row's scores of what one network says of the validation split: `predict.outcome_of` it."""
    if data.num_classes is None:
        said = Mixture([outcome], data.target_shift, data.target_scale)
        targets = data.in_units(data.validation.y)
        log_prob = said.log_prob(targets)
        error = targets.numpy() - said.centre(said.sample(256).numpy())
        nll = -float(log_prob.mean()) / targets[0].numel()  # of several targets a row, each
        most = max(float(np.abs(error).max()), np.finfo(np.float64).tiny)  # in whose unit no square overflows
        scores = {"validation_rmse": most * float(np.sqrt(np.mean((error / most) ** 2))), "validation_nll": nll}
        finite = all(np.isfinite(list(scores.values())))
    else:
        parameters, labels = parameters_of(outcome).flatten(0, -2).numpy(), data.validation.y.flatten().long().numpy()
        finite = bool(np.isfinite(parameters).all())
        scores = {} if not finite else {
            "validation_accuracy": calibration.accuracy(parameters, labels),
            "validation_nll": calibration.nll(parameters, labels),
            "validation_ece": calibration.ece(parameters, labels),
        }  # fmt: skip
    if not finite:
        raise RuntimeError("the network's outputs stopped being finite: lower the learning_rate or add warmup")
    return scores


def _checkpoint(
    loop: Loop, streams: Streams, history: list[dict[str, Any]], pairs: list[Pair], stopped: str, data: Data,
    asked: dict[str, Any],
) -> Bundle:  # fmt: skip
    """All that a training is: continuing from it gives the same bits as never having stopped."""
    tensors, facts = loop.state()
    tensors |= {f"stream.{name}": state for name, state in streams.state().items()}
    for index, pair in enumerate(pairs):
        tensors |= {f"pair.{index}.{name}": tensor for name, tensor in pair.tensors().items()}
    facts |= {"history": [*history], "pairs": len(pairs), "stopped": stopped, "data": data.hashes, "asked": asked}
    return Bundle(tensors, facts)


def _restore(
    saved: Bundle, loop: Loop, streams: Streams, data: Data, asked: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Pair], str]:
    if saved.facts.get("data", data.hashes) != data.hashes:
        raise ValueError(
            f"expected the data that the checkpoint was made on, but {data.name} holds other rows: begin anew"
        )
    check_asked(saved.facts, asked)
    saved = Bundle({name: tensor.clone() for name, tensor in saved.tensors.items()}, saved.facts)  # it may be asked for twice
    try:
        loop.restore(saved)
    except KeyError as missing:
        raise ValueError(
            f"expected the training that the checkpoint is of, but it knows of no {missing.args[0]}: begin anew in another file, "
            "or say what was said then"
        ) from missing
    streams.restore(under("stream.", saved.tensors))
    pairs = []
    for index in range(saved.facts["pairs"]):
        own = {name: tensor.to(streams.device) for name, tensor in under(f"pair.{index}.", saved.tensors).items()}
        pairs.append(Pair.of(own))
    return [*saved.facts["history"]], pairs, saved.facts.get("stopped", "")


def check_asked(facts: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises ValueError for the facts of a checkpoint in which something else was asked for."""
    before = facts.get("asked", asked)
    if other := [name for name, value in before.items() if asked.get(name) != value]:  # older ones were not asked for all
        name = other[0]
        if name == "distill_from":  # of versions whose student went along
            raise ValueError("expected a checkpoint of this version, got one with a student on the way: begin anew")
        raise ValueError(
            f"expected the training that the checkpoint is of, with {name} {before[name]}, got {asked.get(name)}: begin "
            "anew in another file, or say what was said then"
        )


def topology_facts(model: BayesianNetwork, topology: Topology) -> dict[str, Any]:
    """What a record keeps of the weights, JSON-able."""
    layers = zip(model.weights, topology.counts, strict=True)
    return {
        "num_data": model.num_data,
        "num_weights": topology.num_weights,
        "num_active": topology.num_active,
        "density": topology.density,
        "layers": [{"name": weight.name, "shape": weight.shape, "active": active} for weight, active in layers],
    }


def _fit(
    model: BayesianNetwork,
    guide: MaskedGuide,
    data: Data,
    training: Training,
    history: list[dict[str, Any]],
    pairs: list[Pair],
    inputs: list[Tensor],
) -> Fit:
    topology = guide.topology
    record = {
        **data.facts(),
        **topology_facts(model, topology),
        "keep_prob": guide.keep_prob,
        "rescale": guide.rescale,
        "mask": guide.mask,
        "num_particles": guide.num_particles,
        "microbatches": guide.microbatches,
        "kl_scale": guide.kl_scale,
        "prior_scale": model.prior_scale,
        "weight_decay": model.weight_decay,
        "num_pairs": len(pairs),
        "batchnorm": training.batchnorm,
        "bn_batches": training.bn_batches,
        "batch_size": training.batch_size,
        "optimizer": training.optimizer,
        "momentum": training.momentum,
        "elbo": {name: history[-1][name] for name in ("log_likelihood", "kl", "loss")},
    }
    return Fit(
        model,
        topology,
        Pairs.of(pairs),
        keep_prob=guide.keep_prob,
        rescale=guide.rescale,
        mask=guide.mask,
        record=record,
        history=history,
        inputs=inputs or None,
    )
