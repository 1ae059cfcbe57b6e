"""Random numbers by purpose, from one seed, and the device that they are drawn on."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from espalier import shelf
from espalier.data import load
from espalier.network import BayesianNetwork
from espalier.training.options import Training
from espalier.training.streams import Streams, find_device

CPU = torch.device("cpu")
NAMES = ("order", "topology", "mask", "augment")


def drawn(streams: Streams, count: int = 8) -> dict[str, list[float]]:
    return {name: torch.rand(count, generator=getattr(streams, name)).tolist() for name in NAMES}


def test_streams_are_decided_by_the_seed_and_differ_from_each_other() -> None:
    first, again, other = (drawn(Streams(seed, CPU)) for seed in (3, 3, 4))
    assert first == again
    assert len({tuple(numbers) for numbers in (*first.values(), *other.values())}) == 2 * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_one_purpose_draws_moves_no_other(name: str) -> None:
    """Two methods at one seed see the same batches, however much each of them masks, grows or augments."""
    streams, untouched = Streams(3, CPU), drawn(Streams(3, CPU))
    torch.rand(1000, generator=getattr(streams, name))
    after = drawn(streams)
    assert {other for other in NAMES if after[other] != untouched[other]} == {name}


def test_a_state_goes_on_with_the_same_numbers_also_of_torchs_own_stream() -> None:
    with torch.random.fork_rng():
        streams = Streams(3, CPU)
        streams.seed_default()
        drawn(streams)
        torch.rand(5)
        saved = {name: state.clone() for name, state in streams.state().items()}
        assert set(saved) == {*NAMES, "default"}
        expected, default = drawn(streams), torch.rand(4)
        other = Streams(99, CPU)
        torch.manual_seed(99)
        other.restore(saved)
        assert drawn(other) == expected
        assert torch.equal(torch.rand(4), default)


def test_the_default_stream_has_a_seed_of_its_own() -> None:
    with torch.random.fork_rng():
        Streams(3, CPU).seed_default()
        own = torch.rand(8)
        assert own.tolist() not in drawn(Streams(3, CPU)).values()
        torch.rand(3)
        Streams(3, CPU).seed_default()
        assert torch.equal(torch.rand(8), own)
        Streams(3, CPU).part_ways(epoch=2)  # alone, a process is the first and keeps to its way
        assert not torch.equal(torch.rand(8), own)


def test_a_state_of_another_kind_of_device_is_refused() -> None:
    streams = Streams(3, CPU)
    with pytest.raises(ValueError, match="expected a checkpoint of a cpu run: resume it where it began, or say --device"):
        streams.restore({**streams.state(), "default_cuda": torch.zeros(16, dtype=torch.uint8)})


def test_a_device_is_found_by_name_or_refused_in_a_sentence() -> None:
    assert find_device("cpu") == CPU
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="expected a device such as auto, cpu or cuda, got 'abacus'"):
        find_device("abacus")
    with pytest.raises(ValueError, match=rf"expected the GPU 'cuda:97', but torch sees {torch.cuda.device_count()}: use"):
        find_device("cuda:97")


def test_trainings_of_several_threads_are_those_of_one() -> None:
    """Optuna's n_jobs, joblib's threads: torch's global generator and Pyro's stack and store belong to the process."""
    data = load("digits", train_size=300)

    def trained(sparsity: float, model: BayesianNetwork, found: dict[float, Any]) -> None:
        training = Training(epochs=2, batch_size=50, device="cpu")
        fit = shelf.load("inference", "distilled")(model, data, sparsity=sparsity, drop_rate=0.1, delta_t=5, training=training)
        found[sparsity] = [row["validation_nll"] for row in fit.history], fit.predict(data.test.x[:20], "distilled").tolist()

    build, results = shelf.load("models", "mlp"), []
    for threaded in (True, False):
        found: dict[float, Any] = {}
        torch.manual_seed(0)
        models = {sparsity: build(data.shape, 10, hidden=(16,)) for sparsity in (0.5, 0.7, 0.8, 0.9)}
        work = [threading.Thread(target=trained, args=(sparsity, model, found)) for sparsity, model in models.items()]
        for thread in work:
            thread.start() if threaded else thread.run()
        for thread in work if threaded else []:
            thread.join()
        results.append(found)
    assert results[0] == results[1]
    assert len(results[0]) == 4
