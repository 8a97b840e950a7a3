"""A folder on the web as a mirror of a run's data: slow as a home line, counted, and broken when it is asked to be.

    with Mirror(folder, bytes_per_s=50e6 / 8) as mirror:
        mirror.url                      # http://127.0.0.1:PORT
        mirror.damaged.add(name)        # some of its bytes are others from now on
        mirror.sent                     # port that a client called from -> bytes
        mirror.die(after_bytes=1 << 20)     # in the middle of what it sends then; nobody answers any more

Each connection has the whole line for itself: a member's cache has one at a time.
"""

from __future__ import annotations

import collections
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE_BYTES = 16 * 1024
FLIPPED_AT = 5000  # the byte of a damaged file that is another


class Mirror:
    """One server on 127.0.0.1.

    Args:
        bytes_per_s: of each connection.
        port: 0: any free one.
    """

    def __init__(self, folder: Path, bytes_per_s: float, port: int = 0) -> None:
        self.folder, self.bytes_per_s = folder, bytes_per_s
        self.damaged: set[str] = set()  # names of files
        self.asked: collections.Counter[str] = collections.Counter()  # name -> how often
        self.sent: collections.Counter[int] = collections.Counter()
        self.broken: list[str] = []  # what it was sending when it died
        self._left: int | None = None  # bytes until it dies
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    @property
    def is_dead(self) -> bool:
        return self._left is not None and self._left <= 0

    def die(self, after_bytes: int = 0) -> None:
        """Break off after so many more bytes, and every later call at once."""
        with self._lock:
            self._left = after_bytes

    def live(self) -> None:
        """Answer again."""
        with self._lock:
            self._left = None

    def may_send(self, size: int, name: str, port: int) -> bool:
        """Count bytes that are about to be sent; False: it dies instead."""
        with self._lock:
            if self._left is not None:
                if self._left <= 0:
                    self.broken.append(name)
                    return False
                self._left -= size
            self.sent[port] += size
        return True


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            path = mirror.folder / name
            if mirror.is_dead:
                self._hang_up()
                return
            mirror.asked[name] += 1
            if "/" in name or not path.is_file():
                self.send_error(404)
                return
            data = bytearray(path.read_bytes())
            if name in mirror.damaged:
                data[FLIPPED_AT] ^= 0xFF
            self._send(name, bytes(data))

        def _send(self, name: str, data: bytes) -> None:
            wanted = self.headers.get("Range", "")
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            began = time.monotonic()
            for place in range(start, len(data), PIECE_BYTES):
                piece = data[place : place + PIECE_BYTES]
                if not mirror.may_send(len(piece), name, self.client_address[1]):
                    self._hang_up()
                    return
                try:
                    self.wfile.write(piece)
                except OSError:  # the member was stopped
                    return
                due = began + (place + len(piece) - start) / mirror.bytes_per_s
                time.sleep(max(0.0, due - time.monotonic()))

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None: ...

    return Handler
