"""Claims about the kernels of our own: they say what the matrix written out says, in the same bits whatever the threads, and
whoever cannot have them has torch's."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from digits import digits
from espalier import shelf
from espalier.cli.main import main
from espalier.network import BayesianNetwork
from espalier.prediction.fit import Fit
from espalier.runs.folder import versions
from espalier.sparse import kernels
from espalier.sparse.kernels import STOCK, Compiled, Kernels
from espalier.sparse.layout import Indices, indices_of
from espalier.training.options import Training
from espalier.training.watch import Checkpoints, Watches
from watches import Killed, killed_and_resumed

EPS = {torch.float64: 1e-13, torch.float32: 3e-6}
dtypes = pytest.mark.parametrize("dtype", EPS)
WIDTHS = (1, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200, 257)
"""Of n: below, at and above a register and a tile of either type."""


def matrix_of(shape: tuple[int, int], dtype: torch.dtype, density: float = 0.2) -> tuple[Tensor, Indices, Tensor]:
    """Written out; its indices; its active values."""
    stream = torch.Generator().manual_seed(sum(shape))
    mask = torch.rand(shape, generator=stream) < density
    mask[[0, shape[0] // 2]] = False
    mask[:, -1] = False
    dense = torch.randn(shape, generator=stream, dtype=dtype) * mask
    positions = mask.reshape(-1).nonzero()[:, 0]
    return dense, indices_of(positions, shape), dense.reshape(-1)[positions]


def activations(features: int, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(features, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(own: Tensor, right: Tensor) -> None:
    assert own.shape == right.shape
    assert own.dtype == right.dtype
    scale = float(right.abs().max()) if right.numel() else 0.0
    assert torch.allclose(own, right, rtol=0, atol=EPS[own.dtype] * (1 + scale))


@dtypes
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("shape", [(53, 71), (1, 40), (40, 2), (3, 300)])
def test_every_width_is_the_matrix_written_out(compiled: Kernels, shape: tuple[int, int], n: int, dtype: torch.dtype) -> None:
    dense, indices, values = matrix_of(shape, dtype)
    x, g, bias = activations(shape[1], n, dtype), activations(shape[0], n, dtype, 1), activations(shape[0], 1, dtype, 2)[:, 0]
    rows, columns = indices[:2], indices[2:4]
    assert torch.equal(compiled.across(x), x.t())
    assert compiled.across(x.t()).is_contiguous()
    assert torch.equal(compiled.across(x.t()), x)
    same(compiled.multiply(*rows, values, x), dense @ x)
    same(compiled.multiply(*rows, values, x, bias), dense @ x + bias.unsqueeze(1))
    same(compiled.multiply(*columns, values, g, order=indices.order), dense.t() @ g)
    same(compiled.correlate(*rows, g, x), (g @ x.t())[dense != 0])


@dtypes
@pytest.mark.parametrize("n", [16, 37, 200])
def test_both_sets_agree(compiled: Kernels, n: int, dtype: torch.dtype) -> None:
    _, indices, values = matrix_of((53, 71), dtype)
    x, g = activations(71, n, dtype), activations(53, n, dtype, 1)
    same(compiled.multiply(*indices[:2], values, x, g[:, 0]), STOCK.multiply(*indices[:2], values, x, g[:, 0]))
    by_columns = [one.multiply(*indices[2:4], values, g, order=indices.order) for one in (compiled, STOCK)]
    same(*by_columns)
    same(compiled.correlate(*indices[:2], g, x), STOCK.correlate(*indices[:2], g, x))


@dtypes
def test_bits_do_not_depend_on_the_number_of_threads(compiled: Kernels, dtype: torch.dtype) -> None:
    """Also of a matrix whose rows are not alike."""
    threads, found = torch.get_num_threads(), []
    _, indices, values = matrix_of((257, 600), dtype, 0.3)
    x, g = activations(600, 130, dtype), activations(257, 130, dtype, 1)
    assert len(values) * 130 > 4 * kernels.PER_THREAD, "too little work for four"
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            found.append((
                compiled.multiply(*indices[:2], values, x), compiled.multiply(*indices[2:4], values, g, order=indices.order),
                compiled.correlate(*indices[:2], g, x),
            ))  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for own in found[1:]:
        assert all(torch.equal(one, first) for one, first in zip(own, found[0], strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(compiled: Kernels, bad: float) -> None:
    dense, indices, values = matrix_of((53, 71), torch.float32)
    x, g = activations(71, 100, torch.float32), activations(53, 100, torch.float32, 1)
    x[5, 70] = bad
    reached = dense[:, 5] != 0
    product = compiled.multiply(*indices[:2], values, x)
    assert not product[reached, 70].isfinite().any()
    assert product[~reached].isfinite().all()
    of_values = compiled.correlate(*indices[:2], g, x)
    own = indices.columns == 5
    assert not of_values[own].isfinite().any()
    assert of_values[~own].isfinite().all()


TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


@pytest.mark.skipif(not TORCH.exists(), reason="torch is built otherwise on this machine")
def test_threads_are_torchs_own(compiled: Compiled) -> None:
    """A second OpenMP would have threads of its own, which fight the first for the cores."""
    own, theirs = (
        ctypes.cast(ctypes.CDLL(str(library)).omp_get_max_threads, ctypes.c_void_p).value
        for library in (compiled._library._name, TORCH)
    )
    assert own == theirs


def test_what_does_not_apply_is_torchs(compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_KERNELS", "torch")
    with kernels.using(compiled):
        assert kernels.fit_for(torch.zeros(1)) is compiled
        assert kernels.fit_for(torch.zeros(1, dtype=torch.bfloat16)) is STOCK
        assert kernels.fit_for(torch.zeros(1, device="meta")) is STOCK
    assert kernels.current() is STOCK


def test_without_a_library_there_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels._found.__wrapped__("") is STOCK
    kernels.where().parent.mkdir()
    kernels.where().write_bytes(b"not a library")
    assert kernels._found.__wrapped__("") is STOCK


def test_it_is_made_once_and_found_by_all(compiled: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ESPALIER_KERNELS", "")
    before = kernels.current().name
    assert main(["kernels", "build"]) == 0
    assert (before, kernels.current().name) == ("torch", compiled.name)
    assert [path.name for path in (tmp_path / "espalier").iterdir()] == [f"{compiled.name}.so"]
    there = subprocess.run([sys.executable, "-m", "espalier", "kernels"], capture_output=True, text=True, check=True)
    assert there.stdout == f"in use: {compiled.name}\n"
    stock = {**os.environ, "ESPALIER_KERNELS": "torch"}
    there = subprocess.run([sys.executable, "-m", "espalier", "kernels"], capture_output=True, text=True, check=True, env=stock)
    assert there.stdout == "in use: torch\n"
    kernels._found.cache_clear()


@pytest.mark.parametrize(("compiler", "says"), [("no-such-compiler", "does not start"), ("false", "to compile, but it says")])
def test_a_compiler_that_cannot_is_told(
    compiler: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    assert main(["kernels", "build"]) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "espalier").iterdir())


class Wrong(Compiled):
    """Off by a part in a hundred, in one of its two."""

    def __init__(self, library: Path, name: str) -> None:
        super().__init__(library)
        self.wrong = name

    def _run(self, name: str, like: Tensor, work: int, *tensors: Tensor | None) -> None:
        super()._run(name, like, work, *tensors)
        if name == self.wrong:
            assert tensors[-1] is not None
            tensors[-1].mul_(1.01)


@pytest.mark.parametrize("name", ["transpose", "multiply", "correlate"])
def test_a_library_that_is_wrong_is_not_taken(name: str, compiled: Compiled) -> None:
    library = Path(compiled._library._name)
    kernels._try(Compiled(library))
    with pytest.raises(RuntimeError, match="expected the compiled kernels to multiply as torch does"):
        kernels._try(Wrong(library, name))


def trained(watch: Watches = None) -> Fit:
    """CigL on digits through moves of the topology; two of its layers are sparse enough."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    model = BayesianNetwork(nn.Sequential(nn.Flatten(), *layers))
    training = Training(epochs=4, batch_size=32, learning_rate=0.1, device="cpu")
    options = {"sparsity": 0.9, "drop_rate": 0.2, "delta_t": 7}
    return shelf.load("inference", "cigl")(model, digits(), training=training, seed=1, watch=watch, **options)


def test_a_fit_is_the_same_by_either_and_goes_on_bit_for_bit(compiled: Compiled, tmp_path: Path) -> None:
    stock = trained()
    calls = []
    counting = Compiled(Path(compiled._library._name))
    counting._run = lambda name, *rest: (calls.append(name), compiled._run(name, *rest))[1]  # type: ignore[method-assign]
    with kernels.using(counting):
        own = trained()
        again = killed_and_resumed(trained, tmp_path, 17)
    assert set(calls) == {"transpose", "multiply", "correlate"}
    assert [row["loss"] for row in own.history] == pytest.approx([row["loss"] for row in stock.history], rel=1e-3)
    assert again.history == own.history
    assert torch.equal(again.pairs.values, own.pairs.values)


def test_who_goes_on_with_other_kernels_is_told(compiled: Kernels, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), kernels.using(compiled):
        trained(Checkpoints(tmp_path / "mine.safetensors", Killed(step=17), every=0))
    with kernels.using(STOCK), pytest.warns(UserWarning, match=f"began with {compiled.name} kernels and goes on with torch"):
        trained(Checkpoints(tmp_path / "mine.safetensors", every=0))


def test_a_record_says_which_ran(compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_KERNELS", "torch")
    assert versions()["kernels"] == "torch"
    with kernels.using(compiled):
        assert versions()["kernels"] == compiled.name
