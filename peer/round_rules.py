"""The rules of a round that must hold whatever the network does. No I/O here: a simulator can run them.

Members may commit different states for one round only if these rules are broken. They are those of single-decree Paxos,
with weights for votes: the acceptors of round r are the members of round r-1's agreement, each with the weight it had
there. An *attempt* is a ballot number.

    promise    a member that has joined attempt a joins and votes in no attempt below a
    lock       a state that may already have been committed in an earlier attempt must be completed before another is tried
    commit     a state is committed when its voters, in one attempt, hold a majority of the acceptors' weight *and* of
               the weight claimed in the group whose updates it averages

    farewell   a member that leaves hands its weight in the round to another that stays. Each attempt counts by the farewells
               that its leader puts into the group, never by what one has heard otherwise; see `protocol.majority.acceptors_after`

Two majorities share a member, that member keeps its promise, and so there is never a second state. With farewells, whoever
speaks for a weight in one attempt and somebody else in a later one: the weight's owner may not sign a farewell after its
vote; its farewell counts from an attempt on that is later than all it has promised; it tells of it with every promise,
also after it has come back, and joins no group that does not carry it; and leaders pass on what the groups they are
shown have carried.

    >>> box = BallotBox()
    >>> box.promise(1, 3, "leader-a")
    >>> box.promise(1, 2, "leader-b")
    Traceback (most recent call last):
    ...
    peer.round_rules.Bound: round 1: bound to attempt 3 by leader-a
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol import canonical
from protocol.errors import FormatError, RoundAborted
from protocol.majority import has_majority

MAX_BOX_BYTES = 64 << 20


class Bound(RoundAborted):
    """A member has promised a later attempt, or another leader. `attempt` is the one it is bound to."""

    def __init__(self, message: str, attempt: int) -> None:
        super().__init__(message)
        self.attempt = attempt


class Undecided(RoundAborted):
    """Members that are silent may have committed either of two states; only their answer can tell which."""


class Ballot(NamedTuple):
    """What a member voted for: in `attempt`, that averaging `group` gives `state`."""

    attempt: int
    group: str
    state: str


@dataclass
class BallotBox:
    """One member's promises and votes for the round in hand; saved before anyone hears of them.

    Args:
        save: called with the bytes to keep before a promise or vote is given; must not return before they are safe.
        ballots: the votes for the state voted for last. Those for an earlier one are over: the leader of the later
            attempt would have completed it if it could have been committed.
        evidence: the group of that state, as bytes: what a member needs to tell of its votes after a restart.
        farewells: round -> from which attempt on the farewell counts that this member has signed for it, and that farewell.
    """

    save: Callable[[bytes], None] = lambda data: None
    round: int = 0
    attempt: int = -1
    leader: str = ""
    ballots: list[Ballot] = field(default_factory=list)
    evidence: bytes = b""
    farewells: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    _lock: threading.RLock = field(
        default_factory=threading.RLock, repr=False, compare=False
    )  # saving is done in threads

    def restore(self, data: bytes) -> None:
        """Take up where the process before left off. Raises: FormatError."""
        value = canonical.loads(data, max_bytes=MAX_BOX_BYTES)
        try:
            self.round, self.attempt, self.leader = int(value["round"]), int(value["attempt"]), str(value["leader"])
            self.ballots = [Ballot(int(a), str(g), str(s)) for a, g, s in value["ballots"]]
            self.evidence = base64.b64decode(value.get("evidence", ""), validate=True)
            self.farewells = {
                int(number): (int(attempt), base64.b64decode(data, validate=True))
                for number, attempt, data in value.get("farewells", [])
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError("not a ballot box") from error

    def promise(self, round: int, attempt: int, leader: str) -> None:
        """Join an attempt: none below it will be joined or voted in any more.

        Raises:
            Bound: promised a later attempt, or this one to another leader.
        """
        with self._lock:
            if round < self.round:
                raise Bound(f"round {round} is over", self.attempt)
            if round == self.round and (attempt < self.attempt or (attempt == self.attempt and leader != self.leader)):
                raise Bound(f"round {round}: bound to attempt {self.attempt} by {self.leader[-8:]}", self.attempt)
            if round > self.round:
                self.ballots, self.evidence = [], b""
                self.farewells = {number: data for number, data in self.farewells.items() if number >= round}
            self.round, self.attempt, self.leader = round, attempt, leader
            self._save()

    def vote(self, round: int, ballot: Ballot, evidence: bytes = b"") -> None:
        """Vote, in the attempt that was promised and in no other, and for one state only.

        Raises:
            Bound: promised another attempt since.
        """
        with self._lock:
            if (round, ballot.attempt) != (self.round, self.attempt):
                raise Bound(f"round {round}: attempt {ballot.attempt} was given up", self.attempt)
            if round in self.farewells and ballot.attempt < self.farewells[round][0]:
                raise Bound(f"round {round}: this member has handed its weight over", self.attempt)
            earlier = [other for other in self.ballots if other.attempt == ballot.attempt]
            if earlier and earlier != [ballot]:
                raise Bound(f"round {round}: voted for another state in attempt {ballot.attempt}", self.attempt)
            if not earlier:
                same = [other for other in self.ballots if (other.group, other.state) == (ballot.group, ballot.state)]
                self.ballots, self.evidence = [*same, ballot], evidence
                self._save()

    def say_farewell(self, round: int, sign: Callable[[int], bytes]) -> None:
        """Hand this member's weight in a round to another; nobody may hear of it before this returns.

        Args:
            sign: makes the farewell, given the first attempt that it counts in.

        Raises:
            Bound: it has voted in this round, or said farewell to it before.
        """
        with self._lock:
            if round < self.round or (round == self.round and self.ballots) or round in self.farewells:
                raise Bound(f"round {round}: voted, or handed over already", self.attempt)
            attempt = self.next_attempt(round)
            self.farewells[round] = (attempt, sign(attempt))
            self._save()

    def is_bound(self, round: int, attempt: int, leader: str) -> bool:
        """Whether this very attempt is the last one promised."""
        return (round, attempt, leader) == (self.round, self.attempt, self.leader)

    def next_attempt(self, round: int) -> int:
        return self.attempt + 1 if round == self.round else 0

    def _save(self) -> None:
        value = {
            "round": self.round,
            "attempt": self.attempt,
            "leader": self.leader,
            "ballots": [list(ballot) for ballot in self.ballots],
            "evidence": base64.b64encode(self.evidence).decode(),
            "farewells": [
                [number, attempt, base64.b64encode(data).decode()] for number, (attempt, data) in self.farewells.items()
            ],
        }
        self.save(json.dumps(value).encode())


def is_committed(voters: set[str], acceptors: Mapping[str, int], group: Mapping[str, int]) -> bool:
    """Whether the voters for one state in one attempt commit it."""
    return has_majority(voters, acceptors) and has_majority(voters, group)


def must_complete(
    answers: Mapping[str, Iterable[Ballot]],
    acceptors: Mapping[str, int],
    groups: Mapping[str, Mapping[str, int]],
) -> Ballot | None:
    """The state that may already be committed somewhere, given what the members of a new attempt say they voted for.

    Whoever is in a state's group and did not answer may have voted for it. A state is free to be dropped only when even
    with all of their votes it cannot have had its majorities. Votes for one state of one group count together, whatever
    attempt they were cast in: a member tells of its newest one for each state only.

    Args:
        answers: member -> the ballots it cast in this round; empty for one that cast none.
        acceptors: peer id -> weight in the agreement of the round before.
        groups: group digest -> peer id -> weight, for each group that is voted for.

    Returns:
        the newest ballot for the state to complete, or None when a new group may average.

    Raises:
        Undecided: an all-reduce that did not give the same to all left two states, and either may be committed.
    """
    voters: dict[tuple[str, str], set[str]] = {}
    for peer, ballots in answers.items():
        for ballot in ballots:
            voters.setdefault((ballot.group, ballot.state), set()).add(peer)
    possible: list[Ballot] = []
    for ballot in sorted({ballot for ballots in answers.values() for ballot in ballots}, reverse=True):
        group = groups[ballot.group]
        silent = set(group) - set(answers)
        if is_committed(voters[ballot.group, ballot.state] | silent, acceptors, group):
            possible.append(ballot)
    newest = [ballot for ballot in possible if ballot.attempt == possible[0].attempt]
    if len(newest) > 1:  # an attempt that completes a state has that one only: this was an average
        raise Undecided(f"{len(newest)} states may have been committed in attempt {newest[0].attempt}")
    return newest[0] if newest else None


def locked(
    answers: Mapping[str, Iterable[Ballot]],
    acceptors: Mapping[str, int],
    groups: Mapping[str, Mapping[str, int]],
    *,
    left: Collection[str] = (),
    carried: Collection[str] = (),
    complete: Callable[..., Ballot | None] = must_complete,
) -> Ballot | None:
    """What the promises of an attempt say must be completed; None: a new group may average.

    Its leader asks this before it makes a group, and each member, of the same promises, before it takes part.

    Args:
        answers, acceptors, groups: as `must_complete` has them.
        left: whose farewells the attempt carries.
        carried: whose farewells the groups that were voted on carried: who left before did not vote for them.

    Raises:
        RoundAborted: those who have answered are no majority.
        Undecided: as `must_complete`.
    """
    if not has_majority(set(answers), acceptors):
        raise RoundAborted(f"only {len(answers)} peers answered")
    gone = dict.fromkeys(set(left) - set(carried) - set(answers), ())
    return complete({**answers, **gone}, acceptors, groups)
