"""Wrong labels to train on: by chance, or another annotator's. No other part is touched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.contracts import Data
from espalier.data import archives
from espalier.data.labels import labels

Labels = NDArray[np.int64]
_STREAM = 0x6E6F697365  # "noise": not the stream that cuts


def with_label_noise(data: Data, noise: float | str, seed: int = 0) -> Data:
    """`data` whose training labels are partly wrong. `replaced` says how many differ, and the hash of the training rows changes.

    noise: the probability that a label is replaced by one of the others, all as likely (symmetric noise, Angluin & Laird 1988;
    every replaced label is wrong), drawn for each row of the source by `seed`, whatever the cut: a smaller training set has the
    same wrong labels. Or labels of the source's rows, `FILE.npz:NAME`, in their order; as many as there are, if all training rows
    are among them, as where test rows come last (CIFAR-10N, Wei et al. 2022).

    Raises FileNotFoundError where the file is not there; ValueError for regression, labels that are no vector, a probability
    outside [0, 1), and labels that do not fit the data.
    """
    if not noise:
        return data
    y, rows = data.train.y, data.rows.get("train", np.empty(0, np.int64))
    if data.num_classes is None or y.dim() != 1:
        raise ValueError(f"expected one label a row to put noise into, got {data.name} without: drop label_noise")
    if len(rows) != len(y):
        raise ValueError(f"expected data that know which rows of their source they train on, got {data.name} without")
    if isinstance(noise, str):
        found = _from_file(noise, data)
        if len(found) <= rows.max():
            raise ValueError(
                f"expected a label for every row of {data.name} that is trained on, the last is {rows.max()}, got {len(found)} "
                f"in {noise}"
            )
        own = found[rows]
    else:
        own = _by_chance(y.numpy(), rows, data.num_classes, data.source_rows, noise, seed)
    digest = hashlib.sha256(data.hashes.get("train", "").encode() + own.tobytes()).hexdigest()
    return data._replace(
        train=data.train._replace(y=torch.from_numpy(own)),
        hashes={**data.hashes, "train": digest},
        replaced=int((own != y.numpy()).sum()),
    )


def _by_chance(y: Labels, rows: Labels, classes: int, source: int, rate: float, seed: int) -> Labels:
    if not 0 <= rate < 1:
        raise ValueError(f"expected a label_noise in [0, 1), the share of labels that are wrong, got {rate:g}")
    rng = np.random.default_rng([seed, _STREAM])
    wrong, shift = rng.random(source)[rows] < rate, rng.integers(1, classes, source)[rows]
    return np.where(wrong, (y + shift) % classes, y)


def file_of(noise: Any) -> tuple[Path, str] | None:
    """The file and the name of labels FILE.npz:NAME; None for what is no such."""
    path, colon, name = noise.rpartition(":") if isinstance(noise, str) else ("", "", "")
    return (Path(path).expanduser(), name) if colon and path.endswith(".npz") else None


def _from_file(noise: str, data: Data) -> Labels:
    if (found := file_of(noise)) is None:
        raise ValueError(f"expected label_noise as a number in [0, 1), or labels as FILE.npz:NAME, got {noise!r}")
    file, name = found
    if not file.is_file():
        raise FileNotFoundError(f"expected an .npz file of labels at {file}, got nothing: mend the path")
    if name not in (there := archives.names(file)):
        raise ValueError(f"expected labels {name!r} in {file}, which holds {', '.join(there)}")
    values: NDArray[Any] = archives.arrays(file, [name])[name]
    if values.ndim != 1:
        raise ValueError(f"expected one label a row, a vector, in {noise}, got shape {values.shape}")
    return labels(values, data.classes or range(data.num_classes or 0), noise)[0]
