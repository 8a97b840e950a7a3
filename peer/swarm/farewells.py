"""Farewells: which members of the last agreement leave in a round, and who speaks for their weight. The rules: `peer.round_rules`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocol.agreement import check_farewell
from protocol.errors import FormatError
from protocol.majority import acceptors_after
from protocol.signed import Signed
from protocol.statements import MAX_ATTEMPT, Farewell, open_farewell

MAX_FAREWELLS = 256  # of one round


@dataclass(frozen=True)
class Farewells:
    """The farewells of one round, checked: by peer id."""

    by_peer: Mapping[str, Signed[Farewell]] = field(default_factory=dict)

    @classmethod
    def open(cls, envelopes: Iterable[bytes], run: str, round: int) -> Farewells:
        """Raises: FormatError, RefusedError: too many, one for another run or round, or with a bad signature."""
        found: dict[str, Signed[Farewell]] = {}
        for count, data in enumerate(envelopes):
            if count >= MAX_FAREWELLS:
                raise FormatError(f"expected at most {MAX_FAREWELLS} farewells")
            said = open_farewell(data)
            check_farewell(said.value, run, round, MAX_ATTEMPT)
            found[said.by] = said
        return cls(found)

    def joined(self, *others: Farewells) -> Farewells:
        """These and others; a peer says one a round, so the first is as good as any."""
        found = dict(self.by_peer)
        for other in others:
            for peer, item in other.by_peer.items():
                found.setdefault(peer, item)
        return Farewells(found)

    @property
    def envelopes(self) -> list[bytes]:
        return [said.data for _, said in sorted(self.by_peer.items())]

    @property
    def from_attempt(self) -> int:
        """The first attempt in which all of them count."""
        return max((said.value.attempt for said in self.by_peer.values()), default=0)

    def acceptors(self, weights: Mapping[str, int]) -> dict[str, int]:
        """Who speaks for how much of the round's acceptors' weight."""
        return acceptors_after(weights, {peer: said.value.successor for peer, said in self.by_peer.items()})
