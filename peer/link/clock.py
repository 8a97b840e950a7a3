"""How far this computer's clock is from the coordinator's, and how to say so.

`client` measures it on every answer that carries the coordinator's time: half of the round trip is taken
off, so the error is at most the other half. Certificates are checked with `certificate.CLOCK_LEEWAY_S` of leeway, and
where members find each other records live for a minute: a clock further off than that cuts a peer off from the others.

    >>> clock = Clock()
    >>> clock.heard(sent=1000.0, received=1000.5, theirs=688.25); clock.offset_s
    312.0
    >>> clock.is_wrong, in_words(312.0), in_words(-2.5), in_words(90061)
    (True, '5 min 12 s', '2 s', '1 d 1 h')
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from protocol.errors import NetworkError

MAX_OFFSET_S = 2.0  # beyond that the owner is told; hivemind's own rules allow 3
MOST_ROUND_TRIP_S = 5.0  # slower answers say nothing about clocks
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class ClockWrong(NetworkError):
    """The clock is too far off to take part; trying again helps once it has been set.

    Args:
        offset_s: this computer's time minus the coordinator's.
    """

    def __init__(self, offset_s: float) -> None:
        off, hint = in_words(offset_s), f"set it: {how_to_set()}"
        if offset_s > 0:
            super().__init__(f"this computer's clock is {off} ahead of the coordinator's", hint)
        else:
            super().__init__(f"this computer's clock is {off} behind the coordinator's", hint)
        self.offset_s = offset_s


class Clock:
    """The newest measurement; 0 until there is one."""

    def __init__(self) -> None:
        self.offset_s = 0.0  # this computer's time minus the coordinator's

    def heard(self, *, sent: float, received: float, theirs: float) -> None:
        """Take in an answer: Unix seconds here when it was asked for and when it came, and the time that it carries."""
        if theirs and math.isfinite(theirs) and 0 <= received - sent <= MOST_ROUND_TRIP_S:
            self.offset_s = (sent + received) / 2 - theirs

    @property
    def is_wrong(self) -> bool:
        return abs(self.offset_s) > MAX_OFFSET_S


def in_words(offset_s: float) -> str:
    """A length of time in its two largest units."""
    parts: list[str] = []
    left = int(abs(offset_s))
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count or parts or name == "s":
            parts.append(f"{count} {name}")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or "0 s"


def how_to_set() -> str:
    """The usual way on this system."""
    if sys.platform == "darwin":
        return "System Settings > General > Date & Time: set automatically"
    return "sudo timedatectl set-ntp true"


def tell_clock(problem: Callable[..., None], offset_s: float) -> None:
    """Say which way the clock is off, by how much, and how to set it.

    Args:
        problem: shows a message: its key in `peer.screen.messages`, and its values.
    """
    problem("clock-ahead" if offset_s > 0 else "clock-behind", offset=in_words(offset_s), how=how_to_set())
