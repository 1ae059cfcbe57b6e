"""Where the work runs and where its random numbers come from."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from espalier.randomness import seed_default
from espalier.training import distributed

Given = ParamSpec("Given")
Found = TypeVar("Found")
ONE_AT_A_TIME = threading.RLock()
"""Training uses torch's global generator and Pyro's global stack and store: of a process's threads, one waits for the other."""
if hasattr(os, "register_at_fork"):  # whoever held it is not there
    os.register_at_fork(after_in_child=lambda: ONE_AT_A_TIME._at_fork_reinit())  # type: ignore[attr-defined]


def one_at_a_time(work: Callable[Given, Found]) -> Callable[Given, Found]:
    """The same work, which no two threads do at once."""

    @functools.wraps(work)
    def alone(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with ONE_AT_A_TIME:
            return work(*args, **kwargs)

    return alone


def find_device(name: str) -> torch.device:
    """The device called `name`; auto is a GPU when there is one. Raises ValueError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"expected a device such as auto, cpu or cuda, got {name!r}") from error
    if device == torch.device("cuda"):
        device = distributed.own_gpu()
    elif device.type == "cuda" and distributed.size() > 1:
        raise ValueError(f"expected device cuda with several processes, got {name!r}: each takes a GPU of its own")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"expected the GPU {name!r}, but torch sees {torch.cuda.device_count()}: use --device cpu or auto"
        )
    return device


class Streams:
    """Random numbers by purpose, all from one seed, so that two methods at one seed see the same batches.

    order: the shuffling of epochs. mask: Z. augment: crops and flips. topology: initial positions and random growth. The
    network's own randomness (dropout) uses torch's default streams, which `train` seeds and puts back; of processes that
    train together, they alone differ.
    """

    def __init__(self, seed: int | Sequence[int], device: torch.device) -> None:
        seed = seed.tolist() if isinstance(seed, np.ndarray | Tensor) else seed
        for own in seed if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed]:
            if not isinstance(own, Integral) or isinstance(own, bool) or own < 0:
                raise ValueError(f"expected a seed of 0 or more, a whole number, got {own!r}")
        self.seed: Any = [int(own) for own in seed] if isinstance(seed, Sequence) else int(seed)
        """As plain whole numbers."""
        seeds = np.random.SeedSequence(seed).generate_state(5, np.uint64) >> np.uint64(1)
        self.device = device
        self.default = int(seeds[0])
        self.order = torch.Generator().manual_seed(int(seeds[1]))
        self.topology = torch.Generator().manual_seed(int(seeds[2]))
        self.mask = torch.Generator(device).manual_seed(int(seeds[3]))
        self.augment = torch.Generator(device).manual_seed(int(seeds[4]))

    def seed_default(self, seed: int | None = None) -> None:
        seed_default(self.default if seed is None else seed, self.device)

    def part_ways(self, epoch: int) -> None:
        """Give every process but the first default streams of its own: seeded anew at each epoch, there is no state of
        theirs to keep."""
        if rank := distributed.rank():
            own = np.random.SeedSequence([self.default, rank, epoch]).generate_state(1, np.uint64) >> np.uint64(1)
            self.seed_default(int(own[0]))

    def state(self) -> dict[str, Tensor]:
        """Where every stream stands."""
        states = {name: getattr(self, name).get_state() for name in ("order", "topology", "mask", "augment")}
        states["default"] = torch.get_rng_state()
        if self.device.type == "cuda":
            states["default_cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def restore(self, states: Mapping[str, Tensor]) -> None:
        """Continue from `state`. Raises ValueError where it was saved on another kind of device."""
        if ("default_cuda" in states) != (self.device.type == "cuda"):
            raise ValueError(
                f"expected a checkpoint of a {self.device.type} run: resume it where it began, or say --device"
            )
        for name in ("order", "topology", "mask", "augment"):
            getattr(self, name).set_state(states[name])
        torch.set_rng_state(states["default"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states["default_cuda"], self.device)
