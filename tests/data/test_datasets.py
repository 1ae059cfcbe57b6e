"""Claims about espalier.data.datasets: a torch Dataset streams, whatever the number of workers, and resumes to equal bytes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from espalier import BayesianNetwork, Training
from espalier.certificates.certify import check_unseen
from espalier.data import Streamed, from_arrays, from_datasets
from espalier.inference import cigl
from stream import fit as stream_fit

SCRIPT = Path(__file__).parents[1] / "helpers" / "stream.py"
GENERATOR = torch.Generator().manual_seed(5)
X, Y = torch.randn(90, 4, generator=GENERATOR), torch.randint(0, 3, (90,), generator=GENERATOR)
PARTS = ("train", "validation", "calibration", "test")


class Listed(Dataset[Any]):
    """Examples from a list; one that is an exception is raised."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> Any:
        if isinstance(self.examples[row], Exception):
            raise self.examples[row]
        return self.examples[row]


def every(x: Any) -> Tensor:
    return x[torch.arange(len(x))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for row in range(180):
        label = row % 3
        pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
        pixels[..., label] += 100
        Image.fromarray(pixels).save(folder / f"{['red', 'green', 'blue'][label]}-{row:03d}.png")
    return folder


def test_a_dataset_is_cut_as_its_arrays_are() -> None:
    streamed, held = from_datasets(TensorDataset(X, Y), workers=0), from_arrays(X, Y, standardise=False)
    for part in PARTS:
        ours, theirs = getattr(streamed, part), getattr(held, part)
        assert isinstance(ours.x, Streamed)
        assert torch.equal(every(ours.x), theirs.x)
        assert torch.equal(ours.y, theirs.y)
    assert (streamed.shape, streamed.num_classes, streamed.classes) == (held.shape, 3, (0, 1, 2))


@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_targets_of_several_numbers_may_be_tensors(kind: torch.dtype) -> None:
    y = (4 * torch.rand(90, 2, generator=torch.Generator().manual_seed(0))).to(kind)
    streamed, held = from_datasets(TensorDataset(X, y), workers=0), from_arrays(X, y)
    assert torch.equal(streamed.train.y, held.train.y)
    assert streamed.num_classes == held.num_classes


def test_targets_are_standardised_and_inputs_are_not() -> None:
    values = 50 + 9 * X[:, 0]
    streamed, held = from_datasets(TensorDataset(X, values), workers=0), from_arrays(X, values.double().numpy())
    assert streamed.num_classes is None
    assert streamed.target_shift == pytest.approx(held.target_shift, rel=1e-6)
    assert streamed.target_scale == pytest.approx(held.target_scale, rel=1e-6)
    torch.testing.assert_close(streamed.train.y, held.train.y)
    assert {tuple(row) for row in every(streamed.train.x).tolist()} <= {tuple(row) for row in X.tolist()}


def test_hashes_tell_inputs_labels_and_order_and_nothing_else() -> None:
    data = from_datasets(TensorDataset(X, Y), workers=0)
    assert (
        from_datasets(Listed([(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]), workers=2).hashes == data.hashes
    )
    other, changed = X.clone(), Y.clone()
    other[7, 0] += 1e-3
    changed[7] = (changed[7] + 1) % 3
    for dataset in (TensorDataset(other, Y), TensorDataset(X, changed)):
        differ = [part for part in PARTS if from_datasets(dataset, workers=0).hashes[part] != data.hashes[part]]
        assert len(differ) == 1
    assert from_datasets(TensorDataset(other, Y), workers=0, content=False).hashes == (
        from_datasets(TensorDataset(X, Y), workers=0, content=False).hashes
    )


def test_with_targets_given_and_no_content_asked_for_nothing_is_read_but_one_row() -> None:
    examples: list[Any] = [ValueError("decoded")] * 40
    examples = [*examples[:20], *X[20:40]]
    with pytest.raises(ValueError, match="^decoded$"):
        from_datasets(Listed(examples), targets=Y[:40], workers=0, content=False)  # the shape is looked up
    data = from_datasets(Listed([*X[:40]]), targets=["ab"[label % 2] for label in Y[:40]], workers=0, content=False)
    assert data.classes == ("a", "b")


def test_a_test_dataset_stays_the_test_split_and_shares_the_numbering() -> None:
    words = np.array(["x", "y", "z"])
    train = Listed([(x, words[y]) for x, y in zip(X, Y, strict=True)])
    test = Listed([(x, "z") for x in X[:5]])
    data = from_datasets(train, test, workers=0)
    assert data.classes == ("x", "y", "z")
    assert data.test.y.tolist() == [2] * 5
    assert sum(len(getattr(data, part).y) for part in PARTS[:3]) == 90


def test_examples_that_training_has_seen_are_found_by_their_digests() -> None:
    data = from_datasets(TensorDataset(X, Y), TensorDataset(X, Y), workers=0)
    assert check_unseen(data, data.calibration) == 0
    with pytest.raises(ValueError, match="expected calibration examples that training has not seen"):
        check_unseen(data, data.test)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_does_not_depend_on_the_number_of_workers(pictures: Path, workers: int) -> None:
    alone, helped = (stream_fit(pictures, number, None, epochs=2) for number in (0, workers))
    assert torch.equal(alone.pairs.values, helped.pairs.values)
    assert alone.history == helped.history
    assert alone.record["data"] == helped.record["data"]


@pytest.mark.slow
def test_a_run_that_is_killed_while_workers_decode_resumes_to_equal_bytes(pictures: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), str(pictures), "2"]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2] / "src"), str(SCRIPT.parent)])}
    whole = subprocess.run(
        [*words, str(tmp_path / "whole")], env=path, check=False, capture_output=True, text=True, timeout=300
    )
    assert whole.returncode == 0, whole.stderr
    again = [*words, str(tmp_path / "killed"), str(tmp_path / "checkpoint.safetensors")]
    for epoch in (1, 2):
        with subprocess.Popen(again, env=path, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == f"epoch {epoch}\n":
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
    last = subprocess.run(again, env=path, check=False, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr
    assert "epoch 2" not in last.stdout  # it went on, and did not begin again
    assert "epoch 4" in last.stdout
    for name in ("fit.safetensors", "history.json", "record.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    from espalier.training import Checkpoints

    net = BayesianNetwork(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    options = {"sparsity": 0.5, "delta_t": 2, "watch": Checkpoints(tmp_path / "c.safetensors", every=0)}
    training = Training(epochs=2, batch_size=16)
    cigl.infer(net, from_datasets(TensorDataset(X, Y), workers=0), training=training, **options)
    with pytest.raises(
        ValueError, match="expected the data that the checkpoint was made on, but datasets holds other rows"
    ):
        cigl.infer(net, from_datasets(TensorDataset(-X, Y), workers=0), training=training, **options)


class Endless(Dataset[Any]):
    """Inputs of 600 kB that are made when asked for: in all, 1.6 GB."""

    def __len__(self) -> int:
        return 2700

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.full((3, 224, 224), float(row % 2)) + 0.01 * torch.randn(3, 224, 224), row % 2


STREAMED = """
import resource, sys, torch
from torch import nn
from espalier import BayesianNetwork, Training
from espalier.data import from_datasets
from espalier.inference import cigl
from test_datasets import Endless
torch.set_num_threads(1)
net = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 2))
def train(rows):
    dataset = torch.utils.data.Subset(Endless(), range(rows))
    data = from_datasets(dataset, targets=[row % 2 for row in range(rows)], content=False, workers=1)
    return cigl.infer(BayesianNetwork(net), data, sparsity=0.5, delta_t=5, training=Training(epochs=1, batch_size=16))
train(64)                                                                   # what is only imported when training begins
held = int(open('/proc/self/statm').read().split()[5]) * resource.getpagesize()      # data and stack, as RLIMIT_DATA counts
resource.setrlimit(resource.RLIMIT_DATA, (held + (160 << 20),) * 2)
if sys.argv[1] == 'held':
    [Endless()[row][0] for row in range(2700)]
fit = train(2700)
print(fit.history[-1]['validation_accuracy'])
"""


@pytest.mark.slow
def test_an_epoch_over_a_set_ten_times_larger_than_the_process_may_hold() -> None:
    """1.6 GB of inputs, in processes that may hold 160 MB more than one does after its imports."""
    places = [SCRIPT.parents[2] / "src", SCRIPT.parent, Path(__file__).parent]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "MALLOC_ARENA_MAX": "1"}
    run = [sys.executable, "-c", STREAMED]
    streamed = subprocess.run([*run, "streamed"], env=env, check=False, capture_output=True, text=True, timeout=300)
    assert streamed.returncode == 0, streamed.stderr[-2000:]
    assert float(streamed.stdout) > 0.9
    held = subprocess.run([*run, "held"], env=env, check=False, capture_output=True, text=True, timeout=300)
    assert held.returncode != 0  # the limit is one
    assert "memory" in held.stderr.lower()
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 0


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an iterable": (Stream(), {}, "expected a map-style dataset, with len() and [], got Stream"),
    "inputs alone": (Listed([*X]), {}, "the train dataset: expected examples (input, label), got Tensor in row 0"),
    "three things": (Listed([(x, 0, 1) for x in X]), {}, "expected examples (input, label), got 3 things in row 0"),
    "NaN": (TensorDataset(X / (torch.arange(90) != 4)[:, None], Y), {}, "got NaN or infinity (in float32) in row 4"),
    "too few targets": (TensorDataset(X, Y), {"targets": Y[:3]}, "expected a target for each of 90 train examples, got 3"),
    "one class": (TensorDataset(X, Y * 0), {}, "expected two or more classes in the train dataset, got only 0"),
    "an unreadable file": (Listed([(X[0], 1), OSError("a.png is broken")] * 9), {}, "the train dataset: a.png is broken"),
    "a test set unlike it": (TensorDataset(X, Y), {"test": TensorDataset(X[:, :2], Y)}, "datasets: expected test rows like"),
    "an image": (Listed([(Image.new("L", (4, 4)), k % 2) for k in range(20)]), {}, "tensors or arrays, got Image in row 0"),
    "one of another shape": (Listed([(torch.zeros(6 if k < 9 else 5), k % 2) for k in range(20)]), {},
                             "the train dataset: expected examples of one shape, torch.float32 (6,) as the first is, got"),
    "none at all": (Listed([]), {}, "expected examples, but the train dataset is empty"),
    "complex numbers": (Listed([(X[0] * 1j, 0)] * 9), {}, "expected real inputs, got torch.complex64"),
    "fewer workers than none": (TensorDataset(X, Y), {"workers": -1}, "expected workers of 0 or more, got -1"),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_right_is_refused_in_a_sentence(name: str, workers: int) -> None:
    dataset, options, says = WRONG[name]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - says is compared below, as it stands
        from_datasets(dataset, **{"workers": workers, **options})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
