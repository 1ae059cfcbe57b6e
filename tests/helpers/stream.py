"""Run by tests/data/test_datasets.py in a process of its own: trains on image files that are decoded by workers.

python stream.py IMAGES WORKERS OUT [CHECKPOINT]      leaves OUT/fit.safetensors; says `epoch N` after each
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from espalier import BayesianNetwork, Training
from espalier.data import from_datasets
from espalier.inference import cigl
from espalier.training import Checkpoints

torch.set_num_threads(1)


class Pictures(Dataset[tuple[Tensor, str]]):
    """PNG files, named LABEL-NUMBER.png, with noise of their own from three libraries."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, str]:
        pixels = torch.from_numpy(np.array(Image.open(self.files[row]))).permute(2, 0, 1) / 255
        if random.random() < 0.5:
            pixels = pixels.flip(-1)
        noise = torch.from_numpy(np.random.normal(0, 0.02, pixels.shape)).float()  # noqa: NPY002
        return pixels + noise + 0.02 * torch.randn(pixels.shape), self.files[row].stem.partition("-")[0]


class Telling(Checkpoints):
    """Says which epoch is written."""

    def keep(self, checkpoint) -> None:
        super().keep(checkpoint)
        print("epoch", len(checkpoint().facts["history"]), flush=True)


def jitter(x: Tensor) -> Tensor:
    """An augmentation of a batch: brightness from NumPy, shifts from torch."""
    return torch.roll(x * np.random.uniform(0.9, 1.1), int(torch.randint(-2, 3, ())), -1)  # noqa: NPY002


def fit(folder: Path, workers: int, checkpoint: Path | None, epochs: int = 4):
    """CigL on the pictures."""
    data = from_datasets(Pictures(folder), workers=workers)
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))
    training = Training(epochs=epochs, batch_size=16, augment=jitter, learning_rate=0.05)
    watch = None if checkpoint is None else Telling(checkpoint, every=0)
    return cigl.infer(
        BayesianNetwork(net), data, sparsity=0.5, delta_t=3, average_from=0.75, training=training, watch=watch
    )


if __name__ == "__main__":
    images, number, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    fit(images, number, Path(sys.argv[4]) if len(sys.argv) > 4 else None).save(out)
