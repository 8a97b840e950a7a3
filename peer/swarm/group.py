"""A group: the members that average together in one attempt at a round, each with the claim that it signed before.

The leader relays the claims and is not believed: every member checks each of them, and the group's digest is over the
claims in order, so two members that hold the same digest average the same updates with the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from peer.swarm.farewells import Farewells
from peer.training.codecs.codec import CHUNK_VALUES
from protocol import certificate, swarm_pb2
from protocol.agreement import MAX_GROUP, group_digest
from protocol.beginners import Beginners, open_beginners
from protocol.errors import VerificationError
from protocol.run_spec import RunSpec
from protocol.signed import Signed, stored_signed
from protocol.statements import Claim, open_claim
from protocol.succession import Last, acceptors, check_claim, counted

MAX_SHARE = 1 << 20
MAX_REDUCERS = 64
MAX_LEFT_OUT, MAX_REASON = 64, 120
MAX_VOTED = 64  # groups that the promises of one attempt may name


@dataclass(frozen=True)
class Member:
    """One member of a group, checked."""

    peer_id: str
    certificate: str
    claim: Claim
    envelope: Signed[Claim]
    can_reduce: bool
    share: int = 1  # of the reducing, as a part of the sum of all; 0 when it cannot reduce


@dataclass(frozen=True)
class Reducer:
    """Who reduces for a group without being one of it: it brings no update, and has no vote."""

    peer_id: str
    certificate: str
    share: int


@dataclass(frozen=True)
class Rules:
    """What a claim must agree with to be let into a group."""

    run: str
    spec: RunSpec
    membership_key: Ed25519PublicKey
    values: int  # of this round's update: the trainable parameters, or as many as its fragment has
    last: Last  # the round before
    named: bytes = b""  # in round 1: the coordinator's word on who begins, as far as this member knows it

    @property
    def round(self) -> int:
        return self.last.round + 1

    @property
    def base(self) -> str:
        """State digest."""
        return self.last.state

    def check_member(
        self, data: bytes, token: str, can_reduce: bool, expected_peer: str | None = None, share: int = 1
    ) -> Member:
        """Check one claim and its certificate.

        Raises:
            FormatError, SignatureError, RefusedError: with the reason.
        """
        signed = open_claim(data)
        peer_id, made = signed.by, signed.value
        if expected_peer not in (None, peer_id):
            raise VerificationError("the claim is another peer's")
        membership = certificate.check(token, self.membership_key, run=self.run)
        if membership.peer_id != peer_id:
            raise VerificationError("the certificate is another peer's")
        if made.run != self.run:
            raise VerificationError("claims work for another run, round or base")
        check_claim(peer_id, made, self.last, self.spec)
        update = made.update
        if (update.values, update.chunk_values, update.codec) != (self.values, CHUNK_VALUES, self.spec.sync.wire):
            raise VerificationError("claims an update of another size, chunk size or codec than the run's")
        return Member(peer_id, token, made, signed, can_reduce, share if can_reduce else 0)

    def check_reducer(self, token: str, share: int) -> Reducer:
        """Check the certificate of one that reduces for the members. Raises: FormatError, RefusedError."""
        membership = certificate.check(token, self.membership_key, run=self.run)
        if not membership.reducer:
            raise VerificationError("the host does not trust this peer to reduce for the others")
        return Reducer(membership.peer_id, token, share)

    def acceptors(self) -> dict[str, int]:
        """Whose votes decide on the round, before farewells."""
        return acceptors(self.last, stored_signed(Beginners, self.named).value if self.named else None)


@dataclass(frozen=True)
class Group:
    """A checked group."""

    round: int
    base: str
    attempt: int
    leader: str
    members: tuple[Member, ...]
    weights: Mapping[str, int]
    complete: str = ""  # not averaging, but completing the vote for this state
    promises: tuple[bytes, ...] = ()  # after attempt 0: signed, of a majority, to show what must be completed
    voted: tuple[Group, ...] = ()  # the groups that those promises name
    newcomers: Mapping[str, int] = field(default_factory=dict)  # as its agreement will have them
    beginners: bytes = b""  # in round 1: the coordinator's signed word on whose it is
    left_out: tuple[tuple[str, str], ...] = ()  # (peer id, why), by the leader's word; for people
    farewells: Farewells = field(default_factory=Farewells)  # by which this attempt's majorities are counted
    reducers: tuple[Reducer, ...] = ()  # not empty: the members themselves reduce nothing

    @classmethod
    def build(
        cls,
        rules: Rules,
        attempt: int,
        leader: str,
        members: list[Member],
        complete: str = "",
        reducers: tuple[Reducer, ...] = (),
    ) -> Group:
        """Put a group together.

        Raises:
            VerificationError: too small, too large, somebody twice, or nobody who can reduce.
        """
        claims, sync = {member.peer_id: member.claim for member in members}, rules.spec.sync
        if not sync.min_peers <= len(members) <= sync.max_group or len(claims) != len(members):
            raise VerificationError(f"a group has {sync.min_peers} to {sync.max_group} members, each once")
        named = {reducer.peer_id for reducer in reducers}
        if len(named) < len(reducers) or named & set(claims):
            raise VerificationError("somebody reduces twice, or is a member as well")
        able = any(member.can_reduce and 0 < member.share <= MAX_SHARE for member in members)
        if not able and not any(0 < reducer.share <= MAX_SHARE for reducer in reducers):
            raise VerificationError("nobody in the group can be reached to reduce")
        counts = counted(claims, rules.last, rules.spec)
        return cls(
            rules.round,
            rules.base,
            attempt,
            leader,
            tuple(members),
            counts.weights,
            complete,
            reducers=tuple(reducers),
            newcomers=counts.newcomers,
            beginners=rules.named,
        )

    @classmethod
    def from_message(cls, message: swarm_pb2.Group, leader: str, rules: Rules) -> Group:
        """Check a group that came from its leader, or from a member that voted on it. Raises: FormatError, RefusedError."""
        if (message.round, message.base) != (rules.round, rules.base):
            raise VerificationError(
                f"the group is for round {message.round}, expected round {rules.round} from our base"
            )
        if len(message.members) > rules.spec.sync.max_group:
            raise VerificationError(f"a group has at most {rules.spec.sync.max_group} members")
        members = [
            rules.check_member(item.claim, item.certificate, item.can_reduce, share=item.share)
            for item in message.members
        ]
        if len(message.reducers) > MAX_REDUCERS:
            raise VerificationError(f"at most {MAX_REDUCERS} reduce for a group")
        reducers = tuple(rules.check_reducer(item.certificate, item.share) for item in message.reducers)
        group = cls.build(rules, message.attempt, leader, members, message.complete, reducers)
        left_out = tuple((item.peer[:64], item.reason[:MAX_REASON]) for item in message.left_out[:MAX_LEFT_OUT])
        farewells = Farewells.open(message.farewells, rules.run, rules.round)
        if farewells.from_attempt > group.attempt:
            raise VerificationError(
                f"a farewell counts from attempt {farewells.from_attempt} on, not in {group.attempt}"
            )
        if len(message.promises) > MAX_GROUP or len(message.voted) > MAX_VOTED:
            raise VerificationError(f"at most {MAX_GROUP} promises about {MAX_VOTED} groups")
        return replace(
            group,
            left_out=left_out,
            farewells=farewells,
            promises=tuple(message.promises),
            voted=tuple(cls.from_message(_bare(item), "", rules) for item in message.voted),
            beginners=_beginners(message.beginners, rules),
        )

    def to_message(self, certificate: str) -> swarm_pb2.Group:
        return swarm_pb2.Group(
            certificate=certificate,
            round=self.round,
            base=self.base,
            attempt=self.attempt,
            complete=self.complete,
            promises=self.promises,
            voted=[item.bare() for item in self.voted],
            beginners=self.beginners,
            members=[
                swarm_pb2.GroupMember(
                    certificate=member.certificate,
                    claim=member.envelope.data,
                    can_reduce=member.can_reduce,
                    share=member.share,
                )
                for member in self.members
            ],
            left_out=[swarm_pb2.LeftOut(peer=peer, reason=reason) for peer, reason in self.left_out],
            farewells=self.farewells.envelopes,
            reducers=[swarm_pb2.Reducer(certificate=item.certificate, share=item.share) for item in self.reducers],
        )

    def bare(self) -> swarm_pb2.Group:
        """The message without what shows that it may be: what a vote is about."""
        return _bare(self.to_message(""))

    def completing(self, attempt: int, leader: str, state: str) -> Group:
        """The same claims, voted on again in a later attempt."""
        return replace(
            self,
            attempt=attempt,
            leader=leader,
            complete=state,
            left_out=(),
            reducers=(),
        )

    @cached_property
    def digest(self) -> str:
        """Names the claims and their order; the same in every attempt at completing."""
        return group_digest(member.envelope for member in self.members)

    @cached_property
    def by_peer(self) -> dict[str, Member]:
        return {member.peer_id: member for member in self.members}

    @cached_property
    def everyone(self) -> list[str]:
        """Peer ids of the members and of those that reduce for them."""
        return [*self.by_peer, *(reducer.peer_id for reducer in self.reducers)]

    def ranges(self, chunks: int) -> dict[str, range]:
        """Which chunks each reducer reduces: by their shares, in group order, cut at chunk boundaries."""
        reducers: list[Reducer | Member] = [item for item in self.reducers or self.members if item.share]
        reached = list(itertools.accumulate((member.share for member in reducers), initial=0))
        bounds = [chunks * share // reached[-1] for share in reached]
        return {member.peer_id: range(bounds[i], bounds[i + 1]) for i, member in enumerate(reducers)}


def _bare(message: swarm_pb2.Group) -> swarm_pb2.Group:
    copy = swarm_pb2.Group()
    copy.CopyFrom(message)
    copy.ClearField("promises")
    copy.ClearField("voted")
    return copy


def _beginners(data: bytes, rules: Rules) -> bytes:
    """The coordinator's word that a group of round 1 carries. Raises: FormatError, RefusedError."""
    if rules.last.round:
        return b""
    if data:
        open_beginners(data, rules.membership_key, run=rules.run)
    if rules.named and data != rules.named:
        raise VerificationError("the group is not of those whom the coordinator named to begin")
    return data
