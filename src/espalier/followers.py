"""What goes along with a training: the one place where a method hooks into the loop.

A method that is more than a prior, a loss, a schedule or a guide is a `Follower`: a drop rate that is found, a prior that is
annealed, noise or a control variate in the gradient. It says what it needs, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from espalier.store import Bundle

if TYPE_CHECKING:
    from espalier.contracts import Data
    from espalier.guides.masked import MaskedGuide
    from espalier.network import BayesianNetwork
    from espalier.prediction.fit import Fit


class Follower:
    """It is told of every step, and its state is in the checkpoints. By default it does nothing."""

    nesterov = True
    """May the momentum of its training look ahead, as Nesterov's does?"""

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Before the first step, and before a checkpoint is gone on from."""

    def before(self, taken: int, x: Any, y: Tensor, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Before the optimiser takes step `taken`, on x and y: gradients of the mean loss per example are in `.grad`, the
        mean over all processes, and what is written there is what the optimiser sees. Moves of the topology have no such."""

    def after(self, taken: int, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """After step `taken`."""

    def asked(self) -> Mapping[str, Any]:
        """What it was asked for, JSON-able: a checkpoint of another training is not gone on from."""
        return {}

    def row(self) -> Mapping[str, float]:
        """What the history keeps of the epoch that ends."""
        return {}

    def bundle(self) -> Bundle:
        """What its next step depends on, under names of its own."""
        return Bundle({}, {})

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Go on from there."""

    def end(self, fit: Fit, data: Data) -> None:
        """Leave in the fit what is to stay."""
