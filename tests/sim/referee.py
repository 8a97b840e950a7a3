"""The referee: looks on, knows everything, and says what may not be.

No two members stand on different states of one round in one epoch, and nobody goes back to an earlier epoch, or a round
in it; a group averages claims for its own round and base only; no work is in two agreements of one branch, and work
that is in none was dropped knowingly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from protocol.agreement import Agreement


class Broken(AssertionError):
    """A rule of the run does not hold."""


class Diverged(Broken):
    """Two members stand on different states of one round in one epoch."""


class Stuck(Broken):
    """Everyone is there and the network is quiet, and still they do not come together."""


Place = tuple[int, int]  # (epoch, round)


class Referee:
    """What happened in a run.

    Attributes:
        states: place -> what the state is that all must stand on, a sentence.
        agreed: place -> the first agreement that somebody stood on.
        stood: place -> who stands or stood on it since the network healed.
        fates: work -> what became of it.
        claims: digest of a claim -> works in it.
    """

    def __init__(self) -> None:
        self.states: dict[Place, str] = {}
        self.agreed: dict[Place, Agreement] = {}
        self.stood: dict[Place, set[str]] = {}
        self.fates: dict[int, str] = {}
        self.authors: dict[int, str] = {}
        self.claims: dict[str, tuple[int, ...]] = {}
        self._numbers = itertools.count()

    def stands_on(self, name: str, before: Place, agreement: Agreement, content: str) -> None:
        """A member commits a round or follows others: the place where nothing may differ."""
        place = agreement.epoch, agreement.round
        known = self.states.setdefault(place, content)
        if known != content:
            raise Diverged(f"{_named(place)}: {name} stands on {content!r}, others on {known!r}")
        if place <= before:
            raise Broken(f"{name} goes from {_named(before)} to {_named(place)}")
        self.agreed.setdefault(place, agreement)
        self.stood.setdefault(place, set()).add(name)
        for claim in agreement.claims:
            if (claim.value.round, claim.value.base) != (agreement.round, agreement.base):
                raise Broken(f"{_named(place)} averages {claim.value}")

    # ---- work --------------------------------------------------------------------------------------------------------

    def worked(self, name: str) -> int:
        """A member has done some work; returns its number."""
        number = next(self._numbers)
        self.fates[number], self.authors[number] = "in hand", name
        return number

    def let_go(self, works: Iterable[int]) -> None:
        """Work that its author has no more: agreed, or too old, or lost with it in a crash."""
        for number in works:
            self.fates[number] = "let go"

    def check_work(self, in_hand: Mapping[str, tuple[int, ...]]) -> None:
        """No work is counted twice, and none is gone without a word."""
        seen: set[int] = set()
        for place, agreement in self._branch():
            for claim in agreement.claims:
                for number in self.claims.get(claim.digest, ()):
                    if number in seen:
                        raise Broken(f"{_named(place)} counts work {number} of {claim.by} a second time")
                    seen.add(number)
        for number, fate in self.fates.items():
            if fate == "in hand" and number not in seen and number not in in_hand[self.authors[number]]:
                raise Broken(f"work {number} of {self.authors[number]} is nowhere")

    def _branch(self) -> Iterator[tuple[Place, Agreement]]:
        """The agreements that led to the newest one, it first: without those that the host's word has undone."""
        place: Place | None = max(self.agreed, default=None)
        while place is not None:
            yield place, (agreement := self.agreed[place])
            earlier = [(epoch, place[1] - 1) for epoch in range(place[0] + 1)]
            led = [other for other in earlier if other in self.agreed and self.agreed[other].state == agreement.base]
            place = max(led, default=None)


def _named(place: Place) -> str:
    epoch, round = place
    return f"round {round} of epoch {epoch}" if epoch else f"round {round}"
