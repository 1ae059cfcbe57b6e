"""Random numbers: seeds from seeds, streams by purpose, and torch's default streams, which programs by Pyro and a network's own
dropout draw from. Whoever asks us for draws finds those where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Device = torch.device | str


def derived(*numbers: int) -> int:
    """A seed of its own for every choice of these; zeros at the end say nothing (NumPy's SeedSequence pads with them)."""
    return int(np.random.SeedSequence([number % (1 << 64) for number in numbers]).generate_state(1)[0])


def own_stream(seed: int, purpose: int, device: Device = "cpu", step: int | None = None) -> torch.Generator:
    """Random numbers apart from those of training: of one purpose, a number of its own; of one step of it, where one is given."""
    words = [seed, purpose] if step is None else [seed, purpose, step]
    own = np.random.SeedSequence(words).generate_state(1, np.uint64) >> np.uint64(1)
    return torch.Generator(device).manual_seed(int(own[0]))


def seed_default(seed: int, device: Device = "cpu") -> None:
    """Seed torch's default streams on the CPU and on this device, and on no other: `torch.manual_seed` seeds every GPU, and where
    there is none it writes down who called it, at half the price of a small network's step."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def forked(device: Device = "cpu") -> Iterator[None]:
    """Afterwards torch's default streams on the CPU and on this device are where they were."""
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int, device: Device = "cpu") -> Iterator[None]:
    """For the while torch's default streams, on the CPU and this device, begin at `seed`; afterwards they are where they were."""
    with forked(device):
        seed_default(seed, device)
        yield
