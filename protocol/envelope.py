"""DSSE envelopes (github.com/secure-systems-lab/dsse, v1.0.2) around canonical JSON.

Every signed statement in Potluck is one of these. The payload type is part of what is signed, so a signature over a
claim can never pass for one over a vote.

    {"payload":"<base64>","payloadType":"application/vnd.potluck.claim.v1+json","signatures":[{"keyid":"12D3…","sig":"<base64>"}]}

    signed bytes (PAE): "DSSEv1" SP len(type) SP type SP len(payload) SP payload

    >>> from protocol.keys import PeerIdentity
    >>> identity = PeerIdentity.generate()
    >>> envelope = sign({"n": 1}, "application/vnd.potluck.example.v1+json", identity)
    >>> open_by_peer(envelope.to_bytes(), "application/vnd.potluck.example.v1+json")[0] == identity.peer_id
    True
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from protocol import canonical
from protocol.errors import FormatError, SignatureError
from protocol.keys import fingerprint, verify_peer_signature, verify_root_signature

MAX_ENVELOPE_BYTES = 64 * 1024


class Signer(Protocol):
    """A `PeerIdentity` or a `RootKey`."""

    @property
    def keyid(self) -> str: ...

    def sign(self, message: bytes) -> bytes: ...


@dataclass(frozen=True)
class Envelope:
    """One signed statement; `payload` is canonical JSON."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes

    def to_bytes(self) -> bytes:
        return canonical.dumps(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [{"keyid": self.keyid, "sig": base64.b64encode(self.signature).decode()}],
            }
        )

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the payload: names the statement, whoever signed it and however often."""
        return canonical.sha256_hex(self.payload)

    @classmethod
    def from_bytes(cls, data: bytes, max_bytes: int = MAX_ENVELOPE_BYTES) -> Envelope:
        """Parse an envelope; nothing is believed yet.

        Raises:
            FormatError: not an envelope with exactly one signature.
        """
        value = canonical.loads(data, max_bytes=max_bytes)
        try:
            if set(value) != {"payload", "payloadType", "signatures"}:
                raise FormatError(f"an envelope has payload, payloadType and signatures, got {sorted(value)}")
            (entry,) = value["signatures"]
            if not isinstance(value["payloadType"], str) or not isinstance(entry["keyid"], str):
                raise FormatError("payloadType and keyid are strings")
            return cls(
                payload_type=value["payloadType"],
                payload=base64.b64decode(value["payload"], validate=True),
                keyid=entry["keyid"],
                signature=base64.b64decode(entry["sig"], validate=True),
            )
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise FormatError("not a DSSE envelope with one signature") from error


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(value: Any, payload_type: str, signer: Signer) -> Envelope:
    """Sign a JSON value."""
    payload = canonical.dumps(value)
    return Envelope(payload_type, payload, signer.keyid, signer.sign(pae(payload_type, payload)))


def open_by_peer(data: bytes, payload_type: str, max_bytes: int = MAX_ENVELOPE_BYTES) -> tuple[str, Any]:
    """Check an envelope that a peer signed.

    Returns:
        the peer id that signed, and the payload as JSON.

    Raises:
        FormatError: not an envelope, or of another type.
        SignatureError: the signature does not hold.
    """
    envelope = Envelope.from_bytes(data, max_bytes)
    return envelope.keyid, checked_payload(envelope, payload_type, max_bytes)


def checked_payload(envelope: Envelope, payload_type: str, max_bytes: int = MAX_ENVELOPE_BYTES) -> Any:
    """The payload as JSON of an envelope that a peer signed.

    Raises:
        FormatError: of another type, or not JSON.
        SignatureError: the signature does not hold.
    """
    _expect_type(envelope, payload_type)
    verify_peer_signature(envelope.keyid, envelope.signature, pae(envelope.payload_type, envelope.payload))
    return canonical.loads(envelope.payload, max_bytes=max_bytes)


def open_by_root(
    data: bytes, payload_type: str, public_key: ec.EllipticCurvePublicKey, max_bytes: int = MAX_ENVELOPE_BYTES
) -> Any:
    """Check an envelope that a run's root key signed; returns the payload as JSON.

    Raises:
        FormatError: not an envelope, or of another type.
        SignatureError: the signature does not hold, or names another key.
    """
    envelope = Envelope.from_bytes(data, max_bytes)
    _expect_type(envelope, payload_type)
    if envelope.keyid != fingerprint(public_key):
        raise SignatureError(f"signed by key {envelope.keyid[:16]}…, expected {fingerprint(public_key)[:16]}…")
    verify_root_signature(public_key, envelope.signature, pae(envelope.payload_type, envelope.payload))
    return canonical.loads(envelope.payload, max_bytes=max_bytes)


def _expect_type(envelope: Envelope, payload_type: str) -> None:
    if envelope.payload_type != payload_type:
        raise FormatError(f"expected a {payload_type}, got a {envelope.payload_type[:80]}")
