"""Bugs to plant in a simulated swarm: each replaces one rule, and says what must break then.

`test_swarm_simulation.py` plants them one by one; a simulator that does not notice is worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from peer.round_rules import Ballot, BallotBox, Undecided, is_committed, must_complete

from protocol.majority import has_majority
from tests.sim_rules import Broken, Diverged, Late, Rulebook, SimHead, Stuck
from tests.swarm_plans import LIES, TELLS


class FickleBox(BallotBox):
    """Promises anything to anybody, and keeps none of it."""

    def promise(self, round: int, attempt: int, leader: str) -> None:
        if round != self.round:
            self.ballots = []
        self.round, self.attempt, self.leader = round, max(attempt, self.attempt), leader
        self._save()

    def is_bound(self, round: int, attempt: int, leader: str) -> bool:
        return True

    def vote(self, round: int, ballot: Ballot) -> None:
        self.ballots.append(ballot)
        self._save()


class TwoFacedBox(BallotBox):
    """Votes in attempts that it has given up."""

    def vote(self, round: int, ballot: Ballot) -> None:
        self.ballots.append(ballot)
        self._save()


class ShortMemoryBox(BallotBox):
    """Forgets its votes with each new promise."""

    def promise(self, round: int, attempt: int, leader: str) -> None:
        super().promise(round, attempt, leader)
        self.ballots = []
        self._save()


def _only_those_who_answered(answers: Mapping, acceptors: Mapping, groups: Mapping) -> Ballot | None:
    """Takes silence for a no."""
    for ballot in sorted({ballot for ballots in answers.values() for ballot in ballots}, reverse=True):
        voters = {peer for peer, ballots in answers.items() if ballot in ballots}
        if is_committed(voters, acceptors, groups[ballot.group]):
            return ballot
    return None


def picks_one(answers: Mapping, acceptors: Mapping, groups: Mapping) -> Ballot | None:
    """Chooses between two states of which either may be committed."""
    try:
        return must_complete(answers, acceptors, groups)
    except Undecided:
        return max(ballot for ballots in answers.values() for ballot in ballots)


def _any_late(peer: str, late: Late, head: SimHead) -> bool:
    """Late work is counted although its author was in the round."""
    return (late.round, late.base) == (head.round, head.group.base)


ALL = tuple(kind for kind in TELLS if kind not in LIES)
TELLERS = ("boast", "split", "lose")
RIVALS = ("rival", "delay", "twice", "slow", "freeze")  # of such plans, few show what these do
PLANTED: dict[str, tuple[Rulebook, type[Broken], tuple[str, ...]]] = {
    "promises are ignored": (Rulebook(box=FickleBox), Diverged, RIVALS),
    "votes are given in any attempt": (Rulebook(box=TwoFacedBox), Diverged, RIVALS),
    "votes are forgotten": (Rulebook(box=ShortMemoryBox), Diverged, ALL),
    "a crash forgets everything": (Rulebook(remembers=False), Diverged, ALL),
    "locks are ignored": (Rulebook(must_complete=lambda answers, acceptors, groups: None), Diverged, ALL),
    "silence is a no": (Rulebook(must_complete=_only_those_who_answered), Diverged, ALL),
    "the group's majority is enough": (
        Rulebook(is_committed=lambda v, acceptors, group: has_majority(v, group)),
        Diverged,
        ALL,
    ),
    "any vote commits": (Rulebook(is_committed=lambda v, acceptors, group: bool(v)), Diverged, ALL),
    "a state is taken for the digest that was asked for": (Rulebook(checks_digests=False), Diverged, ALL),
    "a group averages claims from several bases": (Rulebook(same_base=False), Broken, ALL),
    "late work is counted although its author was in the round": (Rulebook(late_allowed=_any_late), Broken, ALL),
    "an aborted round loses the work": (Rulebook(keeps_work=False), Broken, ALL),
    "a leaver is dropped by those who have heard of it": (Rulebook(leaving="dropped"), Diverged, ALL),
    "a farewell counts for those who have heard of it, and its author is out": (Rulebook(leaving="heard"), Stuck, ALL),
    "whoever is ahead is followed": (Rulebook(checks_heads=False), Diverged, TELLERS),
}
