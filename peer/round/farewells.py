"""Farewells: which members of the last agreement leave in a round, and who speaks for their weight.

The rules: `peer.round.box`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocol.majority import acceptors_after
from protocol.signed import Signed
from protocol.statements import Farewell

MAX_FAREWELLS = 256  # of one round


@dataclass(frozen=True)
class Farewells:
    """The farewells of one round, each checked before it came here: peer id -> what it signed."""

    by_peer: Mapping[str, Signed[Farewell]] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Iterable[Signed[Farewell]]) -> Farewells:
        return cls({item.by: item for item in said})

    def joined(self, *others: Farewells) -> Farewells:
        """These and others; a peer says one a round, so the first is as good as any."""
        if not any(other.by_peer for other in others):
            return self
        found = dict(self.by_peer)
        for other in others:
            for peer, item in other.by_peer.items():
                found.setdefault(peer, item)
        return Farewells(found)

    @property
    def signed(self) -> tuple[Signed[Farewell], ...]:
        return tuple(item for _, item in sorted(self.by_peer.items()))

    @property
    def from_attempt(self) -> int:
        """The first attempt in which all of them count."""
        return max((item.value.attempt for item in self.by_peer.values()), default=0)

    def acceptors(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Who speaks for how much of the round's acceptors' weight."""
        return acceptors_after(weights, {peer: item.value.successor for peer, item in self.by_peer.items()})
