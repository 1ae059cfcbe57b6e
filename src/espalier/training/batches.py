"""The batches of an epoch: shuffled, shared among processes, augmented, softened."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espalier import nested
from espalier.contracts import Data
from espalier.data.streamed import in_turn
from espalier.prediction.predict import sent, to_device
from espalier.training import distributed
from espalier.training.options import Training, augmented
from espalier.training.streams import Streams


def batches(data: Data, training: Training, streams: Streams) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch, shuffled, on the device; of several processes each sees its share of every batch.

    What a streaming data set or a user's own `augment` draws is decided by two seeds, which the shuffling's stream gives.
    """
    order = torch.randperm(len(data.train.y), generator=streams.order)
    size = min(training.batch_size, len(order))
    parts = order.split(size)[: training.steps_per_epoch(data)]
    seeds = [0, 0]
    if callable(training.augment) or hasattr(data.train.x, "stream"):
        seeds = torch.randint(2**63 - 1, (2,), generator=streams.order).tolist()
    # With mixup an example's partner may be anywhere in the batch; and what one's own augmentation draws is of all of it.
    whole = bool(training.mixup) or callable(training.augment)
    shares = [slice(None) if whole else distributed.share(len(rows)) for rows in parts]
    mine = [rows[part] for rows, part in zip(parts, shares, strict=True)]
    inputs = in_turn(data.train.x, mine, seeds[0])
    for index, (rows, part, batch) in enumerate(zip(parts, shares, inputs, strict=True)):
        x, y = to_device(batch, streams.device), sent(data.train.y[mine[index]], streams.device)
        if callable(training.augment):
            x = augmented(training.augment, x, seeds[1], index)
        elif training.augment == "crop-flip":
            x = crop_flip(x, streams.augment, len(rows), part)
        if training.label_smoothing or training.mixup:
            x, y = soften(x, y, data.num_classes or 0, training.label_smoothing, training.mixup, streams.augment)
        if whole:
            x, y = nested.each(operator.itemgetter(distributed.share(len(rows))), (x, y))
        yield x, y


def soften(
    x: Any, y: Tensor, num_classes: int, smoothing: float, alpha: float, generator: torch.Generator | None = None
) -> tuple[Any, Tensor]:
    """Inputs and soft labels `(n, C)` of a batch: (1 - smoothing) onehot + smoothing / C (Szegedy et al. 2016, sec. 7),
    then, for alpha above 0, both mixed with a shuffled copy of the batch by one weight ~ Beta(alpha, alpha) (Zhang et al.
    2018, as released: one weight a batch). All is drawn from `generator`, so processes that share a batch mix it alike.
    """
    dtype = torch.promote_types(nested.leaves(x)[0].dtype, torch.float32)
    labels = torch.nn.functional.one_hot(y.long(), num_classes).to(dtype) * (1 - smoothing) + smoothing / num_classes
    if alpha > 0:
        seed = torch.randint(2**63 - 1, (), generator=generator, device=y.device)
        weight = float(np.random.default_rng(int(seed)).beta(alpha, alpha))  # torch's Beta takes no generator
        other = torch.randperm(len(y), generator=generator, device=y.device)
        x, labels = (nested.each(lambda rows: weight * rows + (1 - weight) * rows[other], both) for both in (x, labels))
    return x, labels


def crop_flip(
    x: Tensor, generator: torch.Generator | None = None, whole: int | None = None, part: slice = slice(None)
) -> Tensor:
    """Images x `(n, c, h, w)`, each padded with zeros by an eighth of its height, cropped at random and flipped or not.

    At 32 x 32 that is the usual padding by 4 (He et al. 2016). Drawn on the generator's device; where x is the `part` of a
    batch of `whole` images, for all of them.
    """
    count, _, height, width = x.shape
    pad = height // 8
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    whole = whole or count
    top, left = torch.randint(0, 2 * pad + 1, (2, whole, 1), generator=generator, device=x.device)[:, part]
    flip = torch.randint(0, 2, (whole, 1), generator=generator, device=x.device)[part].bool()
    rows = top + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(count, -1)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    images = torch.arange(count, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
