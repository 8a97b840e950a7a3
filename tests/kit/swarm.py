"""Members that agree on one round after another, without a network; their states are real tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from peer.link.answers import RunDescription
from peer.link.client import CoordinatorClient
from peer.training.codecs.codec import EncodedUpdate
from peer.training.own_state import OwnState
from peer.training.replay import Revealed
from peer.training.state import SharedState
from protocol.agreement import Agreement, group_digest
from protocol.epoch import stored_word
from protocol.keys import PeerIdentity
from protocol.run_spec import RunSpec
from protocol.signed import Signed
from protocol.statements import Claim, Start, Trajectory, UpdateDigest, Vote
from protocol.succession import Last, counted


@dataclass
class Member:
    """A peer with its certificate."""

    identity: PeerIdentity
    certificate: str = ""
    own: OwnState | None = None  # where work is audited: what its last claim led to
    stands: Start | None = None

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id


@dataclass
class Swarm:
    """Members that agree on one round after another; states are real tensors."""

    spec: RunSpec
    members: list[Member]
    state: SharedState
    beginners: bytes = b""  # the coordinator's word; it goes into round 1
    last: Last = field(init=False)
    states: dict[int, SharedState] = field(default_factory=dict)
    shown: dict[str, Revealed] = field(default_factory=dict)  # claim -> its work, where work is audited

    def __post_init__(self) -> None:
        self.run = self.spec.digest
        self.last = Last(self.state.round, self.state.digest)

    @classmethod
    def joined(cls, client: CoordinatorClient, run: RunDescription, state: SharedState, count: int = 3) -> Swarm:
        """Enroll `count` new identities, which say that they work; the coordinator names who begins."""
        swarm = cls(run.card.spec, [Member(PeerIdentity.generate()) for _ in range(count)], state)
        for member in swarm.members:
            member.certificate = client.enroll(member.identity).certificate
            swarm.beginners = client.announce(member.certificate, tokens_per_s=1.0).beginners
        return swarm

    def next_state(self, seed: int, scale: float = 0.01) -> SharedState:
        torch.manual_seed(seed)
        noise = scale * torch.randn_like(self.state.parameters)
        return SharedState(self.state.round + 1, self.state.names_shapes, self.state.parameters + noise)

    def round(self, *, seed: int = 0, tokens: int = 100, scale: float = 0.01) -> Agreement:
        """Work and agree on the next round."""
        state = self.next_state(seed, scale)
        agreement = self.agree(state.digest, self.members, tokens=tokens)
        self.go_on(agreement, state)
        return agreement

    def go_on(self, agreement: Agreement, state: SharedState) -> None:
        """This round is committed."""
        self.last, self.state = Last.of(agreement), state
        self.states[state.round] = state

    def _audited(self, member: Member, claim: Claim) -> Signed[Claim]:
        """The claim with a trajectory, of work that its author can show."""
        update = EncodedUpdate.encode(torch.zeros(8), "fp32")
        own = OwnState({"steps": str(claim.round)}, {"exp_avg": torch.full((8,), float(claim.tokens))})
        where = Trajectory(precision="fp32", start=member.stands, end=own.digest)
        signed = claim.model_copy(update={"update": update.digest, "trajectory": where}).sign(member.identity)
        self.shown[signed.digest] = Revealed(signed.value, member.peer_id, self.state, member.own, own, update)
        member.own, member.stands = own, Start(round=claim.round, own=own.digest)
        return signed

    def agree(
        self,
        state: str,
        members: Iterable[Member],
        *,
        tokens: int | Mapping[str, int] = 100,
        voters: Iterable[Member] | None = None,
        round: int | None = None,
        base: str | None = None,
    ) -> Agreement:
        """An agreement of `members` on `state`, from the current base."""
        members = list(members)
        number, base = round or self.state.round + 1, base or self.state.digest
        signed: list[Signed[Claim]] = []
        claims: dict[str, Claim] = {}
        for index, member in enumerate(members):
            worked = (tokens if isinstance(tokens, int) else tokens.get(member.peer_id, 100)) + index
            claim = Claim(
                run=self.run,
                round=number,
                base=base,
                tokens=worked,
                flops=1000,
                first_batch=0,
                batches=worked,
                update=UpdateDigest(root="0" * 64, values=8, chunk_values=8, codec="fp32"),
            )
            if self.spec.audit.share:
                signed.append(self._audited(member, claim))
            else:
                signed.append(claim.sign(member.identity))
            claims[member.peer_id] = signed[-1].value
        vote = Vote(run=self.run, round=number, attempt=0, group=group_digest(signed), base=base, state=state)
        return Agreement(
            counts=counted(claims, self.last, self.spec),
            word=stored_word(self.beginners) if number == 1 and self.beginners else None,
            claims=tuple(signed),
            votes=tuple(vote.sign(member.identity) for member in (voters or members)),
            certificates={member.peer_id: member.certificate for member in members},
        )
