"""What members sign in a round.

    claim       made before its author sees any update: "from this base I did this much work, and this is my update"
    vote        "after averaging this group's updates, my state has this digest"
    promise     "in this attempt, and what I have voted for before": shows a group which state its leader must complete
    farewell    "I leave; who I name speaks for my weight in this round"

Each is canonical JSON in a DSSE envelope (`protocol.envelope`), signed by the member's own key:

    {"base":"<digest>","batches":64,"first_batch":0,"flops":6144,"round":2,"run":"<digest>","segments":[],"tokens":1024,
     "update":{"chunk_values":262144,"codec":"int8","root":"<digest>","values":36}}                              a claim
    {"attempt":0,"base":"<digest>","group":"<digest>","round":2,"run":"<digest>","state":"<digest>"}             a vote
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from protocol.digests import Digest
from protocol.fields import Fields
from protocol.signed import Signed, Statement, open_signed

MAX_ATTEMPT = 2**31 - 1  # so many that no round uses them up
MAX_TOKENS = 2**40  # tokens one peer can claim for one round
LATE_DIVISOR = 2  # tokens of an update that missed its round count for so much less in the next one
MAX_WAIT = 48  # rounds that work may have waited for its author's turn
MAX_EPOCH = 10**9
EPOCH = Field(default=0, ge=0, le=MAX_EPOCH, strict=True)  # of the coordinator's word on who decides; 0: of none


class UpdateDigest(Fields):
    """Binds a claim to one encoded update."""

    root: Digest  # Merkle root over the encoded chunks
    values: int = Field(ge=1, le=2**40)  # fp32 values before encoding
    chunk_values: int = Field(ge=1, le=1 << 24)  # per chunk, the last may be shorter
    codec: str = Field(max_length=32)


class Late(Fields):
    """Work of rounds that its author was not in; part of the update of the round that it is in.

    Without `waited` it missed the round before, because it came too late or its author could not be reached. It was
    done from the base before, so it counts for less; work that is older still is dropped. It cannot count twice:
    whoever is in the agreement of the round before has no late work.

    With `waited` its author waited for its turn: in none of the last so many rounds was it, and in all of them the
    group was full (`protocol.last`). Then it counts in full. `base` is that of the first of these rounds, and the
    batches are those drawn for it. Who knows only the last agreement can check that where one round was waited; for
    more it binds the author, and whoever has the chain can look it up.
    """

    later: ClassVar[frozenset[str]] = frozenset({"waited"})
    base: Digest  # of the state that the work started from
    tokens: int = Field(ge=1, le=MAX_TOKENS)
    first_batch: int = Field(ge=0, le=2**40)
    batches: int = Field(ge=1, le=2**40)
    waited: int | None = Field(default=None, ge=1, le=MAX_WAIT, strict=True)  # rounds

    @property
    def worth(self) -> int:
        """Tokens that it may count for."""
        return self.tokens if self.waited else self.tokens // LATE_DIVISOR


class Jump(Fields):
    """Where rounds overlap: the work began before its base was agreed, and came to stand on it on the way."""

    after: int = Field(ge=1, le=2**40)  # sequences, the first of its round's, that were done before
    base: Digest  # that these were done from: the one of the work before
    update: UpdateDigest  # of the work before, which the base holds


class Start(Fields):
    """Where earlier agreed work of the same author had ended."""

    round: int = Field(ge=1, le=10**9)  # of that work's claim
    own: Digest  # the own state (`protocol.own_state`) that it led to
    jump: Jump | None = None  # None: the work began on the base that the claim names


class Trajectory(Fields):
    """Where a claim's work began and where it led, so that it can be replayed; in runs whose work is audited."""

    precision: Literal["fp32", "bf16", "fp16"]  # of the passes, the lowest
    start: Start | None = None  # what it began with; None: with nothing
    end: Digest  # the own state that it led to


class Claim(Statement):
    """One peer's statement about its update of one round."""

    media_type: ClassVar[str] = "application/vnd.potluck.claim.v1+json"
    later: ClassVar[frozenset[str]] = frozenset({"late", "trajectory"})
    run: Digest
    round: int = Field(ge=1, le=10**9)  # the round this work is for
    base: Digest  # of the agreed state that its round is counted from
    tokens: int = Field(ge=1, le=MAX_TOKENS)  # trained on, padding not counted
    flops: int = Field(ge=0, le=2**53 - 1)
    first_batch: int = Field(ge=0, le=2**40)  # sequences drawn from PRF(seed, round, peer id): from here …
    batches: int = Field(ge=1, le=2**40)  # … this many
    update: UpdateDigest
    segments: tuple[Digest, ...] = Field(default=(), max_length=1024)  # nothing: `trajectory` came in its place
    late: Late | None = None
    trajectory: Trajectory | None = None

    @property
    def worth(self) -> int:
        """Tokens that the claim may count for: those of its round, and those of rounds before, in full or in part."""
        return self.tokens + (self.late.worth if self.late else 0)

    @property
    def rounds(self) -> int:
        """How many rounds' work it is: its own, and those in which it waited for its turn."""
        return 1 + (self.late.waited or 0 if self.late else 0)


class Vote(Statement):
    """One member's statement about the state after the round.

    With `completes` it is given in an attempt that averages nothing: the state was averaged in an earlier one, and may
    be committed there. Then the acceptors decide alone, whatever the group's claims count for, and one that is not in
    the group may vote with it. Votes with and without it never count together.
    """

    media_type: ClassVar[str] = "application/vnd.potluck.vote.v1+json"
    later: ClassVar[frozenset[str]] = frozenset({"completes", "epoch"})
    run: Digest
    round: int = Field(ge=1, le=10**9)
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)  # which try at this round
    group: Digest  # of the group's claims, in order: `protocol.agreement.group_digest`
    base: Digest
    state: Digest  # after the outer step
    completes: bool = Field(default=False, strict=True)
    epoch: int = EPOCH


class Cast(Fields):
    """A vote that a member has given before, as it tells of it."""

    later: ClassVar[frozenset[str]] = frozenset({"completes"})
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)
    group: Digest
    state: Digest
    completes: bool = Field(default=False, strict=True)


class Promise(Statement):
    """A member joins an attempt: it will vote in none below it, and these are the votes that it has given."""

    media_type: ClassVar[str] = "application/vnd.potluck.promise.v1+json"
    later: ClassVar[frozenset[str]] = frozenset({"epoch"})
    run: Digest
    round: int = Field(ge=1, le=10**9)
    base: Digest
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)
    leader: str = Field(max_length=64)  # peer id
    cast: tuple[Cast, ...] = Field(default=(), max_length=64)
    epoch: int = EPOCH


class Farewell(Statement):
    """A member that leaves hands its weight as an acceptor of one round to another; see `protocol.majority`."""

    media_type: ClassVar[str] = "application/vnd.potluck.farewell.v1+json"
    later: ClassVar[frozenset[str]] = frozenset({"epoch"})
    run: Digest
    round: int = Field(ge=1, le=10**9)
    successor: str = Field(max_length=64)  # peer id
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)  # counts from this attempt on
    epoch: int = EPOCH


def open_claim(data: bytes) -> Signed[Claim]:
    """Check a claim's signature and form. Raises: FormatError, SignatureError."""
    return open_signed(Claim, data)


def open_vote(data: bytes) -> Signed[Vote]:
    """Check a vote's signature and form. Raises: FormatError, SignatureError."""
    return open_signed(Vote, data)


def open_promise(data: bytes) -> Signed[Promise]:
    """Check a promise's signature and form. Raises: FormatError, SignatureError."""
    return open_signed(Promise, data)


def open_farewell(data: bytes) -> Signed[Farewell]:
    """Check a farewell's signature and form. Raises: FormatError, SignatureError."""
    return open_signed(Farewell, data)
