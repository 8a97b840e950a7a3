"""Pace: what was measured of the members' lines, and the deadlines and shares that follow from it.

How long a member may be silent in an all-reduce follows from how long the members were silent in those that went well, as
TCP's retransmission timer does; it doubles after a failure. How much of the reducing each member does follows from how
fast its parts arrived at the others, which those tell it: what a sender measures is how fast its buffers fill.

    >>> pace = Pace(Limits())
    >>> pace.silence_s                            # nothing measured yet
    10.0
    >>> pace.went_well(longest_gap_s=0.5, seconds=3.0); pace.silence_s
    2.5
    >>> pace.failed(); pace.silence_s
    5.0
    >>> shares({"fast": 5e6, "slow": 1e6, "new": 0.0, "firewalled": 2e6}, {"fast", "slow", "new"})
    {'fast': 667, 'slow': 0, 'new': 333, 'firewalled': 0}
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

GAPS_MANY = 5.0  # times the longest gap that was seen: then a member counts as silent
GAP_MEMORY = 0.8  # an old gap counts for so much less with each all-reduce
LEAST_SILENCE_S = 2.0
TIMES_MANY = 5.0  # times as long as the ones before took: then an all-reduce is given up
LEAST_TOTAL_S = 30.0
LEAST_BYTES_S = 25_000  # what an all-reduce must bring along on average
MEASURED_FROM_BYTES = 256 << 10  # less than that says nothing about a line
SHARES = 1000  # shares are parts of about so many
SHARE_CAP = 2.0  # times the equal share: what a member says of its line is not checked


@dataclass(frozen=True)
class Limits:
    """How long to wait in an all-reduce while nothing better is known."""

    silence_s: float = 10.0  # a sender that owes parts may be silent this long
    total_s: float = 600.0  # one all-reduce, besides the time for its bytes


class Pace:
    """One member's measurements."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gap_s = 0.0
        self._seconds = 0.0
        self._silence_s = limits.silence_s
        self._arrived: dict[str, float] = {}  # peer id -> bytes/s at which its parts came in

    @property
    def silence_s(self) -> float:
        """A member that owes parts, and is not heard otherwise, may be silent this long."""
        return self._silence_s

    @property
    def most_s(self) -> float:
        """The same for a member that is heard otherwise."""
        return self._limits.silence_s

    @property
    def usual_s(self) -> float:
        """How long an all-reduce has taken lately; 0: not measured."""
        return self._seconds

    def total_s(self, size: int) -> float:
        """How long an all-reduce of `size` bytes may take, also when all are there and something comes now and then."""
        if self._seconds:
            return min(max(TIMES_MANY * self._seconds, LEAST_TOTAL_S), self._limits.total_s + size / LEAST_BYTES_S)
        return self._limits.total_s + size / LEAST_BYTES_S

    def went_well(self, longest_gap_s: float, seconds: float) -> None:
        """An all-reduce succeeded in `seconds`; nobody who owed something was silent for longer than the gap."""
        self._seconds = max(seconds, GAP_MEMORY * self._seconds)
        self._gap_s = max(longest_gap_s, GAP_MEMORY * self._gap_s)
        self._silence_s = min(max(GAPS_MANY * self._gap_s, LEAST_SILENCE_S), self._limits.silence_s)

    def failed(self) -> None:
        """An all-reduce failed for want of data: perhaps the deadline was too short."""
        self._silence_s = min(2 * self._silence_s, self._limits.silence_s)
        self._seconds *= 2

    # ---- lines -------------------------------------------------------------------------------------------------------

    def arrived(self, rates: Mapping[str, float]) -> None:
        """How fast the others' parts came in: peer id -> bytes/s."""
        self._arrived |= rates

    def arrived_from(self, peer: str) -> float:
        """Bytes/s at which a member's parts came in last; 0: not measured."""
        return self._arrived.get(peer, 0.0)


def shares(up_bytes_s: Mapping[str, float], reducers: Collection[str]) -> dict[str, int]:
    """How much of the update each member reduces, so that all uplinks are done at the same time.

    A member of a group of n uploads its own update but for the share s that it reduces, and n - 1 times that share:
    1 + s (n - 2) updates. So the slower lines reduce less, or nothing.

    Args:
        up_bytes_s: all members -> bytes/s; 0: not measured.
        reducers: those that others can open streams to; at least one.

    Returns:
        peer id -> a part of the sum of all.
    """
    known = [rate for rate in up_bytes_s.values() if rate > 0]
    others, equal = len(up_bytes_s) - 2, 1 / len(reducers)
    if others <= 0 or len(known) < 2:
        return {peer: int(peer in reducers) for peer in up_bytes_s}
    usual = statistics.median(known)
    rates = {peer: up_bytes_s[peer] or usual for peer in sorted(reducers)}
    cap = min(1.0, SHARE_CAP * equal)

    def at(updates_per_rate: float) -> dict[str, float]:
        return {peer: min(max((updates_per_rate * rate - 1) / others, 0.0), cap) for peer, rate in rates.items()}

    low, high = 0.0, (1 + others * cap) / min(rates.values())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle).values()) < 1 else (low, middle)
    found = at(high)
    return {peer: round(SHARES * found.get(peer, 0.0)) for peer in up_bytes_s}
