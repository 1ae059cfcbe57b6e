"""One network trained by several processes: who this one is, its share of every batch, averages over all.

    torchrun --nproc_per_node 2 -m espalier fit ...        gloo on the CPU, nccl on GPUs, one for each process

Data-parallel training, synchronous as torch's DistributedDataParallel (Li et al. 2020): every process holds the whole
guide, computes the gradient on its share of the batch, and takes the step that the averaged gradient says. The order of the
data, the augmentation, mixup, random growth and Z are drawn by all from the same streams, for the whole batch, so values
and topology are the same everywhere without being sent. `batch_size` is that of the whole batch: a run is the same, up to
rounding, whatever the number of processes, with three exceptions. Each process draws its own dropout (the network's own
randomness); and batch norm takes the statistics of the whole batch on GPUs (SyncBatchNorm) but of the share on the CPU,
where the first process's running averages are kept. And with microbatches, each cuts its own share into parts.

Only the first process writes and speaks. In one process nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import Tensor, distributed, nn

from espalier import store

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined() -> Iterator[bool]:
    """For the while, the group of all processes that torchrun (or any launcher that speaks its environment) started.

    Yields whether this process is the first, which writes and speaks.
    """
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1 or any(name not in os.environ for name in _LAUNCHED)
    if alone or size() > 1:
        yield rank() == 0
        return
    # Imported first: its default arguments would keep the group, and so gloo's threads, beyond the end of the interpreter,
    # which aborts where one of them still has a tensor to give back. (Torch's optimisers import it anyway, but late.)
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank() == 0
    finally:
        distributed.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if size() > 1 else 0


def own_gpu() -> torch.device:
    """The GPU of this process: one for each process of a machine."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if size() > 1 else torch.device("cuda")


def share(count: int) -> slice:
    """The rows of a batch of `count` that this process computes."""
    part = count // size()
    return slice(rank() * part, (rank() + 1) * part)


def check_shares(batch: int, num_data: int | None) -> None:
    """Raises ValueError where the processes cannot share a batch of this many examples evenly."""
    if batch % size():
        raise ValueError(
            f"expected a batch that {size()} processes can share evenly, got {batch} examples: choose a batch_size that is "
            f"a multiple of {size()}"
        )
    if size() > 1 and num_data is None:
        raise ValueError("expected model.num_data with several processes, got None: set it to the number of examples")


def check_alike(state: Mapping[str, Tensor | str]) -> None:
    """Raises RuntimeError where tensors (or hashes) by these names differ, by a bit, between processes."""
    if size() == 1:
        return
    own = {name: store.tensor_digest(item) if isinstance(item, Tensor) else item for name, item in state.items()}
    everyone: list[dict[str, str]] = [{} for _ in range(size())]
    distributed.all_gather_object(everyone, own)
    for other, theirs in enumerate(everyone):
        for name in sorted(own.keys() | theirs.keys()):
            if everyone[0].get(name) != theirs.get(name):
                raise RuntimeError(
                    f"expected the same state in all {size()} processes, but {name} of process {other} differs from the "
                    "first's: seed the network before it is built, and keep data and run folder where all can read them"
                )


def barrier() -> None:
    """Wait until every process is here."""
    if size() > 1:
        distributed.all_reduce(torch.zeros(1))


def first_said(sentence: str | None) -> str:
    """What the first process that says anything says, the same in all of them; empty where none does."""
    everyone: list[str | None] = [sentence]
    if size() > 1:
        everyone = [None] * size()
        distributed.all_gather_object(everyone, sentence)
    return next((said for said in everyone if said), "")


def mean(tensor: Tensor) -> Tensor:
    """The average of a tensor over the processes, the same bits in each."""
    if size() == 1:
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total / size()


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace every gradient that the optimiser is about to use by its average over the processes: one message."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if size() == 1 or not gradients:
        return
    average = mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, part in zip(gradients, average.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextmanager
def synchronised(net: nn.Module, device: torch.device) -> Iterator[None]:
    """For the while, batch norm over the whole batch, where torch can: on GPUs. Then all have the first one's buffers.

    The network is its plain self again afterwards, so that one process can predict with it alone.
    """
    norms: dict[str, nn.Module] = {}
    if size() > 1 and device.type == "cuda":
        every = net.named_modules(remove_duplicate=False)
        norms = {name: module for name, module in every if isinstance(module, nn.modules.batchnorm._BatchNorm)}
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
    try:
        yield
    finally:
        for name, module in norms.items():
            path, _, attribute = name.rpartition(".")
            setattr(net.get_submodule(path), attribute, module)
    if size() > 1:
        for buffer in net.buffers():
            distributed.broadcast(buffer, 0)
