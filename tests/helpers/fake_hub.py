"""A model hub on 127.0.0.1, as far as huggingface_hub asks it for small files: repositories in memory, one good token."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_good"


class Hub:
    """repos: name -> file -> content, as of the last commit. sent: the files of every commit. asked: methods and paths."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.sent: list[list[str]] = []
        self.asked: list[str] = []
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes, good: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        self.asked.append(f"{method} {path}")
        if not good and method == "POST":
            return 401, {"X-Error-Message": "Invalid username or password."}, b"{}"
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repos.setdefault(name, {})
            return 200, {}, json.dumps({"url": f"{self.endpoint}/{name}", "id": name}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, json.dumps({"errors": [], "warnings": []}).encode()
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.repos:
            return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
        if parts[0] == "api":
            return 200, {}, json.dumps(self._of_repo(name, parts[4], body)).encode()
        file = "/".join(parts[4:])
        if file not in self.repos[name]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        content = self.repos[name][file]
        return 200, {"X-Repo-Commit": self._commit(name), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    def _of_repo(self, name: str, what: str, body: bytes) -> Any:
        if what == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if what == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            own = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            gone = {line["value"]["path"] for line in lines if line["key"] == "deletedFile"}
            self.repos[name] = {file: content for file, content in (self.repos[name] | own).items() if file not in gone}
            self.sent.append(sorted(own))
            commit = self._commit(name)
            return {"commitUrl": f"{self.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        if what == "tree":
            oid = hashlib.sha1
            files = self.repos[name].items()
            return [{"type": "file", "path": file, "size": len(own), "oid": oid(own).hexdigest()} for file, own in files]
        assert what == "revision", what
        return {"id": name, "sha": self._commit(name), "siblings": [{"rfilename": file} for file in self.repos[name]]}

    def _commit(self, name: str) -> str:
        return hashlib.sha1(b"".join(content for _, content in sorted(self.repos[name].items()))).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers at `hub.endpoint` for the while."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answered(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            good = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            status, headers, content = hub.answer(self.command, self.path.split("?")[0], body, good)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content)), "Content-Type": "application/json"}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_HEAD = answered

        def log_message(self, *said: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
