"""What stands in the ledger: canonical JSON, one leaf each, appended by the coordinator and never changed.

{"type":"run","run":"<run digest>","genesis":"<state digest>","root_key":"<fingerprint>"}          always leaf 0
{"type":"credit","run":…,"round":12,"peer_id":"12D3…","tokens":81920,"flops":…,"claim":"<payload digest>","state":…}
{"type":"checkpoint","run":…,"round":10,"payload":"<payload digest>","state":…,"parent":"<payload digest>"}
{"type":"round","run":…,"round":12,"base":…,"state":…,"agreement":"<SHA-256>"}     where credit is held (`credit_book`)
{"type":"claim","run":…,"round":12,"peer_id":"12D3…",…}            what credit says later, if nothing comes between
{"type":"lot","run":…,"round":12,"link":"<link 12>"}      draws among the claims of a round, where work is audited
{"type":"audit","run":…,"round":12,"peer_id":"12D3…","claim":…,"verdict":"pass","ppm":{"update":12},"limit":20000,…}
{"type":"ban","run":…,"round":12,"peer_id":"12D3…","reason":"sent noise"}, likewise "unban"

>>> entry = CheckpointEntry(run="a" * 64, round=0, payload="b" * 64, state="c" * 64)
>>> parse_entry(entry.to_bytes()) == entry
True
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from protocol import canonical
from protocol.audit import Verdict
from protocol.digests import Digest
from protocol.errors import FormatError

MAX_ENTRY_BYTES = 2048
PeerId = Annotated[str, Field(pattern=r"^[1-9A-HJ-NP-Za-km-z]{40,64}$")]
Round = Annotated[int, Field(ge=0, le=10**9)]
Counter = Annotated[int, Field(ge=0, le=2**53 - 1)]
MAX_REASON_CHARS = 200
Reason = Annotated[str, Field(max_length=MAX_REASON_CHARS)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_bytes(self) -> bytes:
        """The leaf's data."""
        return canonical.dumps(self.to_json())


class RunEntry(_Entry):
    """The first leaf: which run the ledger is of."""

    type: Literal["run"] = "run"
    run: Digest  # run digest
    genesis: Digest  # state digest of round 0
    root_key: Digest  # fingerprint


class _Work(_Entry):
    run: Digest
    round: Annotated[int, Field(ge=1, le=10**9)]
    peer_id: PeerId
    tokens: Counter  # the agreed weight
    flops: Counter
    claim: Digest  # payload digest of the claim's envelope
    state: Digest  # what the round agreed on


class CreditEntry(_Work):
    """Verified work of one member in one round."""

    type: Literal["credit"] = "credit"

    @classmethod
    def of(cls, claim: ClaimEntry) -> CreditEntry:
        """What a claim becomes when it is granted."""
        return cls(**claim.model_dump(exclude={"type"}))


class ClaimEntry(_Work):
    """Agreed work of one member in one round, whose credit is still on hold."""

    type: Literal["claim"] = "claim"


class RoundEntry(_Entry):
    """A committed round, before the claims that were agreed in it."""

    type: Literal["round"] = "round"
    run: Digest
    round: Annotated[int, Field(ge=1, le=10**9)]
    base: Digest  # the state that it started from
    state: Digest
    agreement: Digest  # SHA-256 of the agreement's bytes, as the coordinator keeps them


class LotEntry(_Entry):
    """It is drawn which claims of a round are replayed: those of which `protocol.audit.is_drawn` says so."""

    type: Literal["lot"] = "lot"
    run: Digest
    round: Annotated[int, Field(ge=1, le=10**9)]  # whose claims are drawn
    link: Digest  # of the host's chain


class AuditEntry(_Entry):
    """What came of a claim that was drawn."""

    type: Literal["audit"] = "audit"
    run: Digest
    round: Annotated[int, Field(ge=1, le=10**9)]
    peer_id: PeerId
    claim: Digest  # payload digest of the claim's envelope
    verdict: Verdict
    ppm: dict[Annotated[str, Field(pattern=r"^[a-z]{1,16}$")], Counter] = Field(default={}, max_length=4)  # distances
    limit: Counter = 0  # of them
    reason: Reason = ""


class _Ruling(_Entry):
    run: Digest
    round: Round  # the newest in the ledger when it was said
    peer_id: PeerId
    reason: Reason


class BanEntry(_Ruling):
    """The host has banned a member: what it has on hold is void, and it is a member no more."""

    type: Literal["ban"] = "ban"


class UnbanEntry(_Ruling):
    """A ban has ended; what was void stays void."""

    type: Literal["unban"] = "unban"


class CheckpointEntry(_Entry):
    """A published checkpoint."""

    type: Literal["checkpoint"] = "checkpoint"
    run: Digest
    round: Round
    payload: Digest  # payload digest
    state: Digest
    parent: Digest | None = None  # payload digest of the parent; None for genesis


Entry: TypeAlias = (
    RunEntry | CreditEntry | CheckpointEntry | RoundEntry | ClaimEntry | LotEntry | AuditEntry | BanEntry | UnbanEntry
)
KINDS = ("run", "credit", "checkpoint", "round", "claim", "lot", "audit", "ban", "unban")
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="type")])


def parse_entry(data: bytes) -> Entry:
    """Read a leaf's data.

    Raises:
        FormatError: not an entry, or not in canonical form.
    """
    entry = entry_from_json(canonical.loads(data, max_bytes=MAX_ENTRY_BYTES))
    if entry.to_bytes() != data:
        raise FormatError("the ledger entry is not in canonical form")
    return entry


def entry_from_json(value: Any) -> Entry:
    """Read an entry from parsed JSON. Raises: FormatError."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in KINDS:
        raise FormatError(f"a ledger entry's type is one of {', '.join(KINDS)}, got {str(kind)[:40]!r}")
    try:
        return _ENTRY.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise FormatError(f"not a ledger entry: {where}: {first['msg']}") from error
