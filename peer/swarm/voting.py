"""Voting: each member of a group signs the digest of the state it got; a majority commits the round.

One `Voting` lives for one round, over all attempts at it. What may be voted for is decided in `peer.round_rules`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from peer.round_rules import Ballot, BallotBox, is_committed
from peer.swarm.group import Group, Rules
from peer.swarm.talk import Talk
from protocol import claim, swarm_pb2
from protocol.claim import Agreement, Vote
from protocol.envelope import Envelope
from protocol.errors import FormatError, NetworkError, RefusedError, RoundAborted, VerificationError
from protocol.keys import PeerIdentity

MAJORITY_S = 15.0  # from one's own vote to the majority
LINGER_S = 0.25  # for the votes that come after the majority


class Voting:
    """All votes of one round.

    Args:
        acceptors: peer id -> weight of the members of the last agreement that have not left.
        last: this member's vote of the round before, for those that are still counting.
    """

    def __init__(
        self,
        talk: Talk,
        identity: PeerIdentity,
        box: BallotBox,
        run: str,
        round: int,
        base: str,
        acceptors: Callable[[], Mapping[str, int]],
        last: Envelope | None,
    ) -> None:
        self._talk, self._identity, self._box = talk, identity, box
        self._run, self._round, self._base, self._acceptors = run, round, base, acceptors
        self._last = last
        self._votes: dict[str, tuple[Vote, Envelope]] = {}  # peer id -> its vote in the highest attempt
        self._groups: dict[str, tuple[Group, Envelope]] = {}  # group digest -> this member's newest vote on it
        self._changed = asyncio.Event()

    @property
    def own(self) -> Envelope | None:
        """This member's newest vote of the round."""
        mine = self._votes.get(self._talk.me)
        return mine[1] if mine else None

    async def cast(self, group: Group, state: str) -> str:
        """Vote for `state`, and wait for a majority; returns the state that has it, which may be another.

        Raises:
            Bound: another attempt was joined meanwhile.
            RoundAborted: no majority came together in time.
        """
        vote = Vote(
            run=self._run, round=self._round, attempt=group.attempt, group=group.digest, base=self._base, state=state
        )
        ballot = Ballot(vote.attempt, vote.group, vote.state)
        await asyncio.get_running_loop().run_in_executor(None, self._box.vote, self._round, ballot)
        envelope = vote.sign(self._identity)
        self._groups[group.digest] = (group, envelope)
        self._votes[self._talk.me] = (vote, envelope)
        message = swarm_pb2.VoteMessage(certificate=self._talk.certificate(), vote=envelope.to_bytes())
        for member in group.members:
            if member.peer_id != self._talk.me:
                self._talk.spawn(self._send(member.peer_id, message))
        winner = await self._majority(group, vote)
        await self._linger(group, vote, winner)
        return winner

    def voters(self, group: Group, state: str) -> set[str]:
        """Members of the group that voted for `state` in its attempt."""
        return {
            peer
            for peer, (vote, _) in self._votes.items()
            if (vote.attempt, vote.group, vote.state) == (group.attempt, group.digest, state) and peer in group.by_peer
        }

    def agreement(self, group: Group, state: str) -> Agreement:
        """The committed round, to be kept and shown."""
        voters = self.voters(group, state)
        return Agreement(
            run=self._run,
            round=self._round,
            base=self._base,
            state=state,
            weights=dict(group.weights),
            claims={member.peer_id: member.claim for member in group.members},
            claim_envelopes=tuple(member.envelope for member in group.members),
            vote_envelopes=tuple(self._votes[m.peer_id][1] for m in group.members if m.peer_id in voters),
            certificates={member.peer_id: member.certificate for member in group.members},
        )

    def own_ballots(self) -> dict[Ballot, Group]:
        """What this member voted for in this round, and in which group."""
        return {ballot: self._groups[ballot.group][0] for ballot in self._box.ballots if ballot.group in self._groups}

    def to_messages(self) -> list[swarm_pb2.Voted]:
        """The same, for the leader of a later attempt."""
        return [
            swarm_pb2.Voted(vote=envelope.to_bytes(), group=group.to_message(""))
            for group, envelope in self._groups.values()
        ]

    def take(self, peer: str, data: bytes) -> None:
        """Note a vote that came from `peer`; one for another round or base is passed over. Raises: FormatError, RefusedError."""
        voter, vote = claim.open_vote(data)
        if voter != peer or (vote.run, vote.round, vote.base) != (self._run, self._round, self._base):
            return
        known = self._votes.get(peer)
        if known is None or known[0].attempt < vote.attempt:
            self._votes[peer] = (vote, Envelope.from_bytes(data))
            self._changed.set()

    async def answer(self, message: swarm_pb2.VoteMessage, reader: Any, writer: Any, peer: str) -> None:
        """A member has sent its vote: note it, and answer with this member's own."""
        with contextlib.suppress(FormatError, RefusedError):
            self.take(peer, message.vote)
        mine = self.own or self._last
        await self._talk.reply(writer, swarm_pb2.VoteReply(vote=mine.to_bytes() if mine else b""))

    async def _send(self, peer: str, message: swarm_pb2.VoteMessage) -> None:
        with contextlib.suppress(NetworkError, FormatError, RefusedError):
            reply = await self._talk.call(peer, "vote", message, swarm_pb2.VoteReply)
            if reply.vote:
                self.take(peer, reply.vote)

    async def _majority(self, group: Group, mine: Vote) -> str:
        deadline = time.monotonic() + MAJORITY_S
        while True:
            for state in {vote.state for vote, _ in self._votes.values()}:
                if is_committed(self.voters(group, state), self._acceptors(), group.weights):
                    return state
            if not await self._wait_for_change(deadline):
                named = len({vote.state for vote, _ in self._votes.values() if vote.attempt == mine.attempt})
                raise RoundAborted(f"no majority for one state within {MAJORITY_S:.0f} s; {named} were named")

    async def _linger(self, group: Group, mine: Vote, state: str) -> None:
        """Wait a moment for the rest: an agreement that all have signed says more."""
        deadline = time.monotonic() + LINGER_S
        while len(self.voters(group, state)) < len(group.members) and await self._wait_for_change(deadline):
            pass

    async def _wait_for_change(self, deadline: float) -> bool:
        """Whether something changed before the deadline."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            return False
        return True


def open_voted(peer: str, item: swarm_pb2.Voted, rules: Rules) -> tuple[Ballot, Group]:
    """Check what a member says it voted for in an earlier attempt. Raises: FormatError, RefusedError."""
    voter, vote = claim.open_vote(item.vote)
    group = Group.from_message(item.group, peer, rules)
    if voter != peer or (vote.run, vote.round, vote.base, vote.group) != (
        rules.run,
        rules.round,
        rules.base,
        group.digest,
    ):
        raise VerificationError("a vote that is another's, or for another round or group")
    return Ballot(vote.attempt, vote.group, vote.state), group
