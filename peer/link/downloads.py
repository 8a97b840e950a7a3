"""Files fetched in pieces, resumed after a break, and moved into place only when their digest is right.

`client` calls `fetch` for every file of a run. While it is incomplete a file is called `NAME.part`.

    >>> import tempfile, hashlib
    >>> folder = Path(tempfile.mkdtemp())
    >>> wanted = hashlib.sha256(b"hello").hexdigest()
    >>> with Download(folder / "greeting", wanted, 5) as download:
    ...     download.write(b"hel"); download.write(b"lo"); download.finish()
    >>> (folder / "greeting").read_bytes()
    b'hello'
"""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from protocol.backoff import Backoff
from protocol.disk import disk_error
from protocol.errors import InputError, NetworkError, VerificationError
from protocol.rpc import PART_BYTES

FETCH_ATTEMPTS = 8  # in a row without a single new byte
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # between two
STREAM_TIMEOUT_S = 600.0  # of one call that fetches a file, which then resumes

Progress = Callable[[str, int, int], None]  # (file name, bytes so far, bytes in all)


def is_complete(path: Path, sha256: str, size_bytes: int) -> bool:
    """Whether `path` already holds exactly these bytes."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def fetch(
    read: Callable[[int], Iterator[bytes]],
    name: str,
    sha256: str,
    size_bytes: int,
    destination: Path,
    progress: Progress | None,
    attempts: int = FETCH_ATTEMPTS,
) -> Path:
    """Bring one file to `destination` from a source that can be read from any offset; returns `destination`.

    Args:
        read: gives the bytes from an offset on; may stop or fail anywhere.
        name: what `progress` is told.

    Raises:
        NetworkError: the source failed `attempts` times in a row without a new byte.
        VerificationError: twice the wrong bytes; once may be a leftover of an earlier attempt.
    """
    if is_complete(destination, sha256, size_bytes):
        return destination
    backoff, wrong = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S), 0
    with Download(destination, sha256, size_bytes) as download:
        while True:
            before, broken = download.received, NetworkError(f"{name}: ended before its {size_bytes} bytes had come")
            try:
                if download.received < size_bytes:
                    for piece in read(download.received):
                        download.write(piece)
                        if progress is not None:
                            progress(name, download.received, size_bytes)
                if download.received == size_bytes:
                    download.finish()
                    return destination
            except VerificationError:
                wrong += 1
                if wrong == 2:
                    raise
            except NetworkError as error:
                broken = error
            if download.received > before:
                backoff.worked()
            pause_s = backoff.failed()
            if backoff.failures >= attempts:
                raise broken
            time.sleep(pause_s)


class Download:
    """One file on its way to `destination`; use as a context manager.

    Args:
        destination: where the whole file will lie.
        sha256: hex; what its bytes must hash to.
        size_bytes: what it must measure; not one byte more is accepted.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """

    def __init__(self, destination: Path, sha256: str, size_bytes: int) -> None:
        self._destination = destination
        self._part = destination.with_name(destination.name + ".part")
        self._sha256, self._size_bytes = sha256, size_bytes
        self._hasher = hashlib.sha256()
        self.received = 0  # bytes, those of an earlier attempt included
        self._file = self._open()

    def _open(self) -> BinaryIO:
        try:
            self._destination.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            file = os.fdopen(descriptor, "r+b")
        except OSError as error:
            raise disk_error(self._part, error) from error
        while piece := file.read(PART_BYTES):
            self._hasher.update(piece)
            self.received += len(piece)
        if self.received > self._size_bytes:
            self._restart(file)
        return file

    def _restart(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        self._hasher, self.received = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            VerificationError: more than the file's size.
            InputError: the disk is full.
        """
        if self.received + len(data) > self._size_bytes:
            raise VerificationError(f"{self._destination.name}: expected {self._size_bytes} bytes, got more")
        try:
            self._file.write(data)
        except OSError as error:
            raise disk_error(self._part, error) from error
        self._hasher.update(data)
        self.received += len(data)

    def finish(self) -> None:
        """Check the digest and move the file into place.

        Raises:
            VerificationError: other bytes than asked for; what was received is thrown away.
        """
        if self.received != self._size_bytes or self._hasher.hexdigest() != self._sha256:
            found = f"{self.received} bytes, {self._hasher.hexdigest()[:16]}…"
            self._restart(self._file)
            raise VerificationError(
                f"{self._destination.name}: expected {self._size_bytes} bytes, {self._sha256[:16]}…, got {found}"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._part, self._destination)
        except OSError as error:
            raise disk_error(self._destination, error) from error

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_url(url: str, offset: int, timeout_s: float, deadline_s: float) -> Iterator[bytes]:
    """The bytes of `url` from `offset` on, in pieces; a server that knows no ranges is read from the start.

    Args:
        timeout_s: of each wait for the network.
        deadline_s: of the whole.

    Raises:
        InputError: not an http or https address.
        NetworkError: it cannot be read, or took longer than the deadline.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(
            f"{url[:120]}: only http and https addresses are fetched", "ask the host to leave data.url out"
        )
    end = time.monotonic() + deadline_s
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            skip = offset if offset and reply.status != 206 else 0
            while piece := reply.read1(PART_BYTES):  # as it comes: the deadline holds at a trickle, too
                if time.monotonic() > end:
                    raise NetworkError(
                        f"{url[:120]}: took longer than {deadline_s:.0f} s", "it goes on when tried again"
                    )
                dropped = min(skip, len(piece))
                skip -= dropped
                if piece := piece[dropped:]:
                    yield piece
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib.error.URLError is an OSError
        raise NetworkError(f"{url[:120]}: {error}", "check the network, then try again") from error
