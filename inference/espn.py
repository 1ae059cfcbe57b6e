"""ESPN (Cho, Joshi & Hegde 2020): an L1 on relaxed masks finds the topology of a dense net, and what is left trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from espalier.contracts import Data
from espalier.distributions import given_keep_prob
from espalier.guides import MaskedGuide, RelaxedGuide
from espalier.network import BayesianNetwork
from espalier.prediction import Fit
from espalier.prediction.costs import trained
from espalier.topology import initial, schedules
from espalier.topology.options import Sparsity
from espalier.training import Phase, Training, Watches, opened, prepare, relaxed_masks, started_from
from espalier.training.options import AverageFrom, Seed
from espalier.training.train import train


def infer(
    model: BayesianNetwork,
    data: Data,
    *,
    sparsity: Sparsity = 0.9,
    form: Literal["finetune", "rewind"] = "finetune",
    drop_rate: float = 0.0,
    l1: float | Literal["auto"] = "auto",
    mask_epochs: int = 30,
    rewind_epochs: int = 1,
    finetune_rate: float = 0.01,
    allocation: Literal["global", "erk", "uniform"] = "global",
    average_from: AverageFrom = 0.8,
    training: Training = Training(),  # noqa: B008 - frozen
    seed: Seed = 0,
    watch: Watches = None,
) -> Fit:
    """Three trainings: dense; of weights w * m at the loss plus l1 * |m|_1, m = 1 at first, until no more |m| than are kept are
    above 0.01; and of the largest |m|, sparse. Nothing is chosen on any split but the training one.

    form: finetune starts the mask and the last training from the one before, rewind both from a short dense one.
    drop_rate: P(Z = 0), in the last training only. l1: auto takes an m without another gradient to 0 in half of the search.
    mask_epochs: the most that the search takes, at the full rate. rewind_epochs: of rewind's dense training, at the full rate.
    finetune_rate: peak of finetune's last learning rate. allocation: the largest of the network, or of each layer at its share.
    """
    streams, phase = opened(model, data, training, seed), Phase(watch)
    if form not in ("finetune", "rewind") or min(mask_epochs, rewind_epochs) < 1 or not 0 <= average_from <= 1:
        got = f"{form}, {mask_epochs} and {rewind_epochs}, {average_from}"
        raise ValueError(f"expected form finetune or rewind, epochs of at least 1 and average_from in [0, 1], got {got}")
    tuning = form == "finetune"
    first = training if tuning else replace(training, epochs=rewind_epochs, rate="constant", warmup=0, patience=0)
    search = replace(training, epochs=mask_epochs, rate="constant", warmup=0, patience=0)
    last = replace(training, learning_rate=finetune_rate) if tuning else training
    last.check_with(data)  # refused at once, and not after other trainings
    strength = relaxed_masks.strength(l1, search, search.steps(data))
    budget, keep_prob = relaxed_masks.budget(model.shapes, sparsity, allocation), given_keep_prob(drop_rate)

    ready = prepare(model, data, first)
    whole = initial(model.shapes, 0.0, generator=streams.topology)
    fit = train(ready, MaskedGuide(ready, whole), schedules.static(), data, training=first, streams=streams, watch=phase)
    start = started_from(model, fit)
    earlier, phase = [trained(fit)], phase.next()

    ready = prepare(start, data, search)
    ready.weight_decay = 0.0
    guide, mask = RelaxedGuide(ready, whole, rate=strength * len(data.train.y)), relaxed_masks.Search(budget, strength)
    fit = train(ready, guide, schedules.static(), data, training=search, streams=streams, followers=[mask],
                watch=[phase, relaxed_masks.Few(mask.count)])  # fmt: skip
    topology = relaxed_masks.kept(model.shapes, budget, mask.relaxed)
    if tuning:
        start = started_from(model, fit)
    above = relaxed_masks.above(mask.relaxed)
    found = {"form": form, "l1": strength, "above": above, "kept": mask.count, "epochs": len(fit.history)}
    earlier, phase = [*earlier, trained(fit) | {"vectors": 2}], phase.next()

    ready = prepare(start, data, last, keep_prob=keep_prob)
    guide = MaskedGuide(ready, topology, keep_prob, generator=streams.mask)
    fit = train(ready, guide, schedules.static(), data, training=last, streams=streams, average_from=average_from, watch=phase)
    fit.record |= {"earlier": earlier, "relaxed_mask": found}
    return fit
