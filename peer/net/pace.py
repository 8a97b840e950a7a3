"""Pace: what was measured of the members' lines, and the deadlines that follow from it.

How long a member may be silent in an all-reduce follows from how long the members were silent in those that went well,
as TCP's retransmission timer does; it doubles after a failure. How fast its parts arrived is told to each sender, for
`peer.round.shares`: what a sender measures is how fast its buffers fill.

    >>> pace = Pace(Patience())
    >>> pace.silence_s                            # nothing measured yet
    10.0
    >>> pace.went_well(longest_gap_s=0.5, seconds=3.0); pace.silence_s
    2.5
    >>> pace.failed(); pace.silence_s
    5.0
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GAPS_MANY = 5.0  # times the longest gap that was seen: then a member counts as silent
GAP_MEMORY = 0.8  # an old gap counts for so much less with each all-reduce
LEAST_SILENCE_S = 2.0
TIMES_MANY = 5.0  # times as long as the ones before took: then an all-reduce is given up
LEAST_TOTAL_S = 30.0
LEAST_BYTES_S = 25_000  # what an all-reduce must bring along on average
MEASURED_FROM_BYTES = 256 << 10  # less than that says nothing about a line


@dataclass(frozen=True)
class Patience:
    """How long to wait in an all-reduce while nothing better is known."""

    silence_s: float = 10.0  # a sender that owes parts may be silent this long
    total_s: float = 600.0  # one all-reduce, besides the time for its bytes


class Pace:
    """One member's measurements."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._gap_s = 0.0
        self._seconds = 0.0
        self._silence_s = patience.silence_s
        self._arrived: dict[str, float] = {}  # peer id -> bytes/s at which its parts came in

    @property
    def silence_s(self) -> float:
        """A member that owes parts, and is not heard otherwise, may be silent this long."""
        return self._silence_s

    @property
    def most_s(self) -> float:
        """The same for a member that is heard otherwise."""
        return self._patience.silence_s

    @property
    def usual_s(self) -> float:
        """How long an all-reduce has taken lately; 0: not measured."""
        return self._seconds

    def total_s(self, size: int) -> float:
        """How long an all-reduce of `size` bytes may take, also when all are there and something comes now and then."""
        if self._seconds:
            return min(max(TIMES_MANY * self._seconds, LEAST_TOTAL_S), self._patience.total_s + size / LEAST_BYTES_S)
        return self._patience.total_s + size / LEAST_BYTES_S

    def went_well(self, longest_gap_s: float, seconds: float) -> None:
        """An all-reduce succeeded in `seconds`; nobody who owed something was silent for longer than the gap."""
        self._seconds = max(seconds, GAP_MEMORY * self._seconds)
        self._gap_s = max(longest_gap_s, GAP_MEMORY * self._gap_s)
        self._silence_s = min(max(GAPS_MANY * self._gap_s, LEAST_SILENCE_S), self._patience.silence_s)

    def failed(self) -> None:
        """An all-reduce failed for want of data: perhaps the deadline was too short."""
        self._silence_s = min(2 * self._silence_s, self._patience.silence_s)
        self._seconds *= 2

    # ---- lines -------------------------------------------------------------------------------------------------------

    def arrived(self, rates: Mapping[str, float]) -> None:
        """How fast the others' parts came in: peer id -> bytes/s."""
        self._arrived |= rates

    def arrived_from(self, peer: str) -> float:
        """Bytes/s at which a member's parts came in last; 0: not measured."""
        return self._arrived.get(peer, 0.0)
