"""The last agreed round, as far as the next one hangs on it: what an agreement must carry to be followed without its
chain.

A run may have more members than fit into one group; then they take turns (`sync.rules = 3`). Whoever waits for its turn
works on, and what it did counts in full. That is allowed for rounds in which there was no room: in which the group was
full, with at least three quarters of `sync.max_group` members. (Not all of them: somebody of those that are asked is
always about to go.) Each agreement says so, by one function (`protocol.counting.counted`), for whoever knows that one
alone:

    full      agreements in a row with a full group, up to this one; at most `MAX_WAIT`
    recent    peer id -> rounds since it was in an agreement: of those that were in one since the row began, or in the
              one before it, and are not in this one

    >>> last = Last(9, "cd" * 32, {"a": 100, "b": 100}, full=3, recent={"c": 1, "d": 3})
    >>> [last.may_have_waited(peer) for peer in ("a", "c", "d", "never seen")]
    [0, 1, 3, 3]

So "c" was in round 8 and waited in round 9. Whoever was never seen may have waited for as long as there was no room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.agreement import Agreement

PROBATION = 3  # agreements that make a newcomer a regular; between them it may only have waited for its turn


@dataclass(frozen=True)
class Last:
    """The last agreed round."""

    round: int  # 0: genesis
    state: str  # state digest
    weights: Mapping[str, int] = field(default_factory=dict)  # of its members; empty for genesis
    newcomers: Mapping[str, int] = field(default_factory=dict)  # as in its agreement
    base: str = ""  # state digest that it started from; empty for genesis
    full: int = 0  # as in its agreement
    recent: Mapping[str, int] = field(default_factory=dict)  # as in its agreement
    epoch: int = 0  # of the coordinator's word by which it was decided; 0: of none

    @classmethod
    def of(cls, agreement: Agreement) -> Last:
        counts = agreement.counts
        return cls(
            agreement.round,
            agreement.state,
            dict(counts.weights),
            dict(counts.newcomers),
            agreement.base,
            counts.full,
            dict(counts.recent),
            agreement.epoch,
        )

    def regulars(self) -> set[str]:
        """Who counts as a regular in the round after this one."""
        known = self.weights.keys() | self.recent.keys()
        return {peer for peer in known if self.newcomers.get(peer, PROBATION) >= PROBATION}

    def been(self, peer: str) -> int:
        """In how many agreements a peer was, up to `PROBATION`; 0 for one that was away while there was room."""
        return self.newcomers.get(peer, PROBATION) if peer in self.weights or peer in self.recent else 0

    def may_have_waited(self, peer: str) -> int:
        """For how many rounds, up to this one, a peer can have waited for its turn; 0: it was in it, or had room."""
        return 0 if peer in self.weights else min(self.full, self.recent.get(peer, self.full))
