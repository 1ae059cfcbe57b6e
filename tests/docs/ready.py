"""A process that has imported everything, and forks for whatever is asked of it: a command then costs no imports.

    python ready.py serve SOCKET                    waits for requests
    python ready.py espalier SOCKET WORD ...        `espalier WORD ...`, in this folder, on these three streams
    python ready.py python SOCKET FILE WORD ...     `python FILE WORD ...`
    python ready.py page SOCKET FILE.json           a page of blocks, from top to bottom (`run_page`)

Importing torch, Pyro and the rest takes seconds, and the pages have some forty commands.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def serve(address: str) -> None:
    import importlib
    import pkgutil

    import arviz_base  # noqa: F401
    import mapie.risk_control  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pandas as pd  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import espalier

    for module in pkgutil.walk_packages(espalier.__path__, "espalier."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.settimeout(5)
    parent = os.getppid()
    while os.getppid() == parent:  # it does not outlive the tests
        try:
            asked, _ = listener.accept()
        except TimeoutError:
            continue
        asked.settimeout(None)
        if os.fork() == 0:
            listener.close()
            _work(asked)
        asked.close()
        while _ended():
            pass


def _ended() -> bool:
    """Take leave of one child that has ended."""
    try:
        return os.waitpid(-1, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return False


def _work(asked: socket.socket) -> None:
    """In a process of its own: do what is asked, and say how it ended."""
    data, streams, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    request = json.loads(data)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 70
    try:
        code = _run(request["kind"], request["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asked.sendall(bytes([code]))
        os._exit(code)


def _run(kind: str, words: list[str]) -> int:
    if kind == "espalier":
        from espalier.cli.main import main

        return main(words)
    if kind == "page":
        return run_page(json.loads(Path(words[0]).read_text(encoding="utf-8")))
    import runpy

    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")
    return 0


def run_page(blocks: list[dict[str, Any]]) -> int:
    """A page's blocks in order: Python in one namespace, where a warning is an error, and shell lines through bash."""
    import time
    import warnings

    start, page = time.monotonic(), ModuleType("__page__")
    sys.modules["__page__"] = page
    for block in blocks:
        print(f"--- {time.monotonic() - start:6.1f} s  {block['where']}", flush=True)
        if block["kind"] == "file":
            Path(block["name"]).write_text(block["text"], encoding="utf-8")
        elif block["kind"] == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                exec(compile(block["text"], block["where"], "exec"), page.__dict__)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block["text"]], check=False)
            if done.returncode != block["exit"]:
                print(f"expected exit code {block['exit']}, got {done.returncode}", flush=True)
                return 1
    return 0


def ask(kind: str, address: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.connect(address)
        request = {"kind": kind, "words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(wire, [json.dumps(request).encode()], [0, 1, 2])
        said = wire.recv(1)
    return said[0] if said else 1


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2], sys.argv[3:]))
