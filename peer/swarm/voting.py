"""Voting: each member of a group signs the digest of the state it got; a majority commits the round.

One `Voting` lives for one round, over all attempts at it. What may be voted for is decided in `peer.round_rules`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from peer.round_rules import Ballot, BallotBox, is_committed
from peer.swarm.group import Group, Rules
from peer.swarm.talk import Talk
from protocol import swarm_pb2
from protocol.agreement import MAX_GROUP, Agreement, Counts
from protocol.beginners import Beginners
from protocol.errors import FormatError, NetworkError, RefusedError, RoundAborted, VerificationError
from protocol.keys import PeerIdentity
from protocol.signed import Signed, stored_signed
from protocol.statements import Cast, Promise, Vote, open_vote

logger = logging.getLogger(__name__)

MAJORITY_S = 15.0  # from one's own vote to the majority, at most; more after an all-reduce that took long
LINGER_S = 0.25  # for the votes that come after the majority
RETRY_S = 1.0  # before a vote that was not answered is sent again
RELAY_S = 5.0  # for votes that come through others
LOOK_S = 0.25  # how often to look whether those that have not voted are still there


class Voting:
    """All votes of one round.

    Args:
        acceptors: who speaks for how much in a group's attempt.
        last: this member's vote of the round before, for those that are still counting.
        rules: of the round, to read the group that the box has kept over a restart.
        stage: told when the vote is on its way.
    """

    def __init__(
        self,
        talk: Talk,
        identity: PeerIdentity,
        box: BallotBox,
        run: str,
        round: int,
        base: str,
        acceptors: Callable[[Group], Mapping[str, int]],
        last: Signed[Vote] | None,
        rules: Rules,
        stage: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._stage = stage
        self._talk, self._identity, self._box = talk, identity, box
        self._run, self._round, self._base, self._acceptors = run, round, base, acceptors
        self._last = last
        # peer id -> its vote in the highest attempt; from itself, or of a member of this member's own group
        self._votes: dict[str, Signed[Vote]] = {}
        self._groups: dict[str, tuple[Group, Signed[Vote]]] = {}  # group digest -> this member's newest vote on it
        self._gave_up: set[tuple[str, str, int]] = set()  # (peer id, group digest, attempt)
        self._changed = asyncio.Event()
        self._decided = False
        self.forgotten = False  # this member has voted in the round, before a restart, and cannot show for what
        self._restore(rules)

    def _restore(self, rules: Rules) -> None:
        if self._box.round != self._round or not self._box.ballots:
            return
        try:
            message = swarm_pb2.Group.FromString(self._box.evidence)
            if message.base == self._base:
                group = Group.from_message(message, "", rules)
                vote = self._sign(self._box.ballots[-1])
                self._groups[group.digest] = (group, vote)
                self._votes[self._talk.me] = vote
        except (DecodeError, FormatError, RefusedError) as error:
            logger.warning("round %d: voted before a restart, and cannot show for what: %s", self._round, error)
            self.forgotten = True

    def _sign(self, ballot: Ballot) -> Signed[Vote]:
        vote = Vote(
            run=self._run,
            round=self._round,
            attempt=ballot.attempt,
            group=ballot.group,
            base=self._base,
            state=ballot.state,
        )
        return vote.sign(self._identity)

    @property
    def own(self) -> Signed[Vote] | None:
        """This member's newest vote of the round."""
        return self._votes.get(self._talk.me)

    async def cast(self, group: Group, state: str, patience_s: float = 0.0) -> str:
        """Vote for `state`, and wait for a majority; returns the state that has it, which may be another.

        Args:
            patience_s: to wait for those whose lines are slow, on top of `MAJORITY_S`; nobody waits for members that
                are gone or have given the attempt up.

        Raises:
            Bound: another attempt was joined meanwhile.
            RoundAborted: no majority came together in time.
        """
        ballot = Ballot(group.attempt, group.digest, state)
        evidence = group.bare().SerializeToString()
        await asyncio.get_running_loop().run_in_executor(None, self._box.vote, self._round, ballot, evidence)
        signed = self._sign(ballot)
        vote = signed.value
        self._groups = {group.digest: (group, signed)}
        self._votes[self._talk.me] = signed
        message = swarm_pb2.VoteMessage(certificate=self._talk.certificate(), vote=signed.data)
        for member in group.members:
            if member.peer_id != self._talk.me:
                self._talk.spawn(self._send(member.peer_id, message))
        self._stage("voted")
        winner = await self._majority(group, vote, MAJORITY_S + patience_s)
        await self._linger(group, vote, winner)
        self._check_undivided(group, winner)
        return winner

    def voters(self, group: Group, state: str) -> set[str]:
        """Members of the group that voted for `state` in its attempt."""
        return {
            peer
            for peer, vote in self._values().items()
            if (vote.attempt, vote.group, vote.state) == (group.attempt, group.digest, state) and peer in group.by_peer
        }

    def _values(self) -> dict[str, Vote]:
        return {peer: signed.value for peer, signed in self._votes.items()}

    def agreement(self, group: Group, state: str) -> Agreement:
        """The committed round, to be kept and shown."""
        voters = self.voters(group, state)
        return Agreement(
            claims=tuple(member.envelope for member in group.members),
            votes=tuple(self._votes[m.peer_id] for m in group.members if m.peer_id in voters),
            certificates={member.peer_id: member.certificate for member in group.members},
            counts=Counts(dict(group.weights), dict(group.newcomers)),
            farewells=tuple(said for _, said in sorted(group.farewells.by_peer.items())),
            beginners=stored_signed(Beginners, group.beginners) if group.beginners else None,
        )

    def own_ballots(self) -> dict[Ballot, tuple[Group, bytes]]:
        """What this member voted for last in this round, in which group, and the signed vote."""
        newest = self._box.ballots[-1:] if self._box.round == self._round else []
        return {
            ballot: (self._groups[ballot.group][0], self._groups[ballot.group][1].data)
            for ballot in newest
            if ballot.group in self._groups
        }

    def to_messages(self) -> list[swarm_pb2.Voted]:
        """The same, for the leader of a later attempt."""
        return [swarm_pb2.Voted(vote=vote.data, group=group.bare()) for group, vote in self._groups.values()]

    def promise(self, attempt: int, leader: str) -> Signed[Promise]:
        """The same, signed, for all members of that attempt."""
        cast = tuple(Cast(**ballot._asdict()) for ballot in self.own_ballots())
        said = Promise(run=self._run, round=self._round, base=self._base, attempt=attempt, leader=leader, cast=cast)
        return said.sign(self._identity)

    def take(self, data: bytes, peer: str | None = None) -> None:
        """Note a vote: that of `peer`, who sent it, or (None) of some member of this member's group, passed on.

        One for another round or base is passed over, and so is one of a stranger: anybody can make as many as they like.

        Raises:
            FormatError, RefusedError: it is none, or its signature does not hold.
        """
        signed = open_vote(data)
        voter, vote = signed.by, signed.value
        if peer is None and not any(voter in group.by_peer for group, _ in self._groups.values()):
            return
        if peer not in (None, voter) or (vote.run, vote.round, vote.base) != (self._run, self._round, self._base):
            return
        known = self._votes.get(voter)
        if voter != self._talk.me and (known is None or known.value.attempt < vote.attempt):
            self._votes[voter] = signed
            self._changed.set()

    async def answer(self, message: swarm_pb2.VoteMessage, reader: Any, writer: Any, peer: str) -> None:
        """A member has sent its vote: note it, and answer with this member's own and those that it may not hear itself."""
        others: list[bytes] = []
        with contextlib.suppress(FormatError, RefusedError):
            self.take(message.vote, peer)
            if peer in self._votes:
                others = self._held_for(self._votes[peer].value, without=peer)
        mine = self.own or self._last
        await self._talk.reply(writer, swarm_pb2.VoteReply(vote=mine.data if mine else b"", others=others))

    def _held_for(self, like: Vote, without: str) -> list[bytes]:
        """The others' votes for the same group in the same attempt, of its members only."""
        if like.group not in self._groups:
            return []
        members = self._groups[like.group][0].by_peer.keys() - {without, self._talk.me}
        return [
            vote.data
            for voter, vote in self._votes.items()
            if (vote.value.group, vote.value.attempt) == (like.group, like.attempt) and voter in members
        ]

    def gave_up(self, peer: str, group: str, attempt: int) -> None:
        """A member says that it will not vote in this attempt any more."""
        self._gave_up.add((peer, group, attempt))
        self._changed.set()

    async def _send(self, peer: str, message: swarm_pb2.VoteMessage) -> None:
        """Tell one member of a vote, and ask again for others', until there is a majority or another vote takes its place."""
        while self.own is not None and self.own.data == message.vote:
            try:
                reply = await self._talk.call(peer, "vote", message, swarm_pb2.VoteReply)
                if reply.vote:
                    self.take(reply.vote, peer)
                for data in reply.others[:MAX_GROUP]:
                    self.take(data)
                if self._decided:
                    return
            except (NetworkError, FormatError, RefusedError) as error:
                logger.debug("vote to %s: %s", peer[-8:], error.message)
                if not self._talk.book.is_alive(peer):
                    return
            await asyncio.sleep(RETRY_S)

    async def _majority(self, group: Group, mine: Vote, patience_s: float) -> str:
        started = time.monotonic()
        deadline = started + patience_s
        # votes of members that this one cannot reach come through others
        through_others = {peer for peer in group.by_peer if not self._talk.book.is_alive(peer)}
        while True:
            cast = {peer: vote for peer, vote in self._values().items() if vote.attempt == mine.attempt}
            for state in {vote.state for vote in cast.values()}:
                if self._commits(self.voters(group, state), group):
                    self._decided = True
                    return state
            if time.monotonic() > deadline:
                raise RoundAborted(f"no majority for one state within {patience_s:.0f} s; {_named(cast)}")
            if time.monotonic() > started + RELAY_S:
                through_others = set()
            open_ = {
                peer
                for peer in group.by_peer
                if peer not in cast and (self._may_vote(peer, group) or peer in through_others)
            }
            if not any(
                self._commits(self.voters(group, state) | open_, group)
                for state in {vote.state for vote in cast.values()}
            ):
                raise RoundAborted(f"no majority for one state can come together any more; {_named(cast)}")
            await self._wait_for_change(min(deadline, time.monotonic() + LOOK_S))

    def _commits(self, voters: set[str], group: Group) -> bool:
        return is_committed(voters, self._acceptors(group), group.weights)

    def _may_vote(self, peer: str, group: Group) -> bool:
        """Whether a member that has not voted in this attempt may still do so soon."""
        gave_up = (peer, group.digest, group.attempt) in self._gave_up
        return not gave_up and self._talk.book.is_alive(peer)

    def _check_undivided(self, group: Group, state: str) -> None:
        """Where members name several states, no majority may hang on one of them: it may tell others another one.

        Raises:
            RoundAborted: it does; the next attempt completes what may be committed, so that all name one state.
        """
        cast = {peer: vote for peer, vote in self._values().items() if peer in group.by_peer}
        named = {vote.state for vote in cast.values() if (vote.attempt, vote.group) == (group.attempt, group.digest)}
        voters = self.voters(group, state)
        if len(named) > 1 and not all(self._commits(voters - {voter}, group) for voter in voters):
            raise RoundAborted(f"members named {len(named)} states, and the majority hangs on one of them")

    async def _linger(self, group: Group, mine: Vote, state: str) -> None:
        """Wait a moment for the rest: an agreement that all have signed says more."""
        deadline = time.monotonic() + LINGER_S
        while len(self.voters(group, state)) < len(group.members) and await self._wait_for_change(deadline):
            pass

    async def _wait_for_change(self, deadline: float) -> bool:
        """Whether something changed before the deadline."""
        self._changed.clear()
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.001)):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True


def _named(cast: Mapping[str, Vote]) -> str:
    return f"{len(cast)} members named {len({vote.state for vote in cast.values()})}"


def open_voted(peer: str, item: swarm_pb2.Voted, rules: Rules) -> tuple[Ballot, tuple[Group, bytes]]:
    """Check what a member says it voted for in an earlier attempt. Raises: FormatError, RefusedError."""
    signed = open_vote(item.vote)
    voter, vote = signed.by, signed.value
    group = Group.from_message(item.group, peer, rules)
    if voter != peer or (vote.run, vote.round, vote.base, vote.group) != (
        rules.run,
        rules.round,
        rules.base,
        group.digest,
    ):
        raise VerificationError("a vote that is another's, or for another round or group")
    return Ballot(vote.attempt, vote.group, vote.state), (group, item.vote)
