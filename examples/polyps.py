"""Which pixels are polyp: a small U-Net on the frames of PolypGen, dense, or under the masks of any inference.

python examples/polyps.py FOLDER     (minutes; polypgen_train.npz and polypgen_val.npz, frames of PolypGen, Ali et al. 2023)
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from espalier import Data, Split, Training, load_program
from espalier.data.sets import root_of
from espalier.models import unet
from espalier.prediction.fit import Fit
from espalier.store import tensor_digest

SIZE = 48
PARTS = {"train": 837, "validation": 150, "calibration": 250}  # of the 1,237 published training frames
CHANNELS = (8, 16, 32, 64)
EPOCHS = 15


def load_polyps(folder: str | Path, size: int = SIZE, seed: int = 0) -> Data:
    """PolypGen as x `(n, 3, size, size)`, standardised by the training frames, and y `(n, size, size)` of 0 and 1.

    The published training frames are cut by `seed`, frame by frame; the published validation frames are the test split.
    """
    paths = [Path(folder) / f"polypgen_{part}.npz" for part in ("train", "val")]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"expected PolypGen's frames, but {' and '.join(missing)} is not there: put both files into "
            "$ESPALIER_DATA/polyps, or name their folder"
        )
    (x, y), test = (frames(path, size) for path in paths)
    rows = np.split(np.random.default_rng(seed).permutation(len(x)), np.cumsum(list(PARTS.values()))[:-1])
    mean, sd = x[rows[0]].mean((0, 1, 2)), x[rows[0]].std((0, 1, 2))
    parts = {}
    for name, (images, masks) in zip((*PARTS, "test"), [*((x[part], y[part]) for part in rows), test], strict=True):
        scaled = ((images - mean) / sd).transpose(0, 3, 1, 2).astype(np.float32)
        parts[name] = Split(torch.from_numpy(scaled), torch.from_numpy(masks.astype(np.float32)))
    hashes = {name: tensor_digest(torch.cat([part.x, part.y[:, None]], 1)) for name, part in parts.items()}
    return Data("polyps", **parts, shape=(3, size, size), num_classes=2, hashes=hashes)


def frames(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Images `(n, size, size, 3)` and masks `(n, size, size)` of one file; a pixel is polyp where most of its area is."""
    with np.load(path) as file:
        if "jpeg" in file:
            ends, jpegs, side = file["offset"], file["jpeg"].tobytes(), int(file["size"])
            images = [Image.open(io.BytesIO(jpegs[a:b])).convert("RGB") for a, b in zip(ends, ends[1:], strict=False)]
            masks = np.unpackbits(file["mask_bits"], axis=1)[:, : side * side].reshape(-1, side, side)
        else:
            images, masks = [Image.fromarray(image) for image in file["x"]], file["mask"]

    def shrunk(image: Image.Image) -> NDArray[np.uint8]:
        return np.asarray(image.resize((size, size), Image.Resampling.BOX))

    areas = [shrunk(Image.fromarray(mask.astype(np.uint8) * 255)) for mask in masks]
    return np.stack([shrunk(image) for image in images]), np.stack(areas) > 127


def turned(split: Split) -> Split:
    """The eight ways in which a square frame may lie: an endoscope has no upright."""

    def views(images: Tensor) -> Tensor:
        quarters = [images.rot90(turns, (-2, -1)) for turns in range(4)]
        return torch.cat([*quarters, *(quarter.flip(-1) for quarter in quarters)])

    return Split(views(split.x[torch.arange(len(split.y))]), views(split.y))


def train(
    data: Data,
    epochs: int = EPOCHS,
    *,
    inference: str = "dense",
    channels: tuple[int, ...] = CHANNELS,
    batch_size: int = 16,
    learning_rate: float = 0.003,
    seed: int = 0,
    **options: Any,
) -> Fit:
    """Train on every frame in its eight orientations, so an epoch has eight times the frames; `options` of the inference."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = unet.model(data.shape, data.num_outputs, channels=channels)
    training = Training(epochs=epochs, batch_size=batch_size, optimizer="adam", learning_rate=learning_rate)
    infer = load_program("inference", inference)
    return infer(model, data._replace(train=turned(data.train)), training=training, seed=seed, **options)


def dice(said: Tensor, true: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of every pair of masks `(n, h, w)`; 1 where both are empty."""
    both, either = (said * true).sum((-2, -1)), (said + true).sum((-2, -1))
    return torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0)


def main(folder: str | Path | None = None, data: Data | None = None, epochs: int = EPOCHS, **options: Any) -> float:
    data = data or load_polyps(folder or root_of(None) / "polyps")
    fit = train(data, epochs, **options)
    probs = fit.predict(data.validation.x).mean(0)[..., 1]  # (draws, n, h, w, 2), averaged over draws
    true = data.validation.y
    print(f"{fit.topology.num_active:,} of {fit.topology.num_weights:,} weights active; {len(true)} validation frames")
    for threshold in (0.1, 0.25, 0.5):
        found = float(dice((probs > threshold).float(), true).mean())
        print(f"polyp where the probability is above {threshold:4g}: mean Dice {found:.3f}")
    print(f"polyp pixels a frame: {probs.sum((-2, -1)).mean():.1f} expected, {true.sum((-2, -1)).mean():.1f} seen")
    return found


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
    except FileNotFoundError as error:
        sys.exit(str(error))
