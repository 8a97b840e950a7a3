"""A model hub for tests: a real HTTP server that speaks the part of the hub's API that a download needs.

    GET  /api/models/{owner}/{name}/revision/{revision}        {"id", "sha", "siblings"}
    GET  /api/models/{owner}/{name}/tree/{revision}            [{"type": "file", "path", "size", "oid"}]
    HEAD /{owner}/{name}/resolve/{revision}/{path}             ETag, X-Repo-Commit, Content-Length
    GET  the same                                              the bytes, with Range

What it does not have it answers as the hub does: 404 with X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.kit.http_server import serving


class Hub:
    """One repository with one commit; `kind`: models, or datasets, whose files lie in no folders."""

    def __init__(self, repository: str, commit: str, folder: Path, kind: str = "models") -> None:
        self.kind = kind
        self.repository, self.commit, self.folder = repository, commit, folder
        self.requests: list[str] = []  # "GET /path", in order
        self.url = ""

    def files(self) -> dict[str, bytes]:
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def served(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {
            line.split("/resolve/")[1].split("/", 1)[1]
            for line in self.requests
            if line.startswith("GET /" + self.repository)
        }


class Answers(BaseHTTPRequestHandler):
    """Answers for one hub; `serve` makes a class of it that has one."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        api = f"/api/{self.hub.kind}/{self.hub.repository}/"
        if path.startswith(api):
            kind, _, revision = path.removeprefix(api).partition("/")
            if revision != self.hub.commit:
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            return self._send(200, json.dumps(self._listing(kind)).encode(), {"Content-Type": "application/json"}, body)
        place = "" if self.hub.kind == "models" else f"/{self.hub.kind}"
        start = f"{place}/{self.hub.repository}/resolve/{self.hub.commit}/"
        data = self.hub.files().get(path.removeprefix(start)) if path.startswith(start) else None
        if data is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        etag = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        return self._send(200, data, etag, body)

    def _listing(self, kind: str) -> Any:
        files = self.hub.files()
        if kind == "revision":
            return {
                "id": self.hub.repository,
                "sha": self.hub.commit,
                "siblings": [{"rfilename": name} for name in files],
            }
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        wanted = self.headers.get("Range")
        if status == 200 and wanted and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(data)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            status, data = 206, data[int(first) : end]
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on loopback inside the block."""
    with serving(type("Handler", (Answers,), {"hub": hub})) as hub.url:
        yield hub
