"""The shards of a run's data on this computer: fetched before they are needed, verified, no more than wanted.

    with ShardCache(folder, [from_mirror, from_coordinator], most_bytes=5 << 30) as cache:
        cache.want(entries)     # fetched in this order, in a thread of its own
        cache.read(entries[0])  # its bytes; waits until they are here

A shard is `DIGEST.safetensors`. When there is no room left, by the owner's limit or on the disk, the one that was read
longest ago goes, first of those that are not wanted; what is wanted is fetched ahead only as far as there is room. A
source that fails is asked after the others for some minutes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from peer.link.client import CoordinatorClient
from peer.link.downloads import fetch, read_url
from protocol.backoff import Backoff
from protocol.data_manifest import ShardEntry
from protocol.disk import disk_error
from protocol.errors import InputError, NetworkError, PotluckError, RefusedError, RoundAborted
from protocol.parts import SupervisedThread, Told

logger = logging.getLogger(__name__)

Source = Callable[[ShardEntry, Path], object]  # brings a shard to a path, verified; raises PotluckError
WAIT_S = 3600.0  # for one shard, while no source gives it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
CLOSE_S = 5.0
LOOK_S = 10.0  # between two looks whether there is room for what is wanted; whoever waits for a shard is heard at once
CALL_S, ATTEMPTS = 10.0, 3  # of a mirror: then the next source is asked
SLOWEST = 100_000  # bytes/s of a mirror, below which the next source is asked, and goes on from there
REST_S = 600.0  # of a source that failed: until then the others are asked first
SPARE_BYTES = 64 << 20  # of the disk: for all else that a peer writes


def from_mirror(base: str) -> Source:
    """Shards from a folder on the web: `BASE/DIGEST.safetensors`."""

    def bring(entry: ShardEntry, path: Path) -> None:
        url = f"{base.rstrip('/')}/{entry.digest}.safetensors"
        end = time.monotonic() + CALL_S + entry.size_bytes / SLOWEST

        def read(offset: int) -> Iterator[bytes]:
            return read_url(url, offset, CALL_S, max(0.0, end - time.monotonic()))

        with _told(entry, base):
            fetch(read, path.name, entry.digest, entry.size_bytes, path, None, ATTEMPTS)

    return bring


def from_coordinator(client: CoordinatorClient, certificate: Callable[[], str]) -> Source:
    """Shards from the run's coordinator.

    Args:
        certificate: gives the member's of the moment.
    """

    def bring(entry: ShardEntry, path: Path) -> None:
        with _told(entry, "the coordinator"):
            client.fetch_file(certificate(), entry.digest, entry.size_bytes, path)

    return bring


@contextmanager
def _told(entry: ShardEntry, source: str) -> Iterator[None]:
    """In the block a shard is fetched: the log tells from where, or which source failed."""
    started = time.monotonic()
    try:
        yield
    except (NetworkError, RefusedError) as error:
        logger.warning("a part of the data could not be fetched from %s: %s", source, error.message)
        raise
    took_s = time.monotonic() - started
    logger.info("shard %s: %.1f MB from %s in %.1f s", entry.digest[:16], entry.size_bytes / 1e6, source, took_s)


class ShardCache:
    """Shards on disk.

    Args:
        sources: asked in this order.
        most_bytes: that the shards may take.
        told: of a failure of its thread by a mistake of ours.
        is_stopped: whether the owner has asked to leave: then nobody waits for a shard any more.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        most_bytes: int,
        told: Told = lambda failure: None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._sources, self._most_bytes = folder, tuple(sources), most_bytes
        self._failed: dict[Source, float] = {}  # when
        self._is_stopped = is_stopped
        self._wanted: list[ShardEntry] = []
        self._asked: list[ShardEntry] = []  # somebody waits for them
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._error: PotluckError | None = None  # of the last try
        self._is_small = False  # told
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

    def has(self, entry: ShardEntry) -> bool:
        """Whether it is here, whole or not."""
        return self._path(entry).is_file()

    def want(self, entries: Sequence[ShardEntry]) -> None:
        """These are needed next, the first of them first; those that were wanted before are not any more."""
        with self._changed:
            self._wanted = list(dict.fromkeys(entries))
            self._changed.notify_all()
        needed = sum(entry.size_bytes for entry in self._wanted)
        if needed > self._most_bytes and not self._is_small:
            self._is_small = True
            logger.warning(
                "what is needed at a time of the data are %.0f MB: the cache of %.0f MB (--data-cache) is small, and "
                "parts may be fetched more than once", needed / 1e6, self._most_bytes / 1e6,
            )  # fmt: skip

    def read(self, entry: ShardEntry, wait_s: float = WAIT_S) -> bytes:
        """A shard's bytes; waits until they are here.

        Raises:
            NetworkError: no source gives it, for so long; or the cache was closed.
            InputError: the disk is full, or the shard is larger than the cache may be.
            RoundAborted: the owner has asked to leave meanwhile.
        """
        if entry.size_bytes > self._most_bytes:
            raise InputError(
                f"a part of the run's data has {entry.size_bytes / 1e6:.0f} MB, the cache {self._most_bytes / 1e6:.0f}",
                f"give it more: --data-cache {math.ceil(entry.size_bytes / 1e8) / 10 + 0.1:.1f}",
            )
        deadline = time.monotonic() + wait_s
        with self._changed:
            self._asked.append(entry)
            self._changed.notify_all()
        try:
            while (data := self._whole(entry)) is None:
                with self._changed:
                    self._changed.notify_all()  # what was damaged is missing from now on
                    self._check(deadline)
                    if not self._path(entry).is_file():
                        self._changed.wait(1.0)
            return data
        finally:
            self._asked.remove(entry)

    def _check(self, deadline: float) -> None:
        """Raises: as `read`."""
        self._thread.check()
        if self._is_stopped():
            raise RoundAborted("stopped by its owner")
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
                missing = self._next()
                if missing is None:
                    self._changed.wait(LOOK_S)
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
        rested = time.monotonic() - REST_S
        for source in sorted(self._sources, key=lambda source: max(rested, self._failed.get(source, rested))):
            try:
                self._bring(source, entry)
            except InputError as error:
                return error  # the disk's fault, not the source's
            except PotluckError as error:
                failed = failed or error
                self._failed[source] = time.monotonic()
            else:
                self.fetched_bytes += entry.size_bytes
                return None
            if self._closing.is_set():
                break
        return failed or NetworkError("there is no source for the run's data")

    def _bring(self, source: Source, entry: ShardEntry) -> None:
        """Fetch a shard. Raises: PotluckError."""
        self._make_room(entry)
        try:
            source(entry, self._path(entry))
        except InputError:
            if not self._make_room(entry):  # the disk has become full meanwhile, and the cache has nothing to spare
                raise
            source(entry, self._path(entry))

    def _next(self) -> ShardEntry | None:
        """What is fetched next: what somebody waits for, else of the wanted the first, if all of them find room."""
        for entry in self._asked:
            if not self._path(entry).is_file():
                return entry
        is_here = {entry: self._path(entry).is_file() for entry in self._wanted}
        missing = next((entry for entry, here in is_here.items() if not here), None)
        taken = sum(entry.size_bytes for entry, here in is_here.items() if here)
        return missing if missing is not None and taken + missing.size_bytes <= self._room() else None

    def _room(self) -> int:
        """Bytes that the shards may take, by the owner's limit and by what is free on the disk."""
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError:  # whoever fetches will say why
            return self._most_bytes
        return min(self._most_bytes, sum(size for _, size, _ in self._here()) + free - SPARE_BYTES)

    def _here(self) -> list[tuple[float, int, Path]]:
        """The files, the one that was read longest ago first; what was broken off goes before all others."""
        found = []
        for path in self._folder.glob("*"):
            with suppress(FileNotFoundError):
                state = path.stat()
                found.append((0.0 if path.suffix == ".part" else state.st_mtime, state.st_size, path))
        return sorted(found)

    def _make_room(self, entry: ShardEntry) -> bool:
        """Throw away what was read longest ago, what is wanted last, until the shard fits; whether anything was.

        Raises:
            InputError: the folder cannot be written.
        """
        path, is_less = self._path(entry), False
        own = {path, path.with_name(path.name + ".part")}
        with self._changed:
            asked, wanted = ({self._path(item) for item in items} for items in (self._asked, self._wanted))
        try:
            found = [item for item in self._here() if item[2] not in own]
            total = sum(size for _, size, _ in found) + entry.size_bytes
            room = self._room()
            for _, size, path in sorted(found, key=lambda item: item[2] in wanted):
                if total <= room:
                    break
                if path not in asked:
                    path.unlink(missing_ok=True)
                    total -= size
                    is_less = True
        except OSError as error:
            raise disk_error(self._folder, error) from error
        return is_less
