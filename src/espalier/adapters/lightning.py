"""Sparse Bayesian training of any LightningModule: `Trainer(callbacks=[SparseTraining(sparsity=0.9, drop_rate=0.1)])`.

A callback over `attached.py`: the layers are made sparse before the fit, a step of the trainer is a step or a move, pairs are
collected at the end of late epochs, checkpoints carry the topology, and the fit is there when training ends.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from espalier.adapters.attached import Attached, attach
from espalier.prediction import batchnorm
from espalier.prediction.fit import Fit


def _library() -> Any:
    """Lightning under the name that its user has imported it by, or that is installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError("expected Lightning to be installed, and it is not: pip install 'espalier[lightning]'")


if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    Callback = _library().Callback


class SparseTraining(Callback):
    """Makes a module's layers sparse for the trainer's fit, and draws Z at every step.

    of: the attribute of the module that is the network, `"net"` say; empty is the module itself, which then predicts by its own
    `forward`. inputs: batches that the training loader gives at the end, for the statistics of batch norm where there is any; a
    batch is its inputs, or a pair that begins with them. options: of `attach`, but for `steps`, which the trainer knows.

    sparse: the `Attached`, while it trains. fit: the `Fit`, afterwards.
    """

    def __init__(self, *, of: str = "", inputs: int = 16, **options: Any) -> None:
        super().__init__()
        self.of, self.inputs, self.options = of, inputs, options
        self.sparse: Attached | None = None
        self.fit: Fit | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raises ValueError for several processes, and for a trainer that does not know how long it trains."""
        known = dict(pl_module.named_modules(remove_duplicate=False))
        if stage != "fit" or (self.sparse is not None and self.sparse.net is known.get(self.of)):
            return
        if self.of not in known:
            raise ValueError(f"expected of= as the name of a module in {type(pl_module).__name__}, got {self.of!r}")
        self.sparse = self.fit = None  # another module's, of another fold
        if trainer.world_size > 1:
            raise ValueError(f"expected one process, got {trainer.world_size}: train on several with `espalier.train`")
        steps = trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("expected a trainer with max_epochs or max_steps, got neither: the topology freezes at a fraction")
        trainer_of, pl_module.trainer = pl_module._trainer, None  # a copy of the module would be one of the trainer, too
        try:
            self.sparse = attach(pl_module.get_submodule(self.of), steps=int(steps), **self.options)
        finally:
            pl_module.trainer = trainer_of

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        assert self.sparse is not None
        self.sparse.before_step(optimizer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.sparse is not None
        self.sparse.collect()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.sparse is not None
        batches = []
        norms = batchnorm.has_batchnorm(self.sparse.model) and self.inputs > 0
        for batch in trainer.train_dataloader if norms else ():
            x = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(x, Tensor):
                told = f"expected batches that begin with a tensor of inputs, got {type(x).__name__}"
                warnings.warn(f"{told}: batch-norm statistics are those of training (inputs=0 says so)", stacklevel=2)
                break
            batches.append(x.to(pl_module.device))
            if len(batches) == self.inputs:
                break
        self.fit = self.sparse.fit(batches or None)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.sparse is None else self.sparse.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.sparse is not None:
            self.sparse.load_state_dict(state_dict)
