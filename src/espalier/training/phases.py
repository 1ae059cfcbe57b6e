"""Several trainings in one run, which still resumes bit for bit: a later one's checkpoints carry the earlier ones' last.

first = Phase(watch)
fit = train(..., watch=first)          # resumed after the end of it, this takes no step and gives the same fit
train(..., watch=first.next())

`started_from`: a network that goes on where an earlier training ended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

from torch import nn

from espalier import store
from espalier.followers import Follower
from espalier.network import BayesianNetwork, under
from espalier.prediction.fit import Fit, How
from espalier.store import Bundle
from espalier.training.watch import Around, Watches


class Phase(Around):
    """The watch of one training of several. It is the inner watch's, but for what later phases put into checkpoints."""

    def __init__(self, inner: Watches = None) -> None:
        super().__init__(inner)
        self._saved: Bundle | None = None
        self._last: Callable[[], Bundle] | None = None

    def resume(self) -> Bundle | None:
        self._saved = self.inner.resume()
        if self._saved is None:
            return None
        own = {name: tensor for name, tensor in self._saved.tensors.items() if not name.startswith("next.")}
        facts = {key: value for key, value in self._saved.facts.items() if key != "next"}
        self._last = lambda: Bundle(own, facts)
        return self._last()

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        self._last = checkpoint
        self.inner.keep(checkpoint)

    def next(self) -> Phase:
        """The watch of the phase that follows. Call it when this one is over."""
        return Phase(_Continued(self))

    def following(self) -> Bundle | None:
        """What a checkpoint held of the phases after this one."""
        if self._saved is None or "next" not in self._saved.facts:
            return None
        return Bundle(under("next.", self._saved.tensors), self._saved.facts["next"])

    def joined(self, later: Bundle) -> Bundle:
        """The last checkpoint of this phase with that of a later one in it."""
        assert self._last is not None
        own = self._last()
        tensors = {f"next.{name}": tensor for name, tensor in later.tensors.items()}
        return Bundle({**own.tensors, **tensors}, {**own.facts, "next": later.facts})


def started_from(model: BayesianNetwork, fit: Fit, how: How = "ticket") -> BayesianNetwork:
    """A copy of a network that starts where an earlier training of it ended, what its likelihood learned with it."""
    start = copy.deepcopy(model)
    start.start_from(fit.ticket(how).state_dict())
    if learned := under("likelihood.", next(fit.weights(how))[1]):
        cast(nn.Module, start.likelihood).load_state_dict(learned)
    return start


class Origin(Follower):
    """The network as it was passed in, to which a later phase goes back: resumed with another, it would end elsewhere."""

    def __init__(self, model: BayesianNetwork) -> None:
        digests = sorted(f"{name} {store.tensor_digest(tensor)}" for name, tensor in model.state_dict().items())
        self.digest = store.sha256("\n".join([store.tensor_digest(model.initial), *digests]).encode())[:12]

    def asked(self) -> dict[str, str]:
        return {"initial network": self.digest}


class _Continued(Around):
    """Between a phase and the one before it."""

    def __init__(self, before: Phase) -> None:
        super().__init__(before.inner)
        self.before = before

    def resume(self) -> Bundle | None:
        return self.before.following()

    def keep(self, checkpoint: Callable[[], Bundle]) -> None:
        self.inner.keep(lambda: self.before.joined(checkpoint()))
