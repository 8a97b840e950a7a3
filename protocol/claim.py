"""Claims, votes and agreements: what members sign in a round, and the rules by which a round is committed.

    claim       made before its author sees anyone's update: "from this base I did this much work, and this is my update"
    vote        "after averaging this group's updates, my state has this digest"
    promise     "in this attempt, and what I have voted for before": shows a group which state its leader must complete
    farewell    "I leave; who I name speaks for my weight in this round"
    agreement   a round's claims and votes, together with the members' certificates: proof that the round was committed

These rules do no I/O. Peers apply them to commit, the coordinator to grant credit, a verifier to believe a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import canonical, certificate, envelope
from protocol.beginners import MAX_BEGINNERS_BYTES, Beginners, open_beginners, trusted_beginners
from protocol.envelope import Envelope
from protocol.errors import FormatError, RefusedError, VerificationError
from protocol.invite import Hex64
from protocol.keys import PeerIdentity

CLAIM_TYPE = "application/vnd.potluck.claim.v1+json"
VOTE_TYPE = "application/vnd.potluck.vote.v1+json"
PROMISE_TYPE = "application/vnd.potluck.promise.v1+json"
FAREWELL_TYPE = "application/vnd.potluck.farewell.v1+json"
MAX_GROUP = 1024
MAX_ATTEMPT = 10**6
MAX_AGREEMENT_BYTES = 8 << 20
MAX_TOKENS = 2**40  # tokens one peer can claim for one round
GROWTH_CAP = 4  # rules 1: a member counts at most this many times what it had agreed in the round before
LATE_DIVISOR = 2  # tokens of an update that missed its round count for so much less in the next one


class _Statement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UpdateDigest(_Statement):
    """Binds a claim to one encoded update."""

    root: Hex64  # Merkle root over the encoded chunks
    values: int = Field(ge=1, le=2**40)  # fp32 values before encoding
    chunk_values: int = Field(ge=1, le=1 << 24)  # per chunk, the last may be shorter
    codec: str = Field(max_length=32)


class Late(_Statement):
    """Work that missed the round before, because it came too late or its author could not be reached; part of the update.

    It was done from the base before, so it counts for less; work that is older still is dropped. It cannot count twice:
    whoever is in the agreement of the round before has no late work.
    """

    base: Hex64  # state digest that the round before started from
    tokens: int = Field(ge=1, le=MAX_TOKENS)
    first_batch: int = Field(ge=0, le=2**40)
    batches: int = Field(ge=1, le=2**40)


class Claim(_Statement):
    """One peer's statement about its update of one round."""

    run: Hex64
    round: int = Field(ge=1, le=10**9)  # the round this work is for
    base: Hex64  # digest of the agreed state that its round is counted from
    tokens: int = Field(ge=1, le=MAX_TOKENS)  # trained on, padding not counted
    flops: int = Field(ge=0, le=2**53 - 1)
    first_batch: int = Field(ge=0, le=2**40)  # sequences drawn from PRF(seed, round, peer id): from here …
    batches: int = Field(ge=1, le=2**40)  # … this many
    update: UpdateDigest
    segments: tuple[Hex64, ...] = Field(default=(), max_length=1024)  # digests of the local state, for replay
    late: Late | None = None

    @property
    def worth(self) -> int:
        """Tokens that the claim may count for: those of its round, and a share of the late ones."""
        return self.tokens + (self.late.tokens // LATE_DIVISOR if self.late else 0)

    def sign(self, identity: PeerIdentity) -> Envelope:
        return envelope.sign(self.model_dump(mode="json", exclude_none=True), CLAIM_TYPE, identity)


class Vote(_Statement):
    """One member's statement about the state after the round."""

    run: Hex64
    round: int = Field(ge=1, le=10**9)
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)  # which try at this round
    group: Hex64  # digest of the group's claims, in order
    base: Hex64
    state: Hex64  # digest after the outer step

    def sign(self, identity: PeerIdentity) -> Envelope:
        return envelope.sign(self.model_dump(mode="json"), VOTE_TYPE, identity)


class Cast(_Statement):
    """A vote that a member has given before, as it tells of it."""

    attempt: int = Field(ge=0, le=MAX_ATTEMPT)
    group: Hex64
    state: Hex64


class Promise(_Statement):
    """A member joins an attempt: it will vote in none below it, and these are the votes that it has given."""

    run: Hex64
    round: int = Field(ge=1, le=10**9)
    base: Hex64
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)
    leader: str = Field(max_length=64)  # peer id
    cast: tuple[Cast, ...] = Field(default=(), max_length=64)

    def sign(self, identity: PeerIdentity) -> Envelope:
        return envelope.sign(self.model_dump(mode="json"), PROMISE_TYPE, identity)


class Farewell(_Statement):
    """A member that leaves hands its weight as an acceptor of one round to another; see `peer.round_rules`."""

    run: Hex64
    round: int = Field(ge=1, le=10**9)
    successor: str = Field(max_length=64)  # peer id
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)  # counts from this attempt on

    def sign(self, identity: PeerIdentity) -> Envelope:
        return envelope.sign(self.model_dump(mode="json"), FAREWELL_TYPE, identity)


def open_claim(data: bytes) -> tuple[str, Claim]:
    """Check a claim's signature and form; returns (peer id, claim). Raises: FormatError, SignatureError."""
    peer_id, value = envelope.open_by_peer(data, CLAIM_TYPE)
    return peer_id, _parse(Claim, value)


def open_vote(data: bytes) -> tuple[str, Vote]:
    """Check a vote's signature and form; returns (peer id, vote). Raises: FormatError, SignatureError."""
    peer_id, value = envelope.open_by_peer(data, VOTE_TYPE)
    return peer_id, _parse(Vote, value)


def open_promise(data: bytes) -> tuple[str, Promise]:
    """Check a promise's signature and form; returns (peer id, promise). Raises: FormatError, SignatureError."""
    peer_id, value = envelope.open_by_peer(data, PROMISE_TYPE)
    return peer_id, _parse(Promise, value)


def open_farewell(data: bytes) -> tuple[str, Farewell]:
    """Check a farewell's signature and form; returns (peer id, farewell). Raises: FormatError, SignatureError."""
    peer_id, value = envelope.open_by_peer(data, FAREWELL_TYPE)
    return peer_id, _parse(Farewell, value)


def group_digest(claims: list[Envelope]) -> str:
    """Names a group: who is in it, with which claims, in which order."""
    return canonical.digest([claim.digest for claim in claims])


def weights(claims: Mapping[str, Claim], previous: Mapping[str, int]) -> dict[str, int]:
    """What each claim counts for in runs of `sync.rules = 1`; `protocol.succession` has the rule of today.

    At most `GROWTH_CAP` times what a member was agreed to have done in the round before; one that was not in it counts at
    most as much as the strongest that was.

    Args:
        claims: peer id -> claim.
        previous: the weights of the round before; empty for round 1.
    """
    newcomer_cap = max(previous.values(), default=MAX_TOKENS)
    return {
        peer_id: min(claim.worth, GROWTH_CAP * previous[peer_id] if peer_id in previous else newcomer_cap)
        for peer_id, claim in claims.items()
    }


def has_majority(voters: set[str], of: Mapping[str, int]) -> bool:
    """Whether `voters` hold more than half of the weight; an even split goes to the side of the first peer id by digest.

    With no weights at all (before round 1 was agreed) everyone has a majority.
    """
    total = sum(of.values())
    if total == 0:
        return True
    held = sum(weight for peer_id, weight in of.items() if peer_id in voters)
    if 2 * held == total:
        return min(of, key=lambda peer_id: canonical.sha256_hex(peer_id.encode())) in voters
    return 2 * held > total


def acceptors_after(weights: Mapping[str, int], farewells: Mapping[str, str]) -> dict[str, int]:
    """Who speaks for how much in a round, once some of its acceptors have left.

    All weights are doubled, and the first acceptor by digest, who decides even splits, has one more: so that there are no
    ties, whoever speaks for that one now. Chains are followed; members of a circle speak for themselves.

    Args:
        weights: the acceptors of the round.
        farewells: who leaves -> whom it names.

    >>> acceptors_after({"a": 3, "b": 1}, {"a": "c", "c": "d"}) in ({"d": 7, "b": 2}, {"d": 6, "b": 3})
    True
    """
    first = min(weights, key=lambda peer: canonical.sha256_hex(peer.encode()), default="")
    counted: dict[str, int] = {}
    for peer, weight in weights.items():
        voice, seen = peer, set()
        while voice in farewells and voice not in seen:
            seen.add(voice)
            voice = farewells[voice]
        counted[voice] = counted.get(voice, 0) + 2 * weight + (peer == first)
    return counted


@dataclass(frozen=True)
class Agreement:
    """A committed round: what was claimed, and who signed the state that came of it."""

    run: str
    round: int
    base: str
    state: str
    weights: Mapping[str, int]  # what each member of the group counts for
    claims: Mapping[str, Claim]
    claim_envelopes: tuple[Envelope, ...]  # in group order
    vote_envelopes: tuple[Envelope, ...]
    certificates: Mapping[str, str]
    farewells: tuple[bytes, ...] = ()  # signed, by which the majority of the round before was counted
    newcomers: Mapping[str, int] = field(
        default_factory=dict
    )  # who was in few agreements -> in how many, with this one
    beginners: bytes = b""  # of round 1: the coordinator's signed word, `protocol.beginners`

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "claims": [
                canonical.loads(item.to_bytes(), max_bytes=envelope.MAX_ENVELOPE_BYTES) for item in self.claim_envelopes
            ],
            "votes": [
                canonical.loads(item.to_bytes(), max_bytes=envelope.MAX_ENVELOPE_BYTES) for item in self.vote_envelopes
            ],
            "certificates": dict(self.certificates),
            "weights": dict(self.weights),
        }
        if self.farewells:
            farewells = [canonical.loads(item, max_bytes=envelope.MAX_ENVELOPE_BYTES) for item in self.farewells]
            value["farewells"] = farewells
        if self.newcomers:
            value["newcomers"] = dict(self.newcomers)
        if self.beginners:
            value["beginners"] = canonical.loads(self.beginners, max_bytes=MAX_BEGINNERS_BYTES)
        return value

    def to_bytes(self) -> bytes:
        return canonical.dumps(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes, *, run: str, membership_key: Ed25519PublicKey) -> Agreement:
        """Read and check an agreement that came from outside. Raises: FormatError, RefusedError."""
        return cls.from_json(
            canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES), run=run, membership_key=membership_key
        )

    @classmethod
    def from_json(cls, value: Any, *, run: str, membership_key: Ed25519PublicKey) -> Agreement:
        """Check every signature and the majority.

        The weights stand in the agreement because they depend on the round before; they are checked never to exceed
        the claims, and against that round by whoever holds it (`protocol.succession`).

        Raises:
            FormatError: not an agreement.
            RefusedError: a signature, a certificate or the majority does not hold.
        """
        try:
            claims_raw, votes_raw, farewells_raw = value["claims"], value["votes"], value.get("farewells", [])
            certificates, weights_given = dict(value["certificates"]), dict(value["weights"])
            if not 1 <= len(claims_raw) <= MAX_GROUP or not 1 <= len(votes_raw) <= MAX_GROUP:
                raise FormatError(f"an agreement has 1 to {MAX_GROUP} claims and votes")
            farewells = tuple(canonical.dumps(item) for item in farewells_raw[:MAX_GROUP])
            newcomers = dict(value.get("newcomers", {}))
            beginners = canonical.dumps(value["beginners"]) if "beginners" in value else b""
            claim_bytes = [canonical.dumps(item) for item in claims_raw]
            vote_bytes = [canonical.dumps(item) for item in votes_raw]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError("not an agreement: expected claims, votes, certificates, weights") from error
        opened = [open_claim(item) for item in claim_bytes]
        votes = [open_vote(item) for item in vote_bytes]
        claims = dict(opened)
        if len(claims) != len(opened):
            raise VerificationError("a peer has two claims in one agreement")
        envelopes = tuple(Envelope.from_bytes(item) for item in claim_bytes)
        first_vote = votes[0][1]
        _check_claims(claims, weights_given, run, first_vote)
        for peer_id in claims:
            if not isinstance(certificates.get(peer_id), str):
                raise VerificationError(f"{peer_id} shows no membership certificate")
            member = certificate.check(certificates[peer_id], membership_key, run=run, accept_expired=True)
            if member.peer_id != peer_id:
                raise VerificationError(f"the certificate shown for {peer_id} belongs to {member.peer_id}")
        if beginners:
            open_beginners(beginners, membership_key, run=run)
        for item in farewells:
            check_farewell(open_farewell(item)[1], run, first_vote.round, first_vote.attempt)
        voters = _check_votes(votes, claims, group_digest(list(envelopes)), first_vote)
        if not has_majority(voters, weights_given):
            raise VerificationError(f"round {first_vote.round}: the votes do not make a majority of the claimed work")
        return cls(
            run=run,
            round=first_vote.round,
            base=first_vote.base,
            state=first_vote.state,
            weights=weights_given,
            claims=claims,
            claim_envelopes=envelopes,
            vote_envelopes=tuple(Envelope.from_bytes(item) for item in vote_bytes),
            certificates={peer_id: certificates[peer_id] for peer_id in claims},
            farewells=farewells,
            newcomers=newcomers,
            beginners=beginners,
        )

    @classmethod
    def stored(cls, data: bytes) -> Agreement:
        """Read an agreement that was checked before it was stored where nobody else writes: no signature is looked at."""
        value = canonical.loads(data, max_bytes=MAX_AGREEMENT_BYTES)
        claims = tuple(Envelope.from_bytes(canonical.dumps(item)) for item in value["claims"])
        votes = tuple(Envelope.from_bytes(canonical.dumps(item)) for item in value["votes"])
        vote = Vote.model_validate_json(votes[0].payload)
        return cls(
            run=vote.run,
            round=vote.round,
            base=vote.base,
            state=vote.state,
            weights=value["weights"],
            claims={item.keyid: Claim.model_validate_json(item.payload) for item in claims},
            claim_envelopes=claims,
            vote_envelopes=votes,
            certificates=value["certificates"],
            farewells=tuple(canonical.dumps(item) for item in value.get("farewells", ())),
            newcomers=value.get("newcomers", {}),
            beginners=canonical.dumps(value["beginners"]) if "beginners" in value else b"",
        )

    @property
    def named(self) -> Beginners | None:
        """Of round 1: whom the coordinator named to begin; its signature was checked when this agreement was read."""
        return trusted_beginners(self.beginners) if self.beginners else None

    def has_majority_of(self, previous: Mapping[str, int]) -> bool:
        """Whether its voters speak for the majority of those whose weights are given, by the farewells that it carries."""
        said = dict(open_farewell(item) for item in self.farewells)
        return has_majority(
            self.voters, acceptors_after(previous, {peer: item.successor for peer, item in said.items()})
        )

    @property
    def voters(self) -> set[str]:
        """Peer ids of those that signed for the state."""
        return {vote.keyid for vote in self.vote_envelopes}


def check_farewell(said: Farewell, run: str, round: int, attempt: int) -> None:
    """Check that a farewell counts in an attempt at a round. Raises: VerificationError."""
    if (said.run, said.round) != (run, round):
        raise VerificationError(f"a farewell for round {said.round} of a run, expected round {round}")
    if said.attempt > attempt:
        raise VerificationError(f"a farewell counts from attempt {said.attempt} on, not in {attempt}")


def _check_claims(claims: Mapping[str, Claim], given: Mapping[str, Any], run: str, vote: Vote) -> None:
    if set(given) != set(claims):
        raise VerificationError("the weights name other peers than the claims")
    for peer_id, claim in claims.items():
        weight = given[peer_id]
        if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= claim.worth:
            raise VerificationError(
                f"{peer_id}: a weight is between 1 and the {claim.worth} claimed tokens, got {weight!r}"
            )
        expected = {"run": run, "round": vote.round, "base": vote.base}
        for name, value in expected.items():
            if getattr(claim, name) != value:
                raise VerificationError(f"{peer_id}: the claim is for another {name}, expected {value}")


def _check_votes(votes: list[tuple[str, Vote]], claims: Mapping[str, Claim], group: str, first: Vote) -> set[str]:
    voters: set[str] = set()
    for peer_id, vote in votes:
        if peer_id not in claims:
            raise VerificationError(f"{peer_id} voted and is not in the group")
        if peer_id in voters:
            raise VerificationError(f"{peer_id} voted twice")
        if vote != first or vote.group != group or vote.run != next(iter(claims.values())).run:
            raise VerificationError(f"{peer_id} voted for another state, group or attempt")
        voters.add(peer_id)
    return voters


def _parse(model: type[Any], value: Any) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise FormatError(f"not a {model.__name__.lower()}: {first['loc']}: {first['msg']}") from error


__all__ = [
    "CLAIM_TYPE",
    "FAREWELL_TYPE",
    "PROMISE_TYPE",
    "VOTE_TYPE",
    "Agreement",
    "Cast",
    "Claim",
    "Farewell",
    "Late",
    "Promise",
    "RefusedError",
    "UpdateDigest",
    "Vote",
    "acceptors_after",
    "check_farewell",
    "group_digest",
    "has_majority",
    "open_claim",
    "open_farewell",
    "open_promise",
    "open_vote",
    "weights",
]
