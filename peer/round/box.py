"""The box: one member's promises and votes in the round in hand. It is on disk before anyone hears of them.

Members may commit different states for one round only if these rules are broken. They are those of single-decree Paxos,
with weights for votes: the acceptors of round r are the members of round r-1's agreement, each with the weight it had
there. An *attempt* is a ballot number.

    promise    a member that has joined attempt a joins and votes in no attempt below a
    lock       a state that an earlier attempt may already have committed must be completed before another is tried
    commit     a state is committed when its voters, in one attempt, hold a majority of the acceptors' weight *and*,
               unless the attempt completes one averaged before, of the weight claimed in the group that it averages

    farewell   a member that leaves hands its weight in the round to another that stays. Each attempt counts by the
               farewells that its leader puts into the group, never by what one has heard otherwise

Two majorities share a member, that member keeps its promise, and so there is never a second state. With farewells, one
may speak for a weight in one attempt and somebody else in a later one. So the weight's owner may not sign a farewell
after its vote; its farewell counts from an attempt on that is later than all it has promised; it tells of it with every
promise, also after it has come back, and joins no group that does not carry it; and leaders pass on what the groups
they are shown have carried.

    >>> box = Box().promise(1, 3, "leader-a")
    >>> box.promise(1, 2, "leader-b")
    Traceback (most recent call last):
    ...
    peer.round.box.AlreadyPromised: round 1: bound to attempt 3 by leader-a
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from protocol.errors import RoundAborted
from protocol.signed import Signed
from protocol.statements import Farewell

if TYPE_CHECKING:
    from peer.round.group import Group


class AlreadyPromised(RoundAborted):
    """A member has promised a later attempt, or another leader. `attempt` is the one it is bound to."""

    def __init__(self, message: str, attempt: int) -> None:
        super().__init__(message)
        self.attempt = attempt


class Ballot(NamedTuple):
    """What a member voted for: in `attempt`, that averaging `group` gives `state`."""

    attempt: int
    group: str
    state: str
    completes: bool = False  # averaged in an earlier attempt: here the acceptors alone decide


@dataclass(frozen=True)
class Box:
    """Promises and votes of one member; each method gives the box that is to be saved next.

    Args:
        ballots: the votes for the state voted for last. Those for an earlier one are over: the leader of the later
            attempt would have completed it if it could have been committed.
        group: whose state that is: what a member needs to tell of its votes after a restart.
        is_forgotten: it has voted in this round, before a restart, and cannot show for what.
        farewells: round -> the farewell that this member has signed for it.
        epoch: of the coordinator's word by which this round is decided.
    """

    round: int = 0
    attempt: int = -1
    leader: str = ""
    ballots: tuple[Ballot, ...] = ()
    group: Group | None = None
    is_forgotten: bool = False
    farewells: Mapping[int, Signed[Farewell]] = field(default_factory=dict)
    epoch: int = 0

    def promise(self, round: int, attempt: int, leader: str) -> Box:
        """Join an attempt: none below it will be joined or voted in any more.

        Raises:
            AlreadyPromised: promised a later attempt, or this one to another leader.
        """
        if round < self.round:
            raise AlreadyPromised(f"round {round} is over", self.attempt)
        if round == self.round and (attempt < self.attempt or (attempt == self.attempt and leader != self.leader)):
            raise AlreadyPromised(f"round {round}: bound to attempt {self.attempt} by {self.leader[-8:]}", self.attempt)
        if round == self.round:
            return self if self.is_bound(round, attempt, leader) else replace(self, attempt=attempt, leader=leader)
        kept = {number: said for number, said in self.farewells.items() if number >= round}
        return Box(round, attempt, leader, farewells=kept, epoch=self.epoch)

    def vote(self, round: int, ballot: Ballot, group: Group) -> Box:
        """Vote, in the attempt that was promised and in no other, and for one state only.

        Raises:
            AlreadyPromised: promised another attempt since.
        """
        if (round, ballot.attempt) != (self.round, self.attempt):
            raise AlreadyPromised(f"round {round}: attempt {ballot.attempt} was given up", self.attempt)
        if round in self.farewells and ballot.attempt < self.farewells[round].value.attempt:
            raise AlreadyPromised(f"round {round}: this member has handed its weight over", self.attempt)
        earlier = [other for other in self.ballots if other.attempt == ballot.attempt]
        if earlier and earlier != [ballot]:
            raise AlreadyPromised(f"round {round}: voted for another state in attempt {ballot.attempt}", self.attempt)
        if earlier:
            return self
        same = [other for other in self.ballots if (other.group, other.state) == (ballot.group, ballot.state)]
        return replace(self, ballots=(*same, ballot), group=group)

    def say_farewell(self, said: Signed[Farewell]) -> Box:
        """Hand this member's weight in a round to another; nobody may hear of it before this is saved.

        Raises:
            AlreadyPromised: it has voted in this round, or said farewell to it before.
        """
        round = said.value.round
        if round < self.round or (round == self.round and self.ballots) or round in self.farewells:
            raise AlreadyPromised(f"round {round}: voted, or handed over already", self.attempt)
        assert said.value.attempt >= self.next_attempt(round)
        return replace(self, farewells={**self.farewells, round: said})

    def in_epoch(self, epoch: int, round: int) -> Box:
        """The box once the coordinator has said anew who decides a round: earlier promises and votes are undone."""
        return self if epoch == self.epoch else Box(round, epoch=epoch)

    def standing_on(self, epoch: int, round: int) -> Box:
        """The box of a member that stands on a round: what is of an earlier epoch is over.

        What is of a later one is over, too, once the round that it was for is passed without it: no vote can be given
        in it any more, and those who count there take silence for a vote.
        """
        is_over = epoch > self.epoch or (epoch < self.epoch and round >= self.round)
        return Box(epoch=epoch) if is_over else self

    def is_bound(self, round: int, attempt: int, leader: str) -> bool:
        """Whether this very attempt is the last one promised."""
        return (round, attempt, leader) == (self.round, self.attempt, self.leader)

    def next_attempt(self, round: int) -> int:
        return self.attempt + 1 if round == self.round else 0

    def voted(self, round: int) -> Ballot | None:
        """What this member voted for last in a round."""
        return self.ballots[-1] if self.round == round and self.ballots else None
