"""Who is here now: members that announce themselves, where they are reached, and what they can upload.

Kept in memory alone, since all of it is said again within a minute. `service` feeds it; `status` and `publisher` read.

    >>> from protocol.keys import PeerIdentity
    >>> roster = Announcements()
    >>> me = PeerIdentity.generate().peer_id
    >>> roster.announce(me, ["/ip4/203.0.113.7/tcp/1/p2p/" + me], round=3, tokens_per_s=10.0, states=[], now=0.0)
    >>> len(roster.addresses(besides="another", now=10.0)), len(roster.addresses(besides=me, now=10.0))
    (1, 0)
    >>> roster.addresses(besides="another", now=100.0)
    []
"""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from protocol.errors import FormatError
from protocol.rpc import MAX_ADDRESSES, MAX_STATES, check_swarm_address

LIVE_S = 60.0  # after its last announcement
WORKING_S = 15.0  # likewise, for whoever is to begin; announcements come every few seconds
MAX_OTHERS = 32  # addresses in one answer
FOR_NEWCOMERS = 8  # of them, while there are others
MAX_ROSTER = 10_000
MAX_TOKENS_PER_S = 1e9
_STATE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Presence:
    """What a member last said of itself."""

    peer_id: str
    addresses: tuple[str, ...]
    round: int
    tokens_per_s: float
    states: frozenset[str]  # digests of states it can upload
    seen: float  # seconds, monotonic
    reduce_only: bool = False
    leaving: bool = False


class Announcements:
    """The members that announced themselves, in the order in which they came.

    Args:
        worked: gives the peer ids that have credit. Whoever has none cannot crowd them out.
        rendezvous: gives where the run's rendezvous is reached; empty while it is away.
    """

    def __init__(
        self, worked: Callable[[], Container[str]] = tuple, rendezvous: Callable[[], Iterable[str]] = tuple
    ) -> None:
        self._worked, self._rendezvous = worked, rendezvous
        self._lock = threading.Lock()
        self._present: dict[str, Presence] = {}

    def announce(
        self,
        peer_id: str,
        addresses: Iterable[str],
        *,
        round: int,
        tokens_per_s: float,
        states: Iterable[str],
        now: float,
        reduce_only: bool = False,
        leaving: bool = False,
    ) -> None:
        """Note that a member is here.

        Raises:
            FormatError: too many or odd addresses or states, an address of another peer, or an odd number.
        """
        addresses, states = tuple(addresses), tuple(states)
        if len(addresses) > MAX_ADDRESSES or len(states) > MAX_STATES:
            raise FormatError(f"expected at most {MAX_ADDRESSES} addresses and {MAX_STATES} states")
        for address in addresses:
            if (owner := check_swarm_address(address)) != peer_id:
                raise FormatError(f"the swarm address ends in {owner}, expected your own peer id {peer_id}")
        if any(_STATE.fullmatch(state) is None for state in states):
            raise FormatError("a state digest has 64 hex digits")
        if not math.isfinite(tokens_per_s) or not 0 <= tokens_per_s <= MAX_TOKENS_PER_S:
            raise FormatError(f"tokens per second: expected 0 to {MAX_TOKENS_PER_S:.0e}, got {tokens_per_s}")
        with self._lock:
            if peer_id not in self._present and len(self._present) >= MAX_ROSTER:
                worked = self._worked()
                oldest = min(self._present.values(), key=lambda item: (item.peer_id in worked, item.seen))
                del self._present[oldest.peer_id]
            self._present[peer_id] = Presence(
                peer_id, addresses, round, tokens_per_s, frozenset(states), now, reduce_only, leaving
            )

    def live(self, now: float) -> list[Presence]:
        """The members that are here, by peer id."""
        with self._lock:
            present = [item for item in self._present.values() if now - item.seen <= LIVE_S]
        return sorted(present, key=lambda presence: presence.peer_id)

    def seen(self) -> dict[str, Presence]:
        """Peer id -> what it last said, of those that left too."""
        with self._lock:
            return dict(self._present)

    def working(self, now: float) -> list[str]:
        """The members that are here, train and have said that they get somewhere, in the order in which they came."""
        with self._lock:
            here = [item for item in self._present.values() if now - item.seen <= WORKING_S]
        return [item.peer_id for item in here if item.tokens_per_s > 0 and not item.reduce_only]

    def is_last(self, peer_id: str, now: float) -> bool:
        """Whether no other live member stays."""
        return all(item.leaving for item in self.live(now) if item.peer_id != peer_id)

    def addresses(self, *, besides: str, now: float) -> list[str]:
        """Where the rendezvous and some other live members are reached; of many, other ones each time."""
        others, worked = [item for item in self.live(now) if item.peer_id != besides], self._worked()
        random.shuffle(others)
        new = [address for item in others if item.peer_id not in worked for address in item.addresses]
        known = [address for item in others if item.peer_id in worked for address in item.addresses]
        first = known[: MAX_OTHERS - FOR_NEWCOMERS]
        return [*self._rendezvous(), *(first + new + known[len(first) :])[:MAX_OTHERS]]
