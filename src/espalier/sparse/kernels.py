"""What products.py multiplies by: torch's own kernels (MKL), with nothing to install, or faster ones of ours.

Ours are `kernels.c`, which a C compiler with OpenMP makes for this machine when it is told to, once, by `espalier kernels build`.
From then on every run on this machine uses them, but where the environment variable ESPALIER_KERNELS is `torch`; record.json says
which ran, under `versions`. They share torch's threads: their OpenMP is the library that torch has loaded. Where they are not, or
do not apply, torch's are used. The two agree to rounding; either gives the same bits every time, ours at any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
PER_THREAD = 200_000
"""Operations for which another thread is worth waking."""


class Kernels(Protocol):
    """A sparse matrix is given by its compressed rows: starts `(rows + 1,)`, places `(k,)`, int32."""

    name: str

    def across(self, rows: Tensor) -> Tensor:
        """`(n, features)` as `(features, n)`, contiguous; no copy where it is so already."""

    def multiply(
        self, starts: Tensor, places: Tensor, values: Tensor, x: Tensor, bias: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """The matrix times x `(columns, n)`, plus bias `(rows,)`: `(rows, n)`. order `(k,)`: where an entry's value stands."""

    def correlate(self, starts: Tensor, places: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """For an entry in row r and column c the sum of own[r] other[c] over n: `(k,)`. own `(rows, n)`, other `(columns, n)`."""


class Stock:
    """Torch's. Its `@` of a sparse matrix fills and copies zeros of the result's size on the way, its `addmm` does not."""

    name = "torch"

    def across(self, rows: Tensor) -> Tensor:
        return rows.t().contiguous()

    def multiply(
        self, starts: Tensor, places: Tensor, values: Tensor, x: Tensor, bias: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        values = values if order is None else values.index_select(0, order)
        start = x.new_zeros(1, 1) if bias is None else bias.unsqueeze(1)
        return torch.addmm(start, compressed(starts, places, values, (len(starts) - 1, len(x))), x)

    def correlate(self, starts: Tensor, places: Tensor, own: Tensor, other: Tensor) -> Tensor:
        zeros = compressed(starts, places, own.new_zeros(len(places)), (len(own), len(other)))
        found: Tensor = torch.sparse.sampled_addmm(zeros, own, other.t(), beta=0.0).values()
        return found


class Compiled:
    """Ours. library: what `build` made."""

    def __init__(self, library: Path) -> None:
        self.name = library.stem
        self._library = ctypes.CDLL(str(library))
        for name, pointers in (("transpose", 2), ("multiply", 7), ("correlate", 5)):
            for kind in ("float32", "float64"):
                function = getattr(self._library, f"{name}_{kind}")
                function.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * pointers, ctypes.c_int]
                function.restype = None

    def across(self, rows: Tensor) -> Tensor:
        if not rows.is_contiguous():
            return STOCK.across(rows)
        y = rows.new_empty(rows.shape[1], len(rows))
        self._run("transpose", rows, rows.numel(), rows, y)
        return y

    def multiply(
        self, starts: Tensor, places: Tensor, values: Tensor, x: Tensor, bias: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        y = x.new_empty(len(starts) - 1, x.shape[1])
        self._run("multiply", y, len(places) * x.shape[1], starts, places, order, values, x, bias, y)
        return y

    def correlate(self, starts: Tensor, places: Tensor, own: Tensor, other: Tensor) -> Tensor:
        of_values = own.new_empty(len(places))
        self._run("correlate", own, len(places) * own.shape[1], starts, places, own, other, of_values)
        return of_values

    def _run(self, name: str, like: Tensor, work: int, *tensors: Tensor | None) -> None:
        """like: whose shape and type it is called by; work: how many operations it takes."""
        held = [None if one is None else one.contiguous() for one in tensors]
        threads = max(1, min(torch.get_num_threads(), work // PER_THREAD))
        function = getattr(self._library, f"{name}_{str(like.dtype).removeprefix('torch.')}")
        function(*like.shape, *(None if one is None else one.data_ptr() for one in held), threads)


def compressed(starts: Tensor, places: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A matrix of torch's CSR layout over these indices, nothing copied."""
    return torch.sparse_csr_tensor(starts, places, values, size=shape, check_invariants=False)


with warnings.catch_warnings():  # torch says once that its sparse tensors are in beta; our tests compare them with dense ones
    warnings.simplefilter("ignore", UserWarning)
    compressed(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0), (1, 1))


STOCK = Stock()
_told: list[Kernels] = []


def current() -> Kernels:
    """Those in use."""
    return _told[-1] if _told else _found(os.environ.get("ESPALIER_KERNELS", ""))


def there() -> bool:
    """Are there any for this machine? Torch's want MKL."""
    return current() is not STOCK or torch.backends.mkl.is_available()


def fit_for(x: Tensor) -> Kernels:
    """The ones to multiply x by."""
    ours = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()
    return current() if ours else STOCK


@contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """These kernels, for the while."""
    _told.append(kernels)
    try:
        yield
    finally:
        _told.pop()


@functools.cache
def _found(wish: str) -> Kernels:
    try:
        return STOCK if wish == "torch" else Compiled(where())
    except (OSError, AttributeError):  # not made, or not for this machine
        return STOCK


def where() -> Path:
    """Where this machine's library is or would be: another source, flag or processor has another name."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "espalier"
    text = "\0".join((SOURCE.read_text(), *FLAGS, platform.system(), platform.machine(), _processor()))
    return cache / f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def _processor() -> str:
    """What `-march=native` goes by."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def build() -> Path:
    """Compiles the kernels for this machine, tries them, and puts them where every later run finds them.

    Raises RuntimeError with the compiler's words where there is none (the environment's CC, else `cc`), or it fails, or what it
    made does not say what torch's kernels say.
    """
    target = where()
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, str(SOURCE)]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        try:
            done = subprocess.run([*command, "-o", str(made)], capture_output=True, text=True, check=False)
        except OSError as error:
            why = f"{command[0]} does not start ({error})"
            raise RuntimeError(f"expected a C compiler, but {why}: set CC, or do without") from None
        if done.returncode:
            raise RuntimeError(f"expected {shlex.join(command)} to compile, but it says: {done.stderr.strip()}")
        _try(Compiled(made))
        os.replace(made, target)
    _found.cache_clear()
    return target


def _try(kernels: Kernels) -> None:
    """Raises RuntimeError where they do not say what the matrix written out says."""
    stream = torch.Generator().manual_seed(0)
    for dtype, n in ((torch.float32, 1), (torch.float32, 37), (torch.float64, 137)):
        matrix = torch.randn(19, 23, generator=stream, dtype=dtype) * (torch.rand(19, 23, generator=stream) < 0.3)
        x, g, bias = (torch.randn(*shape, generator=stream, dtype=dtype) for shape in ((23, n), (19, n), (19,)))
        rows = matrix.to_sparse_csr()
        starts, places = rows.crow_indices().int(), rows.col_indices().int()
        pairs = [(kernels.across(x), x.t()),
                 (kernels.multiply(starts, places, rows.values(), x, bias), matrix @ x + bias.unsqueeze(1)),
                 (kernels.correlate(starts, places, g, x), (g @ x.t())[matrix != 0])]  # fmt: skip
        if not all(torch.allclose(own, right, rtol=1e-4, atol=1e-4) for own, right in pairs):
            raise RuntimeError("expected the compiled kernels to multiply as torch does, but they do not: do without")

