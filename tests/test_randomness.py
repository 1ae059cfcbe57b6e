"""randomness.py."""

from __future__ import annotations

import pytest
import torch

from espalier.randomness import derived, forked, own_stream, seed_default, seeded


def test_seeded_begins_at_the_seed_and_puts_the_stream_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(8)
    before, alone = torch.get_rng_state(), torch.rand(3)
    torch.set_rng_state(before)
    with seeded(5):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), alone)


def test_forked_only_puts_it_back_whatever_happens_in_it() -> None:
    torch.manual_seed(8)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), forked("cpu"):
        torch.rand(3) + torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_and_streams_of_other_numbers_are_others() -> None:
    assert len({derived(*numbers) for numbers in [(0,), (1,), (0, 1), (1, 1), (1, 2), (2, 1), (-1,), (2**40,)]}) == 8
    assert derived(3, 4) == derived(3, 4)
    streams = [(0, 1), (0, 2), (1, 1), (0, 1, "cpu", 1), (0, 1, "cpu", 2)]
    drawn = [torch.rand(4, generator=own_stream(*which)) for which in streams]
    assert len({tuple(own.tolist()) for own in drawn}) == 5
    assert torch.equal(torch.rand(4, generator=own_stream(0, 1)), drawn[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_its_own_stream_is_seeded_and_put_back() -> None:
    device = torch.device("cuda")
    torch.cuda.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.cuda.manual_seed(8)
    before = torch.cuda.get_rng_state(device)
    with seeded(5, device):
        assert torch.equal(torch.rand(3, device=device), expected)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    seed_default(5, device)
    assert torch.equal(torch.rand(3, device=device), expected)
