"""The shards of a run's data on this computer: fetched before they are needed, verified, no more than wanted.

    with ShardCache(folder, [from_mirror, from_coordinator], most_bytes=5 << 30) as cache:
        cache.want(entries)     # fetched in this order, in a thread of its own
        cache.read(entries[0])  # its bytes; waits until they are here

A shard is `DIGEST.safetensors`. When there is no room left the one that was read longest ago goes, but none that is
wanted. A source that fails is asked after the others from then on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from peer.link.client import CoordinatorClient
from peer.link.downloads import STREAM_TIMEOUT_S, fetch, read_url
from protocol.backoff import Backoff
from protocol.data_manifest import ShardEntry
from protocol.disk import disk_error
from protocol.errors import InputError, NetworkError, PotluckError
from protocol.parts import SupervisedThread, Told

logger = logging.getLogger(__name__)

Source = Callable[[ShardEntry, Path], object]  # brings a shard to a path, verified; raises PotluckError
WAIT_S = 3600.0  # for one shard, while no source gives it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
CLOSE_S = 5.0
CALL_S, ATTEMPTS = 10.0, 3  # of a mirror: then the next source is asked


def from_mirror(base: str) -> Source:
    """Shards from a folder on the web: `BASE/DIGEST.safetensors`."""

    def bring(entry: ShardEntry, path: Path) -> None:
        url = f"{base.rstrip('/')}/{entry.digest}.safetensors"

        def read(offset: int) -> Iterator[bytes]:
            return read_url(url, offset, CALL_S, STREAM_TIMEOUT_S)

        fetch(read, path.name, entry.digest, entry.size_bytes, path, None, ATTEMPTS)

    return bring


def from_coordinator(client: CoordinatorClient, certificate: Callable[[], str]) -> Source:
    """Shards from the run's coordinator.

    Args:
        certificate: gives the member's of the moment.
    """

    def bring(entry: ShardEntry, path: Path) -> None:
        client.fetch_file(certificate(), entry.digest, entry.size_bytes, path)

    return bring


class ShardCache:
    """Shards on disk.

    Args:
        sources: asked in this order.
        most_bytes: that the shards may take; the wanted ones are kept even so.
        told: of a failure of its thread by a mistake of ours.
    """

    def __init__(
        self, folder: Path, sources: Sequence[Source], most_bytes: int, told: Told = lambda failure: None
    ) -> None:
        self._folder, self._sources, self._most_bytes = folder, list(sources), most_bytes
        self._wanted: list[ShardEntry] = []
        self._asked: list[ShardEntry] = []  # somebody waits for them
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._error: PotluckError | None = None  # of the last try
        self._thread = SupervisedThread("shards", self._work, self._closing, told)
        self.fetched_bytes = 0

    def __enter__(self) -> ShardCache:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob("*.part"):  # nobody may want it any more
                path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(self._folder, error) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the fetching; whoever waits in `read` gets a NetworkError."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def want(self, entries: Sequence[ShardEntry]) -> None:
        """These are needed next, the first of them first; those that were wanted before are not any more."""
        with self._changed:
            self._wanted = list(entries)
            self._changed.notify_all()

    def read(self, entry: ShardEntry, wait_s: float = WAIT_S) -> bytes:
        """A shard's bytes; waits until they are here.

        Raises:
            NetworkError: no source gives it, for so long; or the cache was closed.
            InputError: the disk is full.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._asked.append(entry)
            self._changed.notify_all()
        try:
            while (data := self._whole(entry)) is None:
                with self._changed:
                    self._check(deadline)
                    if not self._path(entry).is_file():
                        self._changed.notify_all()  # it may have been there, damaged, when this was asked for
                        self._changed.wait(1.0)
            return data
        finally:
            self._asked.remove(entry)

    def _check(self, deadline: float) -> None:
        """Raises: as `read`."""
        self._thread.check()
        error = self._error
        if isinstance(error, InputError):
            raise error
        if self._closing.is_set() or time.monotonic() > deadline:
            why = "the data are closed" if self._closing.is_set() else str(error or "it takes too long")
            raise NetworkError(f"a part of the run's data cannot be had: {why}", "check the network")

    def _path(self, entry: ShardEntry) -> Path:
        return self._folder / f"{entry.digest}.safetensors"

    def _whole(self, entry: ShardEntry) -> bytes | None:
        """A shard that is here; what is damaged is thrown away."""
        path = self._path(entry)
        try:
            data = path.read_bytes() if path.is_file() and path.stat().st_size == entry.size_bytes else None
            if data is not None and hashlib.sha256(data).hexdigest() == entry.digest:
                os.utime(path)
                return data
            if path.is_file():
                logger.warning("%s is damaged, and fetched again", path)
                path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error
        return None

    # ---- fetching ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            with self._changed:
                if self._closing.is_set():  # looked at under the lock, or the word of it could come before the wait
                    return
                missing = next(
                    (entry for entry in (*self._asked, *self._wanted) if not self._path(entry).is_file()), None
                )
                if missing is None:
                    self._changed.wait(10.0)
                    continue
            error = self._fetch(missing)
            with self._changed:
                self._error = error
                self._changed.notify_all()
            if error is None:
                backoff.worked()
            else:
                logger.warning("a part of the data could not be fetched: %s", error.message)
                self._closing.wait(backoff.failed())

    def _fetch(self, entry: ShardEntry) -> PotluckError | None:
        """Ask the sources one after the other."""
        failed: PotluckError | None = None
        for source in list(self._sources):
            try:
                self._make_room(entry)
                source(entry, self._path(entry))
            except InputError as error:
                return error  # the disk's fault, not the source's
            except PotluckError as error:
                failed = failed or error
                self._sources.remove(source)
                self._sources.append(source)
            else:
                self.fetched_bytes += entry.size_bytes
                return None
            if self._closing.is_set():
                break
        return failed or NetworkError("there is no source for the run's data")

    def _make_room(self, entry: ShardEntry) -> None:
        """Throw away what was read longest ago, until the shard fits. Raises: InputError."""
        wanted = {self._path(item) for item in (*self._asked, *self._wanted)}
        try:
            found = sorted(
                (path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.safetensors")
            )
            total = sum(size for _, size, _ in found) + entry.size_bytes
            for _, size, path in found:
                if total <= self._most_bytes:
                    break
                if path not in wanted:
                    path.unlink()
                    total -= size
        except OSError as error:
            raise disk_error(self._folder, error) from error
