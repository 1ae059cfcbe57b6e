"""Arrays of an .npz file, judged by what their headers declare before anything is allocated."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from numpy.typing import NDArray


def said(error: Exception) -> str:
    """What an exception says, as part of a sentence: one line of letters, not too long."""
    line = (str(error).strip() or type(error).__name__).split("\n")[0][:160]
    return line if line.isprintable() else ascii(line)


def check_memory(what: str, count: int, itemsize: int) -> None:
    """Raises ValueError where `count` numbers of `itemsize` bytes, and as many of float32, are more than the machine's memory."""
    need, here = count * (itemsize + 4), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > here:
        raise ValueError(
            f"expected arrays that fit into the {here / 2**30:,.1f} GiB of this machine, got {what} that needs "
            f"{need / 2**30:,.1f} GiB"
        )


def names(path: Path) -> list[str]:
    """Of the arrays in an .npz file. Raises ValueError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive may raise nearly anything
        raise _unreadable(path, error) from error


def arrays(path: Path, wanted: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names; no pickle is opened. Raises ValueError, in one sentence, for what is damaged or too large."""
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, of headers that it reads all the same
            return {name: _array(archive, name) for name in wanted}
    except Exception as error:
        raise _unreadable(path, error) from error


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} in version {version} of the format")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"Python objects in {name}")
        count, begins = math.prod(shape), member.tell()
        check_memory(name, count, max(dtype.itemsize, 1))
        if info.file_size != begins + count * dtype.itemsize:
            raise ValueError(f"{name} of {info.file_size - begins:,} bytes that declares {count * dtype.itemsize:,}")
    with archive.open(info) as member:
        return npy.read_array(member, allow_pickle=False)


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read: expected an npz of plain arrays, got {said(error)}; write it anew with np.savez"
    )
