"""Lightning's own trainer under the callback: exact density, a fit at the end, our own loop's bits, checkpoints that go on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import together
from espalier.adapters.lightning import SparseTraining
from foreign import BATCH, DATA, EPOCHS, OPTIONS, SEED, close, ours

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Lit(pl.LightningModule):
    """Somebody's module."""

    def __init__(self, name: str = "sgd", steps: int = 40) -> None:
        super().__init__()
        self.net, self.steps = together.network(name), steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).double().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-3)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class InOurOrder(torch.utils.data.Sampler[int]):
    """The rows in the order that our loop has them, epoch after epoch."""

    def __init__(self) -> None:
        from espalier.training.streams import Streams

        self.stream = Streams(SEED, torch.device("cpu")).order

    def __iter__(self) -> Any:
        return iter(torch.randperm(together.EXAMPLES, generator=self.stream).tolist())

    def __len__(self) -> int:
        return together.EXAMPLES


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    train = DataLoader(TensorDataset(*DATA.train), batch_size=BATCH, sampler=InOurOrder())
    return train, DataLoader(TensorDataset(*DATA.validation), batch_size=20)


def trainer(sparse: SparseTraining, folder: Path, epochs: int = EPOCHS, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[sparse, ModelCheckpoint(folder, save_last=True)], **options,
    )  # fmt: skip


def callback(**options: Any) -> SparseTraining:
    return SparseTraining(**{"of": "net", "seed": SEED, "num_data": together.EXAMPLES, **OPTIONS, **options})


def test_under_lightning_s_trainer_the_fit_is_that_of_our_own_loop(tmp_path: Path) -> None:
    sparse, mine = callback(), ours("sgd")
    trainer(sparse, tmp_path, num_sanity_val_steps=2).fit(Lit(), *loaders())
    assert sparse.fit is not None
    assert torch.equal(sparse.fit.topology.positions, mine.topology.positions)
    assert torch.equal(sparse.fit.pairs.keep, mine.pairs.keep)
    close(sparse.fit.pairs.values, mine.pairs.values)
    close(sparse.fit.predict(DATA.validation.x, "redraw"), mine.predict(DATA.validation.x, "redraw"))


def test_a_fit_that_goes_on_from_lightning_s_checkpoint_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, first, again = callback(), callback(), callback()
    order = loaders()[0]
    trainer(whole, tmp_path / "whole").fit(Lit(), order)
    order = loaders()[0]

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 3

    stopped = trainer(first, tmp_path / "part")
    stopped.callbacks.insert(0, Stop())
    stopped.fit(Lit(), order)
    assert first.sparse is not None
    assert first.sparse.taken == 20
    trainer(again, tmp_path / "part").fit(Lit(), order, ckpt_path=str(tmp_path / "part" / "last.ckpt"))
    assert whole.fit is not None
    assert again.fit is not None
    assert torch.equal(whole.fit.topology.positions, again.fit.topology.positions)
    assert torch.equal(whole.fit.pairs.values, again.fit.pairs.values)


def test_the_module_itself_can_be_the_network_with_batch_norm_and_accumulated_gradients(tmp_path: Path) -> None:
    """Eight epochs of five batches, two by two: three steps an epoch, as Lightning counts them."""
    sparse = callback(of="", drop_rate=0.1)
    trainer(sparse, tmp_path, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(Lit("batch norm"), *loaders())
    assert sparse.fit is not None
    assert sparse.sparse is not None
    assert sparse.sparse.taken == sparse.sparse.steps == 24
    assert sparse.fit.topology.num_active == round(0.3 * sparse.fit.topology.num_weights)
    assert sparse.fit.record["batchnorm"] == "re-estimate"
    assert sparse.fit.inputs is not None
    assert (sparse.fit.predict(DATA.validation.x, "ticket")[0].argmax(1) == DATA.validation.y).double().mean() > 0.6


class ByName(Lit):
    def training_step(self, batch: Any, index: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), index)


def test_batches_of_names_leave_batch_norm_as_it_was_and_the_fit_is_there(tmp_path: Path) -> None:
    rows = [{"x": x, "y": y} for x, y in zip(*DATA.train, strict=True)]
    sparse = callback(drop_rate=0.1)
    with pytest.warns(UserWarning, match="expected batches that begin with a tensor of inputs, got dict: batch-norm"):
        trainer(sparse, tmp_path, epochs=2).fit(ByName("batch norm"), DataLoader(rows, batch_size=BATCH))
    assert sparse.fit is not None
    assert sparse.fit.record["batchnorm"] == "running"


def test_what_it_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a trainer with max_epochs or max_steps, got neither"):
        trainer(callback(), tmp_path, epochs=-1).fit(Lit(), *loaders())
    with pytest.raises(ValueError, match="expected a number for drop_rate, got 'auto'"):
        trainer(callback(drop_rate="auto"), tmp_path).fit(Lit(), *loaders())
    assert callback().state_dict() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback().load_state_dict({})


def test_one_callback_for_several_folds_trains_each_of_them_sparse(tmp_path: Path) -> None:
    sparse, alone = callback(), callback()
    trainer(sparse, tmp_path / "first").fit(Lit(), *loaders())
    first, modules = sparse.fit, [Lit(), Lit()]
    trainer(sparse, tmp_path / "second").fit(modules[0], *loaders())
    trainer(alone, tmp_path / "alone").fit(modules[1], *loaders())
    assert sparse.fit is not None
    assert sparse.fit is not first
    assert torch.equal(sparse.fit.pairs.values, alone.fit.pairs.values)
    assert torch.equal(sparse.fit.topology.positions, alone.fit.topology.positions)
