"""Keeps long calls from holding the service's threads: a limit on their number, and an end to those that stand still.

A thread of the service is blocked while a member reads slowly or sends nothing. `Streams` counts such calls, and its one
watching thread cancels each that made no progress for `IDLE_S` or lasts longer than it may.

    with streams.open("12D3KooW…", context.cancel, limit_s=600) as touch:
        for piece in pieces:
            touch()
            yield ...
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protocol.backoff import Backoff
from protocol.errors import NetworkError
from protocol.parts import Part, Told

logger = logging.getLogger(__name__)

MAX_STREAMS = 24
MAX_STREAMS_PER_PEER = 2
IDLE_S = 30.0
_WATCH_EVERY_S = 1.0


@dataclass
class _Stream:
    cancel: Callable[[], object]
    end: float  # monotonic seconds
    touched: float


class Streams:
    """The long calls that are open now; use as a context manager, so that the watching thread ends."""

    def __init__(
        self,
        *,
        idle_s: float = IDLE_S,
        watch_every_s: float = _WATCH_EVERY_S,
        on_failure: Told = lambda failure: None,
    ) -> None:
        self._idle_s = idle_s
        self._watch_every_s = watch_every_s
        self._lock = threading.Lock()
        self._open: dict[int, _Stream] = {}
        self._by_peer: Counter[str] = Counter()
        self._next = 0
        self._closing = threading.Event()
        restarts = Backoff(1.0, 60.0)
        self._watcher = Part("stream-watch", self._watch, self._closing, on_failure, restarts, vital=False)

    @contextmanager
    def open(self, peer_id: str, cancel: Callable[[], object], limit_s: float) -> Iterator[Callable[[], None]]:
        """Count a call in; yields what to call at each step forward.

        Args:
            cancel: ends the call.
            limit_s: how long it may last.

        Raises:
            NetworkError: too many are open.
        """
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= MAX_STREAMS or self._by_peer[peer_id] >= MAX_STREAMS_PER_PEER:
                raise NetworkError("the coordinator is busy with other transfers", "try again in some seconds")
            number, self._next = self._next, self._next + 1
            stream = self._open[number] = _Stream(cancel, now + limit_s, now)
            self._by_peer[peer_id] += 1

        def touch() -> None:
            stream.touched = time.monotonic()

        try:
            yield touch
        finally:
            with self._lock:
                del self._open[number]
                self._by_peer[peer_id] -= 1
                if not self._by_peer[peer_id]:
                    del self._by_peer[peer_id]

    def __enter__(self) -> Streams:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._watcher.join(10.0)

    def _watch(self) -> None:
        while not self._closing.wait(self._watch_every_s):
            now = time.monotonic()
            with self._lock:
                late = [item for item in self._open.values() if now > item.end or now - item.touched > self._idle_s]
            for stream in late:
                logger.info("a transfer stood still or took too long, and was ended")
                stream.cancel()
