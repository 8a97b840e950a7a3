"""Whom a run's host has banned: one short list, signed, that reaches members from the coordinator and from each other.

    {"number":4711,"peers":["12D3KooW…"],"run":"<run digest>"}
                                                          a DSSE envelope by the key that signs membership certificates

A later list takes the place of an earlier one, whole; its number grows with each ban and each end of one. Members do
not hear, ask or average with whom it names, at once: it does not wait for certificates to end. What a banned member has
in the last agreement still counts there, for or against nobody: those who are left decide the next round if they hold
more than half of that one's weight, as when others vanish. Where they do not, the host's word is needed
(`protocol.epoch`), as then.

    >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    >>> from protocol.keys import PeerIdentity
    >>> key, cheat = Ed25519PrivateKey.generate(), PeerIdentity.generate().peer_id
    >>> made = Banned(run="ab" * 32, number=7, peers=(cheat,)).sign(PeerIdentity(key))
    >>> open_banned(made.data, key.public_key(), run="ab" * 32).value.number
    7
"""

from __future__ import annotations

from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field

from protocol.digests import Digest
from protocol.errors import SignatureError, VerificationError
from protocol.keys import peer_id_of
from protocol.ledger_entry import PeerId
from protocol.signed import Signed, Statement, open_signed

MAX_BANNED = 4096


class Banned(Statement):
    """Who is banned; signed by the run's membership key."""

    media_type: ClassVar[str] = "application/vnd.potluck.banned.v1+json"
    max_bytes: ClassVar[int] = 384 * 1024
    run: Digest
    number: int = Field(ge=1, le=2**53 - 1, strict=True)  # higher than that of every list before
    peers: tuple[PeerId, ...] = Field(max_length=MAX_BANNED)


def open_banned(data: bytes, key: Ed25519PublicKey, *, run: str) -> Signed[Banned]:
    """Check a signed list, given the run's membership key, from the run card.

    Raises:
        FormatError: not such a list.
        SignatureError: not signed by `key`.
        VerificationError: for another run.
    """
    found = open_signed(Banned, data)
    if found.by != peer_id_of(key):
        raise SignatureError("the list of banned members is not this run's coordinator's")
    if found.value.run != run:
        raise VerificationError("the list of banned members of another run")
    return found
