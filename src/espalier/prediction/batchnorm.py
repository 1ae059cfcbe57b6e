"""Batch-norm statistics re-estimated for one weight vector.

Running averages collected during training mix the statistics of many random masks Z, so every way to predict
re-estimates them for its own weights (Lei et al. 2023 refresh them for the averaged net; Izmailov et al. 2018, SWA).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier.compiled import uncompiled
from espalier.contracts import Data
from espalier.data.streamed import in_turn
from espalier.network import BayesianNetwork
from espalier.prediction.predict import to_device
from espalier.sparse.trial import alone


def has_batchnorm(model: BayesianNetwork) -> bool:
    """Is there a batch normalisation that keeps running statistics?"""
    return any(True for _ in _norms(model.net))


def training_batches(data: Data, num_batches: int, batch_size: int, device: torch.device) -> list[Tensor]:
    """What statistics are re-estimated on: the first batches of the (already shuffled) training split, not augmented.

    Whole batches only: a short last one would weigh as much as the others in the cumulative mean.
    """
    count = min(len(data.train.y), num_batches * batch_size)
    rows = torch.arange(count if count < batch_size else count - count % batch_size)
    return [to_device(batch, device) for batch in in_turn(data.train.x, rows.split(batch_size))]


@torch.no_grad()
def estimate(
    model: BayesianNetwork, weights: Tensor, state: Mapping[str, Tensor], batches: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Statistics of `batches` under `weights` and `state`: `state` with its batch-norm buffers replaced.

    Reset, then the cumulative mean over the batches; normalisation in train mode and everything else (the network's own
    dropout, say) as in prediction. A network without batch norm gets `state` back.
    """
    fresh = dict(state)
    for name, module in _norms(model.net):
        fresh[f"{name}running_mean"] = torch.zeros_like(module.running_mean)
        fresh[f"{name}running_var"] = torch.ones_like(module.running_var)
        fresh[f"{name}num_batches_tracked"] = torch.zeros_like(module.num_batches_tracked)
    if not has_batchnorm(model):
        return fresh
    calls: Counter[Any] = Counter()

    def count(module: Any, _: Any) -> None:  # by a momentum of None torch has the same, but asks the device how many they were
        if not module.training:  # a trial of the sparse product, which is no batch
            return
        calls[module] += 1
        module.momentum = 1 / calls[module]

    with by_the_batch(model) as norms, uncompiled(model), ExitStack() as hooks:
        for module in norms:
            hooks.callback(module.register_forward_pre_hook(count).remove)
        for batch in batches:
            model.evaluate(weights, batch, fresh)
    return fresh


def _norms(net: nn.Module) -> Iterator[tuple[str, Any]]:
    """The batch normalisations that keep running statistics and that training would move: a backbone whose own `train()`
    leaves it in evaluation mode is frozen, and stays as it came."""
    modes = {module: module.training for module in net.modules()}
    net.train()
    moving = {module for module in modes if module.training}
    for module, mode in modes.items():
        module.training = mode
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module in moving:
            yield (f"net.{name}." if name else "net."), module


@contextmanager
def by_the_batch(model: BayesianNetwork) -> Iterator[Sequence[Any]]:
    """For the while, normalisation by each batch's own statistics, which the buffers take; everything else (the network's own
    dropout, say) as in prediction. Yields the batch normalisations."""
    with alone(model):
        training = {module: module.training for module in model.net.modules()}
        momenta = {module: module.momentum for _, module in _norms(model.net)}
        model.net.eval()
        for module in momenta:
            module.train()
            module.momentum = 1.0
        try:
            yield list(momenta)
        finally:
            for module, mode in training.items():
                module.training = mode
            for module, momentum in momenta.items():
                module.momentum = momentum
