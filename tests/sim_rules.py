"""What a simulated swarm plays with: claims, groups and heads in small, and the rules in force.

`sim_peer.py` decides by them, `planted_bugs.py` replaces them one by one, `round_simulator.py` looks on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from peer.round_rules import Ballot, BallotBox, is_committed, must_complete

from protocol import canonical
from protocol.majority import has_majority
from protocol.succession import Last


class Broken(AssertionError):
    """A rule of the run does not hold."""


class Diverged(Broken):
    """Two peers stand on different states of one round."""


class Stuck(Broken):
    """Everyone is there and the network is quiet, and still they do not come together."""


@dataclass(frozen=True)
class Farewell:
    """A leaver's word: in this round, from this attempt on, its weight among the acceptors is its successor's."""

    leaver: str
    round: int
    successor: str
    attempt: int


@dataclass(frozen=True)
class Late:
    """Work that missed its own round."""

    round: int
    base: str
    tokens: int


@dataclass(frozen=True)
class SimClaim:
    peer: str
    round: int
    base: str
    tokens: int
    late: Late | None = None

    @property
    def worth(self) -> int:
        """What it counts for before it is capped: late work counts half."""
        return self.tokens + (self.late.tokens // 2 if self.late else 0)


@dataclass(frozen=True)
class SimGroup:
    round: int
    base: str
    name: str
    claims: Mapping[str, SimClaim]
    weights: Mapping[str, int]
    newcomers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SimHead:
    round: int
    digest: str  # what it is believed to be
    content: str  # what it is
    group: SimGroup  # whose agreement it is
    voters: frozenset[str]
    successors: Mapping[str, str] = field(default_factory=dict)  # the farewells by which it was counted
    before: SimHead | None = field(default=None, repr=False, compare=False)

    @property
    def last(self) -> Last:
        return Last(self.round, self.digest, self.group.weights, self.group.newcomers, self.group.base)

    def follows_on(self, mine: SimHead, counted_by: Callable[[SimHead, Mapping[str, str]], Mapping[str, int]]) -> bool:
        """Whether each round from `mine` to this one was committed by a majority of the one before."""
        head = self
        while head.round > mine.round and head.before is not None:
            if not has_majority(set(head.voters), counted_by(head.before, head.successors)):
                return False
            head = head.before
        return head.digest == mine.digest


def late_allowed(peer: str, late: Late, head: SimHead) -> bool:
    """Whether work that missed the round of `head` may be added to a claim on top of it."""
    return (late.round, late.base) == (head.round, head.group.base) and peer not in head.group.claims


@dataclass(frozen=True)
class Rulebook:
    """The rules in force; a test plants a bug by replacing one."""

    box: type[BallotBox] = BallotBox
    must_complete: Callable[..., Ballot | None] = must_complete
    is_committed: Callable[..., bool] = is_committed
    remembers: bool = True  # a member that comes back has what its box saved
    checks_digests: bool = True  # of a state that is fetched
    same_base: bool = True  # a group takes claims for its own round and base only
    keeps_work: bool = True  # when an attempt comes to nothing
    late_allowed: Callable[[str, Late, SimHead], bool] = late_allowed
    checks_leader: bool = True  # members compute from the promises shown what must be completed
    checks_heads: bool = True  # a head is taken if each round on the way to it has its majority
    leaving: str = (
        "farewell"  # or "dropped": by who has heard of it; "silent"; "heard": who knows the farewell counts by it
    )


@cache
def by_digest(text: str) -> str:
    return canonical.sha256_hex(text.encode())
