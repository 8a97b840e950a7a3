"""One bucket for tests: a real HTTP server that speaks the part of Amazon S3's API that reading needs.

    GET  /{bucket}?list-type=2&prefix={…}&delimiter=/    XML: keys, and what they have before the delimiter
    HEAD /{bucket}/{key}                                  ETag, Last-Modified, Content-Length
    GET  the same                                         the bytes, with Range

Signatures are not looked at. What it does not have it answers as S3 does: 404 with a code in XML.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.kit.http_server import serving

_DAY = "2026-12-01T00:00:00.000Z"


class Answers(BaseHTTPRequestHandler):
    """Answers for one bucket; `serve_bucket` makes a class of it that has one."""

    name: str
    objects: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        if bucket != self.name:
            self._send(404, _xml("Error", "<Code>NoSuchBucket</Code><Message>no such bucket</Message>"))
        elif not key:
            query = parse_qs(url.query)
            self._send(200, self._listed(query.get("prefix", [""])[0], query.get("delimiter", [""])[0]))
        elif key not in self.objects:
            self._send(404, _xml("Error", "<Code>NoSuchKey</Code><Message>no such key</Message>"))
        else:
            self._send_object(self.objects[key])

    def _listed(self, prefix: str, delimiter: str) -> bytes:
        parts, folders = [], set()
        for key, data in sorted(self.objects.items()):
            if not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(f"{prefix}{head}{delimiter}")
                continue
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{_DAY}</LastModified><ETag>{_etag(data)}</ETag>"
                f"<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        parts += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        count = f"<Name>{self.name}</Name><KeyCount>{len(parts)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _xml("ListBucketResult", count + "".join(parts))

    def _send_object(self, data: bytes) -> None:
        headers = {"ETag": _etag(data), "Last-Modified": "Tue, 01 Dec 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(200, data, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else len(data)]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self._send(206, part, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {"Content-Type": "application/xml"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(name: str, inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{inside}</{name}>'.encode()


@contextmanager
def serve_bucket(name: str, objects: dict[str, bytes]) -> Iterator[str]:
    """The URL of a server with one bucket; what is put into `objects` meanwhile is in it, too."""
    handler = type("BucketAnswers", (Answers,), {"name": name, "objects": objects})
    with serving(handler) as url:
        yield url
