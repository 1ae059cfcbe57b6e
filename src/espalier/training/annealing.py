"""The KL's factor rising while training: early steps fit, later ones are held to the prior as well (Bowman et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from espalier.contracts import Data
from espalier.followers import Follower
from espalier.guides.masked import MaskedGuide
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.store import Bundle


class KLWarmup(Follower):
    """kl_scale * min(1, t / rise) at step t: linear over the fraction `warmup` of `steps`, then the guide's own.

    Raises ValueError for a warmup outside [0, 1].
    """

    def __init__(self, warmup: float, steps: int) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"expected a kl_warmup in [0, 1], a fraction of training, got {warmup:g}")
        self.warmup, self.rise = warmup, max(1.0, warmup * steps)
        self.full = self.now = float("nan")

    def begin(self, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.full = guide.kl_scale
        self.after(0, None, None, model, guide)

    def after(self, taken: int, x: Any, output: Any, model: BayesianNetwork, guide: MaskedGuide) -> None:
        """Ready for step taken + 1."""
        guide.kl_scale = self.now = self.full * min(1.0, (taken + 1) / self.rise)

    def row(self) -> Mapping[str, float]:
        return {"kl_scale": self.now}

    def restore(self, saved: Bundle, model: BayesianNetwork, guide: MaskedGuide) -> None:
        self.after(saved.facts["step"], None, None, model, guide)

    def end(self, fit: Fit, data: Data) -> None:
        fit.record["kl_warmup"] = self.warmup
