"""DHT records: how a member says where it is, so that others find it while the coordinator is away.

    key      potluck/<run digest>/members
    subkey   the peer id
    value    a DSSE envelope, signed by that peer: {"run", "certificate", "addresses", "expires"}

Every node, the rendezvous too, stores only records that the peer named by the subkey has signed and that do not outlive
what it signed; who reads one checks the certificate as well.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils.serializer import MSGPackSerializer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol import envelope
from protocol.digests import Digest
from protocol.errors import FormatError, SignatureError
from protocol.keys import PeerIdentity

RECORD_TYPE = "application/vnd.potluck.member.v1+json"
RECORD_LIFETIME_S = 60.0
MAX_RECORD_BYTES = 8 * 1024
MAX_ADDRESSES = 16


class MemberRecord(BaseModel):
    """Where a member can be reached, and that it is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Digest
    certificate: str = Field(max_length=1024)
    addresses: tuple[str, ...] = Field(max_length=MAX_ADDRESSES)
    expires: float = Field(allow_inf_nan=False)


def members_key(run: str) -> str:
    return f"potluck/{run}/members"


def sign_record(identity: PeerIdentity, *, run: str, certificate: str, addresses: list[str]) -> tuple[bytes, float]:
    """A signed record and when it expires (Unix seconds)."""
    expires = time.time() + RECORD_LIFETIME_S
    record = MemberRecord(run=run, certificate=certificate, addresses=tuple(addresses[:MAX_ADDRESSES]), expires=expires)
    return envelope.sign(record.model_dump(mode="json"), RECORD_TYPE, identity).to_bytes(), expires


def open_record(data: bytes) -> tuple[str, MemberRecord]:
    """(peer id, record) of a signed record. Raises: FormatError, SignatureError."""
    peer_id, value = envelope.open_by_peer(data, RECORD_TYPE, MAX_RECORD_BYTES)
    try:
        return peer_id, MemberRecord.model_validate(value)
    except ValidationError as error:
        raise FormatError(f"not a member record: {error.errors()[0]['msg']}") from error


@dataclass
class RecordValidator(RecordValidatorBase):
    """Stores and believes nothing but members' own signed records."""

    def validate(self, record: DHTRecord) -> bool:
        if len(record.value) > MAX_RECORD_BYTES + 16:
            return False
        try:
            subkey = MSGPackSerializer.loads(record.subkey)
            value = MSGPackSerializer.loads(record.value)
            if not isinstance(subkey, str) or not isinstance(value, bytes):
                return False
            peer_id, member = open_record(value)
        except (FormatError, SignatureError, ValueError, TypeError):
            return False
        return peer_id == subkey and record.expiration_time <= member.expires + 1
