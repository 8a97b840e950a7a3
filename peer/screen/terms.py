"""What a run will take of this computer: what its owner is told before anything is downloaded.

`peer.link.estimate` puts it together from what the coordinator says, the screens show it.

>>> spans = [duration(90), duration(5400), duration(200_000)]; spans
['2 min', '1.5 h', '2.3 days']
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.run_card import RunCard

_TALK_BYTES_PER_HOUR = 5_000_000  # of members among each other beside the updates, each way; a guess


@dataclass(frozen=True)
class JoinTerms:
    """What taking part means."""

    card: RunCard
    address: str  # of the coordinator
    root: str  # fingerprint of the host's key
    download_bytes: int  # still to come
    here_bytes: int  # of what is needed, already on this disk
    disk_bytes: int  # in all, when it runs
    memory_bytes: int
    round: int | None  # the run is at; None: not known
    members: int | None  # live now
    round_s: float | None  # from one average to the next; None: not known yet
    round_bytes: int  # that travel in a round, each way, at most

    @property
    def traffic_bytes_per_hour(self) -> int | None:
        """Each way, at most."""
        if self.round_s is None:
            return None
        return int(self.round_bytes * 3600 / self.round_s) + _TALK_BYTES_PER_HOUR

    @property
    def left_s(self) -> float | None:
        """How long the run will last; None: not known, or until the host ends it."""
        rounds = self.card.spec.run.rounds
        if not rounds or self.round is None or self.round_s is None:
            return None
        return max(rounds - self.round, 0) * self.round_s


def duration(seconds: float) -> str:
    """A length of time in words, in English.

    >>> duration(0.0), duration(3600.0)
    ('1 min', '1.0 h')
    """
    if seconds < 3600:
        return f"{max(round(seconds / 60), 1)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(number: float) -> str:
    """Bytes, in the unit that fits.

    >>> size(812), size(3_400_000)
    ('812 B', '3.4 MB')
    """
    for unit, times in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= times:
            return f"{number / times:.1f} {unit}"
    return f"{number:.0f} B"
