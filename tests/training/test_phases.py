"""Phases: the checkpoint of a later one holds the last of the earlier."""

import pytest
import torch

from espalier.store import Bundle
from espalier.training.phases import Phase
from watches import Recorder

pytestmark = pytest.mark.usefixtures("own_store")


def test_a_phase_without_a_watch_has_nothing_to_resume() -> None:
    first = Phase()
    assert first.resume() is None
    first.keep(lambda: Bundle({"a": torch.ones(1)}, {"n": 1}))
    assert first.next().resume() is None


def test_a_checkpoint_of_a_later_phase_holds_the_last_of_the_earlier_ones() -> None:
    watch = Recorder()
    first = Phase(watch)
    first.keep(lambda: Bundle({"a": torch.ones(1)}, {"n": 1}))
    second = first.next()
    second.keep(lambda: Bundle({"a": torch.zeros(2)}, {"n": 2}))
    third = second.next()
    third.keep(lambda: Bundle({"a": torch.full((3,), 3.0)}, {"n": 3}))
    tensors, facts = watch.checkpoints[-1]
    assert {name: len(tensor) for name, tensor in tensors.items()} == {"a": 1, "next.a": 2, "next.next.a": 3}
    assert facts == {"n": 1, "next": {"n": 2, "next": {"n": 3}}}

    phase, seen = Phase(Recorder(watch.checkpoints[-1])), []
    for _ in range(3):
        seen.append(phase.resume())
        phase = phase.next()
    assert [(list(bundle.tensors), bundle.facts) for bundle in seen] == [(["a"], {"n": n}) for n in (1, 2, 3)]
    assert [len(bundle.tensors["a"]) for bundle in seen] == [1, 2, 3]
    assert phase.resume() is None
    # Killed again in the third: the checkpoint still has all that came before.
    again = Recorder(watch.checkpoints[-1])
    one = Phase(again)
    one.resume()
    two = one.next()
    two.resume()
    two.next().keep(lambda: Bundle({"a": torch.zeros(4)}, {"n": 4}))
    assert again.checkpoints[-1].facts == {"n": 1, "next": {"n": 2, "next": {"n": 4}}}
