"""How fast bytes may go, each way, over all that this peer sends and fetches; and how many have gone.

Whoever has passed bytes on tells `took`, and waits as long as that says before the next.

    >>> rate = Rate(lambda: 0.0)
    >>> rate.took(1_000_000)
    0.0
    >>> rate.most_bytes_s = 500_000
    >>> rate.took(1_000_000), rate.took(250_000), rate.total
    (2.0, 2.5, 2250000)
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

SPEED_S = 10.0  # over which the speed of the moment is an average
LONGEST_S = 8.0  # that a piece on a stream waits, for streams have deadlines: at 1 Mbit/s enough for eight of them


class Rate:
    """One way."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_bytes_s: float | None = None  # None: as fast as it goes
        self.total = 0  # bytes
        self._clock, self._lock = clock, threading.Lock()
        self._free = 0.0  # when the bytes so far are paid for
        self._recent, self._recent_at = 0.0, clock()  # bytes of the last seconds, older ones counting for less

    def took(self, size: int) -> float:
        """Count bytes that have passed; how long to wait before the next, in seconds."""
        with self._lock:
            self.total += size
            self._recent = self._faded() + size
            if self.most_bytes_s is None:
                return 0.0
            now = self._clock()
            self._free = max(self._free, now) + size / self.most_bytes_s
            return self._free - now

    @property
    def most_mbit(self) -> float | None:
        """The limit in 10^6 bits a second."""
        return None if self.most_bytes_s is None else self.most_bytes_s * 8 / 1e6

    @property
    def bytes_s(self) -> float:
        """The speed of the last seconds."""
        with self._lock:
            self._recent = self._faded()
            return self._recent / SPEED_S

    def _faded(self) -> float:
        before, self._recent_at = self._recent_at, self._clock()
        return self._recent * math.exp((before - self._recent_at) / SPEED_S)

    def slowed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The same pieces, no faster than allowed; for a thread."""
        for piece in pieces:
            yield piece
            time.sleep(self.took(len(piece)))


@dataclass
class LineRates:
    """Both ways."""

    up: Rate = field(default_factory=Rate)
    down: Rate = field(default_factory=Rate)
