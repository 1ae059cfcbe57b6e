"""Public sets fetched from their addresses: from a server of this process, whole or not at all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from espalier import data
from espalier.data import downloads
from espalier.data.downloads import Download
from written import RNG, write_mnist


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with `files[path]`: what is sent, and the length that is promised."""

    files: dict[str, tuple[bytes, int]] = {}
    asked: list[str] = []
    lengths = True

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path not in self.files:
            self.send_error(404)
            return
        content, promised = self.files[self.path]
        self.send_response(200)
        if self.lengths:
            self.send_header("Content-Length", str(promised))
        self.end_headers()
        with suppress(ConnectionError):  # who has enough hangs up
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Server, "files", {})
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "lengths", True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def serve(path: str, content: bytes, promised: int | None = None) -> None:
    Server.files[path] = (content, len(content) if promised is None else promised)


def stored(folder: Path) -> list[str]:
    """Every file below, hidden ones too, and every folder that a download may have made for itself."""
    paths = folder.rglob("*")
    return sorted(str(p.relative_to(folder)) for p in paths if p.is_file() or p.name.startswith("."))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_get_stores_what_load_reads_and_downloads_nothing_twice(tmp_path: Path, server: str) -> None:
    write_mnist(tmp_path / "made/MNIST/raw", compress=True)
    parts = []
    for path in sorted((tmp_path / "made/MNIST/raw").iterdir()):
        serve(f"/{path.name}", path.read_bytes())
        content = gzip.decompress(path.read_bytes())
        parts.append(Download(f"{server}/{path.name}", {f"MNIST/raw/{path.name}": digest(content)}, len(content)))
    seen: list[tuple[str, int, int | None]] = []
    get = partial(downloads.get, "mnist", tmp_path / "here", sources={"mnist": tuple(parts)})
    sentences = get(progress=lambda *progress: seen.append(progress))
    assert [s.rpartition(": stored in ")[0] for s in sentences] == [f for d in parts for f in d.files]
    assert {name: (now, total) for name, now, total in seen} == {
        path[1:]: (total, total) for path, (_, total) in Server.files.items()
    }
    here, made = (data.load("mnist", data_dir=tmp_path / folder) for folder in ("here", "made"))
    assert here.hashes == made.hashes
    assert all(sentence.endswith("already there, SHA-256 as expected") for sentence in get())
    assert len(Server.asked) == 4
    assert len(stored(tmp_path / "here")) == 4


def test_a_file_that_is_there_but_wrong_is_replaced_and_kept_aside(tmp_path: Path, server: str) -> None:
    (tmp_path / "set").mkdir()
    serve("/a.gz", gzip.compress(b"right"))
    source = {"a": (Download(f"{server}/a.gz", {"set/a.gz": digest(b"right")}, 5),)}
    for number, wrong in enumerate((gzip.compress(b"wrong"), gzip.compress(b"right")[:-3], b"wrong"), 1):
        (tmp_path / "set/a.gz").write_bytes(wrong)
        said = downloads.get("a", tmp_path, sources=source)[0]
        assert "stored in" in said
        assert said.endswith(f"what stood there is now a.gz.other-{number}")  # it may be someone's own
        assert gzip.decompress((tmp_path / "set/a.gz").read_bytes()) == b"right"
        assert (tmp_path / f"set/a.gz.other-{number}").read_bytes() == wrong


def test_a_failed_download_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    right = gzip.compress(RNG.bytes(100_000))
    serve("/wrong.gz", gzip.compress(b"something else"))
    serve("/cut.gz", right[:50_000], promised=len(right))
    serve("/not.gz", b"<html>moved</html>")
    expected = digest(gzip.decompress(right))
    for file, sentence in {
        "wrong.gz": rf"wrong\.gz: expected SHA-256 {expected}, got {digest(b'something else')}; nothing was stored",
        "cut.gz": r"cut\.gz: expected the whole file, got .*; nothing was stored, try again",
        "not.gz": rf"not\.gz: expected SHA-256 {expected}, got a damaged gzip file; nothing was stored",
        "absent.gz": r"absent\.gz: expected the whole file, got HTTP Error 404: Not Found; nothing was stored",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            downloads.get(
                "a", tmp_path, sources={"a": (Download(f"{server}/{file}", {f"set/{file}": expected}, 100_000),)}
            )
        assert stored(tmp_path) == []


def test_a_failed_download_leaves_the_file_that_was_there(tmp_path: Path, server: str) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    serve("/a.bin", b"wrong")
    with pytest.raises(ValueError, match="nothing was stored"):
        downloads.get("a", tmp_path, sources={"a": (Download(f"{server}/a.bin", {"a.bin": digest(b"right")}, 5),)})
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("promised", [True, False])
def test_no_more_is_fetched_than_the_file_is_known_to_hold(tmp_path: Path, server: str, promised: bool) -> None:
    serve("/a.bin", bytes(3 << 20))
    Server.lengths = promised
    most, seen = 5 + downloads._SLACK, []
    source = {"a": (Download(f"{server}/a.bin", {"set/a.bin": digest(b"right")}, 5),)}
    with pytest.raises(
        ValueError, match=rf"a\.bin: expected the whole file, got more than {most:,} bytes; nothing was stored"
    ):
        downloads.get("a", tmp_path, progress=lambda name, now, total: seen.append(now), sources=source)
    assert max(seen, default=0) <= most
    assert stored(tmp_path) == []


def test_a_gzip_bomb_is_hashed_no_further_than_the_file_is_known_to_hold(tmp_path: Path, server: str) -> None:
    serve("/a.gz", gzip.compress(bytes(4 << 20)))
    source = {"a": (Download(f"{server}/a.gz", {"set/a.gz": digest(bytes(4 << 20))}, 5),)}
    with pytest.raises(
        ValueError, match=r"a\.gz: expected SHA-256 \w+, got more than 1,048,581 bytes; nothing was stored"
    ):
        downloads.get("a", tmp_path, sources=source)
    assert stored(tmp_path) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    serve("/a.bin", b"right")
    source = {"a": (Download(f"{server}/a.bin", {"set/a.bin": digest(b"right")}, 5),)}
    with pytest.raises(KeyboardInterrupt):
        downloads.get("a", tmp_path, progress=interrupt, sources=source)
    assert stored(tmp_path) == []


def test_a_server_that_is_not_there_is_said_so(tmp_path: Path, server: str) -> None:
    source = {"a": (Download("http://127.0.0.1:1/a.bin", {"a.bin": digest(b"")}, 0),)}
    with pytest.raises(ValueError, match=r"a\.bin: expected the whole file, got .*refused.*; nothing was stored"):
        downloads.get("a", tmp_path, sources=source)


def tar(**members: bytes | str) -> bytes:
    """A .tar.gz of files (bytes) and symbolic links (str), named with / for __."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("UP", ".."))
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def test_an_archive_is_unpacked_whole_and_only_as_far_as_wanted(tmp_path: Path, server: str) -> None:
    packed = tar(set__a=b"A", set__b=b"B", UP__escaped=b"!", set__link="/etc/passwd", set__readme=b"?")
    serve("/set.tar.gz", packed)
    files = {"set/a": digest(b"A"), "set/b": digest(b"B")}
    get = partial(downloads.get, "a", tmp_path / "here")
    sentence = get(sources={"a": (Download(f"{server}/set.tar.gz", files, 2, digest(packed)),)})[0]
    assert sentence.startswith("set/a, set/b: stored in")
    assert stored(tmp_path) == ["here/set/a", "here/set/b"]
    assert "already there" in get(sources={"a": (Download(f"{server}/set.tar.gz", files, 2, digest(packed)),)})[0]


def test_a_wrong_archive_leaves_nothing_behind(tmp_path: Path, server: str) -> None:
    packed = tar(set__a=b"A", set__b="/etc/passwd")
    serve("/set.tar.gz", packed)
    for files, archive, sentence in (
        ({"set/a": digest(b"A")}, digest(b"another"), rf"expected SHA-256 {digest(b'another')}, got {digest(packed)}"),
        ({"set/a": digest(b"X")}, digest(packed), rf"expected SHA-256 {digest(b'X')}, got {digest(b'A')}"),
        ({"set/a": digest(b"A"), "set/b": ""}, digest(packed), r"set\.tar\.gz: expected set/b in it, got no such file"),
    ):
        with pytest.raises(ValueError, match=sentence + ".*nothing was stored"):
            downloads.get("a", tmp_path, sources={"a": (Download(f"{server}/set.tar.gz", files, 2, archive),)})
        assert stored(tmp_path) == []


def test_sources_name_the_files_that_load_looks_for(tmp_path: Path) -> None:
    for name, parts in downloads.SOURCES.items():
        for download in parts:
            assert download.url.startswith("https://")
            digests = [*download.files.values(), download.archive_sha256 or digest(b"")]
            assert all(re.fullmatch("[0-9a-f]{64}", d) for d in digests)
            for file in download.files:
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).touch()
        assert name in data.available(tmp_path)
    assert set(data.available(tmp_path)) == {"digits", *downloads.SOURCES}


def test_sets_without_a_public_file_say_where_they_come_from(tmp_path: Path) -> None:
    assert downloads.get("digits", tmp_path) == ["digits comes with scikit-learn: nothing to download"]
    with pytest.raises(ValueError, match=r"boston: expected a public address, got none.*yaringal/Dropout"):
        downloads.get("boston", tmp_path)
    assert list(tmp_path.iterdir()) == []
