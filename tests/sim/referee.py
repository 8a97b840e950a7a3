"""The referee: looks on, knows everything, and says what may not be.

No two members stand on different states of one round; a group averages claims for its own round and base only; no work is
in two agreements, and work that is in none was dropped knowingly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from protocol.agreement import Agreement


class Broken(AssertionError):
    """A rule of the run does not hold."""


class Diverged(Broken):
    """Two members stand on different states of one round."""


class Stuck(Broken):
    """Everyone is there and the network is quiet, and still they do not come together."""


class Referee:
    """What happened in a run.

    Attributes:
        states: round -> what the state is that all must stand on, a sentence.
        agreed: round -> the first agreement that somebody stood on.
        stood: round -> who stands or stood on it since the network healed.
        fates: work -> what became of it.
        claims: digest of a claim -> works in it.
    """

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.agreed: dict[int, Agreement] = {}
        self.stood: dict[int, set[str]] = {}
        self.fates: dict[int, str] = {}
        self.authors: dict[int, str] = {}
        self.claims: dict[str, tuple[int, ...]] = {}
        self._numbers = itertools.count()

    def stands_on(self, name: str, agreement: Agreement, content: str) -> None:
        """A member commits a round or follows others: the place where nothing may differ."""
        round = agreement.round
        known = self.states.setdefault(round, content)
        if known != content:
            raise Diverged(f"round {round}: {name} stands on {content!r}, others on {known!r}")
        self.agreed.setdefault(round, agreement)
        self.stood.setdefault(round, set()).add(name)
        for claim in agreement.claims:
            if (claim.value.round, claim.value.base) != (round, agreement.base):
                raise Broken(f"round {round} averages {claim.value}")

    # ---- work --------------------------------------------------------------------------------------------------------------

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
        for round, agreement in self.agreed.items():
            for claim in agreement.claims:
                for number in self.claims.get(claim.digest, ()):
                    if number in seen:
                        raise Broken(f"round {round} counts work {number} of {claim.by} a second time")
                    seen.add(number)
        for number, fate in self.fates.items():
            if fate == "in hand" and number not in seen and number not in in_hand[self.authors[number]]:
                raise Broken(f"work {number} of {self.authors[number]} is nowhere")
